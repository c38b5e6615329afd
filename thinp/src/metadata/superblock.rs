//! Block 0: where everything else is (reference 1).

use super::{MetadataError, Result};
use pdata::block::{Block, BlockKind};
use pdata::space_map::SpaceMapRoot;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the superblock is.
pub const SUPERBLOCK: u64 = 0;

const MAGIC: u64 = 27022010;
const VERSION: u32 = 2;
const METADATA_BLOCK_SECTORS: u32 = 8;
const NEEDS_CHECK: u32 = 1;

/// The superblock, and the copy of it that a metadata snapshot is.
pub(super) static KIND: BlockKind =
    BlockKind { name: "thin superblock", salt: 160774, number_at: 8, check: |_| Ok(()) };

/// The fields, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Superblock {
    csum: U32,
    flags: U32,
    blocknr: U64,
    uuid: [u8; 16],
    magic: U64,
    version: U32,
    pub time: U32,
    pub transaction_id: U64,
    pub held_root: U64,
    pub data_space_map: PaddedRoot,
    pub metadata_space_map: PaddedRoot,
    pub mapping_root: U64,
    pub details_root: U64,
    pub data_block_sectors: U32,
    metadata_block_sectors: U32,
    metadata_nr_blocks: U64,
    compat_flags: U32,
    compat_ro_flags: U32,
    incompat_flags: U32,
}

/// A space map root in its place of 128 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct PaddedRoot {
    pub root: SpaceMapRoot,
    padding: [u8; 96],
}

impl PaddedRoot {
    pub fn new(root: SpaceMapRoot) -> PaddedRoot {
        PaddedRoot { root, padding: [0; 96] }
    }
}

const _: () = assert!(size_of::<Superblock>() == 364);

impl Superblock {
    /// The superblock of a pool that is being made.
    pub fn format(data_block_sectors: u32, metadata_blocks: u64) -> Superblock {
        let none = PaddedRoot::new(SpaceMapRoot::default());
        Superblock {
            csum: 0.into(),
            flags: 0.into(),
            blocknr: SUPERBLOCK.into(),
            uuid: [0; 16],
            magic: MAGIC.into(),
            version: VERSION.into(),
            time: 0.into(),
            transaction_id: 0.into(),
            held_root: 0.into(),
            data_space_map: none,
            metadata_space_map: none,
            mapping_root: 0.into(),
            details_root: 0.into(),
            data_block_sectors: data_block_sectors.into(),
            metadata_block_sectors: METADATA_BLOCK_SECTORS.into(),
            metadata_nr_blocks: metadata_blocks.into(),
            compat_flags: 0.into(),
            compat_ro_flags: 0.into(),
            incompat_flags: 0.into(),
        }
    }

    /// Checks block 0 as it was read, in the order of reference 1.4. `read_only`: the pool will not be changed.
    pub fn open(block: &Block, read_only: bool) -> Result<Superblock> {
        if block.iter().all(|byte| *byte == 0) {
            return Err(MetadataError::Blank);
        }
        let superblock = parse(block)?;
        if superblock.blocknr.get() != SUPERBLOCK {
            return Err(MetadataError::NotSuperblock { found: superblock.blocknr.get() });
        }
        superblock.check_magic()?;
        if KIND.checksum(block) != BlockKind::stored_checksum(block) {
            return Err(MetadataError::BadSuperblockChecksum);
        }
        let unknown = superblock.incompat_flags.get() | if read_only { 0 } else { superblock.compat_ro_flags.get() };
        if unknown != 0 {
            return Err(MetadataError::UnknownFeatures { flags: unknown });
        }
        check_data_block_sectors(superblock.data_block_sectors.get())?;
        Ok(superblock)
    }

    /// The copy in a metadata snapshot, whose block was read and checked as [`KIND`].
    pub fn of_snapshot(block: &Block) -> Result<Superblock> {
        let superblock = parse(block)?;
        superblock.check_magic()?;
        Ok(superblock)
    }

    fn check_magic(&self) -> Result<()> {
        let found = self.magic.get();
        if found == MAGIC { Ok(()) } else { Err(MetadataError::BadMagic { found }) }
    }

    /// The block to write.
    pub fn to_block(self) -> Block {
        let mut block = [0; pdata::block::BLOCK_BYTES];
        for (to, from) in block.iter_mut().zip(self.as_bytes()) {
            *to = *from;
        }
        block
    }

    /// The copy that a metadata snapshot is (reference 6.7): without space maps, holding nothing itself.
    pub fn to_snapshot(self) -> Superblock {
        let none = PaddedRoot::new(SpaceMapRoot::default());
        Superblock { held_root: 0.into(), data_space_map: none, metadata_space_map: none, ..self }
    }

    /// Fields that are not as every tool writes them although none looks at them: name, value, and what it should be.
    pub fn odd_fields(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let map_blocks = self.metadata_space_map.root.nr_blocks.get();
        // Never updated when the metadata disk grows (reference 9.1, trap 12).
        let size = self.metadata_nr_blocks.get();
        let uuid = u64::from(self.uuid.iter().any(|byte| *byte != 0));
        let fields = [
            ("flags", u64::from(self.flags.get()), u64::from(self.flags.get() & NEEDS_CHECK)),
            ("a uuid", uuid, 0),
            ("version", self.version.get().into(), VERSION.into()),
            ("metadata_block_size", self.metadata_block_sectors.get().into(), METADATA_BLOCK_SECTORS.into()),
            ("metadata_nr_blocks", size, size.min(map_blocks)),
            ("compat_flags", self.compat_flags.get().into(), 0),
            ("compat_ro_flags", self.compat_ro_flags.get().into(), 0),
        ];
        fields.into_iter().filter(|(_, found, expected)| found != expected)
    }

    /// The same of the copy in a metadata snapshot of the pool `live` (reference 6.7).
    pub fn odd_snapshot_fields(&self, live: &Superblock) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let root = |map: &PaddedRoot| u64::from(map.root != SpaceMapRoot::default());
        let fields = [
            ("a data space map", root(&self.data_space_map), 0),
            ("a metadata space map", root(&self.metadata_space_map), 0),
            ("held_root", self.held_root.get(), 0),
            ("data_block_size", self.data_block_sectors.get().into(), live.data_block_sectors.get().into()),
            ("time", self.time.get().into(), self.time.get().min(live.time.get()).into()),
        ];
        fields.into_iter().filter(|(_, found, expected)| found != expected)
    }

    pub fn version(&self) -> u32 {
        self.version.get()
    }

    pub fn needs_check(&self) -> bool {
        self.flags.get() & NEEDS_CHECK != 0
    }

    pub fn set_needs_check(&mut self, needed: bool) {
        let others = self.flags.get() & !NEEDS_CHECK;
        self.flags.set(if needed { others | NEEDS_CHECK } else { others });
    }

    pub fn held_root(&self) -> Option<u64> {
        Some(self.held_root.get()).filter(|root| *root != 0)
    }
}

fn parse(block: &Block) -> Result<Superblock> {
    let parsed = Superblock::read_from_prefix(block);
    parsed.map(|(superblock, _)| superblock).map_err(|_| MetadataError::BadSuperblock { what: "it is too short" })
}

/// Sectors of a data block: 64 KiB to 1 GiB, a multiple of 64 KiB (reference 1.5).
pub(super) fn check_data_block_sectors(sectors: u32) -> Result<()> {
    if (128..=2_097_152).contains(&sectors) && sectors.is_multiple_of(128) {
        return Ok(());
    }
    Err(MetadataError::BadSuperblock { what: "the data block size is not 64 KiB to 1 GiB in steps of 64 KiB" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference 2.5: a pool that Linux formatted.
    #[test]
    fn the_checksum_of_the_golden_superblock() {
        let root = |nr_blocks, nr_allocated, bitmap_root, ref_count_root| {
            let [nr_blocks, nr_allocated, bitmap_root, ref_count_root] =
                [nr_blocks, nr_allocated, bitmap_root, ref_count_root].map(U64::new);
            PaddedRoot::new(SpaceMapRoot { nr_blocks, nr_allocated, bitmap_root, ref_count_root })
        };
        let superblock = Superblock {
            data_space_map: root(1024, 0, 10, 5),
            metadata_space_map: root(2048, 9, 11, 2),
            mapping_root: 6.into(),
            details_root: 7.into(),
            ..Superblock::format(128, 2048)
        };
        let mut block = superblock.to_block();
        KIND.seal(&mut block, SUPERBLOCK);
        assert_eq!(BlockKind::stored_checksum(&block), 0xC05E9FFF);
        let opened = Superblock::open(&block, false).unwrap();
        assert_eq!((opened.mapping_root, opened.data_space_map), (superblock.mapping_root, superblock.data_space_map));
    }

    #[test]
    fn feature_flags_and_block_sizes() {
        let open = |change: fn(&mut Superblock), read_only| {
            let mut superblock = Superblock::format(128, 2048);
            change(&mut superblock);
            let mut block = superblock.to_block();
            KIND.seal(&mut block, SUPERBLOCK);
            Superblock::open(&block, read_only).map(|_| ())
        };
        assert_eq!(open(|s| s.incompat_flags.set(4), true), Err(MetadataError::UnknownFeatures { flags: 4 }));
        assert_eq!(open(|s| s.compat_ro_flags.set(2), false), Err(MetadataError::UnknownFeatures { flags: 2 }));
        assert_eq!(open(|s| s.compat_ro_flags.set(2), true), Ok(()));
        let both = open(|s| (s.incompat_flags.set(4), s.compat_ro_flags.set(4)).1, false);
        assert_eq!(both, Err(MetadataError::UnknownFeatures { flags: 4 }));
        // Linux opens these, too.
        assert_eq!(open(|s| (s.compat_flags.set(1), s.version.set(7), s.flags.set(0xF0)).2, false), Ok(()));
        assert!(open(|s| s.data_block_sectors.set(129), false).is_err());
        assert!(open(|s| s.data_block_sectors.set(0), false).is_err());
    }

    #[test]
    fn the_copy_in_a_metadata_snapshot_holds_no_other() {
        let superblock = Superblock { held_root: 9.into(), ..Superblock::format(128, 2048) };
        assert_eq!((superblock.held_root(), superblock.to_snapshot().held_root()), (Some(9), None));
    }
}
