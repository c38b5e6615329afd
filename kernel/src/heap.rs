//! The heap, in two storeys.
//!
//! Below, `linked_list_allocator` hands out whole pages: I/O buffers, tables, large vectors. Such blocks are few
//! sizes and of one alignment, for which a list without headers is fast and wastes nothing. Above, `rlsf` (TLSF,
//! bounded time) cuts chunks of pages into everything smaller, where a linked list would search for microseconds.
//! The layout alone decides who serves, so that a block finds its way back. Figures: `docs/design.md`.

use alloc::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{self, NonNull};
use heapless::Vec;
use linked_list_allocator::Heap as PageHeap;
use rlsf::Tlsf;

const PAGE_BYTES: usize = 4096;
/// From this size on a block is served in pages.
const PAGED_FROM_BYTES: usize = 16 << 10;
/// What the upper storey takes from the lower one at a time.
const CHUNK_BYTES: usize = 256 << 10;
const REGIONS: usize = 8;

/// 14 size classes from 32 bytes on: free blocks of up to 512 KiB, so that a whole chunk is one.
type SmallHeap = Tlsf<'static, u16, u16, 14, 16>;

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(Storeys { pages: Vec::new(), small: SmallHeap::new() }));

struct Heap(UnsafeCell<Storeys>);

struct Storeys {
    pages: Vec<PageHeap, REGIONS>,
    small: SmallHeap,
}

// SAFETY: there is one processor, and interrupt handlers do not allocate.
unsafe impl Sync for Heap {}

/// Gives `range` of memory to the heap, in whole pages. Returns the bytes taken.
///
/// # Safety
/// The memory is mapped, RAM, and nobody else's for ever.
pub unsafe fn add(range: Range<u64>) -> u64 {
    let (start, end) = (range.start.next_multiple_of(PAGE_BYTES as u64), range.end & !(PAGE_BYTES as u64 - 1));
    let size_bytes = end.saturating_sub(start);
    if size_bytes < CHUNK_BYTES as u64 {
        return 0;
    }
    // SAFETY: nobody holds another reference: see `Sync`.
    let storeys = unsafe { &mut *HEAP.0.get() };
    // SAFETY: the caller's promise.
    let region = unsafe { PageHeap::new(start as usize as *mut u8, size_bytes as usize) };
    if storeys.pages.push(region).is_ok() { size_bytes } else { 0 }
}

/// Some of `range` belongs to the heap.
pub fn overlaps(range: Range<u64>) -> bool {
    // SAFETY: nobody holds a mutable reference: see `Sync`.
    let storeys = unsafe { &*HEAP.0.get() };
    storeys.pages.iter().any(|region| range.start < region.top() as u64 && range.end > region.bottom() as u64)
}

/// The layout in pages, if the lower storey serves it.
fn paged(layout: Layout) -> Option<Layout> {
    if layout.align() < PAGE_BYTES && layout.size() < PAGED_FROM_BYTES {
        return None;
    }
    Some(Layout::from_size_align(layout.size(), layout.align().max(PAGE_BYTES)).ok()?.pad_to_align())
}

impl Storeys {
    fn take_pages(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        self.pages.iter_mut().find_map(|region| region.allocate_first_fit(layout).ok())
    }

    fn take_small(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if let Some(block) = self.small.allocate(layout) {
            return Some(block);
        }
        let chunk = self.take_pages(Layout::from_size_align(CHUNK_BYTES, PAGE_BYTES).ok()?)?;
        // SAFETY: the chunk is ours and is never given back.
        unsafe { self.small.insert_free_block_ptr(NonNull::slice_from_raw_parts(chunk, CHUNK_BYTES)) }?;
        self.small.allocate(layout)
    }
}

// SAFETY: blocks come from regions given by `add`, each from one storey, and go back to the same.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: nobody holds another reference: see `Sync`.
        let storeys = unsafe { &mut *self.0.get() };
        let block = match paged(layout) {
            Some(pages) => storeys.take_pages(pages),
            None => storeys.take_small(layout),
        };
        block.map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: nobody holds another reference: see `Sync`.
        let storeys = unsafe { &mut *self.0.get() };
        let Some(block) = NonNull::new(block) else { return };
        match paged(layout) {
            Some(pages) => {
                let within = |region: &&mut PageHeap| (region.bottom()..region.top()).contains(&block.as_ptr());
                if let Some(region) = storeys.pages.iter_mut().find(within) {
                    // SAFETY: the block came from this region with this layout.
                    unsafe { region.deallocate(block, pages) }
                }
            }
            // SAFETY: the block came from `take_small` with this alignment.
            None => unsafe { storeys.small.deallocate(block, layout.align()) },
        }
    }
}
