//! Deleting a whole tree (reference 4.6).

use super::{BTree, DEPTH_MAX, NODE, Node, ValueType};
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::vec::Vec;

/// A node that is being deleted, and how many of its children are.
struct Visit {
    number: u64,
    done: usize,
}

/// What to do at a node.
enum Step<T> {
    Child(u64),
    Leaf(Vec<T>),
    Done,
}

impl<V: ValueType> BTree<V> {
    /// Drops one reference to a tree. What nobody else refers to is freed, depth first; so the work is proportional to
    /// what the tree does not share.
    pub async fn delete(&self, tm: &TransactionManager, root: u64) -> Result<()> {
        let mut stack = Vec::new();
        self.enter(tm, root, &mut stack).await?;
        while let Some(visit) = stack.last_mut() {
            match self.visit(tm, visit).await? {
                Step::Child(child) => {
                    visit.done = visit.done.saturating_add(1);
                    if stack.len() >= DEPTH_MAX {
                        return Err(Error::TooDeep { root });
                    }
                    self.enter(tm, child, &mut stack).await?;
                }
                Step::Leaf(values) => {
                    self.value_type().dec(tm, &values).await?;
                    tm.dec(visit.number);
                    stack.pop();
                }
                Step::Done => {
                    tm.dec(visit.number);
                    stack.pop();
                }
            }
            tm.settle_some().await?;
        }
        Ok(())
    }

    /// Goes on with a node if this is its last reference; otherwise drops just that.
    async fn enter(&self, tm: &TransactionManager, number: u64, stack: &mut Vec<Visit>) -> Result<()> {
        match tm.count(number).await? {
            0 => return Err(Error::BadCount { block: number, count: 0, by: -1 }),
            1 => stack.push(Visit { number, done: 0 }),
            _ => tm.dec(number),
        }
        Ok(())
    }

    async fn visit(&self, tm: &TransactionManager, visit: &Visit) -> Result<Step<V::Value>> {
        let block = tm.blocks().read(visit.number, &NODE).await?;
        let bytes = block.bytes();
        let node = Node::parse(&bytes, visit.number)?;
        if !node.is_internal() {
            return Ok(Step::Leaf(node.values()?.to_vec()));
        }
        if visit.done < node.len() { node.child(visit.done).map(Step::Child) } else { Ok(Step::Done) }
    }
}
