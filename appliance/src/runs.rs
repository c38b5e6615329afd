//! Deltas of volumes, and their mappings, each out of a view of its own.

use crate::service::{Served, ServiceError};
use mgmt::{DeltaRequest, MappingsRequest, RunsError, RunsFormat};
use thinp::control::DeviceId;
use thinp::metadata::dump::{self, DumpError};
use thinp::metadata::view::View;
use thinp::metadata::{MetadataError, VirtualBlock, delta};

/// Streams that are made at a time. Each takes a view, of which others need some, and less than a MiB.
pub(crate) const STREAMS_MAX: usize = 4;

/// Writes in which blocks two devices differ.
pub(crate) async fn delta<E>(
    view: &View,
    (left, right): (DeviceId, DeviceId),
    request: &DeltaRequest,
    sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), RunsError<E>> {
    let format = match request.format {
        RunsFormat::Json => delta::Format::Json,
        RunsFormat::Xml => delta::Format::Xml,
        RunsFormat::XmlVerbose => delta::Format::XmlVerbose,
    };
    let options = delta::Options { left, right, format, same: request.same, from: VirtualBlock(request.from_block) };
    view.delta(&options, sink).await.map_err(told)
}

/// Writes where the blocks of a device are.
pub(crate) async fn mappings<E>(
    view: &View,
    device: DeviceId,
    request: &MappingsRequest,
    sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), RunsError<E>> {
    let format = match request.format {
        RunsFormat::Json => dump::Format::Json,
        RunsFormat::Xml | RunsFormat::XmlVerbose => dump::Format::Xml,
    };
    view.dump_device(device, VirtualBlock(request.from_block), format, sink).await.map_err(told)
}

/// A view of this moment, or of the metadata snapshot's. The caller keeps changes away: the numbers of volumes are those of the
/// moment, and may be given to others later.
pub(crate) async fn open_view(served: &Served, holder: &str, metadata_snapshot: bool) -> Result<View, ServiceError> {
    let view = served.pool.open_view(holder, None).await?;
    if !metadata_snapshot {
        return Ok(view);
    }
    let snapshot = view.metadata_snapshot().await.map_err(failed)?;
    snapshot.ok_or_else(|| failed(MetadataError::NoSnapshotHeld))
}

fn failed(error: MetadataError) -> ServiceError {
    ServiceError::Pool(error.into())
}

fn told<E>(error: DumpError<E>) -> RunsError<E> {
    match error {
        DumpError::Metadata(error) => RunsError::Refused(failed(error).into()),
        DumpError::Sink(error) => RunsError::Sink(error),
    }
}
