//! The one table of paths and methods.

use crate::error::{Code, ControlError};
use crate::http::head::Method;
use crate::names::VolumeName;
use alloc::format;
use alloc::string::String;
use thinp::control::Errno;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Health,
    Metrics,
    ShowPool,
    Message,
    Adopt,
    Grow,
    WaitForEvent,
    StartCheck,
    ShowCheck,
    ShowViews,
    ShowSpace,
    AskSpace,
    ClearNeedsCheck,
    Repair,
    ShowMetadataSnapshot,
    ReserveMetadataSnapshot,
    ReleaseMetadataSnapshot,
    ShowMetadataExport,
    SetMetadataExport,
    EndMetadataExport,
    ShowDiscoveryAuth,
    SetDiscoveryAuth,
    EndDiscoveryAuth,
    ListVolumes,
    CreateVolume,
    ShowVolume(VolumeName),
    ChangeVolume(VolumeName),
    DeleteVolume(VolumeName),
    CreateSnapshot(VolumeName),
    CreateSnapshots,
    RollBack(VolumeName),
    ShowDelta(VolumeName),
    ShowMappings(VolumeName),
    SendStream(VolumeName),
    ReceiveStream(VolumeName),
    ShowReceive(VolumeName),
    ForgetReceive(VolumeName),
    SetExport(VolumeName),
    EndExport(VolumeName),
    ShowPolicies,
    SetPolicy(VolumeName),
    DeletePolicy(VolumeName),
    PowerOff,
}

impl Endpoint {
    /// What follows a `?` is part of the question.
    pub(crate) fn takes_query(&self) -> bool {
        matches!(
            self,
            Endpoint::ShowDelta(_) | Endpoint::ShowMappings(_) | Endpoint::SendStream(_) | Endpoint::ReceiveStream(_)
        )
    }
}

/// How a row of the table makes its endpoint.
#[derive(Clone, Copy)]
pub(crate) enum Make {
    /// The path has no variable part.
    Plain(fn() -> Endpoint),
    /// `NAME` in the path is a volume's name, or one of the same kind.
    Named(fn(VolumeName) -> Endpoint),
}

use Make::{Named, Plain};

/// Method, path, endpoint. GET answers HEAD as well. `docs/api.md` is tested against it.
pub(crate) const ROUTES: &[(Method, &str, Make)] = &[
    (Method::Get, "/healthz", Plain(|| Endpoint::Health)),
    (Method::Get, "/metrics", Plain(|| Endpoint::Metrics)),
    (Method::Get, "/v1/pool", Plain(|| Endpoint::ShowPool)),
    (Method::Post, "/v1/pool/message", Plain(|| Endpoint::Message)),
    (Method::Post, "/v1/pool/adopt", Plain(|| Endpoint::Adopt)),
    (Method::Post, "/v1/pool/grow", Plain(|| Endpoint::Grow)),
    (Method::Post, "/v1/pool/wait", Plain(|| Endpoint::WaitForEvent)),
    (Method::Get, "/v1/pool/check", Plain(|| Endpoint::ShowCheck)),
    (Method::Post, "/v1/pool/check", Plain(|| Endpoint::StartCheck)),
    (Method::Post, "/v1/pool/clear-needs-check", Plain(|| Endpoint::ClearNeedsCheck)),
    (Method::Post, "/v1/pool/repair", Plain(|| Endpoint::Repair)),
    (Method::Get, "/v1/pool/metadata-snapshot", Plain(|| Endpoint::ShowMetadataSnapshot)),
    (Method::Post, "/v1/pool/metadata-snapshot", Plain(|| Endpoint::ReserveMetadataSnapshot)),
    (Method::Delete, "/v1/pool/metadata-snapshot", Plain(|| Endpoint::ReleaseMetadataSnapshot)),
    (Method::Get, "/v1/pool/metadata-export", Plain(|| Endpoint::ShowMetadataExport)),
    (Method::Put, "/v1/pool/metadata-export", Plain(|| Endpoint::SetMetadataExport)),
    (Method::Delete, "/v1/pool/metadata-export", Plain(|| Endpoint::EndMetadataExport)),
    (Method::Get, "/v1/pool/discovery-auth", Plain(|| Endpoint::ShowDiscoveryAuth)),
    (Method::Put, "/v1/pool/discovery-auth", Plain(|| Endpoint::SetDiscoveryAuth)),
    (Method::Delete, "/v1/pool/discovery-auth", Plain(|| Endpoint::EndDiscoveryAuth)),
    (Method::Get, "/v1/pool/space", Plain(|| Endpoint::ShowSpace)),
    (Method::Post, "/v1/pool/space", Plain(|| Endpoint::AskSpace)),
    (Method::Get, "/v1/pool/views", Plain(|| Endpoint::ShowViews)),
    (Method::Get, "/v1/volumes", Plain(|| Endpoint::ListVolumes)),
    (Method::Post, "/v1/volumes", Plain(|| Endpoint::CreateVolume)),
    (Method::Get, "/v1/volumes/NAME", Named(Endpoint::ShowVolume)),
    (Method::Patch, "/v1/volumes/NAME", Named(Endpoint::ChangeVolume)),
    (Method::Delete, "/v1/volumes/NAME", Named(Endpoint::DeleteVolume)),
    (Method::Post, "/v1/volumes/NAME/snapshots", Named(Endpoint::CreateSnapshot)),
    (Method::Post, "/v1/snapshots", Plain(|| Endpoint::CreateSnapshots)),
    (Method::Post, "/v1/volumes/NAME/roll-back", Named(Endpoint::RollBack)),
    (Method::Get, "/v1/volumes/NAME/delta", Named(Endpoint::ShowDelta)),
    (Method::Get, "/v1/volumes/NAME/mappings", Named(Endpoint::ShowMappings)),
    (Method::Get, "/v1/volumes/NAME/stream", Named(Endpoint::SendStream)),
    (Method::Put, "/v1/volumes/NAME/stream", Named(Endpoint::ReceiveStream)),
    (Method::Get, "/v1/volumes/NAME/receive", Named(Endpoint::ShowReceive)),
    (Method::Delete, "/v1/volumes/NAME/receive", Named(Endpoint::ForgetReceive)),
    (Method::Put, "/v1/volumes/NAME/export", Named(Endpoint::SetExport)),
    (Method::Delete, "/v1/volumes/NAME/export", Named(Endpoint::EndExport)),
    (Method::Get, "/v1/policies", Plain(|| Endpoint::ShowPolicies)),
    (Method::Put, "/v1/policies/NAME", Named(Endpoint::SetPolicy)),
    (Method::Delete, "/v1/policies/NAME", Named(Endpoint::DeletePolicy)),
    (Method::Post, "/v1/power-off", Plain(|| Endpoint::PowerOff)),
];

/// Why a request leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// The path, or the name in it, is wrong.
    Path(ControlError),
    /// The path takes only these methods, as the Allow header lists them.
    Method {
        /// The list.
        allow: String,
    },
}

/// Finds the endpoint of a method and a path.
pub(crate) fn resolve(method: Method, path: &str) -> Result<Endpoint, NoRoute> {
    let method = if method == Method::Head { Method::Get } else { method };
    let mut allow = String::new();
    for (row_method, pattern, make) in ROUTES {
        let Some(name) = matches(pattern, path) else { continue };
        if *row_method == method {
            return match make {
                Plain(make) => Ok(make()),
                Named(make) => VolumeName::parse(name).map(make).map_err(|error| NoRoute::Path(bad_name(error))),
            };
        }
        let separator = if allow.is_empty() { "" } else { ", " };
        let word = if *row_method == Method::Get { "GET, HEAD" } else { &format!("{row_method}") };
        allow.extend([separator, word]);
    }
    if allow.is_empty() { Err(NoRoute::Path(no_path())) } else { Err(NoRoute::Method { allow }) }
}

fn bad_name(error: crate::names::NameError) -> ControlError {
    ControlError::new(Errno::EINVAL, format!("{error}"), "give the name as GET /v1/volumes lists it")
}

fn no_path() -> ControlError {
    ControlError::new(Code::NoSuchPath, "there is no such path", "docs/api.md lists them all")
}

/// The error beside the Allow header.
pub(crate) fn method_not_allowed(allow: &str) -> ControlError {
    ControlError::new(Code::MethodNotAllowed, "the path does not take this method", format!("use one of {allow}"))
}

/// The part of `path` where `pattern` says NAME (nothing if it does not), or `None` if they do not match.
fn matches<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let Some((before, after)) = pattern.split_once("NAME") else {
        return (pattern == path).then_some("");
    };
    let name = path.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn paths_lead_to_endpoints() {
        let v1 = || VolumeName::parse("v1").unwrap();
        assert_eq!(resolve(Method::Head, "/healthz"), Ok(Endpoint::Health));
        assert_eq!(resolve(Method::Get, "/v1/volumes/v1"), Ok(Endpoint::ShowVolume(v1())));
        assert_eq!(resolve(Method::Post, "/v1/volumes/v1/snapshots"), Ok(Endpoint::CreateSnapshot(v1())));
        assert_eq!(resolve(Method::Put, "/v1/volumes/v1/export"), Ok(Endpoint::SetExport(v1())));
    }

    #[test]
    fn other_methods_learn_which_are_allowed() {
        for (path, expected) in [
            ("/healthz", "GET, HEAD"),
            ("/v1/volumes", "GET, HEAD, POST"),
            ("/v1/volumes/v1", "GET, HEAD, PATCH, DELETE"),
            ("/v1/volumes/v1/snapshots", "POST"),
            ("/v1/volumes/v1/export", "PUT, DELETE"),
        ] {
            assert_eq!(resolve(Method::Other, path), Err(NoRoute::Method { allow: expected.to_string() }), "{path}");
        }
    }

    #[test]
    fn other_paths_lead_nowhere() {
        let nowhere =
            ["/", "*", "", "/v1", "/v1/", "/v1/volumes/", "/v1/volumes//export", "/v1/volumes/a/b", "/HEALTHZ"];
        for path in nowhere {
            assert_eq!(resolve(Method::Get, path), Err(NoRoute::Path(no_path())), "{path}");
        }
        let Err(NoRoute::Path(error)) = resolve(Method::Get, "/v1/volumes/V1") else { panic!("a bad name") };
        assert_eq!(error.code, Code::Errno(Errno::EINVAL));
    }
}
