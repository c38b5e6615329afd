//! What makes one run unlike another.

use crate::world::World;

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
    /// Clients that read and write, each with one session.
    pub clients: u64,
    /// Requests of one life of the appliance.
    pub requests: u64,
    /// Lives: each but the last ends with a power cut.
    pub lives: u64,
    /// Writes in long runs, a sector a block, are so many times as likely.
    pub runs: u64,
    /// Now and then a flush fails, and a transaction is lost.
    pub aborts: bool,
}

/// Pools that differ in kind.
const SHAPES: [Shape; 4] = [
    // Hardly any data, room for metadata.
    Shape {
        metadata_blocks: 200,
        data_blocks: 48,
        cache_blocks: 16,
        volume_blocks: 20,
        volumes: 6,
        clients: 3,
        requests: 220,
        lives: 3,
        runs: 1,
        aborts: true,
    },
    // Hardly any metadata: deletes and releases take several steps.
    Shape {
        metadata_blocks: 130,
        data_blocks: 700,
        cache_blocks: 24,
        volume_blocks: 330,
        volumes: 5,
        clients: 3,
        requests: 300,
        lives: 3,
        runs: 10,
        aborts: false,
    },
    // Trees of several leaves.
    Shape {
        metadata_blocks: 400,
        data_blocks: 1200,
        cache_blocks: 40,
        volume_blocks: 600,
        volumes: 5,
        clients: 4,
        requests: 500,
        lives: 2,
        runs: 20,
        aborts: false,
    },
    // Many snapshots of small volumes.
    Shape {
        metadata_blocks: 300,
        data_blocks: 160,
        cache_blocks: 32,
        volume_blocks: 12,
        volumes: 12,
        clients: 4,
        requests: 260,
        lives: 3,
        runs: 1,
        aborts: true,
    },
];

impl Shape {
    /// The shape of a run in this world.
    pub fn of(world: &World) -> Shape {
        let shape = SHAPES[world.below(SHAPES.len() as u64) as usize];
        let vary = |n: u64| n - n / 8 + world.below(n / 4 + 1);
        Shape {
            metadata_blocks: vary(shape.metadata_blocks),
            data_blocks: vary(shape.data_blocks),
            volume_blocks: vary(shape.volume_blocks),
            ..shape
        }
    }
}
