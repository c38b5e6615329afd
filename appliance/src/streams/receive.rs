//! From a stream to a volume.

use super::target::Target;
use super::{TransferError, refused};
use crate::control::Manager;
use crate::service::ServiceError;
use alloc::vec;
use mgmt::{Code, ReceiveError, ReceiveRequest};
use thinp::control::Errno;
use thinp::stream::{Decoder, Event};

/// Bytes that are asked of the source at a time.
const READ_BYTES: usize = 64 << 10;

/// Receives a stream whole, or leaves the volume as it is.
pub(super) async fn receive<E>(
    manager: &Manager,
    request: &ReceiveRequest,
    source: impl AsyncFnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), ReceiveError<E>> {
    let mut target = None;
    let taken = take_in(manager, request, &mut target, source).await;
    let Some(mut target) = target else { return taken };
    let result = match taken {
        Ok(()) => target.finish().await.map_err(refused),
        Err(error) => Err(error),
    };
    let full = matches!(&result, Err(ReceiveError::Refused(error)) if error.code == Code::Errno(Errno::ENOSPC));
    target.clear_away(full).await;
    result
}

/// Takes the stream in to its end, into a target that is opened as soon as the stream has said what it is.
async fn take_in<'m, E>(
    manager: &'m Manager,
    request: &'m ReceiveRequest,
    target: &mut Option<Target<'m>>,
    mut source: impl AsyncFnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), ReceiveError<E>> {
    let mut decoder = Decoder::new(known_size(manager, request));
    let mut piece = vec![0; READ_BYTES];
    loop {
        let len = source(&mut piece).await.map_err(ReceiveError::Source)?;
        if len == 0 {
            decoder.finish().map_err(|error| refused(TransferError::from(error)))?;
            return Ok(());
        }
        let mut input = piece.get(..len).unwrap_or_default();
        while let Some(event) = decoder.next(&mut input).map_err(|error| refused(TransferError::from(error)))? {
            let target = match target {
                Some(target) => target,
                None => target.insert(Target::open(manager, request, decoder.info()).await.map_err(refused)?),
            };
            apply(target, &decoder, event).await.map_err(refused)?;
        }
    }
}

async fn apply(target: &mut Target<'_>, decoder: &Decoder, event: Event<'_>) -> Result<(), ServiceError> {
    match event {
        Event::Info | Event::End(_) => Ok(()),
        Event::Data { offset, length } => {
            target.writer.begin(offset, length);
            Ok(())
        }
        Event::Payload { offset, bytes } => target.writer.payload(offset, bytes).await,
        Event::Unmap { offset, length } => target.writer.unmap(offset, length).await,
        Event::Digest(_) => match decoder.token() {
            Some(token) => target.checkpoint(token).await,
            None => Ok(()),
        },
    }
}

/// The size of the volume, if it is known before the stream says it.
fn known_size(manager: &Manager, request: &ReceiveRequest) -> Option<u64> {
    let given = request.size_bytes.map(|size| size.bytes());
    given.or_else(|| manager.service.served().ok()?.catalog().named(request.volume.as_str())?.size_bytes)
}
