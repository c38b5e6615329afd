//! Memory that a device reads and writes while we do.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use core::ptr::NonNull;

const PAGE_BYTES: usize = 4096;

/// A page-aligned allocation, zeroed at first, shared with a device: raw pointers only. Virtual is physical.
pub(crate) struct Shared {
    at: NonNull<u8>,
    layout: Layout,
}

impl Shared {
    pub(crate) fn new(len_bytes: usize) -> Shared {
        let layout = Layout::from_size_align(len_bytes.max(1), PAGE_BYTES).expect("queues are small");
        // SAFETY: the layout is not empty.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Shared { at, layout }
    }

    /// The address to tell the device.
    pub(crate) fn address(&self) -> u64 {
        self.at.as_ptr() as u64
    }

    /// A pointer to the `T` at `offset_bytes`.
    pub(crate) fn at<T>(&self, offset_bytes: usize) -> NonNull<T> {
        let fits = offset_bytes.checked_add(size_of::<T>()).is_some_and(|end| end <= self.layout.size());
        assert!(fits && offset_bytes.is_multiple_of(align_of::<T>()), "offset {offset_bytes} is not inside the memory");
        // SAFETY: the offset was just checked.
        unsafe { self.at.byte_add(offset_bytes).cast() }
    }

    /// `len_bytes` from `offset_bytes` on, fewer at the end.
    pub(crate) fn slice(&self, offset_bytes: usize, len_bytes: usize) -> NonNull<[u8]> {
        let start = offset_bytes.min(self.layout.size());
        // SAFETY: `start` lies within the memory or at its end.
        let at = unsafe { self.at.byte_add(start) };
        NonNull::slice_from_raw_parts(at, len_bytes.min(self.layout.size() - start))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout. The owner resets the device first.
        unsafe { dealloc(self.at.as_ptr(), self.layout) }
    }
}
