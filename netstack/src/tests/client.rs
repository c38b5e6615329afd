//! The other side: smoltcp's sockets, plainly, with what the tests need of an active opener.

use super::{Card, SERVER, World, pattern};
use crate::device::{FrameDevice, Phy};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Poll, Waker};
use platform::Runtime;
use platform::time::{Instant, Timers};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, RecvError, State};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

struct Side {
    interface: Interface,
    sockets: SocketSet<'static>,
    phy: Phy,
    waker: Option<Waker>,
}

#[derive(Clone)]
pub struct Client {
    side: Rc<RefCell<Side>>,
    timers: Timers,
    next_port: Rc<Cell<u16>>,
}

pub struct Peer {
    client: Client,
    handle: SocketHandle,
}

/// What came instead of bytes.
#[derive(Debug, PartialEq)]
pub struct Broken;

impl Client {
    pub fn start(world: &Rc<World>, runtime: &Runtime) -> Client {
        let card = Card::client(world);
        let mut phy = Phy::new(card.clone());
        let config = Config::new(EthernetAddress(card.link().mac).into());
        let mut interface = Interface::new(config, &mut phy, time(runtime.timers.now()));
        let address = IpCidr::new(Ipv4Address::new(10, 0, 0, 2).into(), 24);
        interface.update_ip_addrs(|addresses| addresses.push(address).unwrap());
        let sockets = SocketSet::new(Vec::new());
        let side = Rc::new(RefCell::new(Side { interface, sockets, phy, waker: None }));
        let client = Client { side, timers: runtime.timers.clone(), next_port: Rc::new(Cell::new(50_000)) };
        runtime.spawner.spawn(run(client.clone(), card));
        client
    }

    /// Opens a connection with buffers of `buffer_bytes`, without waiting for it.
    pub fn open(&self, port: u16, buffer_bytes: usize) -> Peer {
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        let local = self.next_port.get();
        self.next_port.set(local + 1);
        let mut side = self.side.borrow_mut();
        socket.connect(side.interface.context(), (Ipv4Address::from(SERVER), port), local).unwrap();
        let handle = side.sockets.add(socket);
        drop(side);
        self.wake();
        Peer { client: self.clone(), handle }
    }

    /// Opens a connection and waits for it.
    pub async fn connect(&self, port: u16) -> Result<Peer, Broken> {
        let peer = self.open(port, 64 << 10);
        peer.established().await.map(|()| peer)
    }

    fn wake(&self) {
        if let Some(waker) = &self.side.borrow().waker {
            waker.wake_by_ref();
        }
    }
}

async fn run(client: Client, card: Rc<Card>) {
    let mut sleep = None;
    poll_fn(|cx| {
        card.register(cx.waker());
        let now = client.timers.now();
        let side = &mut *client.side.borrow_mut();
        side.waker = Some(cx.waker().clone());
        side.interface.poll(time(now), &mut side.phy, &mut side.sockets);
        let at = side.interface.poll_at(time(now), &side.sockets);
        sleep = at.map(|at| {
            client.timers.sleep_until(Instant { nanos: (at.total_micros() as u64 * 1000).max(now.nanos + 1000) })
        });
        if let Some(sleep) = &mut sleep {
            assert!(Pin::new(sleep).poll(cx).is_pending());
        }
        Poll::<()>::Pending
    })
    .await
}

impl Peer {
    fn with<T>(&self, f: impl FnOnce(&mut tcp::Socket<'static>) -> T) -> T {
        let result = f(self.client.side.borrow_mut().sockets.get_mut(self.handle));
        self.client.wake();
        result
    }

    pub fn state(&self) -> State {
        self.with(|socket| socket.state())
    }

    async fn wait<T>(&self, mut f: impl FnMut(&mut tcp::Socket<'static>) -> Option<T>) -> T {
        poll_fn(|cx| {
            self.with(|socket| match f(socket) {
                Some(value) => Poll::Ready(value),
                None => {
                    socket.register_recv_waker(cx.waker());
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
            })
        })
        .await
    }

    pub async fn established(&self) -> Result<(), Broken> {
        self.wait(|socket| match socket.state() {
            State::SynSent | State::SynReceived => None,
            State::Closed => Some(Err(Broken)),
            _ => Some(Ok(())),
        })
        .await
    }

    pub async fn send(&self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let sent = self
                .wait(|socket| match socket.send_slice(bytes) {
                    Ok(0) => None,
                    result => Some(result.map_err(|_| Broken)),
                })
                .await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Some bytes; none at the end of stream.
    pub async fn receive(&self) -> Result<Vec<u8>, Broken> {
        self.wait(|socket| match socket.recv(|bytes| (bytes.len(), bytes.to_vec())) {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some(Ok(bytes)),
            Err(RecvError::Finished) => Some(Ok(Vec::new())),
            Err(RecvError::InvalidState) => Some(Err(Broken)),
        })
        .await
    }

    /// Everything up to the end of stream, which must be the pattern from its start. Returns its length.
    pub async fn receive_pattern(&self) -> Result<usize, Broken> {
        let mut received = 0;
        loop {
            let bytes = self.receive().await?;
            if bytes.is_empty() {
                return Ok(received);
            }
            assert!(bytes == pattern(received, bytes.len()), "wrong bytes within {} of {received}", bytes.len());
            received += bytes.len();
        }
    }

    pub fn close(&self) {
        self.with(|socket| socket.close());
    }

    pub fn abort(&self) {
        self.with(|socket| socket.abort());
    }
}

pub fn time(at: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros((at.nanos / 1000) as i64)
}
