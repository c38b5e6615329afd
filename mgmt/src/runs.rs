//! Runs of blocks, streamed: in which two volumes differ, and where those of one are.

use crate::api::Api;
use crate::control::Control;
use crate::error::ControlError;
use crate::http::Failure;
use crate::http::answer::error_json;
use crate::http::exchange::Exchange;
use crate::http::out::Out;
use crate::names::VolumeName;
use crate::query::Query;
use alloc::format;
use alloc::vec::Vec;
use platform::net::Stream;

/// How runs are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsFormat {
    /// A JSON object a line, with data blocks.
    Json,
    /// XML of `thin_delta` or `thin_dump` 1.x.
    Xml,
    /// XML of `thin_delta --verbose` 1.x.
    XmlVerbose,
}

/// Two volumes to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaRequest {
    /// The left one.
    pub left: VolumeName,
    /// The right one.
    pub right: VolumeName,
    /// How it is told.
    pub format: RunsFormat,
    /// What is the same is told, too.
    pub same: bool,
    /// As the metadata snapshot has them.
    pub metadata_snapshot: bool,
    /// The first virtual block, counted in blocks of the pool.
    pub from_block: u64,
}

/// A volume whose mappings are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingsRequest {
    /// Its name.
    pub volume: VolumeName,
    /// How they are told.
    pub format: RunsFormat,
    /// As the metadata snapshot has it.
    pub metadata_snapshot: bool,
    /// The first virtual block, counted in blocks of the pool.
    pub from_block: u64,
}

/// Why a stream of runs is not complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunsError<E> {
    /// It could not be made, or not to its end.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// Its taker failed.
    #[error("{0}")]
    Sink(E),
}

impl RunsFormat {
    fn content_type(self) -> &'static str {
        match self {
            RunsFormat::Json => "application/x-ndjson",
            RunsFormat::Xml | RunsFormat::XmlVerbose => "application/xml",
        }
    }
}

/// What stands at the end of a body that is not complete.
fn last_words(format: RunsFormat, error: &ControlError) -> Vec<u8> {
    match format {
        RunsFormat::Json => error_json(error),
        RunsFormat::Xml | RunsFormat::XmlVerbose => {
            format!("<!-- incomplete: {} -->\n", format!("{error}; {}", error.hint).replace("--", "- -")).into_bytes()
        }
    }
}

impl<C: Control> Api<C> {
    /// `GET /v1/volumes/NAME/delta`.
    pub(crate) async fn send_delta<S: Stream>(
        &self,
        left: VolumeName,
        exchange: &mut Exchange<'_, S>,
    ) -> Result<(), Failure> {
        let known = ["to", "format", "same", "metadata_snapshot", "from"];
        let query = Query::parse(exchange.head().query.as_deref(), &known)?;
        let no_to = || ControlError::invalid("the query has no to", "name the other volume: ?to=NAME");
        let right = query.volume("to")?.ok_or_else(no_to)?;
        let formats = [("json", RunsFormat::Json), ("xml", RunsFormat::Xml), ("xml-verbose", RunsFormat::XmlVerbose)];
        let format = query.word("format", &formats, RunsFormat::Json)?;
        let (same, metadata_snapshot) = (query.yes("same", true)?, query.yes("metadata_snapshot", false)?);
        let from_block = query.first_block()?;
        let request = DeltaRequest { left, right, format, same, metadata_snapshot, from_block };
        let mut out = Out::new(exchange)?;
        let sink = async |piece: &[u8]| out.begun(format.content_type()).await?.write(piece).await;
        let result = self.control.delta(&request, sink).await;
        out.finish(format.content_type(), |error| last_words(format, error), result).await
    }

    /// `GET /v1/volumes/NAME/mappings`.
    pub(crate) async fn send_mappings<S: Stream>(
        &self,
        volume: VolumeName,
        exchange: &mut Exchange<'_, S>,
    ) -> Result<(), Failure> {
        let query = Query::parse(exchange.head().query.as_deref(), &["format", "metadata_snapshot", "from"])?;
        let format = query.word("format", &[("json", RunsFormat::Json), ("xml", RunsFormat::Xml)], RunsFormat::Json)?;
        let (metadata_snapshot, from_block) = (query.yes("metadata_snapshot", false)?, query.first_block()?);
        let request = MappingsRequest { volume, format, metadata_snapshot, from_block };
        let mut out = Out::new(exchange)?;
        let sink = async |piece: &[u8]| out.begun(format.content_type()).await?.write(piece).await;
        let result = self.control.mappings(&request, sink).await;
        out.finish(format.content_type(), |error| last_words(format, error), result).await
    }
}
