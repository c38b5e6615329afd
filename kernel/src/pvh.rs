//! What the hypervisor hands over: Xen's `hvm_start_info`, version 1 (`xen/include/public/arch-x86/hvm/start_info.h`).
//!
//! It lies somewhere in low memory, so everything is copied out before the heap takes that memory.

use core::ops::Range;
use core::slice;
use heapless::{String, Vec};

const MAGIC: u32 = 0x336e_c578;
const MEMORY_TYPE_RAM: u32 = 1;
/// The longest command line that is read; Linux takes as much.
const COMMAND_LINE_BYTES: usize = 2048;
const REGIONS: usize = 32;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    size_bytes: u64,
    kind: u32,
    reserved: u32,
}

/// The facts of this boot.
pub struct BootInfo {
    /// The settings.
    pub command_line: String<COMMAND_LINE_BYTES>,
    /// Physical addresses of RAM.
    pub ram: Vec<Range<u64>, REGIONS>,
    /// Physical address of the ACPI root pointer; 0 if there is none.
    pub rsdp: u64,
}

/// Copies the start information out.
///
/// # Safety
/// `at` is what the hypervisor passed at entry, and nothing has been written to the memory it points to since.
pub unsafe fn read(at: u32) -> Result<BootInfo, &'static str> {
    // SAFETY: the PVH protocol promises a start_info at this address.
    let info = unsafe { &*(at as usize as *const StartInfo) };
    if info.magic != MAGIC || info.version < 1 {
        return Err("not started by the PVH protocol, version 1");
    }
    // SAFETY: version 1 and above point to a memory map of so many entries.
    let map = unsafe {
        slice::from_raw_parts(info.memory_map as usize as *const MemoryMapEntry, info.memory_map_entries as usize)
    };
    let ram = map
        .iter()
        .filter(|entry| entry.kind == MEMORY_TYPE_RAM)
        .map(|entry| entry.address..entry.address.saturating_add(entry.size_bytes))
        .take(REGIONS)
        .collect();
    // SAFETY: the protocol promises a NUL-terminated string, or a null pointer.
    let command_line = unsafe { text(info.command_line) }?;
    Ok(BootInfo { command_line, ram, rsdp: info.rsdp })
}

/// # Safety
/// `at` is 0 or the address of a NUL-terminated string.
unsafe fn text(at: u64) -> Result<String<COMMAND_LINE_BYTES>, &'static str> {
    let mut text = String::new();
    if at == 0 {
        return Ok(text);
    }
    let start = at as usize as *const u8;
    // SAFETY: no byte beyond the terminating NUL is read.
    let mut bytes = (0..).map(|n| unsafe { start.add(n).read() }).take_while(|b| *b != 0);
    let fits = bytes.all(|b| text.push(if b.is_ascii() { char::from(b) } else { '?' }).is_ok());
    if fits { Ok(text) } else { Err("the kernel command line is too long") }
}
