//! Runs of blocks, streamed: in which two volumes differ, and where those of one are.

use crate::api::Api;
use crate::control::Control;
use crate::error::ControlError;
use crate::http::Failure;
use crate::http::answer::error_json;
use crate::http::exchange::{Exchange, Sink};
use crate::http::wire::Lost;
use crate::names::VolumeName;
use alloc::format;
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

/// The parts of a query, each of which may be there once.
struct Query<'q>(&'q str);

impl<'q> Query<'q> {
    /// The query, if it has no other parts than the `known` ones.
    fn parse(query: Option<&'q str>, known: &[&str]) -> Result<Query<'q>, ControlError> {
        let query = Query(query.unwrap_or_default());
        for (n, (name, _)) in query.parts().enumerate() {
            let again = query.parts().take(n).any(|(before, _)| before == name);
            if again || !known.contains(&name) {
                let message = format!("{} part of the query", if again { "twice the same" } else { "an unknown" });
                return Err(ControlError::invalid(message, format!("this path takes {}, each once", known.join(", "))));
            }
        }
        Ok(query)
    }

    fn parts(&self) -> impl Iterator<Item = (&'q str, &'q str)> + use<'q> {
        let parts = self.0.split('&').filter(|part| !part.is_empty());
        parts.map(|part| part.split_once('=').unwrap_or((part, "")))
    }

    fn get(&self, name: &str) -> Option<&'q str> {
        self.parts().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// One of a few words; the first if there is none.
    fn word<T: Copy>(&self, name: &str, words: &[(&str, T)], default: T) -> Result<T, ControlError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let found = words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let all = words.iter().map(|(word, _)| *word).collect::<alloc::vec::Vec<_>>().join(" or ");
            ControlError::invalid(format!("{name} in the query is another word"), format!("it is {all}"))
        })
    }

    fn yes(&self, name: &str, default: bool) -> Result<bool, ControlError> {
        self.word(name, &[("yes", true), ("no", false)], default)
    }

    fn from_block(&self) -> Result<u64, ControlError> {
        let number = |value: &str| value.parse().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
        match self.get("from") {
            None => Ok(0),
            Some(value) => number(value).ok_or_else(|| {
                ControlError::invalid("from in the query is no block", "it is the number of a virtual block, from 0 on")
            }),
        }
    }
}

/// Where a stream goes: the answer begins with its first piece, so that what fails before has a status of its own.
enum Out<'e, 'w, S: Stream> {
    Waiting(&'e mut Exchange<'w, S>),
    Begun(Sink<'e, 'w, S>),
    Lost,
}

impl<'e, 'w, S: Stream> Out<'e, 'w, S> {
    /// The answer's body.
    async fn begun(&mut self, format: RunsFormat) -> Result<&mut Sink<'e, 'w, S>, Lost> {
        let content_type = if format == RunsFormat::Json { "application/x-ndjson" } else { "application/xml" };
        *self = match core::mem::replace(self, Out::Lost) {
            Out::Waiting(exchange) => Out::Begun(exchange.stream(content_type).await?),
            other => other,
        };
        match self {
            Out::Begun(sink) => Ok(sink),
            _ => Err(Lost::Stalled),
        }
    }

    /// Ends the answer, or breaks it off with the reason in its body.
    async fn finish(self, format: RunsFormat, result: Result<(), RunsError<Lost>>) -> Result<(), Failure> {
        match (result, self) {
            (Ok(()), mut out) => {
                out.begun(format).await?;
                if let Out::Begun(sink) = out { Ok(sink.finish().await?) } else { Ok(()) }
            }
            (Err(RunsError::Refused(error)), Out::Begun(sink)) => {
                sink.break_off(&last_words(format, &error)).await?;
                Err(error.into())
            }
            (Err(RunsError::Refused(error)), _) => Err(error.into()),
            (Err(RunsError::Sink(lost)), _) => Err(lost.into()),
        }
    }
}

/// What stands at the end of a body that is not complete.
fn last_words(format: RunsFormat, error: &ControlError) -> alloc::vec::Vec<u8> {
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
        let hint = "name the other volume: ?to=NAME";
        let to = query.get("to").ok_or_else(|| ControlError::invalid("the query has no to", hint))?;
        let right = VolumeName::parse(to).map_err(|error| ControlError::invalid(format!("{error}"), hint))?;
        let formats = [("json", RunsFormat::Json), ("xml", RunsFormat::Xml), ("xml-verbose", RunsFormat::XmlVerbose)];
        let format = query.word("format", &formats, RunsFormat::Json)?;
        let (same, metadata_snapshot) = (query.yes("same", true)?, query.yes("metadata_snapshot", false)?);
        let from_block = query.from_block()?;
        let request = DeltaRequest { left, right, format, same, metadata_snapshot, from_block };
        let mut out = Out::Waiting(exchange);
        let sink = async |piece: &[u8]| out.begun(format).await?.write(piece).await;
        let result = self.control.delta(&request, sink).await;
        out.finish(format, result).await
    }

    /// `GET /v1/volumes/NAME/mappings`.
    pub(crate) async fn send_mappings<S: Stream>(
        &self,
        volume: VolumeName,
        exchange: &mut Exchange<'_, S>,
    ) -> Result<(), Failure> {
        let query = Query::parse(exchange.head().query.as_deref(), &["format", "metadata_snapshot", "from"])?;
        let format = query.word("format", &[("json", RunsFormat::Json), ("xml", RunsFormat::Xml)], RunsFormat::Json)?;
        let (metadata_snapshot, from_block) = (query.yes("metadata_snapshot", false)?, query.from_block()?);
        let request = MappingsRequest { volume, format, metadata_snapshot, from_block };
        let mut out = Out::Waiting(exchange);
        let sink = async |piece: &[u8]| out.begun(format).await?.write(piece).await;
        let result = self.control.mappings(&request, sink).await;
        out.finish(format, result).await
    }
}
