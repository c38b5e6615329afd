//! A connection in memory.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use embedded_io_async::{ErrorType, Read, Write};
use platform::net::{Ends, NetError, Stream};
use platform::sync::Notify;

/// Bytes on their way in one direction.
const WINDOW: usize = 4096;

#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    /// The sender will send no more.
    ended: Cell<bool>,
    /// The receiver is gone.
    dropped: Cell<bool>,
    changed: Notify,
}

impl Pipe {
    async fn read(&self, out: &mut [u8], most: usize) -> usize {
        loop {
            let changed = self.changed.notified();
            let len = self.bytes.borrow().len().min(out.len()).min(most);
            if len > 0 {
                out.iter_mut().zip(self.bytes.borrow_mut().drain(..len)).for_each(|(to, from)| *to = from);
                self.changed.notify_all();
                return len;
            }
            if self.ended.get() {
                return 0;
            }
            changed.await;
        }
    }

    async fn write(&self, bytes: &[u8]) -> Result<usize, NetError> {
        loop {
            let changed = self.changed.notified();
            if self.dropped.get() {
                return Err(NetError::Reset);
            }
            let len = bytes.len().min(WINDOW - self.bytes.borrow().len());
            if len > 0 {
                self.bytes.borrow_mut().extend(&bytes[..len]);
                self.changed.notify_all();
                return Ok(len);
            }
            changed.await;
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.changed.notify_all();
    }
}

/// The server's end.
pub(crate) struct Duplex(Reader, Writer);

pub(crate) struct Reader(Rc<Pipe>, usize);

pub(crate) struct Writer(Rc<Pipe>);

/// The client's end.
pub(crate) struct Client {
    to: Rc<Pipe>,
    from: Rc<Pipe>,
}

/// A connection whose server receives at most `read_max` bytes at once.
pub(crate) fn connect(read_max: usize) -> (Client, Duplex) {
    let (to, from) = (Rc::new(Pipe::default()), Rc::new(Pipe::default()));
    (Client { to: to.clone(), from: from.clone() }, Duplex(Reader(to, read_max), Writer(from)))
}

impl Stream for Duplex {
    type Reader = Reader;
    type Writer = Writer;

    fn ends(&self) -> Ends {
        Ends { local: "192.0.2.1:80".parse().unwrap(), peer: "192.0.2.2:4000".parse().unwrap() }
    }

    fn split(self) -> (Reader, Writer) {
        (self.0, self.1)
    }
}

impl ErrorType for Reader {
    type Error = NetError;
}

impl ErrorType for Writer {
    type Error = NetError;
}

impl Read for Reader {
    async fn read(&mut self, out: &mut [u8]) -> Result<usize, NetError> {
        Ok(self.0.read(out, self.1).await)
    }
}

impl Write for Writer {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, NetError> {
        self.0.write(bytes).await
    }

    async fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.dropped.set(true);
        self.0.changed.notify_all();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Client {
    pub(crate) async fn send(&self, mut bytes: &[u8]) -> Result<(), NetError> {
        while !bytes.is_empty() {
            let len = self.to.write(bytes).await?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Ends the sending side.
    pub(crate) fn end(&self) {
        self.to.end();
    }

    /// What there is, at least one byte; nothing if the server has closed.
    pub(crate) async fn read(&self) -> Vec<u8> {
        let mut bytes = [0; WINDOW];
        let len = self.from.read(&mut bytes, WINDOW).await;
        bytes[..len].to_vec()
    }

    /// Everything until the server closes.
    pub(crate) async fn read_to_end(&self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let bytes = self.read().await;
            if bytes.is_empty() {
                return all;
            }
            all.extend(bytes);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.to.end();
        self.from.dropped.set(true);
        self.from.changed.notify_all();
    }
}
