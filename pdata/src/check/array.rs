//! Walking arrays.

use super::{Checker, Problem, Walk};
use crate::array::{ARRAY, Array, values};
use crate::btree::{Node, Plain, Value};
use alloc::vec::Vec;
use zerocopy::little_endian::U64;

impl Walk {
    /// Counts one reference to the array of `len` values at `root`, and if that is the first, those within. `see` is shown
    /// each value of each block once, with its index.
    pub async fn array<T: Value>(
        &mut self,
        checker: &mut Checker,
        root: u64,
        len: u64,
        mut see: impl FnMut(&mut Checker, u64, T),
    ) {
        let mut found = Vec::new();
        let keep = |_: &mut Checker, node: &Node<'_>, blocks: &[U64]| {
            found.extend(node.keys().zip(blocks.iter().map(|block| block.get())));
        };
        self.tree(checker, root, keep).await;
        let capacity = Array::<Plain<T>>::CAPACITY;
        for (k, number) in &found {
            if !self.refer(checker, *number) {
                continue;
            }
            let first = k.saturating_mul(capacity);
            let read = checker.blocks.read(*number, &ARRAY).await;
            let seen = read.and_then(|block| {
                let bytes = block.bytes();
                let values: &[T] = values(&bytes, *number)?;
                if values.len() as u64 != len.saturating_sub(first).min(capacity) {
                    checker.tell(Problem::Array { root, len });
                }
                (first..).zip(values).for_each(|(index, value)| see(checker, index, *value));
                Ok(())
            });
            if let Err(error) = seen {
                checker.tell(error.into());
            }
        }
        // Distinct blocks, each as long as its place asks for, and as many as it takes: none is missing.
        if self.entries_below(root) != len.div_ceil(capacity) {
            checker.tell(Problem::Array { root, len });
        }
    }
}
