//! A small NBD server (fixed newstyle, simple replies) for disks whose power can be cut.
//!
//! Protocol: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Every export of one [`Server`]
//! hangs on one [`Supply`]; when its power goes, all connections close without another answer.

pub mod cache;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

pub use cache::{Count, Cut, DiskIndex, Flush, Refusal, Supply};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Fixed newstyle, and no 124 zero bytes after NBD_OPT_EXPORT_NAME.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
const TRANSMISSION_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const REP_ERR_INVALID: u32 = 1 << 31 | 3;
const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const FLAG_FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// The longest request that carries data: 32 MiB, which every client keeps to.
const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// The longest option a client may send.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Zeroes are written in pieces of this size.
const ZEROES_BYTES: u64 = 1 << 20;

/// A named disk.
#[derive(Clone)]
struct Export {
    name: String,
    disk: DiskIndex,
}

/// What connections are served from.
#[derive(Clone)]
pub struct Server {
    supply: Supply,
    exports: Vec<Export>,
}

impl Server {
    /// A server without exports.
    pub fn new(supply: Supply) -> Server {
        Server { supply, exports: Vec::new() }
    }

    /// Adds an export.
    pub fn export(&mut self, name: &str, disk: DiskIndex) {
        self.exports.push(Export { name: name.into(), disk });
    }

    /// Serves connections to a unix socket, which it makes, until the process ends.
    pub fn listen_unix(&self, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        let server = self.clone();
        thread::Builder::new().name("nbd".into()).spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                server.spawn(stream, |stream| stream.shutdown(std::net::Shutdown::Both));
            }
        })?;
        Ok(())
    }

    /// Serves connections to a TCP port until the process ends; returns the address.
    pub fn listen_tcp(&self, address: &str) -> io::Result<std::net::SocketAddr> {
        let listener = TcpListener::bind(address)?;
        let local = listener.local_addr()?;
        let server = self.clone();
        thread::Builder::new().name("nbd".into()).spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                server.spawn(stream, |stream| stream.shutdown(std::net::Shutdown::Both));
            }
        })?;
        Ok(local)
    }

    fn spawn<S: Stream>(&self, stream: S, hang_up: fn(&S) -> io::Result<()>) {
        let server = self.clone();
        let connection = move || {
            let mut stream = stream;
            // How a client leaves is its own affair; what it was owed was answered.
            let _ = server.connection(&mut stream);
            let _ = hang_up(&stream);
        };
        if let Err(error) = thread::Builder::new().name("nbd connection".into()).spawn(connection) {
            eprintln!("nbd: no thread for a connection: {error}");
        }
    }

    fn connection(&self, stream: &mut impl Stream) -> io::Result<()> {
        let Some(export) = self.handshake(stream)? else { return Ok(()) };
        while self.request(stream, &export)? {}
        Ok(())
    }

    /// Haggles; the export that was chosen, or `None` when the client left.
    fn handshake(&self, stream: &mut impl Stream) -> io::Result<Option<Export>> {
        let mut hello = Vec::new();
        hello.extend_from_slice(&NBD_MAGIC.to_be_bytes());
        hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        hello.extend_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
        stream.write_all(&hello)?;
        let client_flags = u32::from_be_bytes(take(stream)?);
        loop {
            if u64::from_be_bytes(take(stream)?) != OPTION_MAGIC {
                return Err(invalid("no option magic"));
            }
            let option = u32::from_be_bytes(take(stream)?);
            let len = u32::from_be_bytes(take(stream)?);
            if len > OPTION_BYTES_MAX {
                return Err(invalid("option too long"));
            }
            let mut data = vec![0; len as usize];
            stream.read_exact(&mut data)?;
            match option {
                OPT_EXPORT_NAME => {
                    let export = self.find(&data).ok_or_else(|| invalid("no such export"))?;
                    let mut answer = self.supply.size_bytes(export.disk).to_be_bytes().to_vec();
                    answer.extend_from_slice(&TRANSMISSION_FLAGS.to_be_bytes());
                    if client_flags & 2 == 0 {
                        answer.resize(answer.len() + 124, 0);
                    }
                    stream.write_all(&answer)?;
                    return Ok(Some(export));
                }
                OPT_GO | OPT_INFO => {
                    if let Some(export) = self.info(stream, option, &data)? {
                        return Ok(Some(export));
                    }
                }
                OPT_LIST => self.list(stream)?,
                OPT_ABORT => {
                    reply_option(stream, option, REP_ACK, &[])?;
                    return Ok(None);
                }
                _ => reply_option(stream, option, REP_ERR_UNSUP, &[])?,
            }
        }
    }

    fn find(&self, name: &[u8]) -> Option<Export> {
        self.exports.iter().find(|export| export.name.as_bytes() == name).cloned()
    }

    /// NBD_OPT_GO and NBD_OPT_INFO: what the export is; the export when it is to be used now.
    fn info(&self, stream: &mut impl Stream, option: u32, data: &[u8]) -> io::Result<Option<Export>> {
        let name = data.split_first_chunk().and_then(|(len, rest)| rest.get(..u32::from_be_bytes(*len) as usize));
        let Some(name) = name else {
            reply_option(stream, option, REP_ERR_INVALID, &[])?;
            return Ok(None);
        };
        let Some(export) = self.find(name) else {
            reply_option(stream, option, REP_ERR_UNKNOWN, &[])?;
            return Ok(None);
        };
        let mut facts = INFO_EXPORT.to_be_bytes().to_vec();
        facts.extend_from_slice(&self.supply.size_bytes(export.disk).to_be_bytes());
        facts.extend_from_slice(&TRANSMISSION_FLAGS.to_be_bytes());
        reply_option(stream, option, REP_INFO, &facts)?;
        let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for bytes in [cache::SECTOR_BYTES as u32, 4096, PAYLOAD_BYTES_MAX] {
            sizes.extend_from_slice(&bytes.to_be_bytes());
        }
        reply_option(stream, option, REP_INFO, &sizes)?;
        reply_option(stream, option, REP_ACK, &[])?;
        Ok((option == OPT_GO).then_some(export))
    }

    fn list(&self, stream: &mut impl Stream) -> io::Result<()> {
        for export in &self.exports {
            let mut entry = (export.name.len() as u32).to_be_bytes().to_vec();
            entry.extend_from_slice(export.name.as_bytes());
            reply_option(stream, OPT_LIST, REP_SERVER, &entry)?;
        }
        reply_option(stream, OPT_LIST, REP_ACK, &[])
    }

    /// One request and its answer; false when the connection is over.
    fn request(&self, stream: &mut impl Stream, export: &Export) -> io::Result<bool> {
        if u32::from_be_bytes(take(stream)?) != REQUEST_MAGIC {
            return Err(invalid("no request magic"));
        }
        let flags = u16::from_be_bytes(take(stream)?);
        let command = u16::from_be_bytes(take(stream)?);
        let cookie: [u8; 8] = take(stream)?;
        let offset = u64::from_be_bytes(take(stream)?);
        let len = u32::from_be_bytes(take(stream)?);
        if command == CMD_DISCONNECT {
            return Ok(false);
        }
        if len > PAYLOAD_BYTES_MAX && matches!(command, CMD_READ | CMD_WRITE) {
            return Err(invalid("request too long"));
        }
        let fua = flags & FLAG_FUA != 0;
        let mut payload = Vec::new();
        let done = match command {
            CMD_READ => {
                payload.resize(len as usize, 0);
                self.supply.read(export.disk, offset, &mut payload)
            }
            CMD_WRITE => {
                let mut data = vec![0; len as usize];
                stream.read_exact(&mut data)?;
                self.supply.write(export.disk, offset, &data, fua)
            }
            CMD_FLUSH => self.supply.flush(export.disk),
            CMD_TRIM | CMD_WRITE_ZEROES => self.zeroes(export.disk, offset, u64::from(len), fua),
            _ => Err(Refusal::Invalid),
        };
        let error = match done {
            Ok(()) => 0,
            Err(Refusal::PowerOff) => return Ok(false),
            Err(Refusal::Invalid) => EINVAL,
            Err(Refusal::Io(error)) => {
                eprintln!("nbd: export {}: {error}", export.name);
                EIO
            }
        };
        let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&cookie);
        if error == 0 {
            reply.append(&mut payload);
        }
        stream.write_all(&reply)?;
        Ok(true)
    }

    fn zeroes(&self, disk: DiskIndex, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), Refusal> {
        let zeroes = vec![0; ZEROES_BYTES.min(len_bytes) as usize];
        let mut done = 0;
        while done < len_bytes {
            let piece = ZEROES_BYTES.min(len_bytes - done);
            self.supply.write(disk, offset_bytes.saturating_add(done), &zeroes[..piece as usize], fua)?;
            done += piece;
        }
        Ok(())
    }
}

/// What both kinds of socket are.
trait Stream: Read + Write + Send + 'static {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn reply_option(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    reply.extend_from_slice(&option.to_be_bytes());
    reply.extend_from_slice(&kind.to_be_bytes());
    reply.extend_from_slice(&(data.len() as u32).to_be_bytes());
    reply.extend_from_slice(data);
    stream.write_all(&reply)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that knows just enough to ask.
    struct Client(TcpStream);

    impl Client {
        fn connect(server: &Server, name: &str) -> Client {
            let address = server.listen_tcp("127.0.0.1:0").unwrap();
            let mut stream = TcpStream::connect(address).unwrap();
            let hello: [u8; 18] = take(&mut stream).unwrap();
            assert_eq!(hello[..8], NBD_MAGIC.to_be_bytes());
            stream.write_all(&3u32.to_be_bytes()).unwrap();
            let mut client = Client(stream);
            assert_eq!(client.option(8, &[]), vec![(REP_ERR_UNSUP, vec![])]);
            let mut go = (name.len() as u32).to_be_bytes().to_vec();
            go.extend_from_slice(name.as_bytes());
            go.extend_from_slice(&[0, 0]);
            let replies = client.option(OPT_GO, &go);
            assert_eq!(replies[0].1[2..10], server.supply.size_bytes(server.exports[0].disk).to_be_bytes());
            assert_eq!(replies.last().unwrap().0, REP_ACK);
            client
        }

        fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
            let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
            message.extend_from_slice(&option.to_be_bytes());
            message.extend_from_slice(&(data.len() as u32).to_be_bytes());
            message.extend_from_slice(data);
            self.0.write_all(&message).unwrap();
            let mut replies = Vec::new();
            loop {
                assert_eq!(u64::from_be_bytes(take(&mut self.0).unwrap()), OPTION_REPLY_MAGIC);
                assert_eq!(u32::from_be_bytes(take(&mut self.0).unwrap()), option);
                let kind = u32::from_be_bytes(take(&mut self.0).unwrap());
                let mut data = vec![0; u32::from_be_bytes(take(&mut self.0).unwrap()) as usize];
                self.0.read_exact(&mut data).unwrap();
                replies.push((kind, data));
                if kind == REP_ACK || kind & 1 << 31 != 0 {
                    return replies;
                }
            }
        }

        fn command(
            &mut self,
            command: u16,
            flags: u16,
            offset: u64,
            len: u32,
            data: &[u8],
        ) -> io::Result<(u32, Vec<u8>)> {
            let mut message = REQUEST_MAGIC.to_be_bytes().to_vec();
            message.extend_from_slice(&flags.to_be_bytes());
            message.extend_from_slice(&command.to_be_bytes());
            message.extend_from_slice(b"cookie 7");
            message.extend_from_slice(&offset.to_be_bytes());
            message.extend_from_slice(&len.to_be_bytes());
            message.extend_from_slice(data);
            self.0.write_all(&message)?;
            assert_eq!(u32::from_be_bytes(take(&mut self.0)?), REPLY_MAGIC);
            let error = u32::from_be_bytes(take(&mut self.0)?);
            assert_eq!(&take::<8>(&mut self.0)?, b"cookie 7");
            let mut answer = vec![0; if command == CMD_READ && error == 0 { len as usize } else { 0 }];
            self.0.read_exact(&mut answer)?;
            Ok((error, answer))
        }
    }

    #[test]
    fn requests_are_served_until_the_power_goes() {
        let name = format!("xtask-nbd-{}-{}", std::process::id(), crate::dice::Dice::fresh_seed());
        let path = std::env::temp_dir().join(name);
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.set_len(1 << 20).unwrap();
        let supply = Supply::new(7);
        let mut server = Server::new(supply.clone());
        server.export("meta", supply.add(file).unwrap());
        let mut client = Client::connect(&server, "meta");
        assert_eq!(client.command(CMD_WRITE, 0, 4096, 1024, &[5; 1024]).unwrap().0, 0);
        assert_eq!(client.command(CMD_READ, 0, 3584, 2048, &[]).unwrap().1[510..514], [0, 0, 5, 5]);
        assert_eq!(client.command(CMD_FLUSH, 0, 0, 0, &[]).unwrap().0, 0);
        assert_eq!(client.command(CMD_WRITE_ZEROES, FLAG_FUA, 4608, 512, &[]).unwrap().0, 0);
        assert_eq!(client.command(CMD_READ, 0, 1 << 20, 512, &[]).unwrap().0, EINVAL);
        assert_eq!(client.command(99, 0, 0, 0, &[]).unwrap().0, EINVAL);
        supply.arm(Count::Changes, 1);
        assert!(client.command(CMD_WRITE, 0, 0, 512, &[9; 512]).is_err());
        supply.power_on();
        let mut client = Client::connect(&server, "meta");
        let (_, back) = client.command(CMD_READ, 0, 4096, 1024, &[]).unwrap();
        assert_eq!((back[0], back[511], back[512]), (5, 5, 0));
    }
}
