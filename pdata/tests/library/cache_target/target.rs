//! The metadata of Linux's dm-cache target, version 2, kept with nothing but the library's public interface: the block of
//! the origin that each cache block holds, a hint of the policy for each, which are dirty, and which origin blocks are
//! discarded. The superblock is the only format of its own.

use crate::harness::blocks_on;
use pdata::array::Array;
use pdata::bitset::Bitset;
use pdata::block::BlockKind;
use pdata::btree::Plain;
use pdata::check::{Checker, Problem, Walk};
use pdata::space_map::SpaceMapRoot;
use pdata::{Result, TransactionManager};
use platform::block::{BlockDevice, Disk};
use platform::mem::MemDisk;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

const MAGIC: u64 = 0o6142003;
const CLEAN_SHUTDOWN: u32 = 1;
const VALID: u64 = 1;
const ORIGIN_SHIFT: u32 = 16;

static SUPERBLOCK: BlockKind = BlockKind {
    name: "cache superblock",
    salt: 9031977,
    number_at: 8,
    check: |block| match Superblock::try_ref_from_prefix(block) {
        Ok((superblock, _)) if superblock.magic.get() == MAGIC && superblock.version.get() == 2 => Ok(()),
        _ => Err("magic or version is wrong"),
    },
};

const MAPPINGS: Array<Plain<U64>> = Array::plain();
const HINTS: Array<Plain<U32>> = Array::plain();

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Superblock {
    csum: U32,
    flags: U32,
    blocknr: U64,
    uuid: [u8; 16],
    magic: U64,
    version: U32,
    policy_name: [u8; 16],
    policy_hint_size: U32,
    metadata_space_map: SpaceMapRoot,
    space_map_padding: [[u8; 32]; 3],
    mapping_root: U64,
    hint_root: U64,
    discard_root: U64,
    discard_block_size: U64,
    discard_nr_blocks: U64,
    data_block_size: U32,
    metadata_block_size: U32,
    cache_blocks: U32,
    feature_flags: [U32; 3],
    statistics: [U32; 4],
    policy_version: [U32; 3],
    dirty_root: U64,
}

/// One opened cache.
pub struct Cache {
    tm: TransactionManager,
    superblock: Superblock,
    dirty: Bitset,
    discards: Bitset,
}

impl Cache {
    /// An empty cache; with `hints` the policy keeps some.
    pub async fn format(disk: &MemDisk, hints: bool, cache_blocks_of_memory: usize) -> Result<Cache> {
        let nr_blocks = disk.limits().size_sectors / 8;
        let tm =
            TransactionManager::create(blocks_on(Disk::new(disk.clone()), cache_blocks_of_memory), nr_blocks).await?;
        let mut superblock = Superblock::read_from_bytes(&[0; size_of::<Superblock>()]).unwrap();
        superblock.magic = MAGIC.into();
        superblock.version = 2.into();
        superblock.data_block_size = 128.into();
        superblock.metadata_block_size = 8.into();
        superblock.discard_block_size = 128.into();
        superblock.mapping_root = MAPPINGS.create(&tm).await?.into();
        if hints {
            superblock.policy_name[..3].copy_from_slice(b"smq");
            superblock.policy_version[0] = 2.into();
            superblock.policy_hint_size = 4.into();
            superblock.hint_root = HINTS.create(&tm).await?.into();
        }
        let (dirty, discards) = (Bitset::create(&tm).await?, Bitset::create(&tm).await?);
        let mut cache = Cache { tm, superblock, dirty, discards };
        cache.commit(true).await?;
        Ok(cache)
    }

    /// The cache as of its last commit.
    pub async fn open(disk: &MemDisk, cache_blocks_of_memory: usize) -> Result<Cache> {
        let blocks = blocks_on(Disk::new(disk.clone()), cache_blocks_of_memory);
        let superblock = Superblock::read_from_prefix(&*blocks.read(0, &SUPERBLOCK).await?.bytes()).unwrap().0;
        let tm = TransactionManager::open(blocks, &superblock.metadata_space_map).await?;
        let dirty = Bitset::open(superblock.dirty_root.get(), superblock.cache_blocks.get().into());
        let discards = Bitset::open(superblock.discard_root.get(), superblock.discard_nr_blocks.get());
        Ok(Cache { tm, superblock, dirty, discards })
    }

    pub fn has_hints(&self) -> bool {
        self.superblock.hint_root.get() != 0
    }

    pub fn len(&self) -> u64 {
        self.superblock.cache_blocks.get().into()
    }

    /// Changes the number of cache blocks.
    pub async fn resize(&mut self, to: u64) -> Result<()> {
        let (tm, from, superblock) = (&self.tm, self.len(), &mut self.superblock);
        superblock.mapping_root = MAPPINGS.resize(tm, superblock.mapping_root.get(), from, to, U64::ZERO).await?.into();
        if superblock.hint_root.get() != 0 {
            superblock.hint_root = HINTS.resize(tm, superblock.hint_root.get(), from, to, U32::ZERO).await?.into();
        }
        self.dirty.resize(tm, to, false).await?;
        superblock.cache_blocks = (to as u32).into();
        Ok(())
    }

    /// Changes the number of origin blocks.
    pub async fn resize_discards(&mut self, to: u64) -> Result<()> {
        self.discards.resize(&self.tm, to, false).await?;
        self.superblock.discard_nr_blocks = to.into();
        Ok(())
    }

    /// Makes a cache block hold an origin block, or nothing.
    pub async fn map(&mut self, cache_block: u64, origin_block: Option<u64>) -> Result<()> {
        let value = origin_block.map_or(0, |block| block << ORIGIN_SHIFT | VALID);
        let root = self.superblock.mapping_root.get();
        self.superblock.mapping_root = MAPPINGS.set(&self.tm, root, cache_block, value.into()).await?.0.into();
        self.tm.settle_some().await
    }

    pub async fn set_dirty(&mut self, cache_block: u64, dirty: bool) -> Result<()> {
        self.dirty.set(&self.tm, cache_block, dirty).await
    }

    pub async fn set_hint(&mut self, cache_block: u64, hint: u32) -> Result<()> {
        let root = self.superblock.hint_root.get();
        self.superblock.hint_root = HINTS.set(&self.tm, root, cache_block, hint.into()).await?.0.into();
        self.tm.settle_some().await
    }

    pub async fn set_discard(&mut self, origin_block: u64, discarded: bool) -> Result<()> {
        self.discards.set(&self.tm, origin_block, discarded).await
    }

    /// Everything: origin block and dirty or not, and hint, of each cache block; discarded or not, of each origin block.
    pub async fn read_all(&self) -> Result<(Vec<(Option<u64>, bool)>, Vec<u32>, Vec<bool>)> {
        let (mut mappings, mut hints, mut discards) = (Vec::new(), Vec::new(), Vec::new());
        let blocks = self.tm.blocks();
        let see = |_, value: U64| {
            let origin = (value.get() & VALID != 0).then_some(value.get() >> ORIGIN_SHIFT);
            mappings.push((origin, false));
        };
        MAPPINGS.scan(blocks, self.superblock.mapping_root.get(), 8, see).await?;
        if self.has_hints() {
            HINTS.scan(blocks, self.superblock.hint_root.get(), 8, |_, hint| hints.push(hint.get())).await?;
        }
        self.dirty.scan(blocks, 8, |bit, dirty| mappings[bit as usize].1 = dirty).await?;
        self.discards.scan(blocks, 8, |_, discarded| discards.push(discarded)).await?;
        Ok((mappings, hints, discards))
    }

    /// Makes the transaction durable: everything but the superblock, then that alone.
    pub async fn commit(&mut self, clean_shutdown: bool) -> Result<()> {
        let (tm, superblock) = (&self.tm, &mut self.superblock);
        superblock.flags = if clean_shutdown { CLEAN_SHUTDOWN } else { 0 }.into();
        superblock.dirty_root = self.dirty.flush(tm).await?.into();
        superblock.discard_root = self.discards.flush(tm).await?.into();
        superblock.metadata_space_map = tm.close().await?;
        tm.blocks().write_out().await?;
        tm.blocks().flush().await?;
        let mut block = [0; 4096];
        superblock.write_to_prefix(&mut block).unwrap();
        tm.blocks().write_raw(0, &SUPERBLOCK, &block).await?;
        tm.blocks().flush().await?;
        tm.committed();
        Ok(())
    }

    /// What the library's check finds wrong with the committed state.
    pub async fn problems(disk: &MemDisk) -> Vec<Problem> {
        let committed = Cache::open(disk, 64).await.unwrap().superblock;
        let map = committed.metadata_space_map;
        let mut checker = Checker::new(blocks_on(Disk::new(disk.clone()), 4096), map.nr_blocks.get());
        let (mut walk, len) = (Walk::default(), u64::from(committed.cache_blocks.get()));
        checker.metadata.add(0);
        walk.array(&mut checker, committed.mapping_root.get(), len, |_, _, _: U64| ()).await;
        if committed.hint_root.get() != 0 {
            walk.array(&mut checker, committed.hint_root.get(), len, |_, _, _: U32| ()).await;
        }
        walk.array(&mut checker, committed.dirty_root.get(), len.div_ceil(64), |_, _, _: U64| ()).await;
        let words = committed.discard_nr_blocks.get().div_ceil(64);
        walk.array(&mut checker, committed.discard_root.get(), words, |_, _, _: U64| ()).await;
        checker.metadata_map(&map).await;
        checker.compare_metadata_map(&map).await;
        checker.into_problems().0
    }
}
