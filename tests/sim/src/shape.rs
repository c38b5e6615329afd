//! What makes one run unlike another.

use crate::world::World;

/// What goes wrong in a run besides the power.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Requests of both disks fail, sectors go bad, some requests are slow or hang for half a minute.
    pub errors: bool,
    /// Bits of what is read from the metadata disk are flipped, for once or for good.
    pub flips: bool,
    /// Connections are reset or go silent.
    pub network: bool,
    /// Disks become full.
    pub full: bool,
    /// Some requests of both disks are slow.
    pub slow: bool,
    /// A disk says that it did what it did not. Nobody can keep a promise then.
    pub lie: Option<Lie>,
}

/// How a disk lies, and which.
#[derive(Clone, Copy, Debug)]
pub struct Lie {
    pub kind: LieKind,
    pub meta: bool,
    pub data: bool,
}

/// What of it does nothing, or something else, with success.
#[derive(Clone, Copy, Debug)]
pub enum LieKind {
    /// Flushes do nothing.
    LostFlushes,
    /// Writes do nothing.
    LostWrites,
    /// Writes end up elsewhere.
    MisdirectedWrites,
}

impl Faults {
    /// A disk does not do what it should.
    pub fn disks(&self) -> bool {
        self.errors || self.flips || self.full || self.lie.is_some()
    }
}

/// The pool and its clients.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub metadata_blocks: u64,
    pub data_blocks: u64,
    pub cache_blocks: usize,
    /// Blocks of a new volume, at most.
    pub volume_blocks: u64,
    /// Volumes at a time.
    pub volumes: usize,
    /// Blocks of the first volume that are written before anything else.
    pub filled_blocks: u64,
    /// Clients that read and write, each with one session.
    pub clients: u64,
    /// Requests of one life of the appliance.
    pub requests: u64,
    /// Lives: each but the last ends with a power cut.
    pub lives: u64,
    /// Space may run out, so that operations fail.
    pub tight: bool,
    /// The pool is made elsewhere ([`crate::premade`]).
    pub premade: bool,
    /// Clients copy from volume to volume.
    pub copies: bool,
    /// Initiators fight over one volume ([`crate::contest`]).
    pub contest: bool,
    /// A second appliance takes the pool from the first ([`crate::duel`]).
    pub rivals: bool,
    /// What else goes wrong.
    pub faults: Faults,
    /// Now and then a flush fails, and a transaction is lost.
    pub aborts: bool,
}

const NO_FAULTS: Faults = Faults { errors: false, flips: false, network: false, full: false, slow: false, lie: None };

/// What most have in common.
const USUAL: Shape = Shape {
    metadata_blocks: 300,
    data_blocks: 300,
    cache_blocks: 32,
    volume_blocks: 20,
    volumes: 8,
    filled_blocks: 0,
    clients: 4,
    requests: 450,
    lives: 3,
    tight: false,
    premade: false,
    copies: false,
    contest: false,
    rivals: false,
    faults: NO_FAULTS,
    aborts: false,
};

/// Pools that differ in kind.
const SHAPES: [Shape; 10] = [
    // Transactions are lost.
    Shape { metadata_blocks: 180, volume_blocks: 16, cache_blocks: 16, aborts: true, ..USUAL },
    // Hardly any data.
    Shape { metadata_blocks: 112, data_blocks: 32, volume_blocks: 12, tight: true, ..USUAL },
    // Hardly any metadata: deletes and releases take several steps.
    Shape {
        metadata_blocks: 130,
        data_blocks: 900,
        cache_blocks: 24,
        volume_blocks: 340,
        volumes: 16,
        filled_blocks: 290,
        tight: true,
        ..USUAL
    },
    // Trees of several leaves.
    Shape { metadata_blocks: 400, data_blocks: 1500, volume_blocks: 330, volumes: 8, filled_blocks: 246, ..USUAL },
    // A delete that takes several transactions.
    Shape {
        metadata_blocks: 1700,
        data_blocks: 133_000,
        volumes: 3,
        clients: 1,
        requests: 220,
        premade: true,
        lives: 2,
        ..USUAL
    },
    // Many snapshots of small volumes.
    Shape { metadata_blocks: 160, data_blocks: 200, volume_blocks: 12, volumes: 14, ..USUAL },
    // Two hosts: the volumes are full.
    Shape { volume_blocks: 12, filled_blocks: 12, rivals: true, lives: 1, ..USUAL },
    // Several initiators on one volume.
    Shape { volume_blocks: 6, volumes: 6, contest: true, requests: 1200, ..USUAL },
    // Streams of small volumes.
    Shape { data_blocks: 400, volume_blocks: 8, volumes: 12, clients: 1, requests: 500, ..USUAL },
    // Copies between small volumes; with less metadata they would share no blocks.
    Shape { metadata_blocks: 640, volume_blocks: 8, clients: 2, copies: true, ..USUAL },
];

impl Lie {
    fn of(world: &World) -> Lie {
        let kind = [LieKind::LostFlushes, LieKind::LostWrites, LieKind::MisdirectedWrites][world.below(3) as usize];
        let which = world.below(3);
        Lie { kind, meta: which != 0, data: which != 1 }
    }
}

/// Indices into them: what is cheap, or has much to find, more often.
const OFTEN: [usize; 23] = [0, 7, 1, 8, 5, 4, 7, 9, 3, 1, 0, 7, 8, 5, 9, 2, 6, 1, 7, 9, 3, 4, 8];

impl Shape {
    /// The shape of the run of a seed. Seeds that follow one another have all kinds in turn.
    pub fn of(world: &World, seed: u64) -> Shape {
        let shape = SHAPES[OFTEN[(seed % OFTEN.len() as u64) as usize]];
        if shape.premade || shape.rivals {
            return shape;
        }
        if shape.contest {
            let faults = Faults { network: !world.once_in(4), slow: !world.once_in(4), ..NO_FAULTS };
            return Shape { faults, ..shape };
        }
        let vary = |n: u64| n - n / 8 + world.below(n / 4 + 1);
        let faults = Faults {
            errors: world.once_in(8),
            flips: world.once_in(12),
            // Where connections break nobody would know when a copy ends.
            network: world.once_in(4) && !shape.copies,
            full: world.once_in(12),
            // Where blocks are soon used again it matters most.
            slow: shape.tight || world.once_in(2),
            lie: None,
        };
        let lie = world.once_in(8).then(|| Lie::of(world));
        Shape {
            faults: if lie.is_some() { Faults { lie, ..NO_FAULTS } } else { faults },
            metadata_blocks: vary(shape.metadata_blocks),
            data_blocks: vary(shape.data_blocks),
            volume_blocks: vary(shape.volume_blocks),
            aborts: shape.aborts || if shape.clients == 1 { !world.once_in(4) } else { world.once_in(4) },
            ..shape
        }
    }
}
