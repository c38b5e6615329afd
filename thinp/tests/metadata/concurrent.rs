//! Lookups while changes and commits wait for a slow disk that answers in any order.

use crate::harness::*;
use platform::block::{BlockDevice, Disk, Io, Limits};
use platform::mem::MemDisk;
use platform::task::{Executor, yield_now};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use thinp::metadata::{Metadata, OpenMode, VirtualBlock};

const BLOCKS: u64 = 4000;

/// Answers some request or other when told to.
#[derive(Clone)]
struct Slow {
    inner: MemDisk,
    waiting: Rc<RefCell<Vec<Io>>>,
}

impl BlockDevice for Slow {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        self.waiting.borrow_mut().push(io);
    }
}

#[derive(Default)]
struct Model {
    mappings: RefCell<BTreeMap<u64, u64>>,
    /// Blocks that a change under way may have changed or not.
    uncertain: RefCell<BTreeSet<u64>>,
    /// Changes so far.
    changes: Cell<u64>,
    lookups: Cell<u64>,
    done: Cell<bool>,
}

impl Model {
    fn begin(&self, blocks: impl IntoIterator<Item = u64>) {
        self.uncertain.borrow_mut().extend(blocks);
        self.changes.set(self.changes.get() + 1);
    }

    fn end(&self) {
        self.uncertain.borrow_mut().clear();
        self.changes.set(self.changes.get() + 1);
    }
}

async fn change(metadata: Rc<Metadata>, model: Rc<Model>, dice: Dice, steps: u64) {
    for step in 0..steps {
        let block = dice.below(BLOCKS);
        match dice.below(10) {
            0..=5 => {
                let data = metadata.reserve_data_block().await.unwrap();
                model.begin([block]);
                metadata.insert(id(1), VirtualBlock(block), data).await.unwrap();
                model.mappings.borrow_mut().insert(block, data.0);
            }
            6 => {
                let end = block + dice.below(300);
                model.begin(block..end);
                metadata.remove_range(id(1), VirtualBlock(block), VirtualBlock(end), 1000).await.unwrap();
                model.mappings.borrow_mut().retain(|at, _| *at < block || *at >= end);
            }
            7 if step % 20 == 0 => metadata.create_snap(id(2 + step), id(1)).await.unwrap(),
            _ => commit(&metadata).await,
        }
        model.end();
    }
    model.done.set(true);
}

async fn look(metadata: Rc<Metadata>, model: Rc<Model>, dice: Dice) {
    while !model.done.get() {
        let block = dice.below(BLOCKS);
        let (before, uncertain) = (model.changes.get(), model.uncertain.borrow().contains(&block));
        let found = metadata.lookup(id(1), VirtualBlock(block)).await.unwrap().map(|mapping| mapping.block.0);
        if before == model.changes.get() && !uncertain {
            assert_eq!(found, model.mappings.borrow().get(&block).copied(), "block {block}");
            model.lookups.set(model.lookups.get() + 1);
        }
        yield_now().await;
    }
}

#[test]
fn lookups_see_whole_trees() {
    let seed = seed();
    let executor = {
        let dice = Dice::new(seed);
        Executor::with_chooser(move |n| dice.below(n as u64) as usize)
    };
    let slow = Slow { inner: MemDisk::new(2000 * 8), waiting: Rc::default() };
    let model = Rc::new(Model::default());
    let (spawner, main_model, device) = (executor.spawner(), model.clone(), Disk::new(slow.clone()));
    executor.spawner().spawn(async move {
        let mode = OpenMode::Format { data_block_sectors: 128, data_blocks: 20_000 };
        let metadata = Rc::new(Metadata::open(&runtime(), device, mode, 16, false).await.unwrap());
        metadata.create_thin(id(1)).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        for n in 0..5 {
            spawner.spawn(look(metadata.clone(), main_model.clone(), Dice::new(seed + 1 + n)));
        }
        spawner.spawn(change(metadata, main_model, Dice::new(seed), 2000));
    });
    let dice = Dice::new(seed + 100);
    while executor.live() > 0 {
        executor.run_ready(1 + dice.below(20) as usize);
        let waiting = slow.waiting.borrow().len() as u64;
        if waiting > 0 && dice.chance(2) {
            let io = slow.waiting.borrow_mut().swap_remove(dice.below(waiting) as usize);
            slow.inner.submit(io);
        }
    }
    println!("{} lookups beside {} changes", model.lookups.get(), model.changes.get());
    assert!(model.lookups.get() > 1000, "only {} lookups could be judged", model.lookups.get());
    check(&slow.inner);
}
