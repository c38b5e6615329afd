//! A virtio device without a thread: a test looks at its rings, as the device would, and answers when it likes.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The device's side. Clones are the same device.
#[derive(Clone)]
pub(super) struct FakeDevice(Rc<State>);

struct State {
    kind: DeviceType,
    offered: u64,
    accepted: Cell<u64>,
    status: Cell<u32>,
    queue_size: u16,
    queues: RefCell<[Rings; 2]>,
    configuration: RefCell<Vec<u8>>,
    interrupts: Cell<u32>,
    notified: Cell<usize>,
    /// Ignores resets, as a hostile device might.
    pub stubborn: Cell<bool>,
}

#[derive(Clone, Copy, Default)]
struct Rings {
    size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    seen: u16,
}

/// A request as the device sees it.
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) indirect: bool,
    /// Address, length, whether the device writes.
    pub(super) segments: Vec<(u64, u32, bool)>,
}

impl Chain {
    /// The bytes that the driver shows to the device.
    pub(super) fn read(&self) -> Vec<u8> {
        let shown = self.segments.iter().filter(|(_, _, device_writes)| !device_writes);
        shown.flat_map(|(at, len, _)| (0..u64::from(*len)).map(move |n| peek(at + n))).collect()
    }

    /// Writes to what the driver lends, in order.
    pub(super) fn write(&self, bytes: &[u8]) {
        let lent = self.segments.iter().filter(|(_, _, device_writes)| *device_writes);
        let places = lent.flat_map(|(at, len, _)| *at..*at + u64::from(*len));
        places.zip(bytes).for_each(|(at, byte)| poke(at, *byte));
    }

    pub(super) fn writable_bytes(&self) -> usize {
        self.segments.iter().filter(|(_, _, device_writes)| *device_writes).map(|(_, len, _)| *len as usize).sum()
    }
}

fn peek<T>(at: u64) -> T {
    // SAFETY: tests only look where a driver told the device to.
    unsafe { (at as usize as *const T).read_volatile() }
}

fn poke<T>(at: u64, value: T) {
    // SAFETY: as for `peek`.
    unsafe { (at as usize as *mut T).write_volatile(value) }
}

impl FakeDevice {
    pub(super) fn new(kind: DeviceType, offered: u64, queue_size: u16, configuration: &[u8]) -> FakeDevice {
        FakeDevice(Rc::new(State {
            kind,
            offered: offered | super::VERSION_1,
            accepted: Cell::new(0),
            status: Cell::new(0),
            queue_size,
            queues: RefCell::default(),
            configuration: RefCell::new(configuration.to_vec()),
            interrupts: Cell::new(0),
            notified: Cell::new(0),
            stubborn: Cell::new(false),
        }))
    }

    pub(super) fn transport(&self) -> FakeTransport {
        FakeTransport(self.clone())
    }

    pub(super) fn accepted(&self) -> u64 {
        self.0.accepted.get()
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.status.get() & DeviceStatus::DRIVER_OK.bits() != 0
    }

    pub(super) fn ignore_resets(&self) {
        self.0.stubborn.set(true);
    }

    /// Notifications so far.
    pub(super) fn notified(&self) -> usize {
        self.0.notified.get()
    }

    /// Has failed, and says so.
    pub(super) fn need_reset(&self) {
        self.0.status.set(self.0.status.get() | DeviceStatus::DEVICE_NEEDS_RESET.bits());
        self.0.interrupts.set(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT.bits());
    }

    /// Changes the configuration and says so.
    pub(super) fn configure(&self, at: usize, bytes: &[u8]) {
        self.0.configuration.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        self.0.interrupts.set(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT.bits());
    }

    /// The next request of a queue.
    pub(super) fn next(&self, queue: usize) -> Option<Chain> {
        let mut queues = self.0.queues.borrow_mut();
        let rings = &mut queues[queue];
        if peek::<u16>(rings.driver + 2) == rings.seen {
            return None;
        }
        let head = peek::<u16>(rings.driver + 4 + 2 * u64::from(rings.seen % rings.size));
        rings.seen = rings.seen.wrapping_add(1);
        let mut segments = Vec::new();
        let (mut table, mut at, mut indirect) = (rings.descriptors, head, false);
        loop {
            let descriptor = table + 16 * u64::from(at);
            let (address, len, flags) = (peek(descriptor), peek::<u32>(descriptor + 8), peek::<u16>(descriptor + 12));
            if flags & 4 != 0 {
                (table, at, indirect) = (address, 0, true);
                continue;
            }
            segments.push((address, len, flags & 2 != 0));
            if flags & 1 == 0 {
                return Some(Chain { head, indirect, segments });
            }
            at = peek(descriptor + 14);
        }
    }

    /// Gives a request back.
    pub(super) fn done(&self, queue: usize, head: u32, len_bytes: u32) {
        let rings = self.0.queues.borrow()[queue];
        let index = peek::<u16>(rings.device + 2);
        let entry = rings.device + 4 + 8 * u64::from(index % rings.size);
        poke(entry, head);
        poke(entry + 4, len_bytes);
        poke(rings.device + 2, index.wrapping_add(1));
    }

    /// Moves the used index without using anything.
    pub(super) fn skip_used(&self, queue: usize, by: u16) {
        let rings = self.0.queues.borrow()[queue];
        poke(rings.device + 2, peek::<u16>(rings.device + 2).wrapping_add(by));
    }

    /// With event indices: wants to be notified when the driver adds request `index`.
    pub(super) fn want_notification(&self, queue: usize, index: u16) {
        let rings = self.0.queues.borrow()[queue];
        poke(rings.device + 4 + 8 * u64::from(rings.size), index);
    }

    /// With event indices: the use that the driver wants to hear of.
    pub(super) fn wanted_interrupt(&self, queue: usize) -> u16 {
        let rings = self.0.queues.borrow()[queue];
        peek(rings.driver + 4 + 2 * u64::from(rings.size))
    }
}

/// The driver's side of a [`FakeDevice`].
pub(super) struct FakeTransport(FakeDevice);

impl FakeTransport {
    fn state(&self) -> &State {
        &self.0.0
    }
}

impl Transport for FakeTransport {
    fn device_type(&self) -> DeviceType {
        self.state().kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.state().offered
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.state().accepted.set(driver_features);
    }

    fn max_queue_size(&mut self, _: u16) -> u32 {
        self.state().queue_size.into()
    }

    fn notify(&mut self, _: u16) {
        self.state().notified.set(self.state().notified.get() + 1);
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.state().status.get())
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if !self.state().stubborn.get() {
            self.state().status.set(status.bits());
        }
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, descriptors: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        let rings = Rings { size: size as u16, descriptors, driver, device, seen: 0 };
        self.state().queues.borrow_mut()[usize::from(queue)] = rings;
    }

    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, queue: u16) -> bool {
        self.state().queues.borrow()[usize::from(queue)].size > 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.state().interrupts.take())
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let configuration = self.state().configuration.borrow();
        let field = configuration.get(offset..).ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_prefix(field).map(|(value, _)| value).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> Result<()> {
        Err(Error::Unsupported)
    }
}
