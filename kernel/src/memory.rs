//! RAM: who gets what, and the memory functions under their C names.

use crate::heap;
use crate::paging::{self, Access};
use core::ops::Range;
use core::slice;
use drivers::acpi::PhysicalMemory;
use drivers::bytes;

/// The boot code maps this much; RAM beyond is mapped here.
const MAPPED_AT_BOOT: u64 = 4 << 30;

unsafe extern "C" {
    static image_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static image_end: u8;
    static stack_guard: u8;
}

/// Where the sections of the image are.
struct Image {
    text: Range<u64>,
    rodata: Range<u64>,
    data: Range<u64>,
    stack_guard: Range<u64>,
}

impl Image {
    fn get() -> Image {
        let at = |symbol: *const u8| symbol as u64;
        let [start, rodata, data, end, guard] = [
            at(&raw const image_start),
            at(&raw const rodata_start),
            at(&raw const data_start),
            at(&raw const image_end),
            at(&raw const stack_guard),
        ];
        Image { text: start..rodata, rodata: rodata..data, data: data..end, stack_guard: guard..guard + 4096 }
    }
}

/// Gives all RAM above the image to the heap, maps what is not mapped yet, and protects the image and page 0.
/// Returns the bytes of the heap.
///
/// What lies below the image (the first 2 MiB: firmware's tables, start information) stays untouched.
///
/// # Safety
/// To be called once, with the RAM of this machine.
pub unsafe fn init(ram: &[Range<u64>]) -> u64 {
    let image = Image::get();
    let mut heap_bytes = 0;
    for region in ram {
        let region = region.start.max(image.data.end)..region.end.min(MAPPED_AT_BOOT);
        // SAFETY: RAM that the boot code mapped and nobody uses.
        heap_bytes += unsafe { heap::add(region) };
    }
    // SAFETY: the linker script separates what is executed, read and written. Nothing uses page 0 or the guard.
    unsafe {
        paging::protect(0..4096, Access::None);
        paging::protect(image.text, Access::Execute);
        paging::protect(image.rodata, Access::Read);
        paging::protect(image.data, Access::Write);
        paging::protect(image.stack_guard, Access::None);
    }
    for region in ram.iter().filter(|region| region.end > MAPPED_AT_BOOT) {
        let region = region.start.max(MAPPED_AT_BOOT)..region.end;
        // SAFETY: RAM that nobody uses; mapped before it is given away.
        heap_bytes += unsafe {
            paging::map_large(region.clone(), Access::Write);
            heap::add(region)
        };
    }
    heap_bytes
}

/// What firmware left in memory, for reading only: the tables are there until power-off.
pub struct Firmware;

impl PhysicalMemory for Firmware {
    fn bytes(&self, at: u64, len_bytes: usize) -> Option<&[u8]> {
        let end = at.checked_add(len_bytes as u64)?;
        let image = Image::get();
        let ours = heap::overlaps(at..end) || (at < image.data.end && end > image.text.start);
        if ours || at < 4096 || end > MAPPED_AT_BOOT {
            return None;
        }
        // SAFETY: mapped, and not changed by anybody.
        Some(unsafe { slice::from_raw_parts(at as usize as *const u8, len_bytes) })
    }
}

// SAFETY: nothing else in the image has these names.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8 {
    // SAFETY: the same contract.
    unsafe { bytes::gossamer_copy(to, from, len_bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8 {
    // SAFETY: the same contract.
    unsafe { bytes::gossamer_move(to, from, len_bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len_bytes: usize) -> *mut u8 {
    // SAFETY: the same contract.
    unsafe { bytes::gossamer_set(to, byte, len_bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len_bytes: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { bytes::gossamer_compare(a, b, len_bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len_bytes: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { bytes::gossamer_compare(a, b, len_bytes) }
}
