//! How errors of the pool and the appliance are told: the pool's table of answers ([`thinp::error::Answer`]) in the words
//! of HTTP and SCSI. `docs/errors.md` has the whole table; `tests/errors` watches that it is true, row by row.

use crate::catalog::CatalogError;
use crate::service::ServiceError;
use crate::streams::TransferError;
use alloc::string::ToString;
use export::UnitError;
use mgmt::{Code, ControlError};
use thinp::control::{BlockStatus, Errno};
use thinp::metadata::repair::RepairError;

/// What an initiator is told of a request for the bytes at `offset_bytes` that the pool failed.
pub fn unit_error(error: &thinp::Error, offset_bytes: u64) -> UnitError {
    match error.answer().block_status {
        BlockStatus::NoSpace => UnitError::NoSpace,
        BlockStatus::WriteProtected => UnitError::ReadOnly,
        BlockStatus::Medium => UnitError::Medium { offset_bytes },
        BlockStatus::OutOfRange => UnitError::OutOfRange,
        BlockStatus::Busy => UnitError::Busy,
        BlockStatus::Failed => UnitError::Failed,
    }
}

/// What an initiator is told of a volume that is not sanitized.
pub fn not_sanitized(error: &ServiceError) -> UnitError {
    match error {
        ServiceError::Pool(thinp::Error::SharesBlocks { .. } | thinp::Error::Erasing(_))
        | ServiceError::InUse(_)
        | ServiceError::NotAdopted => UnitError::NotNow,
        error => unwritten(error),
    }
}

/// What an initiator is told of reservations that could not be written down.
pub fn unwritten(error: &ServiceError) -> UnitError {
    match error {
        ServiceError::Pool(error) => unit_error(error, 0),
        ServiceError::Catalog(CatalogError::TooLarge { .. }) => UnitError::RecordsFull,
        _ => UnitError::Failed,
    }
}

impl From<ServiceError> for ControlError {
    fn from(error: ServiceError) -> ControlError {
        ControlError::new(code(&error), error.to_string(), hint(&error))
    }
}

fn code(error: &ServiceError) -> Code {
    match error {
        ServiceError::NoPool(_) => Code::NoPool,
        ServiceError::Pool(error) => Code::Errno(error.errno()),
        ServiceError::NoVolume(_) => Code::Errno(Errno::ENODATA),
        ServiceError::NameTaken(_) => Code::Errno(Errno::EEXIST),
        ServiceError::InUse(_) => Code::Errno(Errno::EBUSY),
        ServiceError::ReadOnly(_) => Code::Errno(Errno::EPERM),
        ServiceError::Transfer(error) => Code::Errno(match error {
            TransferError::Receiving(_) => Errno::EBUSY,
            TransferError::NoTransfer(_) => Errno::ENODATA,
            TransferError::NoSpace { .. } => Errno::ENOSPC,
            _ => Errno::EINVAL,
        }),
        ServiceError::NotItsSnapshot { .. } => Code::Errno(Errno::EINVAL),
        ServiceError::NoPolicy(_) => Code::Errno(Errno::ENODATA),
        ServiceError::TooManyPolicies { .. } => Code::Errno(Errno::ENOSPC),
        ServiceError::NotAdopted => Code::Errno(Errno::EOPNOTSUPP),
        ServiceError::SizeUnset(_) | ServiceError::Blocks(_) => Code::Errno(Errno::EINVAL),
        ServiceError::Catalog(CatalogError::Malformed { .. } | CatalogError::Duplicate { .. }) => {
            Code::Errno(Errno::EILSEQ)
        }
        ServiceError::Catalog(CatalogError::Unencodable(_) | CatalogError::TooLarge { .. }) => {
            Code::Errno(Errno::EINVAL)
        }
        ServiceError::NoFreeId => Code::Errno(Errno::ENOSPC),
        ServiceError::NothingToRepair(_) | ServiceError::Elsewhere { .. } => Code::Errno(Errno::EBUSY),
        ServiceError::NoDisk(_) => Code::Errno(Errno::ENODATA),
        ServiceError::Repair(error) => Code::Errno(match error {
            RepairError::NothingFound { .. } => Errno::ENODATA,
            RepairError::NotBlank { .. } => Errno::EEXIST,
            RepairError::TooSmall { .. } => Errno::ENOSPC,
            RepairError::TooManyNodes { .. } => Errno::ENOMEM,
            RepairError::Metadata(error) => thinp::Error::Metadata(*error).errno(),
            _ => Errno::EINVAL,
        }),
    }
}

/// What to do next, in terms of this interface.
fn hint(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::NoPool(_) => {
            "GET /healthz shows the reason; put it right and start the appliance again, or POST /v1/pool/repair"
        }
        ServiceError::Elsewhere { .. } => "stop the other instance, or start this one with takeover=yes",
        ServiceError::NothingToRepair(_) => "a repair is for a pool that cannot be opened, or is read-only or failed",
        ServiceError::NoDisk(_) => "a repair reads the disk meta and writes the disk meta-new",
        ServiceError::Repair(error) => match error {
            RepairError::BlockSizeUnknown => "add \"data_block_sectors\": N to the request",
            RepairError::NotBlank { .. } => "attach a blank disk as meta-new, or add \"force\": true to the request",
            RepairError::TooSmall { .. } => "attach a larger disk as meta-new",
            RepairError::TooManyNodes { .. } => "give the machine more memory, or run gossamer-pool repair on a host",
            _ => "look after the disks meta and meta-new",
        },
        ServiceError::NotAdopted => "POST /v1/pool/adopt makes the device that keeps names, sizes and exports",
        ServiceError::SizeUnset(_) => "set it: PATCH the volume with {\"size_bytes\": N}",
        ServiceError::Blocks(_) => "see POST /v1/volumes in docs/api.md for the sizes that blocks can have",
        ServiceError::NameTaken(_) => "choose another name, or delete that volume",
        ServiceError::NoVolume(_) => "GET /v1/volumes lists what there is",
        ServiceError::InUse(_) => {
            "log its initiators out, or DELETE its export, or wait for the stream that uses it, or until it is sanitized"
        }
        ServiceError::ReadOnly(_) => "PATCH it with {\"read_only\": false}: then it is no base any more",
        ServiceError::Transfer(error) => match error {
            TransferError::NotASnapshot(_) => "take a snapshot with \"read_only\": true, or PATCH the volume so",
            TransferError::BadToken | TransferError::OtherToken { .. } => {
                "GET /v1/volumes/NAME/receive of the receiver has its token; send the same snapshot and base as before"
            }
            TransferError::Stream(_) => "the volume is as it was; GET /v1/volumes/NAME/receive tells whether to resume",
            TransferError::SizeUnknown(_) => "add size_bytes=N to the query",
            TransferError::OtherSize { .. } => "leave size_bytes out",
            TransferError::Origin(_) => "send a volume that stands by itself",
            TransferError::WrongBase { .. } => {
                "send the increment on what the volume holds (GET shows its `contents`), or a full stream"
            }
            TransferError::BaseGiven => "leave base out",
            TransferError::NotBegun(_) => {
                "GET /v1/volumes/NAME/receive has the token, if there is one; else send it whole"
            }
            TransferError::Receiving(_) => "wait until that has ended, or end its sender",
            TransferError::NoTransfer(_) => "PUT /v1/volumes/NAME/stream begins one",
            TransferError::NoSpace { .. } => "delete or discard something, or grow the pool, and send it again",
        },
        ServiceError::NoPolicy(_) => "GET /v1/policies lists what there is",
        ServiceError::TooManyPolicies { .. } => "DELETE one, or put several volumes into one",
        ServiceError::NotItsSnapshot { .. } => "GET /v1/volumes shows of what each is a snapshot",
        ServiceError::NoFreeId => "delete volumes that are no longer needed",
        ServiceError::Catalog(CatalogError::Unencodable(_) | CatalogError::TooLarge { .. }) => {
            "shorten the record: name fewer initiators"
        }
        ServiceError::Catalog(CatalogError::Malformed { .. } | CatalogError::Duplicate { .. }) => {
            "delete the device that holds the records by a message, start again, then POST /v1/pool/adopt"
        }
        ServiceError::Pool(thinp::Error::PageTooLong { .. }) => {
            "all snapshot policies share a page: DELETE one, or name fewer volumes in them"
        }
        ServiceError::Pool(error) => match error.errno() {
            Errno::ENOSPC => "delete or discard something, or grow the pool",
            Errno::EBUSY => "wait until it is no longer in use, or end that use",
            Errno::EOPNOTSUPP => "GET /v1/pool shows the pool's mode",
            Errno::EINVAL => "see the table of messages in docs/api.md",
            Errno::EEXIST => "choose another id",
            Errno::ENODATA => "GET /v1/volumes lists what there is",
            _ => "GET /v1/pool shows the pool's state; the console has the log",
        },
    }
}
