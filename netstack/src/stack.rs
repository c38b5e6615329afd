//! The stack: one interface, its address, its ports, and the task that moves frames.

use crate::device::{FrameDevice, Phy};
use crate::port::{ListenOptions, Port};
use crate::stream::TcpListener;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::convert::Infallible;
use core::fmt;
use core::net::Ipv4Addr;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use platform::Runtime;
use platform::sync::Notify;
use platform::time::{Duration, Instant, Sleep, Timers};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

/// Frames read, and rounds of frames sent, before other tasks have a turn.
const BURST: usize = 64;

/// The soonest that smoltcp is asked again when it says "now" but did nothing.
const PAUSE: Duration = Duration::from_millis(1);

/// Where the address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Leased, and renewed in time.
    Dhcp,
    /// Given.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Bits of its network part, at most 32.
        prefix_bits: u8,
        /// Who forwards to other networks.
        gateway: Option<Ipv4Addr>,
    },
}

/// Why a port cannot be listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Another listener has it.
    #[error("port {0} is in use: choose another")]
    InUse(u16),
    /// There is no such port.
    #[error("port 0 cannot be listened on: choose one from 1 to 65535")]
    Zero,
}

/// The stack. Clones are the same one.
#[derive(Clone)]
pub struct Stack(pub(crate) Rc<Shared>);

pub(crate) struct Shared {
    pub(crate) inner: RefCell<Inner>,
    pub(crate) timers: Timers,
    /// The task that runs the stack, once it has run.
    task: RefCell<Option<Waker>>,
    /// Notified when the address changes or a connection is gone.
    changed: Notify,
}

pub(crate) struct Inner {
    interface: Interface,
    phy: Phy,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) ports: Vec<Port>,
    dhcp: Option<SocketHandle>,
    address: Option<Ipv4Cidr>,
}

impl Stack {
    /// Starts the stack on a card, as a task that runs for as long as the executor does.
    pub fn start(runtime: &Runtime, device: Rc<dyn FrameDevice>, address: Address) -> Stack {
        let mut seed = [0; 8];
        runtime.random.fill(&mut seed);
        let mut config = Config::new(EthernetAddress(device.link().mac).into());
        config.random_seed = u64::from_le_bytes(seed);
        let mut phy = Phy::new(device.clone());
        let interface = Interface::new(config, &mut phy, instant(runtime.timers.now()));
        let mut inner =
            Inner { interface, phy, sockets: SocketSet::new(Vec::new()), ports: Vec::new(), dhcp: None, address: None };
        match address {
            Address::Dhcp => inner.dhcp = Some(inner.sockets.add(dhcpv4::Socket::new())),
            Address::Static { address, prefix_bits, gateway } => {
                inner.configure(Some((Ipv4Cidr::new(address, prefix_bits.min(32)), gateway)));
            }
        }
        let shared = Rc::new(Shared {
            inner: RefCell::new(inner),
            timers: runtime.timers.clone(),
            task: RefCell::new(None),
            changed: Notify::new(),
        });
        runtime.spawner.spawn(run(shared.clone(), device));
        Stack(shared)
    }

    /// The address, if there is one yet.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.0.inner.borrow().address.map(|cidr| cidr.address())
    }

    /// Waits for an address.
    pub async fn configured(&self) -> Ipv4Addr {
        loop {
            let changed = self.0.changed.notified();
            if let Some(address) = self.address() {
                return address;
            }
            changed.await;
        }
    }

    /// Accepts connections on a port of every address that the stack has or will have.
    pub fn listen(&self, port: u16, options: ListenOptions) -> Result<TcpListener, ListenError> {
        if port == 0 {
            return Err(ListenError::Zero);
        }
        let mut inner = self.0.inner.borrow_mut();
        if inner.ports.iter().any(|p| p.number == port) {
            return Err(ListenError::InUse(port));
        }
        let mut entry = Port::new(port, options);
        let arrived = entry.arrived.clone();
        entry.advance(&mut inner.sockets);
        inner.ports.push(entry);
        Ok(TcpListener { shared: self.0.clone(), port, arrived })
    }

    /// Waits until every connection whose halves were dropped has delivered what was written, or was given up: to be
    /// called before power-off. Its time is bounded by [`ListenOptions::linger`].
    pub async fn settle(&self) {
        loop {
            let changed = self.0.changed.notified();
            if !self.0.inner.borrow().has_undelivered() {
                return;
            }
            changed.await;
        }
    }
}

impl Shared {
    /// There is something to send, or room to receive.
    pub(crate) fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }
}

impl Inner {
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        self.address.map(|cidr| cidr.address())
    }

    pub(crate) fn port(&mut self, number: u16) -> Option<(&mut Port, &mut SocketSet<'static>)> {
        let port = self.ports.iter_mut().find(|p| p.number == number)?;
        Some((port, &mut self.sockets))
    }

    fn has_undelivered(&self) -> bool {
        self.ports.iter().any(|p| p.has_undelivered(&self.sockets))
    }

    fn configure(&mut self, lease: Option<(Ipv4Cidr, Option<Ipv4Addr>)>) {
        self.address = lease.map(|(cidr, _)| cidr);
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // There is room: smoltcp holds two addresses at least, and the list was just emptied.
            addresses.extend(lease.map(|(cidr, _)| IpCidr::Ipv4(cidr)));
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gateway) = lease.and_then(|(_, gateway)| gateway)
            && let Err(error) = routes.add_default_ipv4_route(gateway)
        {
            log::error!("cannot route through {gateway}: {error:?}");
        }
    }

    /// Takes over what the DHCP server said; true if it said anything.
    fn follow_lease(&mut self) -> bool {
        let Some(handle) = self.dhcp else { return false };
        let lease = match self.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            None => return false,
            Some(dhcpv4::Event::Deconfigured) => None,
            Some(dhcpv4::Event::Configured(config)) => Some((config.address, config.router)),
        };
        match lease {
            Some((cidr, gateway)) => log::info!("leased {cidr}, gateway {gateway:?}"),
            None => log::warn!("no address is leased"),
        }
        self.configure(lease);
        true
    }

    /// Moves frames.
    fn poll(&mut self, now: Instant) -> Turn {
        let time = instant(now);
        let was_undelivered = self.has_undelivered();
        let mut more = true;
        for _ in 0..BURST {
            let received = self.interface.poll_ingress_single(time, &mut self.phy, &mut self.sockets);
            if matches!(received, PollIngressSingleResult::None) {
                more = false;
                break;
            }
            self.ports.iter_mut().for_each(|p| p.advance(&mut self.sockets));
        }
        self.interface.poll_maintenance(time);
        let address_changed = self.follow_lease();
        // Sending comes last, so that one acknowledgement answers many frames.
        let sent_all = (0..BURST).any(|_| {
            let sent = self.interface.poll_egress(time, &mut self.phy, &mut self.sockets);
            matches!(sent, PollResult::None)
        });
        let deadline = self.ports.iter_mut().filter_map(|p| p.reap(&mut self.sockets, now)).min();
        // Time that ran out freed room, or closed a connection whose reset is to be sent.
        self.ports.retain(|p| !p.is_gone());
        self.ports.iter_mut().for_each(|p| p.advance(&mut self.sockets));
        let delivered = was_undelivered && !self.has_undelivered();
        let wanted = self.interface.poll_at(time, &self.sockets).map(|at| Instant { nanos: nanos(at) });
        let deadline = [deadline, wanted].into_iter().flatten().min();
        Turn { more: more || !sent_all, changed: address_changed || delivered, deadline }
    }
}

/// What came of a turn of the stack.
struct Turn {
    /// There was more to do than a turn allows.
    more: bool,
    /// The address changed, or everything was delivered.
    changed: bool,
    /// When to come again at the latest.
    deadline: Option<Instant>,
}

/// The task: a turn at every wake, by the card, a user of a stream, or time.
async fn run(shared: Rc<Shared>, device: Rc<dyn FrameDevice>) -> Infallible {
    let mut sleep = None;
    core::future::poll_fn(|cx| {
        shared.take_turn(device.as_ref(), &mut sleep, cx);
        Poll::Pending
    })
    .await
}

impl Shared {
    fn take_turn(&self, device: &dyn FrameDevice, sleep: &mut Option<Sleep>, cx: &mut Context<'_>) {
        // First, so that nothing that comes during the turn is missed.
        device.register(cx.waker());
        *self.task.borrow_mut() = Some(cx.waker().clone());
        let now = self.timers.now();
        let turn = self.inner.borrow_mut().poll(now);
        device.kick();
        if turn.changed {
            self.changed.notify_all();
        }
        if turn.more && device.can_transmit() {
            *sleep = None;
            return cx.waker().wake_by_ref();
        }
        *sleep = turn.deadline.map(|at| self.timers.sleep_until(if at > now { at } else { now + PAUSE }));
        if let Some(sleep) = sleep
            && Pin::new(sleep).poll(cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stack({:?})", self.address())
    }
}

fn instant(at: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(at.nanos / 1000).unwrap_or(i64::MAX))
}

fn nanos(at: smoltcp::time::Instant) -> u64 {
    u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000)
}
