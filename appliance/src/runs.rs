//! Deltas of volumes, and their mappings, each out of a view of its own.

use crate::service::{Served, ServiceError};
use mgmt::{ControlError, DeltaRequest, MappingsRequest, RunsError, RunsFormat};
use thinp::control::DeviceId;
use thinp::metadata::dump::{self, DumpError};
use thinp::metadata::view::View;
use thinp::metadata::{MetadataError, VirtualBlock, delta};

/// Streams that are made at a time. Each takes a view, of which others need some, and less than a MiB.
pub(crate) const STREAMS_MAX: usize = 4;

/// Writes in which blocks two devices differ.
pub(crate) async fn delta<E>(
    served: &Served,
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
    let view = open_view(served, "a delta", request.metadata_snapshot).await?;
    view.delta(&options, sink).await.map_err(told)
}

/// Writes where the blocks of a device are.
pub(crate) async fn mappings<E>(
    served: &Served,
    device: DeviceId,
    request: &MappingsRequest,
    sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
) -> Result<(), RunsError<E>> {
    let format = match request.format {
        RunsFormat::Json => dump::Format::Json,
        RunsFormat::Xml | RunsFormat::XmlVerbose => dump::Format::Xml,
    };
    let view = open_view(served, "mappings", request.metadata_snapshot).await?;
    view.dump_device(device, VirtualBlock(request.from_block), format, sink).await.map_err(told)
}

/// A view of this moment, or of the metadata snapshot's.
async fn open_view(served: &Served, holder: &str, metadata_snapshot: bool) -> Result<View, ControlError> {
    let view = served.pool.open_view(holder, None).await.map_err(ServiceError::Pool)?;
    if !metadata_snapshot {
        return Ok(view);
    }
    let snapshot = view.metadata_snapshot().await.map_err(failed)?;
    snapshot.ok_or_else(|| failed(MetadataError::NoSnapshotHeld))
}

fn failed(error: MetadataError) -> ControlError {
    ServiceError::Pool(error.into()).into()
}

fn told<E>(error: DumpError<E>) -> RunsError<E> {
    match error {
        DumpError::Metadata(error) => RunsError::Refused(failed(error)),
        DumpError::Sink(error) => RunsError::Sink(error),
    }
}
