//! A connection in memory: two bounded pipes.

use platform::net::{Ends, NetError, Stream};
use platform::sync::Notify;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes on their way in one direction.
const PIPE_BYTES: usize = 64 << 10;

#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    closed: Cell<bool>,
    changed: Notify,
}

impl Pipe {
    fn take(&self, buf: &mut [u8]) -> usize {
        let mut bytes = self.bytes.borrow_mut();
        let len = buf.len().min(bytes.len());
        bytes.drain(..len).zip(buf).for_each(|(byte, place)| *place = byte);
        if len > 0 {
            self.changed.notify_all();
        }
        len
    }

    fn put(&self, buf: &[u8]) -> usize {
        let mut bytes = self.bytes.borrow_mut();
        let len = buf.len().min(PIPE_BYTES - bytes.len());
        bytes.extend(&buf[..len]);
        if len > 0 {
            self.changed.notify_all();
        }
        len
    }
}

/// The receiving end of a pipe. Dropping it breaks the pipe.
pub struct PipeReader(Rc<Pipe>);

/// The sending end of a pipe. Dropping it ends the stream.
pub struct PipeWriter(Rc<Pipe>);

fn pipe() -> (PipeWriter, PipeReader) {
    let pipe = Rc::new(Pipe::default());
    (PipeWriter(pipe.clone()), PipeReader(pipe))
}

/// A connection as one side holds it, and the port at the target.
pub struct Duplex(PipeReader, PipeWriter, u16);

/// The two sides of a connection to this port.
pub fn duplex(port: u16) -> (Duplex, Duplex) {
    let (there_writer, here_reader) = pipe();
    let (here_writer, there_reader) = pipe();
    (Duplex(here_reader, here_writer, port), Duplex(there_reader, there_writer, port))
}

impl Stream for Duplex {
    type Reader = PipeReader;
    type Writer = PipeWriter;

    fn ends(&self) -> Ends {
        Ends { local: ([192, 0, 2, 1], self.2).into(), peer: "192.0.2.2:4000".parse().unwrap() }
    }

    fn split(self) -> (PipeReader, PipeWriter) {
        (self.0, self.1)
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.changed.notify_all();
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.changed.notify_all();
    }
}

impl embedded_io_async::ErrorType for PipeReader {
    type Error = NetError;
}

impl embedded_io_async::ErrorType for PipeWriter {
    type Error = NetError;
}

impl embedded_io_async::Read for PipeReader {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, NetError> {
        loop {
            let changed = self.0.changed.notified();
            let len = self.0.take(buf);
            if len > 0 || self.0.closed.get() {
                return Ok(len);
            }
            changed.await;
        }
    }
}

impl embedded_io_async::Write for PipeWriter {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, NetError> {
        loop {
            let changed = self.0.changed.notified();
            if self.0.closed.get() {
                return Err(NetError::Reset);
            }
            let len = self.0.put(buf);
            if len > 0 {
                return Ok(len);
            }
            changed.await;
        }
    }

    async fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}
