//! Serves a disk in memory over iSCSI on 127.0.0.1, to try real initiators against the crate alone:
//!
//! `cargo run -p export --example serve -- [PORT [MIB [BLOCK_BYTES]]]`, then `iscsi-ls iscsi://127.0.0.1:PORT`.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{OneTarget, ThinDisk};
use export::{Portal, PortalOptions};
use platform::Runtime;
use platform::buf::BufPool;
use platform::net::{Ends, NetError, Stream};
use platform::random::Seeded;
use platform::task::{Executor, Machine};
use platform::time::{Clock, Instant, Timers};
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Sockets that wait: all are tried again after a short sleep.
#[derive(Clone, Default)]
struct Sockets(Rc<RefCell<Vec<Waker>>>);

impl Sockets {
    async fn ready<T>(&self, mut attempt: impl FnMut() -> std::io::Result<T>) -> Result<T, NetError> {
        std::future::poll_fn(|cx| match attempt() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.0.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
            result => Poll::Ready(result.map_err(|_| NetError::Reset)),
        })
        .await
    }
}

impl Machine for Sockets {
    fn poll(&self) -> bool {
        let waiting = std::mem::take(&mut *self.0.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
        false
    }

    fn park(&self, _deadline: Option<Instant>) {
        std::thread::sleep(Duration::from_micros(100));
    }
}

struct Monotonic(std::time::Instant);

impl Clock for Monotonic {
    fn now(&self) -> Instant {
        Instant { nanos: self.0.elapsed().as_nanos() as u64 }
    }
}

struct Tcp {
    socket: Rc<TcpStream>,
    ends: Ends,
    sockets: Sockets,
}

struct Half(Rc<TcpStream>, Sockets);

impl Stream for Tcp {
    type Reader = Half;
    type Writer = Half;

    fn ends(&self) -> Ends {
        self.ends
    }

    fn split(self) -> (Half, Half) {
        (Half(self.socket.clone(), self.sockets.clone()), Half(self.socket, self.sockets))
    }
}

impl embedded_io_async::ErrorType for Half {
    type Error = NetError;
}

impl embedded_io_async::Read for Half {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, NetError> {
        self.1.ready(|| (&*self.0).read(buf)).await
    }
}

impl embedded_io_async::Write for Half {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, NetError> {
        self.1.ready(|| (&*self.0).write(buf)).await
    }

    async fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

struct Log;

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        eprintln!("{}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

static LOG: Log = Log;

fn main() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(if std::env::var("LOG").is_ok() { log::LevelFilter::Debug } else { log::LevelFilter::Info });
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let (port, mib, block_bytes) = (args.next().unwrap_or(0), args.next().unwrap_or(1000), args.next().unwrap_or(512));
    let listener = TcpListener::bind(("127.0.0.1", port as u16)).unwrap();
    listener.set_nonblocking(true).unwrap();
    println!("ready iscsi://{}/{}/0", listener.local_addr().unwrap(), common::TARGET);

    let executor = Executor::new();
    let sockets = Sockets::default();
    let runtime = Runtime {
        spawner: executor.spawner(),
        timers: Timers::new(Rc::new(Monotonic(std::time::Instant::now()))),
        random: Rc::new(Seeded::from_u64(1)),
        bufs: BufPool::new(64 << 20),
    };
    let unit = Rc::new(ThinDisk::new(mib << 20, block_bytes as u32, runtime.bufs.clone()));
    let portal = Portal::new(&runtime, Rc::new(OneTarget(unit)), PortalOptions::default());
    let timers = runtime.timers.clone();
    let accepting = sockets.clone();
    executor.run(&timers, &sockets, async move {
        loop {
            let Ok((socket, peer)) = accepting.ready(|| listener.accept()).await else { return };
            socket.set_nonblocking(true).unwrap();
            socket.set_nodelay(true).unwrap();
            let ends = Ends { local: socket.local_addr().unwrap(), peer };
            let stream = Tcp { socket: Rc::new(socket), ends, sockets: accepting.clone() };
            let portal = portal.clone();
            runtime.spawner.spawn(async move { portal.serve(stream).await });
        }
    });
}
