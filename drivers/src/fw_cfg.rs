//! QEMU's fw_cfg: named byte strings that the host hands to the guest (`-fw_cfg name=…`).
//!
//! Source: QEMU, `docs/specs/fw_cfg.rst`. The traditional port interface serves: the items are small.

use crate::port::Ports;
use alloc::vec::Vec;

const SELECTOR: u16 = 0;
const DATA: u16 = 1;
const ITEM_SIGNATURE: u16 = 0x00;
const ITEM_DIRECTORY: u16 = 0x19;
const NAME_BYTES: usize = 56;
/// More files than any machine has: the count comes from outside.
const FILES_MAX: u32 = 1024;

// SAFETY: these two registers give no access to memory (the DMA register is another one).
const FW_CFG: Ports = unsafe { Ports::new(0x510) };

/// The file `name`; `None` if there is no such file, no fw_cfg, or it is longer than `most_bytes`.
pub fn file(name: &str, most_bytes: usize) -> Option<Vec<u8>> {
    select(ITEM_SIGNATURE);
    if &bytes::<4>() != b"QEMU" {
        return None;
    }
    select(ITEM_DIRECTORY);
    let files = u32::from_be_bytes(bytes()).min(FILES_MAX);
    // The directory is read to its end or to the file; selecting another item starts afresh.
    let (size_bytes, item) = (0..files).find_map(|_| {
        let size_bytes = u32::from_be_bytes(bytes());
        let [high, low, _, _] = bytes();
        let entry: [u8; NAME_BYTES] = bytes();
        let found = entry.split(|b| *b == 0).next() == Some(name.as_bytes());
        found.then_some((size_bytes as usize, u16::from_be_bytes([high, low])))
    })?;
    if size_bytes > most_bytes {
        return None;
    }
    select(item);
    Some((0..size_bytes).map(|_| FW_CFG.read8(DATA)).collect())
}

fn select(item: u16) {
    FW_CFG.write16(SELECTOR, item);
}

fn bytes<const N: usize>() -> [u8; N] {
    core::array::from_fn(|_| FW_CFG.read8(DATA))
}
