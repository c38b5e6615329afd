//! Files and loopback sockets under the executor.

use crate::disk::{FileDisk, OpenError};
use crate::net::{HostListener, Net};
use crate::reactor::Reactor;
use crate::{Host, os};
use embedded_io_async::{Read, Write};
use futures_util::future::join_all;
use platform::Runtime;
use platform::block::{Disk, IoError, Op};
use platform::buf::{Buf, BufPool};
use platform::net::{Listener, NetError, Stream};
use platform::task::Executor;
use platform::time::{Duration, Timers};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::thread;

const KIB: usize = 1 << 10;

/// A sparse file that is removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, len_bytes: u64) -> Scratch {
        let path = std::env::temp_dir().join(format!("gossamer-hosted-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(len_bytes).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

struct Scene {
    runtime: Runtime,
    net: Net,
    disks: Vec<Disk>,
}

/// Runs a test over files.
fn run<T: 'static, F: Future<Output = T> + 'static>(files: &[&Scratch], test: impl FnOnce(Scene) -> F) -> T {
    let executor = Executor::new();
    let clock = Rc::new(os::OsClock::start());
    let timers = Timers::new(clock.clone());
    let runtime = Runtime {
        spawner: executor.spawner(),
        timers: timers.clone(),
        random: Rc::new(os::random().unwrap()),
        bufs: BufPool::new(64 << 20),
    };
    let reactor = Reactor::new().unwrap();
    let disks: Vec<_> = files.iter().map(|f| FileDisk::open(&f.0, reactor.bell()).unwrap()).collect();
    let net = Net::new(reactor.clone(), runtime.clone());
    let scene = Scene { runtime, net, disks: disks.iter().cloned().map(Disk::new).collect() };
    let host = Host { reactor, disks, clock };
    executor.run(&timers, &host, test(scene))
}

impl Scene {
    fn buf(&self, len: usize, byte: u8) -> Buf {
        let mut buf = self.runtime.bufs.alloc(len).unwrap();
        buf.fill(byte);
        buf
    }
}

#[test]
fn what_is_written_is_read_and_is_in_the_file() {
    let file = Scratch::new("rw", 1 << 20);
    run(&[&file], |scene| async move {
        let disk = &scene.disks[0];
        let bufs = [scene.buf(512, 1), scene.buf(4096, 2)].into_iter().collect();
        disk.start(Op::Write { fua: false }, 3, 9, bufs).await.result.unwrap();
        disk.write(100, scene.buf(512, 3), true).await.0.unwrap();
        disk.flush().await.unwrap();
        let (read, buf) = disk.read(2, scene.buf(6144, 9)).await;
        read.unwrap();
        assert!(buf[..512].iter().all(|b| *b == 0) && buf[512..1024].iter().all(|b| *b == 1));
        assert!(buf[1024..5120].iter().all(|b| *b == 2) && buf[5120..].iter().all(|b| *b == 0));
    });
    let bytes = std::fs::read(&file.0).unwrap();
    assert!(bytes[100 * 512..101 * 512].iter().all(|b| *b == 3));
    assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 512 + 4096 + 512);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zero_and_take_no_space() {
    let file = Scratch::new("punch", 0);
    std::fs::write(&file.0, vec![7; 1 << 20]).unwrap();
    let before = std::fs::metadata(&file.0).unwrap().blocks();
    run(&[&file], |scene| async move {
        let disk = &scene.disks[0];
        disk.discard(0, 1024).await.unwrap();
        // Not aligned to the filesystem's blocks.
        disk.write_zeroes(1027, 510).await.unwrap();
        disk.flush().await.unwrap();
    });
    let bytes = std::fs::read(&file.0).unwrap();
    assert_eq!(bytes.len(), 1 << 20);
    let zero = |sector: usize| sector < 1024 || (1027..1537).contains(&sector);
    for (sector, data) in bytes.chunks(512).enumerate() {
        assert!(data.iter().all(|b| (*b == 0) == zero(sector)), "sector {sector}");
    }
    assert!(std::fs::metadata(&file.0).unwrap().blocks() < before);
}

#[test]
fn many_flushes_at_once_all_complete() {
    let file = Scratch::new("flush", 1 << 20);
    run(&[&file], |scene| async move {
        let disk = &scene.disks[0];
        let work = (0..100).map(|n| {
            let buf = scene.buf(4096, n as u8);
            async move {
                disk.write(n * 8, buf, n % 3 == 0).await.0.unwrap();
                disk.flush().await.unwrap();
            }
        });
        join_all(work).await;
    });
}

#[test]
fn growth_is_seen_and_the_end_is_kept() {
    let file = Scratch::new("grow", 64 * KIB as u64);
    let grown = file.0.clone();
    run(&[&file], |scene| async move {
        let disk = &scene.disks[0];
        assert_eq!(disk.size_sectors(), 128);
        let beyond = IoError::OutOfRange { sector: 128, sectors: 8 };
        assert_eq!(disk.write(128, scene.buf(4096, 1), false).await.0, Err(beyond));
        File::options().write(true).open(grown).unwrap().set_len(128 * KIB as u64).unwrap();
        assert_eq!(disk.size_sectors(), 256);
        disk.write(128, scene.buf(4096, 1), false).await.0.unwrap();
    });
}

#[test]
fn a_disk_is_opened_once() {
    let file = Scratch::new("lock", 4096);
    let bell = Reactor::new().unwrap().bell();
    let first = FileDisk::open(&file.0, bell.clone()).unwrap();
    assert!(matches!(FileDisk::open(&file.0, bell.clone()), Err(OpenError::InUse { .. })));
    drop(first);
    // The lock goes with the file, which the helper thread may hold for a moment longer.
    let free = (0..500).any(|_| {
        thread::sleep(Duration::from_millis(10));
        FileDisk::open(&file.0, bell.clone()).is_ok()
    });
    assert!(free);
    let missing = FileDisk::open("/nonexistent/disk".as_ref(), bell).err().unwrap().to_string();
    assert!(missing.contains("/nonexistent/disk"), "{missing}");
}

/// Listens on the loopback, lets `client` talk to it in a thread of its own.
fn listen<T: Send + 'static>(
    net: &Net,
    client: impl FnOnce(std::net::SocketAddr) -> T + Send + 'static,
) -> (HostListener, thread::JoinHandle<T>) {
    let listener = net.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.describe().parse().unwrap();
    assert_ne!(address, "127.0.0.1:0".parse().unwrap());
    (listener, thread::spawn(move || client(address)))
}

#[test]
fn clients_are_echoed_all_at_once() {
    const CLIENTS: usize = 32;
    const LEN: usize = 300_000;
    let clients = run(&[], |scene| async move {
        let (listener, clients) = listen(&scene.net, |address| {
            let talk = move |n: usize| {
                let mut stream = TcpStream::connect(address).unwrap();
                let sent: Vec<u8> = (0..LEN).map(|i| (i * 7 + n) as u8).collect();
                let mut sender = stream.try_clone().unwrap();
                let sending = thread::spawn(move || {
                    sender.write_all(&sent).unwrap();
                    sender.shutdown(Shutdown::Write).unwrap();
                    sent
                });
                let mut back = Vec::new();
                stream.read_to_end(&mut back).unwrap();
                assert!(back == sending.join().unwrap());
            };
            let all: Vec<_> = (0..CLIENTS).map(|n| thread::spawn(move || talk(n))).collect();
            all.into_iter().for_each(|t| t.join().unwrap());
        });
        let mut served = Vec::new();
        for _ in 0..CLIENTS {
            let stream = listener.accept().await.unwrap();
            assert_eq!(stream.ends().local.to_string(), listener.describe());
            let (mut reader, mut writer) = stream.split();
            served.push(scene.runtime.spawner.spawn(async move {
                let mut buf = vec![0; 10_000];
                while let read @ 1.. = reader.read(&mut buf).await.unwrap() {
                    writer.write_all(&buf[..read]).await.unwrap();
                }
            }));
        }
        join_all(served).await.into_iter().for_each(|ended| ended.unwrap());
        clients
    });
    clients.join().unwrap();
}

#[test]
fn a_dropped_connection_delivers_although_the_peers_bytes_are_unread() {
    let client = run(&[], |scene| async move {
        let (listener, client) = listen(&scene.net, |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&[1; 1000]).unwrap();
            // Time for a reset to arrive, if one were sent.
            thread::sleep(Duration::from_millis(200));
            let mut back = Vec::new();
            stream.read_to_end(&mut back).map(|_| back)
        });
        let (reader, mut writer) = listener.accept().await.unwrap().split();
        scene.runtime.timers.sleep(Duration::from_millis(50)).await;
        writer.write_all(b"no, thank you").await.unwrap();
        writer.flush().await.unwrap();
        drop((reader, writer));
        scene.net.settle().await;
        client
    });
    assert_eq!(client.join().unwrap().unwrap(), b"no, thank you");
}

#[test]
fn a_reset_is_told() {
    run(&[], |scene| async move {
        let (listener, client) = listen(&scene.net, |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            // Closing with unread bytes resets.
        });
        let (mut reader, mut writer) = listener.accept().await.unwrap().split();
        writer.write_all(&[0; 1000]).await.unwrap();
        let mut buf = [0; 10];
        assert_eq!(reader.read(&mut buf).await, Err(NetError::Reset));
        client.join().unwrap();
    });
}
