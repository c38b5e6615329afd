//! Space accounting: what volumes have for themselves, and what deleting some of them would free.
//!
//! First the internal nodes of all trees are walked, and each leaf gets its *owner*: the one device, or set of devices, that
//! alone leads to it, or nobody. Then the leaves are read in the order in which they lie on disk, and their data blocks
//! noted in two bits each. Memory is needed for those, in as many passes over ranges of data blocks as the budget asks for,
//! and four bytes for each metadata block in use.

use super::trees::Packed;
use super::view::{Committed, View};
use super::{MetadataError, Result};
use crate::control::DeviceId;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use pdata::block_manager::{Batch, BlockManager};
use pdata::btree::{DEPTH_MAX, NODE, Node, Place};
use platform::Runtime;
use platform::block::Disk;
use platform::task::yield_now;

/// Leaves that are read together.
const LEAVES_AT_ONCE: usize = 256;

/// Data blocks of a pass, at least.
const WINDOW_BLOCKS_MIN: u64 = 1 << 12;

/// What a device maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSpace {
    /// Its id.
    pub device: DeviceId,
    /// Data blocks that it maps.
    pub mapped_blocks: u64,
    /// Of those, what no other device maps.
    pub exclusive_blocks: u64,
}

impl DeviceSpace {
    /// What other devices map, too.
    pub fn shared_blocks(&self) -> u64 {
        self.mapped_blocks.saturating_sub(self.exclusive_blocks)
    }
}

/// What each device on `disk` maps, as `thin_ls` tells it: metadata snapshots do not count. `memory_bytes` is about what
/// the bits of data blocks may take.
pub async fn of_devices(runtime: &Runtime, disk: &Disk, memory_bytes: usize) -> Result<Vec<DeviceSpace>> {
    devices_space(&Committed::on_disk(runtime, disk).await?, memory_bytes).await
}

/// Data blocks that deleting these devices, all of them, would free: what neither another device nor the metadata snapshot
/// maps.
pub async fn freed_by(runtime: &Runtime, disk: &Disk, devices: &[DeviceId], memory_bytes: usize) -> Result<u64> {
    freed(&Committed::on_disk(runtime, disk).await?, devices, memory_bytes).await
}

impl View {
    /// As [`of_devices`], at the moment of this view.
    pub async fn space(&self, memory_bytes: usize) -> Result<Vec<DeviceSpace>> {
        devices_space(&self.committed, memory_bytes).await
    }

    /// As [`freed_by`], at the moment of this view.
    pub async fn freed_by(&self, devices: &[DeviceId], memory_bytes: usize) -> Result<u64> {
        freed(&self.committed, devices, memory_bytes).await
    }
}

async fn devices_space(committed: &Committed, memory_bytes: usize) -> Result<Vec<DeviceSpace>> {
    let (mut owners, mut space) = (Owners::new(committed), Vec::new());
    let mut devices = committed.devices().await?;
    while let Some((device, root, details)) = devices.next().await? {
        owners.walk(root, FIRST.saturating_add(space.len() as u32)).await?;
        space.push(DeviceSpace { device, mapped_blocks: details.mapped_blocks, exclusive_blocks: 0 });
    }
    for window in windows(owners.data_blocks, memory_bytes) {
        let counts = exclusive(&owners, space.len(), window).await?;
        for (space, count) in space.iter_mut().zip(counts) {
            space.exclusive_blocks = space.exclusive_blocks.saturating_add(count);
        }
    }
    Ok(space)
}

/// Of the data blocks in a window, how many each of the owners has alone.
async fn exclusive(owners: &Owners<'_>, devices: usize, window: Range<u64>) -> Result<Vec<u64>> {
    let (mut seen, mut shared) = (Bits::new(&window), Bits::new(&window));
    let (mut exclusive, mut miscounted) = (vec![0_u64; devices], false);
    let note = |owner, block| {
        let again = seen.set(block);
        if owner == NOBODY || again {
            shared.set(block);
            miscounted |= again;
        }
        count(&mut exclusive, owner, 1);
    };
    owners.each_block(&window, |_| true, note).await?;
    if miscounted {
        // Some blocks were counted for an owner, and others have them, too. Only now it is known which.
        exclusive.fill(0);
        let note = |owner, block| count(&mut exclusive, owner, u64::from(!shared.get(block)));
        owners.each_block(&window, |owner| owner != NOBODY, note).await?;
    }
    Ok(exclusive)
}

fn count(counts: &mut [u64], owner: u32, by: u64) {
    let place = owner.checked_sub(FIRST).and_then(|index| counts.get_mut(index as usize));
    place.into_iter().for_each(|count| *count = count.saturating_add(by));
}

async fn freed(committed: &Committed, chosen: &[DeviceId], memory_bytes: usize) -> Result<u64> {
    let mut missing: BTreeSet<DeviceId> = chosen.iter().copied().collect();
    let (mut owners, mut roots) = (Owners::new(committed), Vec::new());
    let mut devices = committed.devices().await?;
    while let Some((device, root, _)) = devices.next().await? {
        if missing.remove(&device) { roots.push(root) } else { owners.walk(root, NOBODY).await? }
    }
    if let Some(device) = missing.first() {
        return Err(MetadataError::NoDevice(*device));
    }
    if let Some(snapshot) = committed.snapshot().await? {
        let mut devices = snapshot.devices().await?;
        while let Some((_, root, _)) = devices.next().await? {
            owners.walk(root, NOBODY).await?;
        }
    }
    for root in roots {
        owners.walk(root, FIRST).await?;
    }
    let mut freed: u64 = 0;
    for window in windows(owners.data_blocks, memory_bytes) {
        let (mut theirs, mut others) = (Bits::new(&window), Bits::new(&window));
        let note = |owner, block| {
            if owner == NOBODY {
                others.set(block)
            } else {
                theirs.set(block)
            };
        };
        owners.each_block(&window, |_| true, note).await?;
        freed = freed.saturating_add(theirs.without(&others));
    }
    Ok(freed)
}

/// Ranges of data blocks of which two bits each fit.
fn windows(data_blocks: u64, memory_bytes: usize) -> impl Iterator<Item = Range<u64>> {
    let blocks = (memory_bytes as u64).saturating_mul(4).max(WINDOW_BLOCKS_MIN).next_multiple_of(64);
    let starts = (0..data_blocks).step_by(usize::try_from(blocks).unwrap_or(usize::MAX));
    starts.map(move |start| start..start.saturating_add(blocks).min(data_blocks))
}

/// A bit for each data block of a window.
struct Bits {
    first: u64,
    words: Vec<u64>,
}

impl Bits {
    fn new(window: &Range<u64>) -> Bits {
        let blocks = window.end.saturating_sub(window.start);
        Bits { first: window.start, words: vec![0; usize::try_from(blocks.div_ceil(64)).unwrap_or(0)] }
    }

    fn place(&self, block: u64) -> (usize, u64) {
        let bit = block.wrapping_sub(self.first);
        (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1 << (bit % 64))
    }

    fn get(&self, block: u64) -> bool {
        let (word, bit) = self.place(block);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Sets a bit; true if it was set before.
    fn set(&mut self, block: u64) -> bool {
        let (word, bit) = self.place(block);
        let Some(word) = self.words.get_mut(word) else { return false };
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    /// Bits that are set here and not there.
    fn without(&self, other: &Bits) -> u64 {
        self.words.iter().zip(&other.words).map(|(here, there)| u64::from((here & !there).count_ones())).sum()
    }
}

/// More than one device leads to it, or one that is not asked about.
const NOBODY: u32 = 1;

/// The first owner.
const FIRST: u32 = 2;

/// Marks internal nodes.
const INTERNAL: u32 = 1 << 31;

/// Blocks in a page of [`Owners::pages`].
const PAGE: u64 = 4096;

/// Who leads to each node of the trees.
struct Owners<'a> {
    blocks: &'a BlockManager,
    data_blocks: u64,
    /// For each metadata block 0 if it was not seen, or its owner, with [`INTERNAL`] if it is no leaf.
    pages: BTreeMap<u64, Box<[u32; PAGE as usize]>>,
}

impl<'a> Owners<'a> {
    fn new(committed: &'a Committed) -> Owners<'a> {
        let data_blocks = committed.superblock.data_space_map.root.nr_blocks.get();
        Owners { blocks: &committed.blocks, data_blocks, pages: BTreeMap::new() }
    }

    fn get(&self, number: u64) -> u32 {
        let page = self.pages.get(&(number / PAGE));
        page.and_then(|page| page.get((number % PAGE) as usize)).copied().unwrap_or(0)
    }

    fn set(&mut self, number: u64, owner: u32) {
        let page = self.pages.entry(number / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
        if let Some(place) = page.get_mut((number % PAGE) as usize) {
            *place = owner;
        }
    }

    /// Enters that `owner` leads to the tree at `root`. What another leads to, too, is nobody's. Reads no leaf but to find
    /// out that it is one.
    async fn walk(&mut self, root: u64, owner: u32) -> Result<()> {
        let mut batch = Batch::default();
        let height = self.height(root, &mut batch).await?;
        let mut pending = Vec::from([(Place::root(root), height)]);
        while let Some((place, height)) = pending.pop() {
            let found = self.get(place.number) & !INTERNAL;
            if found == owner || found == NOBODY {
                continue;
            }
            let owner = if found == 0 { owner } else { NOBODY };
            if height == 0 {
                self.set(place.number, owner);
                continue;
            }
            self.set(place.number, owner | INTERNAL);
            self.blocks.read_batch(&[place.number], &NODE, &mut batch).await;
            let node = place.check(Node::parse(batch.get(0)?, place.number)?, true)?;
            pending.extend(place.children(&node).map(|child| (child, height.saturating_sub(1))));
        }
        Ok(())
    }

    /// Levels of internal nodes above the leaves.
    async fn height(&self, root: u64, batch: &mut Batch) -> Result<usize> {
        let (mut number, mut height) = (root, 0);
        loop {
            let seen = self.get(number);
            if seen != 0 && seen & INTERNAL == 0 {
                return Ok(height);
            }
            self.blocks.read_batch(&[number], &NODE, batch).await;
            let node = Node::parse(batch.get(0)?, number)?;
            if !node.is_internal() {
                return Ok(height);
            }
            number = node.child(0)?;
            height = height.saturating_add(1);
            if height > DEPTH_MAX {
                return Err(pdata::Error::TooDeep { root }.into());
            }
        }
    }

    /// Shows each data block in `window` that a leaf maps, with the leaf's owner, in the order of the leaves on disk. Only
    /// leaves of `wanted` owners are read.
    async fn each_block(
        &self,
        window: &Range<u64>,
        wanted: impl Fn(u32) -> bool,
        mut note: impl FnMut(u32, u64),
    ) -> Result<()> {
        let leaves = self.pages.iter().flat_map(|(page, owners)| {
            let numbers = page.saturating_mul(PAGE)..;
            numbers.zip(owners.iter().copied()).filter(|(_, owner)| *owner != 0 && owner & INTERNAL == 0)
        });
        let mut leaves = leaves.filter(|(_, owner)| wanted(*owner)).peekable();
        let mut batch = Batch::default();
        while leaves.peek().is_some() {
            let (numbers, owners): (Vec<u64>, Vec<u32>) = leaves.by_ref().take(LEAVES_AT_ONCE).unzip();
            self.blocks.read_batch(&numbers, &NODE, &mut batch).await;
            for (index, (number, owner)) in numbers.iter().zip(owners).enumerate() {
                let leaf = Node::parse(batch.get(index)?, *number)?;
                for mapping in leaf.values::<Packed>()? {
                    let block = mapping.block().0;
                    if block >= self.data_blocks {
                        return Err(pdata::Error::OutOfRange { block, blocks: self.data_blocks }.into());
                    }
                    if window.contains(&block) {
                        note(owner, block);
                    }
                }
            }
            // The disk may have answered at once, and others wait for the processor.
            yield_now().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_two_bits_for_each_of_its_blocks_and_is_never_small() {
        let of = |data_blocks, memory_bytes| windows(data_blocks, memory_bytes).collect::<Vec<_>>();
        assert_eq!(of(10_000, 0), [0..4096, 4096..8192, 8192..10_000]);
        assert_eq!(of(10_000, 2000), [0..8000, 8000..10_000]);
        assert_eq!(of(0, 2000), []);
    }
}
