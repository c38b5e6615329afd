//! One error of each kind.

use appliance::catalog::CatalogError;
use appliance::service::ServiceError;
use appliance::streams::TransferError;
use pdata::Error as StorageError;
use platform::block::{IoError, Op};
use platform::buf::NoBuffers;
use thinp::control::{DeviceId, Mode};
use thinp::metadata::repair::RepairError;
use thinp::metadata::{DataBlock, MetadataError};
use thinp::stream::{Reason, StreamError};
use thinp::{Error, OpenError, PoolDisk};

const FAILED_READ: IoError = IoError::Device { op: Op::Read, sector: 4096 };
const FAILED_FLUSH: IoError = IoError::Device { op: Op::Flush, sector: 0 };
const NO_BUFFERS: NoBuffers = NoBuffers { len_bytes: 4096 };

fn device() -> DeviceId {
    DeviceId::new(7).unwrap()
}

fn storage(error: StorageError) -> Error {
    Error::Metadata(MetadataError::Storage(error))
}

/// In the order of [`thinp::error::Answer::ALL`].
pub fn of_the_pool() -> Vec<Error> {
    [of_messages(), of_modes_and_requests(), of_disks(), of_damage(), of_records()].concat()
}

fn of_messages() -> Vec<Error> {
    let metadata = [
        MetadataError::Exists(device()),
        MetadataError::NoDevice(device()),
        MetadataError::InUse(device()),
        MetadataError::NotOpen(device()),
        MetadataError::ClockExhausted(0xff_ffff),
        MetadataError::WrongTransactionId { expected: 1, found: 2 },
        MetadataError::SnapshotHeld(17),
        MetadataError::NoSnapshotHeld,
        MetadataError::TooManyViews { most: 16 },
        MetadataError::Storage(StorageError::Ended),
        MetadataError::Shrink { from: 1024, to: 512 },
        MetadataError::TooLarge { blocks: 1 << 25, most: 4_161_600 },
        MetadataError::NeedsCheck,
    ];
    let first = [
        Error::BadMessage("a thin id has 24 bits"),
        Error::MessageRefused(Mode::ReadOnly),
        Error::Active(device()),
        Error::Deleting(device()),
        Error::Erasing(device()),
        Error::SharesBlocks { device: device(), blocks: 3 },
        Error::Reserved(device()),
        Error::NoFreeId,
    ];
    let last = [Error::NoCheckNeeded, Error::NotSound { problems: 3 }, Error::Closed];
    first.into_iter().chain(metadata.map(Error::Metadata)).chain(last).collect()
}

fn of_modes_and_requests() -> Vec<Error> {
    vec![
        Error::Refused(Mode::OutOfDataSpace),
        Error::Refused(Mode::OutOfMetadataSpace),
        Error::Refused(Mode::ReadOnly),
        Error::Refused(Mode::Fail),
        Error::NoDataSpace,
        Error::Metadata(MetadataError::NoMetadataSpace),
        Error::Metadata(MetadataError::ReadOnly),
        Error::DiscardsIgnored,
        Error::Malformed { sector: 8 },
        Error::OutOfRange { sector: 8, sectors: u64::MAX },
        Error::NotShareable("the devices are of different pools"),
        Error::NoBuffers(NO_BUFFERS),
    ]
}

fn of_disks() -> Vec<Error> {
    vec![
        Error::Io { device: device(), sector: 8, source: FAILED_READ },
        Error::DataIo { sector: 4096, source: FAILED_READ },
        Error::Flush(FAILED_FLUSH),
        Error::Metadata(MetadataError::DataFlush(FAILED_FLUSH)),
        storage(StorageError::Io { block: 512, action: "read", source: FAILED_READ }),
        storage(StorageError::Flush(FAILED_FLUSH)),
        Error::ChangesLost(device()),
        Error::TakenOver,
        Error::Metadata(MetadataError::Spoilt),
    ]
}

fn of_damage() -> Vec<Error> {
    let metadata = [
        MetadataError::Blank,
        MetadataError::TooSmall { blocks: 8, least: 16 },
        MetadataError::NotSuperblock { found: 9 },
        MetadataError::BadMagic { found: 0x1234 },
        MetadataError::BadSuperblockChecksum,
        MetadataError::UnknownFeatures { flags: 4 },
        MetadataError::BadSuperblock { what: "the data block size is no multiple of 128 sectors" },
        MetadataError::DiskShrunk { disk_blocks: 512, map_blocks: 1024 },
        MetadataError::Storage(StorageError::Damaged { block: 9, kind: "btree node", what: "its checksum is wrong" }),
        MetadataError::Storage(StorageError::OutOfRange { block: 2000, blocks: 1024 }),
        MetadataError::Storage(StorageError::BadCount { block: 9, count: 0, by: -1 }),
        MetadataError::Storage(StorageError::BadSize { from: 1024, to: 512 }),
        MetadataError::Storage(StorageError::TooDeep { root: 9 }),
        MetadataError::BadMapping { device: device(), block: 3, data_block: 99_999 },
        MetadataError::NotMapped { device: device(), block: 3 },
        MetadataError::NotReserved(DataBlock(5)),
    ];
    metadata.map(Error::Metadata).to_vec()
}

fn of_records() -> Vec<Error> {
    vec![
        Error::DamagedRecords { device: DeviceId::MAX, page: 1, what: "its checksum is wrong" },
        Error::RecordsExist(DeviceId::MAX),
        Error::PageTooLong { len: 70_000, most: 65_472 },
        Error::NoPage(9),
    ]
}

/// In the order of [`OpenError::KINDS`].
pub fn of_opening() -> Vec<OpenError> {
    vec![
        OpenError::Io { disk: PoolDisk::Metadata, sector: 4096, source: FAILED_READ },
        OpenError::Blank,
        OpenError::DataInUse { sector: 2048 },
        OpenError::Swapped,
        OpenError::DataTooSmall { disk_blocks: 100, pool_blocks: 200, block_sectors: 128 },
        OpenError::BadBlockSize { sectors: 100 },
        OpenError::WriteProtected(PoolDisk::Data),
        OpenError::NoBuffers(NO_BUFFERS),
    ]
}

const IDENTITY: &str = "00112233445566778899aabbccddeeff";

/// What the appliance itself refuses.
pub fn of_the_appliance() -> Vec<ServiceError> {
    let name = || "v1".to_string();
    vec![
        ServiceError::NoVolume(name()),
        ServiceError::NameTaken(name()),
        ServiceError::NotAdopted,
        ServiceError::SizeUnset(name()),
        ServiceError::Blocks("the size is not in whole blocks"),
        ServiceError::NoFreeId,
        ServiceError::InUse(name()),
        ServiceError::ReadOnly(name()),
        ServiceError::NotItsSnapshot { volume: name(), snapshot: "s2".into() },
        ServiceError::NoPolicy("p1".into()),
        ServiceError::TooManyPolicies { most: 64 },
        ServiceError::Transfer(TransferError::NotASnapshot(name())),
        ServiceError::Transfer(TransferError::BadToken),
        ServiceError::Transfer(TransferError::OtherToken { target: IDENTITY.into(), base: "nothing".into() }),
        ServiceError::Transfer(TransferError::Stream(StreamError { at: 28, reason: Reason::Truncated })),
        ServiceError::Transfer(TransferError::SizeUnknown(name())),
        ServiceError::Transfer(TransferError::OtherSize { said: 1024, given: 512 }),
        ServiceError::Transfer(TransferError::Origin("golden".into())),
        ServiceError::Transfer(TransferError::WrongBase { volume: name(), base: IDENTITY.into() }),
        ServiceError::Transfer(TransferError::BaseGiven),
        ServiceError::Transfer(TransferError::NotBegun(name())),
        ServiceError::Transfer(TransferError::Receiving(name())),
        ServiceError::Transfer(TransferError::NoTransfer(name())),
        ServiceError::Transfer(TransferError::NoSpace { volume: name(), missing_bytes: 65536 }),
        ServiceError::Catalog(CatalogError::Malformed { page: 1, why: "unexpected end".into() }),
        ServiceError::Catalog(CatalogError::Duplicate { page: 1, what: "volume v1".into() }),
        ServiceError::Catalog(CatalogError::TooLarge { record_bytes: 70_000, capacity_bytes: 65_472 }),
        ServiceError::Catalog(CatalogError::Unencodable("a name is too long".into())),
        ServiceError::Elsewhere { by: IDENTITY.into(), epoch: 7 },
        ServiceError::NothingToRepair(Mode::Write),
        ServiceError::NoDisk("there is no disk with the serial `meta-new`: attach one".into()),
        ServiceError::Repair(RepairError::NothingFound { blocks: 1024 }),
        ServiceError::Repair(RepairError::BlockSizeUnknown),
        ServiceError::Repair(RepairError::NotBlank { sector: 7 }),
        ServiceError::Repair(RepairError::TooSmall { blocks: 64, enough: 1024 }),
        ServiceError::Repair(RepairError::TooManyNodes { nodes: 32768, mebibytes: 8 }),
    ]
}
