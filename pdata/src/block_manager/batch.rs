//! Reading many blocks at once, past the cache: for whoever goes through everything once.

use super::BlockManager;
use super::reader::PACED_BLOCKS_MAX;
use crate::block::{BLOCK_BYTES, BLOCK_SECTORS, Block, BlockKind};
use crate::pins::Reading;
use crate::{Error, Result};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use platform::block::{Bufs, Completion, IoError, Op};
use platform::buf::Buf;

/// Most blocks in one request.
const REQUEST_BLOCKS_MAX: usize = 64;

/// Most requests under way at once.
const REQUESTS_MAX: usize = 64;

/// Blocks that were read together. Kept and read into again, it needs no new memory.
#[derive(Default)]
pub struct Batch {
    /// As read, in the order of their numbers.
    blocks: Vec<Block>,
    /// For each block asked for, where it is in `blocks`.
    places: Vec<Result<usize>>,
    /// Numbers and where they were asked for, sorted.
    order: Vec<(u64, usize)>,
}

impl Batch {
    /// The block that was asked for as number `index` of the list, or why it could not be read.
    pub fn get(&self, index: usize) -> Result<&Block> {
        let place = self.places.get(index).copied().unwrap_or(Err(Error::NoMemory))?;
        self.blocks.get(place).ok_or(Error::NoMemory)
    }

    fn start(&mut self, numbers: &[u64]) {
        self.blocks.clear();
        self.places.clear();
        self.places.resize(numbers.len(), Err(Error::NoMemory));
        self.order.clear();
        self.order.extend(numbers.iter().copied().zip(0..));
        self.order.sort_unstable();
    }

    /// How many of the blocks from `at` on are neighbours on disk and fit one request.
    fn run(&self, at: usize, most: usize) -> usize {
        let rest = self.order.get(at..).unwrap_or_default();
        let joined = |pair: &[(u64, usize)]| matches!(pair, [(a, _), (b, _)] if a.checked_add(1) == Some(*b));
        rest.windows(2).take(most.saturating_sub(1)).take_while(|pair| joined(pair)).count().saturating_add(1)
    }

    /// Takes over what a request read for the `len` blocks from `at` on.
    fn take(&mut self, run: &Run, result: Result<(), IoError>, buf: &[u8], kind: Option<&BlockKind>) {
        let (bytes, _) = buf.as_chunks::<BLOCK_BYTES>();
        for (i, &(number, index)) in self.order.iter().skip(run.at).take(run.len).enumerate() {
            let failed = |source| Error::Io { block: number, action: "read", source };
            let short = IoError::Malformed { sector: number.saturating_mul(BLOCK_SECTORS) };
            let block = result.and_then(|()| bytes.get(i).ok_or(short)).map_err(failed);
            let place = block.and_then(|block| {
                kind.map_or(Ok(()), |kind| kind.verify(block, number))?;
                self.blocks.push(*block);
                Ok(self.blocks.len().saturating_sub(1))
            });
            if let Some(slot) = self.places.get_mut(index) {
                *slot = place;
            }
        }
    }

    fn fail(&mut self, run: &Run, error: impl Fn(u64) -> Error) {
        for &(number, index) in self.order.iter().skip(run.at).take(run.len) {
            if let Some(slot) = self.places.get_mut(index) {
                *slot = Err(error(number));
            }
        }
    }
}

/// Requests that were sent, oldest first.
type UnderWay = VecDeque<(Run, Completion, Option<Reading>)>;

/// Some of [`Batch::order`].
struct Run {
    at: usize,
    len: usize,
}

impl BlockManager {
    /// Reads blocks as they are on disk, neighbours in one request, and checks each as `kind`. What `batch` held before
    /// is dropped.
    pub async fn read_batch(&self, numbers: &[u64], kind: &'static BlockKind, batch: &mut Batch) {
        self.read_blocks(numbers, Some(kind), batch).await;
    }

    /// As [`BlockManager::read_batch`], unchecked.
    pub async fn read_batch_raw(&self, numbers: &[u64], batch: &mut Batch) {
        self.read_blocks(numbers, None, batch).await;
    }

    async fn read_blocks(&self, numbers: &[u64], kind: Option<&'static BlockKind>, batch: &mut Batch) {
        batch.start(numbers);
        let blocks = self.disk_blocks();
        let transfer = usize::try_from(self.disk.limits().transfer_sectors_max / BLOCK_SECTORS).unwrap_or(usize::MAX);
        // The pool rounds up to powers of two, and others may use it, too.
        let most = transfer.min(self.bufs.budget_bytes() / BLOCK_BYTES / 4).clamp(1, REQUEST_BLOCKS_MAX);
        let most = if self.is_paced() { most.min(PACED_BLOCKS_MAX) } else { most };
        let mut under_way = UnderWay::new();
        let mut at = 0;
        while at < numbers.len() {
            let mut run = Run { at, len: batch.run(at, most) };
            let first = batch.order.get(at).map_or(0, |(number, _)| *number);
            if first.checked_add(run.len as u64).is_none_or(|end| end > blocks) {
                // One that lies outside must not take its neighbours with it.
                run.len = 1;
            }
            at = at.saturating_add(run.len);
            if first >= blocks {
                batch.fail(&run, |block| Error::OutOfRange { block, blocks });
                continue;
            }
            if self.is_paced() {
                // Nothing is held while it waits.
                while reap(&mut under_way, batch, kind).await {}
                self.wait_turn(run.len).await;
            }
            let buf = self.batch_buffer(run.len, &mut under_way, batch, kind).await;
            match buf.ok_or(Error::NoMemory).and_then(|buf| Ok((buf, self.begin_read(run.len)?))) {
                Ok((buf, reading)) => {
                    let sectors = (run.len as u64).saturating_mul(BLOCK_SECTORS);
                    let sector = first.saturating_mul(BLOCK_SECTORS);
                    let completion = self.disk.start(Op::Read, sector, sectors, Bufs::from_iter([buf]));
                    under_way.push_back((run, completion, reading));
                }
                Err(error) => batch.fail(&run, |_| error),
            }
        }
        while reap(&mut under_way, batch, kind).await {}
    }

    /// A buffer for `len` blocks, after as many completions as that takes.
    async fn batch_buffer(
        &self,
        len: usize,
        under_way: &mut UnderWay,
        batch: &mut Batch,
        kind: Option<&'static BlockKind>,
    ) -> Option<Buf> {
        let bytes = len.saturating_mul(BLOCK_BYTES);
        loop {
            if under_way.len() < REQUESTS_MAX
                && let Ok(buf) = self.bufs.alloc(bytes)
            {
                return Some(buf);
            }
            if !reap(under_way, batch, kind).await {
                return self.bufs.wait(bytes).await.ok();
            }
        }
    }
}

/// Takes over the oldest request's blocks; false if there is none.
async fn reap(under_way: &mut UnderWay, batch: &mut Batch, kind: Option<&'static BlockKind>) -> bool {
    let Some((run, completion, _reading)) = under_way.pop_front() else { return false };
    let done = completion.await;
    batch.take(&run, done.result, done.bufs.first().map_or(&[], |buf| buf), kind);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btree::NODE;
    use alloc::rc::Rc;
    use core::cell::Cell;
    use platform::block::{BlockDevice, Disk, Io, Limits};
    use platform::buf::BufPool;
    use platform::mem::MemDisk;
    use platform::task::block_on_ready;

    /// An empty leaf in each of the first `blocks`, that in block 5 damaged.
    fn disk(blocks: u64) -> MemDisk {
        let disk = MemDisk::new(blocks * BLOCK_SECTORS);
        for number in 0..blocks {
            let mut block = [0; BLOCK_BYTES];
            (block[4], block[20], block[24]) = (2, 252, 8);
            NODE.seal(&mut block, number);
            block[100] ^= u8::from(number == 5);
            disk.poke(number * BLOCK_BYTES as u64, &block);
        }
        disk
    }

    #[test]
    fn blocks_come_as_asked_for_and_bad_ones_alone_fail() {
        // Room for one request of four blocks, or for four small ones.
        for pool_bytes in [16 << 10, 1 << 20] {
            let blocks = BlockManager::new(Disk::new(disk(300)), BufPool::new(pool_bytes), 16);
            let numbers: Vec<u64> = [7, 3, 4, 5, 6, 300, 299, 298, u64::MAX, 3].into_iter().chain(100..103).collect();
            let mut batch = Batch::default();
            block_on_ready(blocks.read_batch(&numbers, &NODE, &mut batch));
            for (index, &number) in numbers.iter().enumerate() {
                match (number, batch.get(index)) {
                    (5, Err(Error::Damaged { block: 5, .. })) => {}
                    (300.., Err(Error::OutOfRange { block, blocks: 300 })) => assert_eq!(block, number),
                    (_, Ok(block)) => assert_eq!(block[8..16], number.to_le_bytes()),
                    (_, Err(error)) => panic!("{number}: {error}"),
                }
            }
            assert!(batch.get(numbers.len()).is_err());
        }
    }

    #[test]
    fn a_large_request_waits_for_as_many_small_ones_as_it_takes() {
        // Sixteen blocks are all that the pool has room for.
        let blocks = BlockManager::new(Disk::new(disk(300)), BufPool::new(64 << 10), 16);
        let numbers: Vec<u64> = (0..16).map(|small| 100 + 2 * small).chain(200..204).collect();
        let mut batch = Batch::default();
        block_on_ready(blocks.read_batch(&numbers, &NODE, &mut batch));
        assert!((0..numbers.len()).all(|index| batch.get(index).is_ok()));
    }

    /// Counts requests, and takes none of more than `sectors_max`.
    struct Counting {
        inner: MemDisk,
        requests: Rc<Cell<u32>>,
        sectors_max: u64,
    }

    impl BlockDevice for Counting {
        fn limits(&self) -> Limits {
            Limits { transfer_sectors_max: self.sectors_max, ..self.inner.limits() }
        }

        fn submit(&self, io: Io) {
            let bytes: usize = io.request().bufs.iter().map(|buf| buf.len()).sum();
            assert!(bytes as u64 <= self.sectors_max * 512, "a request of {bytes} bytes");
            self.requests.set(self.requests.get() + 1);
            self.inner.submit(io);
        }
    }

    /// Requests that it takes to read all of 300 blocks but one, of a disk that takes so many sectors in each.
    fn requests(sectors_max: u64) -> u32 {
        let requests = Rc::default();
        let device = Counting { inner: disk(300), requests: Rc::clone(&requests), sectors_max };
        let blocks = BlockManager::new(Disk::new(device), BufPool::new(1 << 20), 16);
        let numbers: Vec<u64> = (0..300).rev().filter(|n| *n != 130).collect();
        let mut batch = Batch::default();
        block_on_ready(blocks.read_batch(&numbers, &NODE, &mut batch));
        assert_eq!((0..numbers.len()).filter(|index| batch.get(*index).is_err()).count(), 1, "that is damaged");
        requests.get()
    }

    #[test]
    fn neighbours_share_a_request() {
        // 64 + 64 + 2, the gap, 64 + 64 + 41.
        assert_eq!(requests(1 << 20), 6);
    }

    #[test]
    fn no_request_is_larger_than_the_disk_takes() {
        // 130 and 169 blocks, ten at a time.
        assert_eq!(requests(10 * BLOCK_SECTORS), 13 + 17);
    }
}
