//! Arbitrary commands with arbitrary data against a thin disk in memory, from two nexuses, its state changing on the way.
#![no_main]

use export::scsi::cdb::{Command, WHOLE_BYTES_MAX};
use export::scsi::copy::Neighbours;
use export::scsi::exec;
use export::scsi::lu::{Lu, Nexus};
use export::scsi::{Failure, Status, Transfer};
use export::{Account, Budget, Chunk, LogicalUnit, Path};
use fuzz::common::{TARGET, ThinDisk};
use fuzz::image::Bytes;
use fuzz::{run, runtime};
use std::pin::Pin;
use std::rc::Rc;

const DISK_BYTES: u64 = 4 << 20;
/// What transfers of all commands may hold at a time.
const PAYLOAD_BYTES: usize = 2 << 20;
/// More of one command moves nothing new.
const DATA_BYTES_MAX: u64 = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let mut bytes = Bytes::new(data);
    let runtime = runtime();
    let block_bytes = if bytes.byte() & 1 == 0 { 512 } else { 4096 };
    let unit = Rc::new(ThinDisk::new(DISK_BYTES, block_bytes, runtime.bufs.clone()));
    let lu = Rc::new(Lu::new(unit.clone(), TARGET.into(), [1, 2].into(), Rc::default()));
    let nexuses = [1, 2].map(|n: u16| {
        lu.connect(Path { initiator: format!("iqn.2001-04.com.example:{n},i,0x00023d00000{n}"), target_port: n })
    });
    let account = Account::new(Budget::new(runtime.bufs.clone(), PAYLOAD_BYTES));
    while !bytes.is_empty() {
        let choice = bytes.byte();
        unit.read_only.set(choice & 0x0f == 0x0f);
        unit.full.set(choice & 0x70 == 0x70);
        let nexus = &nexuses[usize::from(choice >> 7)];
        one(&lu, nexus, &account, &mut bytes).await;
    }
}));

/// Runs one command.
async fn one(lu: &Rc<Lu<ThinDisk>>, nexus: &Rc<Nexus>, account: &Rc<Account>, bytes: &mut Bytes<'_>) {
    let cdb: [u8; 16] = std::array::from_fn(|_| bytes.byte());
    let lun = [0, bytes.byte() & 1, 0, 0, 0, 0, 0, 0];
    let command = Command::decode(&cdb);
    let block_bytes = lu.unit.attributes().block_bytes;
    let wanted = command.as_ref().map_or(0, |command| command.data_out(block_bytes).bytes()).min(DATA_BYTES_MAX);
    // Sometimes the initiator has other than what the command wants.
    let offered = if bytes.byte() & 0x0f == 0 { u64::from(bytes.byte()) * 16 } else { wanted };
    let pattern: Vec<u8> = (0..32).map(|_| bytes.byte()).collect();
    let mut data = Data { account, offered, left: offered.min(wanted), pattern, announced: 0, sent: 0 };
    let result = exec::execute(lu, nexus, &Itself(lu.clone()), lun, command, &mut data).await;
    if result.is_ok() {
        assert_eq!(data.sent, data.announced, "{command:?} announced and did not send");
    }
}

/// Copies reach no other unit.
struct Itself(Rc<Lu<ThinDisk>>);

impl Neighbours<ThinDisk> for Itself {
    fn find<'a>(&'a self, naa: &'a [u8; 16]) -> Pin<Box<dyn Future<Output = Option<Rc<Lu<ThinDisk>>>> + 'a>> {
        let found = (self.0.unit.identity().naa == *naa).then(|| self.0.clone());
        Box::pin(std::future::ready(found))
    }
}

/// The data of a command: what comes is a pattern, what goes is counted.
struct Data<'a> {
    account: &'a Rc<Account>,
    offered: u64,
    /// Of that, what is wanted and has not been taken: no transport hands over more.
    left: u64,
    pattern: Vec<u8>,
    announced: u64,
    sent: u64,
}

impl Transfer for Data<'_> {
    fn announce(&mut self, bytes: u64) -> u64 {
        self.announced = bytes.min(DATA_BYTES_MAX);
        self.announced
    }

    async fn buffer(&self, len_bytes: usize) -> Result<Chunk, Failure> {
        self.spare(len_bytes)
    }

    fn spare(&self, len_bytes: usize) -> Result<Chunk, Failure> {
        self.account.spare(len_bytes).map_err(|_| Failure::Status(Status::Busy))
    }

    async fn unless_aborted<O>(&self, work: impl Future<Output = O>) -> Result<O, Failure> {
        Ok(work.await)
    }

    async fn send(&mut self, chunk: Chunk) -> Result<(), Failure> {
        self.sent = (self.sent + chunk.buf.len() as u64).min(self.announced);
        Ok(())
    }

    async fn send_parameters(&mut self, bytes: Vec<u8>) -> Result<(), Failure> {
        self.sent += bytes.len() as u64;
        Ok(())
    }

    fn offered(&self) -> u64 {
        self.offered
    }

    async fn receive(&mut self) -> Result<Option<Chunk>, Failure> {
        // What a command needs all at once comes in one piece.
        let len = self.left.min(WHOLE_BYTES_MAX.into()) as usize;
        if len == 0 {
            return Ok(None);
        }
        let mut chunk = self.spare(len)?;
        chunk.buf.iter_mut().zip(self.pattern.iter().cycle()).for_each(|(place, byte)| *place = *byte);
        self.left -= len as u64;
        Ok(Some(chunk))
    }
}
