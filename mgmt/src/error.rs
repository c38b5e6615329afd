//! What a request can fail with: one type, and one table from codes to HTTP statuses.

use alloc::string::String;
use core::fmt;
use thinp::control::Errno;

/// Defines [`Code`] and everything that is known about each code. `docs/api.md` is tested against it.
macro_rules! codes {
    (
        errno { $($errno:ident $errno_status:literal $errno_meaning:literal;)* }
        http { $($http:ident $name:literal $http_status:literal $http_meaning:literal;)* }
    ) => {
        /// Why a request failed: an errno of the pool, or a reason of the management interface's own.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            /// An error number, as dm-thin would answer.
            Errno(Errno),
            $(#[doc = $http_meaning] $http,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Code] = &[$(Code::Errno(Errno::$errno),)* $(Code::$http,)*];

            /// The word in the `error` field of an answer.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::Errno(Errno::$errno) => stringify!($errno),)*
                    $(Code::$http => $name,)*
                }
            }

            /// The HTTP status code.
            pub const fn status(self) -> u16 {
                match self {
                    $(Code::Errno(Errno::$errno) => $errno_status,)*
                    $(Code::$http => $http_status,)*
                }
            }

            /// What it means, in a few words.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Code::Errno(Errno::$errno) => $errno_meaning,)*
                    $(Code::$http => $http_meaning,)*
                }
            }
        }
    };
}

codes! {
    errno {
        EPERM 403 "not permitted";
        EIO 500 "a disk or the metadata failed";
        ENOMEM 503 "out of memory for now";
        ENOTBLK 500 "a metadata block is not where it says it is";
        EBUSY 409 "in use, or already held";
        EEXIST 409 "the name or id is taken";
        EINVAL 400 "the request asks for something that makes no sense";
        ENOSPC 507 "the pool is full";
        ENODATA 404 "no such volume or device";
        EILSEQ 500 "a metadata block is damaged";
        EOPNOTSUPP 409 "not possible in the pool's present mode";
    }
    http {
        BadRequest "bad-request" 400 "not well-formed HTTP; the connection is closed";
        Unauthorized "unauthorized" 401 "no token, or not a valid one";
        NoSuchPath "no-such-path" 404 "the interface has no such path";
        MethodNotAllowed "method-not-allowed" 405 "the path does not take this method; see the Allow header";
        RequestTimeout "request-timeout" 408 "the request did not arrive in time; the connection is closed";
        LengthRequired "length-required" 411 "a body is needed";
        BodyTooLarge "body-too-large" 413 "the body is longer than this path takes";
        UnsupportedMediaType "unsupported-media-type" 415 "the Content-Type is not the one this path takes";
        ExpectationFailed "expectation-failed" 417 "an Expect other than 100-continue";
        HeadTooLarge "head-too-large" 431 "request line and headers are too long, or too many";
        NotImplemented "not-implemented" 501 "an unknown method or transfer coding";
        NoPool "no-pool" 503 "the pool could not be opened; the message says why";
        TooManyConnections "too-many-connections" 503 "all connections are taken";
        VersionNotSupported "version-not-supported" 505 "neither HTTP/1.1 nor HTTP/1.0";
    }
}

impl Code {
    /// The error number, if it is one.
    pub const fn errno(self) -> Option<Errno> {
        match self {
            Code::Errno(errno) => Some(errno),
            _ => None,
        }
    }
}

impl From<Errno> for Code {
    fn from(errno: Errno) -> Code {
        Code::Errno(errno)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A request that failed: the code, what happened, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ControlError {
    /// Why; decides the HTTP status.
    pub code: Code,
    /// What happened, naming the volume, block or disk. Never a secret.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl ControlError {
    /// An error of an errno or of one of the interface's own codes.
    pub fn new(code: impl Into<Code>, message: impl Into<String>, hint: impl Into<String>) -> ControlError {
        ControlError { code: code.into(), message: message.into(), hint: hint.into() }
    }

    /// [`Errno::EINVAL`]: what was asked for makes no sense.
    pub fn invalid(message: impl Into<String>, hint: impl Into<String>) -> ControlError {
        ControlError::new(Errno::EINVAL, message, hint)
    }
}
