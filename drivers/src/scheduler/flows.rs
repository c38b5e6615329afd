//! Deficit round-robin (Shreedhar and Varghese, 1995): flows with requests of different lengths share by bytes.

use alloc::collections::{BTreeMap, VecDeque};

/// What a flow may send in a turn.
const QUANTUM_BYTES: u64 = 128 << 10;

/// Queues, one for each volume that has anything queued.
pub(super) struct Flows<T> {
    queues: BTreeMap<u32, Flow<T>>,
    /// Whose turn it is, and who is next.
    turns: VecDeque<u32>,
}

struct Flow<T> {
    deficit_bytes: u64,
    /// Items and what they cost.
    items: VecDeque<(T, u64)>,
}

impl<T> Default for Flows<T> {
    fn default() -> Self {
        Flows { queues: BTreeMap::new(), turns: VecDeque::new() }
    }
}

impl<T> Flows<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub(super) fn push(&mut self, volume: u32, cost_bytes: u64, item: T) {
        let flow = self.queues.entry(volume).or_insert_with(|| {
            self.turns.push_back(volume);
            Flow { deficit_bytes: 0, items: VecDeque::new() }
        });
        flow.items.push_back((item, cost_bytes));
    }

    /// The next item and its cost.
    pub(super) fn pop(&mut self) -> Option<(T, u64)> {
        loop {
            let volume = *self.turns.front()?;
            let flow = self.queues.get_mut(&volume)?;
            match flow.items.front() {
                Some((_, cost)) if *cost > flow.deficit_bytes => {
                    flow.deficit_bytes += QUANTUM_BYTES;
                    self.turns.rotate_left(1);
                }
                _ => {
                    let (item, cost) = flow.items.pop_front()?;
                    flow.deficit_bytes -= cost;
                    if flow.items.is_empty() {
                        // Who has nothing to send saves nothing up.
                        self.queues.remove(&volume);
                        self.turns.pop_front();
                    }
                    return Some((item, cost));
                }
            }
        }
    }
}
