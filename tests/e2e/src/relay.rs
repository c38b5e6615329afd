//! A relay of TCP connections between an initiator and an appliance: its connections can be cut, and it finds the appliance
//! again when that was started anew at another port.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;

/// What the threads of a relay share.
struct State {
    target: SocketAddr,
    open: Vec<TcpStream>,
}

/// A relay, until the process ends.
pub struct Relay {
    /// Its port on 127.0.0.1.
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Relay {
    /// Begins to relay to `target`.
    pub fn start(listener: TcpListener, target: SocketAddr) -> Result<Relay> {
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::new(State { target, open: Vec::new() }));
        let shared = state.clone();
        thread::spawn(move || {
            for here in listener.incoming().flatten() {
                // Nobody there: the connection is closed, as a machine would that has no such port.
                let _ = relay(here, &shared);
            }
        });
        Ok(Relay { port, state })
    }

    /// A listener for a relay, so that its port is known before the appliance is.
    pub fn listener() -> Result<TcpListener> {
        Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
    }

    /// Cuts all connections; how many.
    pub fn cut(&self) -> usize {
        let open = std::mem::take(&mut lock(&self.state).open);
        // Two ends of each; one that has gone by itself is no matter.
        open.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        open.len() / 2
    }

    /// Relays further connections to another place.
    pub fn turn_to(&self, target: SocketAddr) {
        lock(&self.state).target = target;
    }
}

fn relay(here: TcpStream, state: &Arc<Mutex<State>>) -> io::Result<()> {
    let there = TcpStream::connect(lock(state).target)?;
    lock(state).open.extend([here.try_clone()?, there.try_clone()?]);
    for (mut from, mut to) in [(here.try_clone()?, there.try_clone()?), (there, here)] {
        thread::spawn(move || {
            // However it ends, the other side is told.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
