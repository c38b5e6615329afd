//! The one table of what errors are answered with: a row for each kind, with the errno of a message that meets it
//! (reference 7.2, 7.4) and the block status of an I/O request that does. What speaks a protocol translates those two
//! and decides nothing by error; `docs/errors.md` shows the table with the translations.

use super::{Error, OpenError};
use crate::control::{BlockStatus, Errno, Mode};
use crate::metadata::MetadataError;
use pdata::Error as StorageError;

/// What an error is answered with: a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The kind of error, by which `docs/errors.md` lists it.
    pub kind: &'static str,
    /// What a message that meets it fails with.
    pub errno: Errno,
    /// What a read, write, flush or discard that meets it fails with.
    pub block_status: BlockStatus,
}

/// Defines [`Error::answer`] and [`Answer::ALL`] from the rows.
macro_rules! answers {
    ($($kind:literal $errno:ident $status:ident = $pattern:pat,)*) => {
        impl Answer {
            /// The whole table.
            pub const ALL: &[Answer] =
                &[$(Answer { kind: $kind, errno: Errno::$errno, block_status: BlockStatus::$status },)*];
        }

        impl Error {
            /// Its row of the table.
            pub fn answer(&self) -> Answer {
                use {Error as P, MetadataError as M, StorageError as S};
                let (kind, errno, block_status) = match self {
                    $($pattern => ($kind, Errno::$errno, BlockStatus::$status),)*
                };
                Answer { kind, errno, block_status }
            }
        }
    };
}

answers! {
    // Messages.
    "BadMessage" EINVAL Failed = P::BadMessage(_),
    "MessageRefused" EOPNOTSUPP Failed = P::MessageRefused(_),
    "Active" EBUSY Failed = P::Active(_),
    "Deleting" EBUSY Failed = P::Deleting(_),
    "Erasing" EBUSY Failed = P::Erasing(_),
    "SharesBlocks" EBUSY Failed = P::SharesBlocks { .. },
    "Reserved" EBUSY Failed = P::Reserved(_),
    "NoFreeId" ENOSPC Failed = P::NoFreeId,
    "Exists" EEXIST Failed = P::Metadata(M::Exists(_)),
    "NoDevice" ENODATA Failed = P::Metadata(M::NoDevice(_)),
    "InUse" EBUSY Failed = P::Metadata(M::InUse(_)),
    "NotOpen" EINVAL Failed = P::Metadata(M::NotOpen(_)),
    "ClockExhausted" EINVAL Failed = P::Metadata(M::ClockExhausted(_)),
    "WrongTransactionId" EINVAL Failed = P::Metadata(M::WrongTransactionId { .. }),
    "SnapshotHeld" EBUSY Failed = P::Metadata(M::SnapshotHeld(_)),
    "NoSnapshotHeld" EINVAL Failed = P::Metadata(M::NoSnapshotHeld),
    "TooManyViews" EBUSY Failed = P::Metadata(M::TooManyViews { .. }),
    "ViewEnded" EBUSY Failed = P::Metadata(M::Storage(S::Ended)),
    "Shrink" EINVAL Failed = P::Metadata(M::Shrink { .. }),
    "TooLarge" EINVAL Failed = P::Metadata(M::TooLarge { .. }),
    "NeedsCheck" EINVAL WriteProtected = P::Metadata(M::NeedsCheck),
    "NoCheckNeeded" EINVAL Failed = P::NoCheckNeeded,
    "NotSound" EILSEQ Failed = P::NotSound { .. },
    "Closed" EIO Failed = P::Closed,
    // The pool's mode and space.
    "Refused: out of data space" EIO NoSpace = P::Refused(Mode::OutOfDataSpace),
    "Refused: out of metadata space" EIO NoSpace = P::Refused(Mode::OutOfMetadataSpace),
    "Refused: read-only" EIO WriteProtected = P::Refused(Mode::ReadOnly),
    "Refused: fail" EIO Medium = P::Refused(Mode::Fail | Mode::Write),
    "NoDataSpace" ENOSPC NoSpace = P::NoDataSpace | P::Metadata(M::NoDataSpace),
    "NoMetadataSpace" ENOSPC NoSpace = P::Metadata(M::NoMetadataSpace) | P::Metadata(M::Storage(S::NoSpace)),
    "ReadOnly" EPERM WriteProtected = P::Metadata(M::ReadOnly),
    "DiscardsIgnored" EOPNOTSUPP Failed = P::DiscardsIgnored,
    // Requests.
    "Malformed" EINVAL OutOfRange = P::Malformed { .. },
    "OutOfRange" EINVAL OutOfRange = P::OutOfRange { .. },
    "NotShareable" EINVAL Failed = P::NotShareable(_),
    "NoBuffers" ENOMEM Busy = P::NoBuffers(_) | P::Metadata(M::Storage(S::NoMemory)),
    // Disks.
    "Io" EIO Medium = P::Io { .. },
    "DataIo" EIO Medium = P::DataIo { .. },
    "Flush" EIO Medium = P::Flush(_),
    "DataFlush" EIO Medium = P::Metadata(M::DataFlush(_)),
    "MetadataIo" EIO Medium = P::Metadata(M::Storage(S::Io { .. })),
    "MetadataFlush" EIO Medium = P::Metadata(M::Storage(S::Flush(_))),
    "ChangesLost" EIO Medium = P::ChangesLost(_),
    "TakenOver" EIO Failed = P::TakenOver | P::Metadata(M::TakenOver),
    "Spoilt" EIO Medium = P::Metadata(M::Spoilt),
    // Damage.
    "Blank" EPERM Medium = P::Metadata(M::Blank),
    "TooSmall" EINVAL Medium = P::Metadata(M::TooSmall { .. }),
    "NotSuperblock" ENOTBLK Medium = P::Metadata(M::NotSuperblock { .. }),
    "BadMagic" EILSEQ Medium = P::Metadata(M::BadMagic { .. }),
    "BadSuperblockChecksum" EILSEQ Medium = P::Metadata(M::BadSuperblockChecksum),
    "UnknownFeatures" EINVAL Medium = P::Metadata(M::UnknownFeatures { .. }),
    "BadSuperblock" EINVAL Medium = P::Metadata(M::BadSuperblock { .. }),
    "DiskShrunk" EINVAL Medium = P::Metadata(M::DiskShrunk { .. }),
    "Damaged" EILSEQ Medium = P::Metadata(M::Storage(S::Damaged { .. })),
    "BlockOutOfRange" EILSEQ Medium = P::Metadata(M::Storage(S::OutOfRange { .. })),
    "BadCount" EILSEQ Medium = P::Metadata(M::Storage(S::BadCount { .. })),
    "BadSize" EILSEQ Medium = P::Metadata(M::Storage(S::BadSize { .. })),
    "TooDeep" EILSEQ Medium = P::Metadata(M::Storage(S::TooDeep { .. })),
    "BadMapping" EIO Medium = P::Metadata(M::BadMapping { .. }),
    "NotMapped" ENODATA Failed = P::Metadata(M::NotMapped { .. }),
    "NotReserved" EINVAL Failed = P::Metadata(M::NotReserved(_)),
    // Records.
    "DamagedRecords" EILSEQ Medium = P::DamagedRecords { .. },
    "RecordsExist" EEXIST Failed = P::RecordsExist(_),
    "PageTooLong" EINVAL Failed = P::PageTooLong { .. },
    "NoPage" ENODATA Failed = P::NoPage(_),
}

/// Defines [`OpenError::KINDS`], and kind and errno of what is no [`MetadataError`].
macro_rules! open_answers {
    ($($kind:literal $errno:ident = $pattern:pat,)*) => {
        impl OpenError {
            /// All kinds that are no [`MetadataError`], in the order of the table, with Linux's error numbers for them
            /// (reference 1.4, 7.1).
            pub const KINDS: &[(&str, Errno)] = &[$(($kind, Errno::$errno),)*];

            /// Its kind and errno.
            pub fn answer(&self) -> (&'static str, Errno) {
                match self {
                    OpenError::Metadata(error) => {
                        let Answer { kind, errno, .. } = Error::Metadata(*error).answer();
                        (kind, errno)
                    }
                    $($pattern => ($kind, Errno::$errno),)*
                }
            }
        }
    };
}

open_answers! {
    "Io" EIO = OpenError::Io { .. },
    "Blank" EPERM = OpenError::Blank,
    "DataInUse" EPERM = OpenError::DataInUse { .. },
    "Swapped" EINVAL = OpenError::Swapped,
    "DataTooSmall" EINVAL = OpenError::DataTooSmall { .. },
    "BadBlockSize" EINVAL = OpenError::BadBlockSize { .. },
    "WriteProtected" EPERM = OpenError::WriteProtected(_),
    "NoBuffers" ENOMEM = OpenError::NoBuffers(_),
}
