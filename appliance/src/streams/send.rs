//! From a snapshot to a stream.

use super::{STEP_BYTES, TransferError, block_bytes, identity_or_nothing};
use crate::catalog::VolumeRecord;
use crate::control::{Manager, living, no_volume};
use crate::holds::Hold;
use crate::service::{Served, Service, ServiceError};
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use mgmt::{RunsError, SendRequest, VolumeName};
use platform::block::SECTOR_BYTES;
use platform::buf::{Buf, BufPool};
use platform::task::{JoinHandle, Spawner};
use thinp::Thin;
use thinp::control::DeviceId;
use thinp::metadata::delta::{Found, Run};
use thinp::metadata::{DataBlock, VirtualBlock};
use thinp::stream::{Encoder, Identity, Info, Reason, STRETCH_BYTES, Token};

/// A snapshot in use: as long as this lives it is neither deleted nor made writable, by whatever way.
pub(super) struct Snapshot {
    pub device: DeviceId,
    pub contents: Identity,
    size_bytes: u64,
    _hold: Hold,
    _thin: Thin,
}

/// Takes a snapshot into use, if it is one: read-only, and as it was. The caller keeps changes away.
pub(super) async fn hold(service: &Service, served: &Served, name: &VolumeName) -> Result<Snapshot, ServiceError> {
    let record: VolumeRecord = living(served, name)?;
    let device = record.id().ok_or_else(|| no_volume(name))?;
    let contents = served.contents(&record).await?.filter(|_| record.read_only);
    let contents = contents.ok_or_else(|| TransferError::NotASnapshot(name.to_string()))?;
    let size_bytes = record.size_bytes.ok_or_else(|| ServiceError::SizeUnset(name.to_string()))?;
    let hold = service.holds.share(device).ok_or_else(|| ServiceError::InUse(name.to_string()))?;
    let thin = served.pool.open_thin(device, None).await?;
    Ok(Snapshot { device, contents: Identity(contents), size_bytes, _hold: hold, _thin: thin })
}

/// What is sent: from which device, on top of which, from where on.
struct Plan {
    snapshot: Snapshot,
    base: Option<Snapshot>,
    info: Info,
}

async fn plan(manager: &Manager, request: &SendRequest) -> Result<(Rc<Served>, Plan), ServiceError> {
    let parse = |text: &str| text.parse::<Token>().map_err(|_| TransferError::BadToken);
    let token = request.resume.as_deref().map(parse).transpose()?;
    let service = &manager.service;
    let work = async |served: &Rc<Served>| {
        let snapshot = hold(service, served, &request.snapshot).await?;
        let base = match &request.base {
            Some(base) => Some(hold(service, served, base).await?),
            None => None,
        };
        let block_bytes = u32::try_from(block_bytes(served)).unwrap_or(u32::MAX);
        let (target, base_identity) = (snapshot.contents, base.as_ref().map(|base| base.contents));
        if let Some(token) = token.filter(|token| (token.target, token.base) != (target, base_identity)) {
            let (target, base) = (token.target.to_string(), identity_or_nothing(token.base));
            return Err(TransferError::OtherToken { target, base }.into());
        }
        let info = Info {
            volume_bytes: snapshot.size_bytes,
            block_bytes,
            target,
            base: base_identity,
            origin: None,
            resume: token.map(|token| token.resume),
        };
        Ok((served.clone(), Plan { snapshot, base, info }))
    };
    service.alone(work).await
}

/// Sends a snapshot whole, or what makes another into it.
pub(super) async fn send<E>(
    manager: &Manager,
    request: &SendRequest,
    mut sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), RunsError<E>> {
    let (served, plan) = plan(manager, request).await.map_err(told)?;
    let view = served.pool.open_view("a stream", None).await.map_err(|error| told(error.into()))?;
    let mut head = Vec::new();
    let encoder = Encoder::begin(&plan.info, &mut head).map_err(impossible)?;
    let bytes = block_bytes(&served);
    let from = plan.info.resume.map_or(0, |resume| resume.offset);
    let step_bytes = served.pool.data_transfer_bytes_max().min(STEP_BYTES as u64);
    let mut sender = Sender {
        served: &served,
        bufs: &manager.runtime.bufs,
        spawner: &manager.runtime.spawner,
        encoder,
        head,
        step_bytes,
    };
    let base = plan.base.as_ref().map(|base| base.device);
    let failed = |error: thinp::metadata::MetadataError| told(ServiceError::Pool(error.into()));
    let mut runs = view.changes(base, plan.snapshot.device, VirtualBlock(from / bytes)).await.map_err(failed)?;
    while let Some(run) = runs.next().await.map_err(failed)? {
        sender.run(&run, from, plan.info.volume_bytes, &mut sink).await?;
    }
    let Sender { encoder, mut head, .. } = sender;
    encoder.end(&mut head).map_err(impossible)?;
    sink(&head).await.map_err(RunsError::Sink)
}

struct Sender<'s> {
    served: &'s Served,
    bufs: &'s BufPool,
    spawner: &'s Spawner,
    encoder: Encoder,
    /// What the encoder wrote and the sink has not taken yet.
    head: Vec<u8>,
    /// Most bytes of one read.
    step_bytes: u64,
}

impl Sender<'_> {
    /// Sends the part of a run that lies between two offsets in the volume.
    async fn run<E>(
        &mut self,
        run: &Run,
        from: u64,
        to: u64,
        sink: &mut impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        let bytes = block_bytes(self.served);
        let begin = run.begin.0.saturating_mul(bytes);
        let (first, end) = (begin.max(from), begin.saturating_add(run.blocks.saturating_mul(bytes)).min(to));
        if first >= end {
            return Ok(());
        }
        let data = match run.found {
            Found::LeftOnly(_) => {
                self.encoder.unmap(first, end - first, &mut self.head).map_err(impossible)?;
                return self.flush(sink).await;
            }
            Found::Same(data) | Found::RightOnly(data) | Found::Different { right: data, .. } => data,
        };
        let mut at = first;
        while at < end {
            let length = (end - at).min(STRETCH_BYTES);
            self.encoder.data(at, length, &mut self.head).map_err(impossible)?;
            self.flush(sink).await?;
            self.payload(data, at - begin, length, sink).await?;
            at = at.saturating_add(length);
        }
        Ok(())
    }

    /// Sends bytes from `skip` on behind the beginning of a data block. While one piece is being taken the next is read.
    async fn payload<E>(
        &mut self,
        data: DataBlock,
        skip: u64,
        length: u64,
        sink: &mut impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        let step_bytes = self.step_bytes;
        let step = |done: u64| length.saturating_sub(done).min(step_bytes) as usize;
        let first = self.buffer(step(0)).await?;
        let (mut done, mut reading) = (0u64, Some(self.start_read(data, skip, first)));
        while let Some(read) = reading.take() {
            let (read, buf) = read.await.unwrap_or((Err(thinp::Error::Closed), Buf::empty()));
            read.map_err(|error| told(error.into()))?;
            done = done.saturating_add(buf.len() as u64);
            let next = step(done);
            // Never waits for a buffer while it holds one: others may do the same.
            if next > 0
                && let Ok(ahead) = self.bufs.alloc(next)
            {
                reading = Some(self.start_read(data, skip.saturating_add(done), ahead));
            }
            self.encoder.payload(&buf).map_err(impossible)?;
            sink(&buf).await.map_err(RunsError::Sink)?;
            drop(buf);
            if next > 0 && reading.is_none() {
                let buf = self.buffer(next).await?;
                reading = Some(self.start_read(data, skip.saturating_add(done), buf));
            }
        }
        Ok(())
    }

    async fn buffer<E>(&self, len: usize) -> Result<Buf, RunsError<E>> {
        self.bufs.wait(len).await.map_err(|error| told(thinp::Error::from(error).into()))
    }

    fn start_read(&self, data: DataBlock, at: u64, buf: Buf) -> JoinHandle<(Result<(), thinp::Error>, Buf)> {
        let pool = self.served.pool.clone();
        self.spawner.spawn(async move { pool.read_data(data, at / SECTOR_BYTES as u64, buf).await })
    }

    /// Hands over what the encoder wrote.
    async fn flush<E>(&mut self, sink: &mut impl AsyncFnMut(&[u8]) -> Result<(), E>) -> Result<(), RunsError<E>> {
        sink(&self.head).await.map_err(RunsError::Sink)?;
        self.head.clear();
        Ok(())
    }
}

fn told<E>(error: ServiceError) -> RunsError<E> {
    RunsError::Refused(error.into())
}

/// What makes no stream: a record that says what no volume is.
fn impossible<E>(reason: Reason) -> RunsError<E> {
    told(TransferError::Stream(thinp::stream::StreamError { at: 0, reason }).into())
}
