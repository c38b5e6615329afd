//! Finding virtio devices: on PCI behind any number of bridges, and in memory-mapped slots.

use super::VirtioError;
use crate::port::Ports;
use alloc::vec::Vec;
use core::ops::Range;
use core::ptr::NonNull;
use virtio_drivers::transport::SomeTransport;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, HeaderType, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// PCI configuration space through the ports 0xCF8 and 0xCFC, which need no table to be found.
struct ConfigurationPorts;

impl ConfigurationPorts {
    const ADDRESS: u16 = 0;
    const DATA: u16 = 4;
    // SAFETY: configuration accesses move no memory by themselves.
    const PORTS: Ports = unsafe { Ports::new(0xcf8) };

    fn select(device_function: DeviceFunction, register_offset: u8) {
        const ENABLE: u32 = 1 << 31;
        let DeviceFunction { bus, device, function } = device_function;
        let address = u32::from(bus) << 16 | u32::from(device) << 11 | u32::from(function) << 8;
        Self::PORTS.write32(Self::ADDRESS, ENABLE | address | u32::from(register_offset & !3));
    }
}

impl ConfigurationAccess for ConfigurationPorts {
    fn read_word(&self, device_function: DeviceFunction, register_offset: u8) -> u32 {
        Self::select(device_function, register_offset);
        Self::PORTS.read32(Self::DATA)
    }

    fn write_word(&mut self, device_function: DeviceFunction, register_offset: u8, data: u32) {
        Self::select(device_function, register_offset);
        Self::PORTS.write32(Self::DATA, data);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        ConfigurationPorts
    }
}

/// Virtual is physical, and the transports allocate nothing.
struct Identity;

// SAFETY: no memory is ever handed out; MMIO is identity-mapped by the caller of `pci_devices`.
unsafe impl Hal for Identity {
    fn dma_alloc(_: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        (0, NonNull::dangling()) // physical address 0: there is none
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as usize as *mut u8).expect("an assigned BAR is not at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr() as *mut u8 as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Opens every virtio device on PCI. `map` makes a BAR's physical addresses usable.
/// The result is `None` if the machine has no PCI.
pub fn pci_devices(mut map: impl FnMut(Range<u64>)) -> Option<Vec<Result<SomeTransport<'static>, VirtioError>>> {
    let host_bridge = DeviceFunction { bus: 0, device: 0, function: 0 };
    if ConfigurationPorts.read_word(host_bridge, 0) == u32::MAX {
        return None;
    }
    let mut root = PciRoot::new(ConfigurationPorts);
    let found = virtio_functions(&root, 0);
    Some(found.into_iter().map(|function| open_pci(&mut root, function, &mut map)).collect())
}

/// The virtio functions on `bus` and on the buses behind its bridges.
fn virtio_functions(root: &PciRoot<ConfigurationPorts>, bus: u8) -> Vec<DeviceFunction> {
    const BUS_NUMBERS: u8 = 0x18;
    let mut found = Vec::new();
    for (function, info) in root.enumerate_bus(bus) {
        if virtio_device_type(&info).is_some() {
            found.push(function);
        } else if info.header_type == HeaderType::PciPciBridge {
            let [_, secondary, _, _] = ConfigurationPorts.read_word(function, BUS_NUMBERS).to_le_bytes();
            // Numbers grow towards the leaves: this ends.
            if secondary > bus {
                found.extend(virtio_functions(root, secondary));
            }
        }
    }
    found
}

fn open_pci(
    root: &mut PciRoot<ConfigurationPorts>,
    function: DeviceFunction,
    map: &mut impl FnMut(Range<u64>),
) -> Result<SomeTransport<'static>, VirtioError> {
    let address = u64::from(function.bus) << 8 | u64::from(function.device) << 3 | u64::from(function.function);
    let absent = VirtioError::Absent { address };
    for addresses in structures(root, function) {
        map(addresses.ok_or(absent)?);
    }
    let (_, command) = root.get_status_command(function);
    let command = (command | Command::MEMORY_SPACE | Command::BUS_MASTER) & !Command::INTERRUPT_DISABLE;
    root.set_command(function, command);
    PciTransport::new::<Identity, _>(root, function).map(SomeTransport::from).map_err(|_| absent)
}

/// Where the structures are that the device's vendor capabilities tell of (virtio 1.2, section 4.1.4); `None` for one
/// that cannot be.
///
/// The BARs' addresses are read as firmware left them. To ask for their sizes, as for addresses that are still to be
/// chosen, would move the device out of the address space and back, which takes emulators long.
fn structures(root: &PciRoot<ConfigurationPorts>, function: DeviceFunction) -> Vec<Option<Range<u64>>> {
    const VENDOR: u8 = 9;
    const ACCESS_THROUGH_CONFIGURATION: u8 = 5;
    const BAR_AT: u8 = 4;
    const OFFSET_AT: u8 = 8;
    const LENGTH_AT: u8 = 12;
    let mut found = Vec::new();
    for capability in root.capabilities(function).filter(|capability| capability.id == VENDOR) {
        let [_, kind] = capability.private_header.to_le_bytes();
        if kind == ACCESS_THROUGH_CONFIGURATION {
            continue;
        }
        let word = |at: u8| ConfigurationPorts.read_word(function, capability.offset.wrapping_add(at));
        let [bar, ..] = word(BAR_AT).to_le_bytes();
        let start = bar_address(function, bar).and_then(|bar| bar.checked_add(word(OFFSET_AT).into()));
        found.push(start.and_then(|start| Some(start..start.checked_add(word(LENGTH_AT).into())?)));
    }
    found
}

/// The address in a memory BAR, if it has one.
fn bar_address(function: DeviceFunction, bar: u8) -> Option<u64> {
    const BARS_AT: u8 = 0x10;
    const BARS: u8 = 6;
    const IO: u32 = 1;
    const KIND: u32 = 0b110;
    const KIND_64: u32 = 0b100;
    let word = |bar: u8| (bar < BARS).then(|| ConfigurationPorts.read_word(function, BARS_AT + 4 * bar));
    let low = word(bar).filter(|low| low & IO == 0)?;
    let high = if low & KIND == KIND_64 { word(bar + 1)? } else { 0 };
    Some(u64::from(high) << 32 | u64::from(low & !0xf)).filter(|address| *address != 0)
}

/// A place where a virtio device may be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Physical address of the registers.
    pub address: u64,
    /// Their length.
    pub size_bytes: u64,
}

/// The slots that the command line names (`virtio_mmio.device=512@0xfeb00e00:12`, as for Linux), or where
/// QEMU's microvm has them if it names none.
pub fn mmio_slots(command_line: &str) -> Vec<Slot> {
    const MICROVM_BASE: u64 = 0xfeb0_0000;
    const MICROVM_SLOT_BYTES: u64 = 512;
    const MICROVM_SLOTS: u64 = 24;
    let words = command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("virtio_mmio.device="));
    let named: Vec<Slot> = words.filter_map(parse_slot).collect();
    if !named.is_empty() {
        return named;
    }
    let slot = |n| Slot { address: MICROVM_BASE + n * MICROVM_SLOT_BYTES, size_bytes: MICROVM_SLOT_BYTES };
    (0..MICROVM_SLOTS).map(slot).collect()
}

fn parse_slot(text: &str) -> Option<Slot> {
    let (size, place) = text.split_once('@')?;
    let address = place.split(':').next()?;
    let (digits, factor) = match size.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1024),
        None => (size, 1),
    };
    Some(Slot { address: parse_number(address)?, size_bytes: parse_number(digits)?.checked_mul(factor)? })
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Opens the device in a slot; `None` if the slot is empty.
///
/// # Safety
/// The slot's addresses are mapped, hold a virtio device's registers or nothing that reading disturbs, and are
/// used by nobody else.
pub unsafe fn open_mmio(slot: Slot) -> Option<SomeTransport<'static>> {
    let header = NonNull::new(slot.address as usize as *mut VirtIOHeader)?;
    // SAFETY: the caller's promise.
    unsafe { MmioTransport::new(header, usize::try_from(slot.size_bytes).ok()?) }.ok().map(SomeTransport::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_from_the_command_line() {
        let slots = mmio_slots("a=b virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=4K@0x1000:5:0 x");
        let expected = [(0xfeb0_0e00, 512), (0x1000, 4096)].map(|(address, size_bytes)| Slot { address, size_bytes });
        assert_eq!(slots, expected);
    }

    #[test]
    fn what_is_no_slot_is_ignored() {
        for text in ["512", "@", "512@", "512@0xzz:1", "99999999999999999999@0x1:1", "18446744073709551615K@1:1"] {
            assert_eq!(parse_slot(text), None, "{text}");
        }
        assert_eq!(mmio_slots("virtio_mmio.device=nonsense").len(), 24);
    }
}
