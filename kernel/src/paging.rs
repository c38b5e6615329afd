//! The page tables: every address maps to itself.
//!
//! The boot code maps the first 4 GiB with pages of 2 MiB. Here more is mapped (RAM beyond, and devices where
//! their BARs happen to be), and the image's own pages get the access that their section needs.

use alloc::alloc::{Layout, alloc_zeroed};
use core::arch::asm;
use core::ops::Range;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const UNCACHED: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PAGE_BYTES: u64 = 4 << 10;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// What four levels of tables reach: 48 bits, of which the lower half is ours.
const ADDRESSES_END: u64 = 1 << 47;

/// What may be done with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: touching it is a page fault.
    None,
    /// Reading.
    Read,
    /// Reading and executing.
    Execute,
    /// Reading and writing.
    Write,
    /// Reading and writing past the caches.
    Device,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Access::None => 0,
            Access::Read => PRESENT | NO_EXECUTE,
            Access::Execute => PRESENT,
            Access::Write => PRESENT | WRITABLE | NO_EXECUTE,
            Access::Device => PRESENT | WRITABLE | NO_EXECUTE | UNCACHED | WRITE_THROUGH,
        }
    }
}

unsafe extern "C" {
    static mut boot_pml4: [u64; 512];
}

/// Maps every page of 2 MiB that `range` touches.
///
/// # Safety
/// The pages hold no memory that Rust code uses with another access, and the heap works.
pub unsafe fn map_large(range: Range<u64>, access: Access) {
    assert!(range.end <= ADDRESSES_END, "{range:x?} lies beyond the page tables' reach");
    let mut page = range.start & !(LARGE_PAGE_BYTES - 1);
    while page < range.end {
        // SAFETY: the tables are ours, and the caller vouches for the page.
        unsafe {
            let directory = table_below(table_below(&raw mut boot_pml4, page >> 39), page >> 30);
            set(directory, page >> 21, page | LARGE | access.bits());
        }
        page += LARGE_PAGE_BYTES;
    }
    flush();
}

/// Changes the access of the pages of 4 KiB in `range`, which [`map_large`] or the boot code mapped.
///
/// # Safety
/// As for [`map_large`].
pub unsafe fn protect(range: Range<u64>, access: Access) {
    let mut page = range.start & !(PAGE_BYTES - 1);
    while page < range.end {
        // SAFETY: as above.
        unsafe {
            let directory = table_below(table_below(&raw mut boot_pml4, page >> 39), page >> 30);
            split(directory, page >> 21);
            set(table_below(directory, page >> 21), page >> 12, page | access.bits());
        }
        page += PAGE_BYTES;
    }
    flush();
}

type Table = *mut [u64; 512];

/// The table that entry `index` (taken modulo 512) of `table` points to, made if there is none.
///
/// # Safety
/// `table` is one of ours, and the entry is no large page.
unsafe fn table_below(table: Table, index: u64) -> Table {
    // SAFETY: the index is below 512; tables are identity-mapped.
    let entry = unsafe { &mut (*table)[(index % 512) as usize] };
    if *entry & PRESENT == 0 {
        *entry = new_table() as u64 | PRESENT | WRITABLE;
    }
    (*entry & ADDRESS) as usize as Table
}

/// Turns a page of 2 MiB into 512 pages of 4 KiB with the same access.
///
/// # Safety
/// `directory` is one of our page directories.
unsafe fn split(directory: Table, index: u64) {
    // SAFETY: the index is below 512.
    let entry = unsafe { &mut (*directory)[(index % 512) as usize] };
    if *entry & LARGE == 0 {
        return;
    }
    let table = new_table();
    let (address, bits) = (*entry & ADDRESS, *entry & !ADDRESS & !LARGE);
    for n in 0..512 {
        // SAFETY: a fresh table.
        unsafe { set(table, n, (address + n * PAGE_BYTES) | bits) };
    }
    *entry = table as u64 | PRESENT | WRITABLE;
}

/// # Safety
/// `table` is one of ours and the entry is right.
unsafe fn set(table: Table, index: u64, entry: u64) {
    // SAFETY: the index is below 512.
    unsafe { (*table)[(index % 512) as usize] = entry };
}

fn new_table() -> Table {
    let layout = Layout::new::<[u64; 512]>().align_to(PAGE_BYTES as usize).expect("a page is a valid layout");
    // SAFETY: the layout is not empty. The table is never freed.
    let table = unsafe { alloc_zeroed(layout) };
    assert!(!table.is_null(), "no memory for page tables");
    table.cast()
}

fn flush() {
    // SAFETY: reloading CR3 with its own value drops stale translations.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}
