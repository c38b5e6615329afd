//! Small records about many blocks, in the order of the blocks.

use alloc::vec::Vec;

/// Records in one piece.
const PIECE: usize = 1024;

/// Something about one block.
pub trait Record {
    /// The block.
    fn block(&self) -> u64;
}

/// Records by block. It grows piece by piece, so that never two copies of it are in memory.
pub struct Table<R>(Vec<Vec<R>>);

impl<R> Default for Table<R> {
    fn default() -> Table<R> {
        Table(Vec::new())
    }
}

impl<R: Record> Table<R> {
    /// Adds a record; its block comes behind all others.
    pub fn push(&mut self, record: R) {
        if self.0.last().is_none_or(|piece| piece.len() >= PIECE) {
            self.0.push(Vec::with_capacity(PIECE));
        }
        if let Some(piece) = self.0.last_mut() {
            piece.push(record);
        }
    }

    /// How much memory `records` take at most.
    pub fn bytes(records: usize) -> usize {
        records.next_multiple_of(PIECE).saturating_mul(size_of::<R>())
    }

    /// All records, in the order of their blocks.
    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.0.iter().flatten()
    }

    /// The record about a block.
    pub fn get(&self, block: u64) -> Option<&R> {
        let piece = self.0.get(self.piece(block)?)?;
        piece.get(piece.binary_search_by_key(&block, R::block).ok()?)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, block: u64) -> Option<&mut R> {
        let at = self.piece(block)?;
        let piece = self.0.get_mut(at)?;
        let at = piece.binary_search_by_key(&block, R::block).ok()?;
        piece.get_mut(at)
    }

    fn piece(&self, block: u64) -> Option<usize> {
        let behind = self.0.partition_point(|piece| piece.first().is_some_and(|record| record.block() <= block));
        behind.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Record for u64 {
        fn block(&self) -> u64 {
            *self
        }
    }

    #[test]
    fn records_are_found_in_every_piece() {
        let mut table = Table::default();
        let blocks = || (0..3 * PIECE as u64 + 5).map(|n| 3 * n + 7);
        assert!(table.get(7).is_none());
        blocks().for_each(|block| table.push(block));
        assert!(table.iter().copied().eq(blocks()));
        for block in blocks() {
            assert_eq!(table.get(block), Some(&block));
            assert_eq!(table.get_mut(block), Some(&mut { block }));
            assert_eq!((table.get(block - 1), table.get(block + 1)), (None, None));
        }
        assert_eq!((table.0.len(), Table::<u64>::bytes(PIECE + 1)), (4, 2 * PIECE * 8));
    }
}
