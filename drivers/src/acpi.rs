//! The little that is read from ACPI's static tables: where the I/O APICs are, and how to power off.
//!
//! Source: ACPI specification 6.5, section 5.2. No AML is interpreted.

use alloc::vec::Vec;

/// Reads physical memory: `None` where none can be read. Implemented by the kernel, and by tests.
pub trait PhysicalMemory {
    /// `len_bytes` at `at`.
    fn bytes(&self, at: u64, len_bytes: usize) -> Option<&[u8]>;
}

/// How the machine is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftOff {
    /// Write SLP_EN and the sleep type to the PM1a control register, an I/O port.
    Pm1a {
        /// The port.
        port: u16,
    },
    /// Write SLP_EN and the sleep type to the sleep control register of a hardware-reduced machine.
    SleepControl {
        /// Its physical address.
        address: u64,
    },
}

/// What the tables say.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Acpi {
    /// Physical addresses of the I/O APICs.
    pub io_apics: Vec<u64>,
    /// How to power off, if the tables say.
    pub soft_off: Option<SoftOff>,
}

const HEADER_BYTES: usize = 36;
/// Tables are small; a longer one is not believed.
const TABLE_BYTES_MAX: u32 = 1 << 20;

impl Acpi {
    /// Reads the tables that the RSDP at `rsdp` leads to. What is missing or broken is left out.
    pub fn read(memory: &impl PhysicalMemory, rsdp: u64) -> Acpi {
        let mut acpi = Acpi::default();
        for address in tables(memory, rsdp).unwrap_or_default() {
            let Some(table) = table(memory, address) else { continue };
            match table.get(..4) {
                Some(b"APIC") => acpi.io_apics = io_apics(table),
                Some(b"FACP") => acpi.soft_off = soft_off(table),
                _ => {}
            }
        }
        acpi
    }
}

/// The addresses in the RSDT (revision 0) or XSDT.
fn tables(memory: &impl PhysicalMemory, rsdp: u64) -> Option<Vec<u64>> {
    let head = memory.bytes(rsdp, 20)?;
    if head.get(..8)? != b"RSD PTR " || !sums_to_zero(head) {
        return None;
    }
    let modern = head.get(15)? >= &2;
    let (root, entry_bytes) = match modern {
        true => (u64_at(memory.bytes(rsdp, 36)?, 24)?, 8),
        false => (u64::from(u32_at(head, 16)?), 4),
    };
    let root = table(memory, root)?.get(HEADER_BYTES..)?;
    let read = |entry: &[u8]| if modern { u64_at(entry, 0) } else { u32_at(entry, 0).map(u64::from) };
    Some(root.chunks_exact(entry_bytes).filter_map(read).collect())
}

/// A whole table, its checksum right.
fn table(memory: &impl PhysicalMemory, at: u64) -> Option<&[u8]> {
    let len_bytes = u32_at(memory.bytes(at, HEADER_BYTES)?, 4)?;
    if len_bytes < HEADER_BYTES as u32 || len_bytes > TABLE_BYTES_MAX {
        return None;
    }
    memory.bytes(at, len_bytes as usize).filter(|table| sums_to_zero(table))
}

/// MADT, section 5.2.12: interrupt controller structures of type 1.
fn io_apics(madt: &[u8]) -> Vec<u64> {
    let mut rest = madt.get(HEADER_BYTES + 8..).unwrap_or_default();
    let mut found = Vec::new();
    while let [kind, len_bytes, ..] = *rest {
        let Some(entry) = rest.get(..usize::from(len_bytes)).filter(|e| e.len() >= 2) else { break };
        if kind == 1 {
            found.extend(u32_at(entry, 4).map(u64::from));
        }
        rest = rest.get(entry.len()..).unwrap_or_default();
    }
    found
}

/// FADT, section 5.2.9.
fn soft_off(fadt: &[u8]) -> Option<SoftOff> {
    const HARDWARE_REDUCED: u32 = 1 << 20;
    if u32_at(fadt, 112)? & HARDWARE_REDUCED != 0 {
        return u64_at(fadt, 248).filter(|a| *a != 0).map(|address| SoftOff::SleepControl { address });
    }
    let port = u16::try_from(u32_at(fadt, 64)?).ok()?;
    (port != 0).then_some(SoftOff::Pm1a { port })
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    struct Image(Vec<u8>);

    impl PhysicalMemory for Image {
        fn bytes(&self, at: u64, len_bytes: usize) -> Option<&[u8]> {
            let at = usize::try_from(at).ok()?;
            self.0.get(at..at.checked_add(len_bytes)?)
        }
    }

    impl Image {
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn seal(&mut self, at: usize, len: usize, checksum_at: usize) {
            let sum = self.0[at..at + len].iter().fold(0u8, |s, b| s.wrapping_add(*b));
            self.0[at + checksum_at] = self.0[at + checksum_at].wrapping_sub(sum);
        }

        fn table(&mut self, at: usize, name: &[u8; 4], body: &[u8]) {
            let len = HEADER_BYTES + body.len();
            self.put(at, name);
            self.put(at + 4, &(len as u32).to_le_bytes());
            self.put(at + HEADER_BYTES, body);
            self.seal(at, len, 9);
        }
    }

    fn machine(xsdt: bool, reduced: bool) -> Image {
        let mut image = Image(vec![0; 4096]);
        image.put(0, b"RSD PTR ");
        if xsdt {
            image.put(15, &[2]);
            image.put(24, &256u64.to_le_bytes());
            image.table(256, b"XSDT", &[512u64.to_le_bytes(), 1024u64.to_le_bytes()].concat());
        } else {
            image.put(16, &256u32.to_le_bytes());
            image.table(256, b"RSDT", &[512u32.to_le_bytes(), 1024u32.to_le_bytes()].concat());
        }
        image.seal(0, 20, 8);
        let mut madt = vec![0; 8];
        madt.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        for address in [0xfec0_0000u32, 0xfec1_0000] {
            madt.extend([1, 12, 0, 0]);
            madt.extend(address.to_le_bytes());
            madt.extend([0; 4]);
        }
        image.table(512, b"APIC", &madt);
        let mut fadt = vec![0; 276 - HEADER_BYTES];
        fadt[64 - HEADER_BYTES..][..4].copy_from_slice(&0x604u32.to_le_bytes());
        if reduced {
            fadt[112 - HEADER_BYTES..][..4].copy_from_slice(&(1u32 << 20).to_le_bytes());
            fadt[248 - HEADER_BYTES..][..8].copy_from_slice(&0xfea0_0200u64.to_le_bytes());
        }
        image.table(1024, b"FACP", &fadt);
        image
    }

    #[test]
    fn both_root_tables_lead_to_the_io_apics_and_the_way_off() {
        let old = Acpi::read(&machine(false, false), 0);
        assert_eq!(old.io_apics, [0xfec0_0000, 0xfec1_0000]);
        assert_eq!(old.soft_off, Some(SoftOff::Pm1a { port: 0x604 }));
        let new = Acpi::read(&machine(true, true), 0);
        assert_eq!(new.io_apics, [0xfec0_0000, 0xfec1_0000]);
        assert_eq!(new.soft_off, Some(SoftOff::SleepControl { address: 0xfea0_0200 }));
    }

    #[test]
    fn what_is_broken_is_left_out() {
        let mut image = machine(true, false);
        image.0[600] ^= 1;
        assert_eq!(Acpi::read(&image, 0).io_apics, [0xfec0_0000, 0xfec1_0000], "beyond the table");
        image.0[512 + 40] ^= 1;
        assert_eq!(Acpi::read(&image, 0).io_apics, [0u64; 0], "a bad checksum");
        assert!(Acpi::read(&image, 0).soft_off.is_some());
        assert_eq!(Acpi::read(&image, 4090), Acpi::default(), "no RSDP");
        image.table(512, b"APIC", &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 200]);
        assert_eq!(Acpi::read(&image, 0).io_apics, [0u64; 0], "entries of length 0 and beyond the end");
    }
}
