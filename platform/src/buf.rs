//! I/O buffers: page-aligned, from one counted pool, moved into requests and handed back.
//!
//! A [`Buf`] is a range of one allocation and the only owner of that range. Splitting one gives two
//! owners of disjoint ranges; the memory returns to the pool with the last of them. So a payload can be
//! written to several places without a copy, and a device can hold it without a borrow.
#![allow(unsafe_code)]

use crate::sync::Notify;
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

/// Alignment of every buffer's start, in bytes.
pub const ALIGN_BYTES: usize = 4096;

/// Sizes that are kept for reuse: 4 KiB, 8 KiB ... 1 MiB.
const CLASSES: usize = 9;

/// The pool's budget is used up: wait for buffers to come back, or refuse the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no I/O buffer of {len_bytes} bytes is free: try again later")]
pub struct NoBuffers {
    /// What was asked for.
    pub len_bytes: usize,
}

/// Stands for the heap: says whether it has so many bytes.
type Heap = Rc<dyn Fn(usize) -> bool>;

/// Why there is no memory.
enum Refusal {
    /// The budget is used up: waiting helps.
    Budget,
    /// The heap has none: nothing says that waiting helps.
    Heap,
}

/// A counted source of buffers. Clones share the budget.
#[derive(Clone)]
pub struct BufPool(Rc<Shared>);

struct Shared {
    budget_bytes: usize,
    heap: Option<Heap>,
    /// Taken from the heap: in use and kept for reuse.
    held_bytes: Cell<usize>,
    kept_bytes: Cell<usize>,
    kept: RefCell<[Vec<Memory>; CLASSES]>,
    freed: Notify,
}

impl BufPool {
    /// A pool that never holds more than `budget_bytes`.
    pub fn new(budget_bytes: usize) -> BufPool {
        BufPool::over(None, budget_bytes)
    }

    /// As [`BufPool::new`], over a heap that may refuse: `heap` sees the length in bytes of each buffer asked for, and
    /// says whether there is memory for it.
    pub fn with_heap(budget_bytes: usize, heap: impl Fn(usize) -> bool + 'static) -> BufPool {
        BufPool::over(Some(Rc::new(heap)), budget_bytes)
    }

    /// Another pool over the same heap, with a budget of its own.
    pub fn apart(&self, budget_bytes: usize) -> BufPool {
        BufPool::over(self.0.heap.clone(), budget_bytes)
    }

    fn over(heap: Option<Heap>, budget_bytes: usize) -> BufPool {
        BufPool(Rc::new(Shared {
            budget_bytes,
            heap,
            held_bytes: Cell::new(0),
            kept_bytes: Cell::new(0),
            kept: RefCell::default(),
            freed: Notify::new(),
        }))
    }

    /// A buffer of `len_bytes` whose contents are unspecified (what an earlier user left, never wild memory).
    pub fn alloc(&self, len_bytes: usize) -> Result<Buf, NoBuffers> {
        self.try_alloc(len_bytes).map_err(|_| NoBuffers { len_bytes })
    }

    fn try_alloc(&self, len_bytes: usize) -> Result<Buf, Refusal> {
        let memory = self.0.take(len_bytes)?;
        let storage = Storage { memory: Some(memory), pool: self.0.clone() };
        Ok(Buf { storage: Some(Rc::new(storage)), start: 0, len: len_bytes })
    }

    /// A buffer of zeroes.
    pub fn zeroed(&self, len_bytes: usize) -> Result<Buf, NoBuffers> {
        let mut buf = self.alloc(len_bytes)?;
        buf.fill(0);
        Ok(buf)
    }

    /// As [`BufPool::alloc`], but waits until the budget allows it. Waiting for more than the whole
    /// budget fails at once, and so does a heap without memory.
    pub async fn wait(&self, len_bytes: usize) -> Result<Buf, NoBuffers> {
        if Memory::round(len_bytes) > self.0.budget_bytes {
            return Err(NoBuffers { len_bytes });
        }
        loop {
            let freed = self.0.freed.notified();
            match self.try_alloc(len_bytes) {
                Ok(buf) => return Ok(buf),
                Err(Refusal::Heap) => return Err(NoBuffers { len_bytes }),
                Err(Refusal::Budget) => freed.await,
            }
        }
    }

    /// Bytes in use now.
    pub fn used_bytes(&self) -> usize {
        self.0.held_bytes.get() - self.0.kept_bytes.get()
    }

    /// The most that can be in use.
    pub fn budget_bytes(&self) -> usize {
        self.0.budget_bytes
    }
}

impl Shared {
    fn take(&self, len_bytes: usize) -> Result<Memory, Refusal> {
        let size = Memory::round(len_bytes);
        if self.heap.as_ref().is_some_and(|heap| !heap(size)) {
            return Err(Refusal::Heap);
        }
        if let Some(memory) = class_of(size).and_then(|c| self.kept.borrow_mut()[c].pop()) {
            self.kept_bytes.set(self.kept_bytes.get() - size);
            return Ok(memory);
        }
        while self.held_bytes.get().saturating_add(size) > self.budget_bytes {
            self.drop_kept().ok_or(Refusal::Budget)?;
        }
        let memory = Memory::new(size).ok_or(Refusal::Heap)?;
        self.held_bytes.set(self.held_bytes.get() + size);
        Ok(memory)
    }

    /// Gives the largest kept buffer back to the heap.
    fn drop_kept(&self) -> Option<()> {
        let memory = self.kept.borrow_mut().iter_mut().rev().find_map(Vec::pop)?;
        self.kept_bytes.set(self.kept_bytes.get() - memory.size);
        self.held_bytes.set(self.held_bytes.get() - memory.size);
        Some(())
    }

    fn give_back(&self, memory: Memory) {
        let size = memory.size;
        match class_of(size) {
            Some(class) => {
                self.kept_bytes.set(self.kept_bytes.get() + size);
                self.kept.borrow_mut()[class].push(memory);
            }
            None => self.held_bytes.set(self.held_bytes.get() - size),
        }
        self.freed.notify_all();
    }
}

fn class_of(size: usize) -> Option<usize> {
    let class = (size / ALIGN_BYTES).trailing_zeros() as usize;
    (size.is_power_of_two() && class < CLASSES).then_some(class)
}

/// One allocation: initialised from the start, owned, freed on drop.
struct Memory {
    at: NonNull<u8>,
    size: usize,
}

impl Memory {
    fn round(len_bytes: usize) -> usize {
        let pages = len_bytes.max(1).div_ceil(ALIGN_BYTES);
        pages.checked_next_power_of_two().filter(|p| *p < 1 << CLASSES).unwrap_or(pages).saturating_mul(ALIGN_BYTES)
    }

    fn layout(size: usize) -> Option<Layout> {
        Layout::from_size_align(size, ALIGN_BYTES).ok()
    }

    fn new(size: usize) -> Option<Memory> {
        let layout = Memory::layout(size)?;
        // SAFETY: `round` never returns a size of 0.
        let at = unsafe { alloc_zeroed(layout) };
        NonNull::new(at).map(|at| Memory { at, size })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(layout) = Memory::layout(self.size) {
            // SAFETY: allocated in `new` with this layout, and nobody else owns it.
            unsafe { dealloc(self.at.as_ptr(), layout) }
        }
    }
}

struct Storage {
    memory: Option<Memory>,
    pool: Rc<Shared>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

/// The only owner of a range of bytes in a pool's memory. Not aligned once split at odd places.
pub struct Buf {
    storage: Option<Rc<Storage>>,
    start: usize,
    len: usize,
}

impl Buf {
    /// A buffer of no bytes, of no pool.
    pub fn empty() -> Buf {
        Buf { storage: None, start: 0, len: 0 }
    }

    /// Splits at `at_bytes`: self keeps the first part, the rest is returned. `at_bytes` beyond the
    /// end leaves everything in self.
    pub fn split_off(&mut self, at_bytes: usize) -> Buf {
        let at = at_bytes.min(self.len);
        let rest = Buf { storage: self.storage.clone(), start: self.start + at, len: self.len - at };
        self.len = at;
        rest
    }

    /// Splits off and returns the first `at_bytes`.
    pub fn split_to(&mut self, at_bytes: usize) -> Buf {
        let rest = self.split_off(at_bytes);
        core::mem::replace(self, rest)
    }

    /// Undoes a split: `rest` must begin where self ends. Given back if it does not.
    pub fn unsplit(&mut self, rest: Buf) -> Result<(), Buf> {
        let same = match (&self.storage, &rest.storage) {
            (Some(mine), Some(other)) => Rc::ptr_eq(mine, other),
            (None, None) => true,
            _ => false,
        };
        if !same || self.start + self.len != rest.start {
            return Err(rest);
        }
        self.len += rest.len;
        Ok(())
    }

    /// Forgets what lies beyond `len_bytes`.
    pub fn truncate(&mut self, len_bytes: usize) {
        self.len = self.len.min(len_bytes);
    }

    /// The address of the first byte: what a device is told. On bare metal virtual is physical.
    pub fn addr(&self) -> usize {
        self.as_ptr() as usize
    }

    fn base(&self) -> NonNull<u8> {
        match self.storage.as_ref().and_then(|s| s.memory.as_ref()) {
            // SAFETY: `start` lies within the allocation (or at its end).
            Some(memory) => unsafe { memory.at.add(self.start) },
            None => NonNull::dangling(),
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within memory that lives as long as `storage`, was initialised
        // when it was allocated, and belongs to this Buf alone.
        unsafe { core::slice::from_raw_parts(self.base().as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes the access exclusive, since no other Buf covers the range.
        unsafe { core::slice::from_raw_parts_mut(self.base().as_ptr(), self.len) }
    }
}

impl core::fmt::Debug for Buf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_ranges_are_disjoint_and_memory_returns_once() {
        let pool = BufPool::new(1 << 20);
        let mut a = pool.zeroed(8192).unwrap();
        let mut b = a.split_off(512);
        a.fill(1);
        b.fill(2);
        assert!(a.iter().all(|x| *x == 1) && a.len() == 512);
        assert!(b.iter().all(|x| *x == 2) && b.len() == 8192 - 512);
        drop(a);
        assert_eq!(pool.used_bytes(), 8192);
        drop(b);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn only_neighbours_can_be_put_together_again() {
        let pool = BufPool::new(1 << 20);
        let mut a = pool.zeroed(4096).unwrap();
        let mut b = a.split_off(1024);
        let c = b.split_off(1024);
        let c = a.unsplit(c).unwrap_err();
        a.unsplit(b).unwrap();
        a.unsplit(c).unwrap();
        assert_eq!(a.len(), 4096);
        let stranger = pool.zeroed(4096).unwrap();
        assert!(a.unsplit(stranger).is_err());
    }

    #[test]
    fn the_budget_holds_and_kept_memory_makes_room() {
        let pool = BufPool::new(64 << 10);
        let all: Vec<Buf> = (0..16).map(|_| pool.alloc(4096).unwrap()).collect();
        assert_eq!(pool.alloc(1).unwrap_err(), NoBuffers { len_bytes: 1 });
        drop(all);
        let big = pool.alloc(64 << 10).unwrap();
        assert_eq!(big.len(), 64 << 10);
        assert!(pool.alloc(512).is_err());
    }

    #[test]
    fn nobody_waits_for_a_heap_without_memory() {
        let pool = BufPool::with_heap(64 << 10, |size| size < 8192);
        let wait = |pool: &BufPool, len| crate::task::block_on_ready(pool.wait(len)).map(|buf| buf.len());
        assert_eq!(wait(&pool, 512), Ok(512));
        assert_eq!(wait(&pool, 8000), Err(NoBuffers { len_bytes: 8000 }));
        assert_eq!(wait(&pool.apart(4096), 8000), Err(NoBuffers { len_bytes: 8000 }));
    }
}
