//! Virtio devices (virtio 1.2, modern interface only) over PCI and MMIO.

mod blk;
mod bus;
mod dma;
mod entropy;
#[cfg(test)]
mod fake;
mod net;
mod queue;
#[cfg(test)]
mod tests;

pub use blk::Blk;
pub use bus::{Slot, mmio_slots, open_mmio, pci_devices};
pub use entropy::entropy;
pub use net::Net;
pub use queue::Broken;
pub use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

use queue::QueueFeatures;
use virtio_drivers::transport::DeviceStatus;

const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// Reads of the status register until a reset is given up.
const RESET_PATIENCE: u32 = 1 << 20;

/// Why a device cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioError {
    /// The device has the legacy interface only.
    #[error("the device has no modern interface; start QEMU with -global virtio-mmio.force-legacy=false")]
    Legacy,
    /// The device refused a subset of what it had offered.
    #[error("the device refused the features {0:#x}")]
    Features(u64),
    /// The device lacks a queue, or it is too short.
    #[error("queue {queue} of the device has {size} usable entries, which are too few")]
    Queue {
        /// Its number.
        queue: u16,
        /// What it offers.
        size: u16,
    },
    /// The configuration space is missing, too small or says what cannot be.
    #[error("the device's configuration makes no sense at byte {offset}")]
    Configuration {
        /// The offset of the field.
        offset: usize,
    },
    /// The device did what it must not.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The device did not answer.
    #[error("the device does not answer")]
    Silent,
    /// The device could not be found where it was said to be.
    #[error("no usable virtio device is at {address:#x}")]
    Absent {
        /// The physical address, or the PCI address.
        address: u64,
    },
}

/// What an executor's machine does with a device.
pub trait Polled {
    /// Sends what is queued and takes what completed; true if anything completed.
    fn poll(&self) -> bool;

    /// Acknowledges an interrupt and asks for one at the next completion. Whoever calls this on all devices and
    /// then finds nothing by [`Polled::poll`] may sleep until an interrupt.
    fn listen(&self);

    /// The machine is awake: no interrupts for now.
    fn mute(&self);
}

/// Resets the device and agrees on features: what it offers of `wanted`.
fn negotiate(transport: &mut impl Transport, wanted: u64) -> Result<u64, VirtioError> {
    const ACKNOWLEDGE: DeviceStatus = DeviceStatus::ACKNOWLEDGE;
    let driver = ACKNOWLEDGE | DeviceStatus::DRIVER;
    if !reset(transport) {
        return Err(VirtioError::Silent);
    }
    transport.set_status(ACKNOWLEDGE);
    transport.set_status(driver);
    let offered = transport.read_device_features();
    if offered & VERSION_1 == 0 {
        return Err(VirtioError::Legacy);
    }
    let features = offered & (wanted | VERSION_1);
    transport.write_driver_features(features);
    transport.set_status(driver | DeviceStatus::FEATURES_OK);
    match transport.get_status().contains(DeviceStatus::FEATURES_OK) {
        true => Ok(features),
        false => Err(VirtioError::Features(features)),
    }
}

/// Resets the device: it lets go of all memory. False if it does not.
fn reset(transport: &mut impl Transport) -> bool {
    transport.set_status(DeviceStatus::empty());
    (0..RESET_PATIENCE).any(|_| transport.get_status().is_empty())
}

fn queue_features(features: u64) -> QueueFeatures {
    QueueFeatures { indirect: features & INDIRECT_DESCRIPTORS != 0, event_index: features & EVENT_INDEX != 0 }
}
