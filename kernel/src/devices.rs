//! The devices that the appliance needs, on whichever bus they are.

use crate::paging::{self, Access};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use drivers::entropy;
use drivers::virtio::{self, Blk, DeviceType, Net, SomeTransport, Transport, VirtioError};

/// A disk as the kernel has it.
pub type Disk = Rc<Blk<SomeTransport<'static>>>;

/// What was found.
#[derive(Default)]
pub struct Devices {
    /// Disks, in the order of their buses.
    pub disks: Vec<Disk>,
    /// The first network card.
    pub net: Option<Rc<Net<SomeTransport<'static>>>>,
    /// A seed from the host.
    pub seed: Option<[u8; 32]>,
}

impl Devices {
    /// Looks on PCI, or in the memory-mapped slots if the machine has no PCI, and brings up what is known.
    /// A device that fails is reported and left out.
    pub fn find(command_line: &str) -> Devices {
        let transports = virtio::pci_devices(map_device).unwrap_or_else(|| mmio_devices(command_line));
        let mut devices = Devices::default();
        for transport in transports {
            if let Err(error) = transport.and_then(|transport| devices.bring_up(transport)) {
                log::error!("a virtio device is left out: {error}");
            }
        }
        log::debug!("{} disks are up, and {} network card", devices.disks.len(), devices.net.iter().len());
        devices
    }

    fn bring_up(&mut self, transport: SomeTransport<'static>) -> Result<(), VirtioError> {
        match transport.device_type() {
            DeviceType::Block => self.disks.push(Rc::new(Blk::new(transport)?)),
            DeviceType::Network if self.net.is_none() => self.net = Some(Rc::new(Net::new(transport)?)),
            DeviceType::EntropySource => self.seed = Some(virtio::entropy(transport)?),
            other => log::warn!("a virtio device of type {other:?} is not used"),
        }
        Ok(())
    }

    /// A seed for the random generator from everything that the machine offers.
    pub fn random_seed(&self) -> Option<[u8; 32]> {
        let mut seed = self.seed;
        if let Some(words) = entropy::rdrand_words::<4>() {
            let seed = seed.get_or_insert_default();
            for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
                bytes.iter_mut().zip(word.to_le_bytes()).for_each(|(byte, random)| *byte ^= random);
            }
        }
        seed
    }
}

fn mmio_devices(command_line: &str) -> Vec<Result<SomeTransport<'static>, VirtioError>> {
    let slots = virtio::mmio_slots(command_line);
    let open = |slot: virtio::Slot| {
        map_device(slot.address..slot.address.saturating_add(slot.size_bytes));
        // SAFETY: mapped just now; the machine has no PCI, so nothing else can be in the slots.
        unsafe { virtio::open_mmio(slot) }.map(Ok)
    };
    slots.into_iter().filter_map(open).collect()
}

fn map_device(addresses: Range<u64>) {
    // SAFETY: a device's registers are not RAM.
    unsafe { paging::map_large(addresses, Access::Device) }
}
