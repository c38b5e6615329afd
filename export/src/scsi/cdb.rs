//! Command descriptor blocks (SPC-4, SBC-3): 16 bytes in, a typed [`Command`] out.

use super::copy::limits::LIST_BYTES_MAX as COPY_LIST_BYTES_MAX;
use super::sense::Sense;

/// Logical blocks that a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub blocks: u64,
}

/// What a VERIFY compares the medium with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Nothing: it must be readable.
    Nothing,
    /// As many blocks of data.
    Blocks,
    /// One block of data, again and again.
    OneBlock,
}

/// Which page of a mode parameter list is asked for, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeSense {
    /// The 10-byte form.
    pub long: bool,
    /// No block descriptors wanted.
    pub no_descriptors: bool,
    /// Long block descriptors are accepted.
    pub long_lba: bool,
    /// 0 current, 1 changeable, 2 default, 3 saved values.
    pub control: u8,
    /// Page code; 3Fh for all.
    pub page: u8,
    /// Subpage code; FFh for all.
    pub subpage: u8,
    /// Allocation length.
    pub allocation: u32,
}

/// LOG SENSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSense {
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// Parameters from this code on.
    pub pointer: u16,
    /// Allocation length.
    pub allocation: u32,
}

/// REPORT SUPPORTED OPERATION CODES.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportOpcodes {
    /// With timeout descriptors.
    pub timeouts: bool,
    /// 0 all, 1 by opcode, 2 by opcode and service action, 3 either.
    pub option: u8,
    /// Opcode asked for.
    pub opcode: u8,
    /// Service action asked for.
    pub action: u16,
    /// Allocation length.
    pub allocation: u32,
}

/// A decoded command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of SPC and SBC")]
pub enum Command {
    TestUnitReady,
    RequestSense { descriptor: bool, allocation: u32 },
    Inquiry { page: Option<u8>, allocation: u32 },
    ModeSelect { long: bool, save: bool, list_bytes: u32 },
    ModeSense(ModeSense),
    LogSense(LogSense),
    StartStopUnit { start: bool, flush: bool },
    SendDiagnostic,
    ReceiveDiagnosticResults { allocation: u32 },
    ReadCapacity10,
    ReadCapacity16 { allocation: u32 },
    Read { extent: Extent, fua: bool },
    Write { extent: Extent, fua: bool },
    WriteAndVerify { extent: Extent, compare: Compare },
    Verify { extent: Extent, compare: Compare },
    WriteSame { extent: Extent, unmap: bool, no_data: bool },
    CompareAndWrite { extent: Extent, fua: bool },
    OrWrite { extent: Extent, fua: bool },
    SynchronizeCache { extent: Extent },
    PreFetch { extent: Extent },
    Unmap { list_bytes: u32 },
    GetLbaStatus { lba: u64, allocation: u32 },
    ReadDefectData10 { request: u8, allocation: u32 },
    ReadDefectData12 { request: u8, allocation: u32 },
    ReportLuns { select: u8, allocation: u32 },
    ReportOpcodes(ReportOpcodes),
    ReportTaskManagement { extended: bool, allocation: u32 },
    ReportTargetPortGroups { extended: bool, allocation: u32 },
    PersistentReserveIn { action: u8, allocation: u32 },
    PersistentReserveOut { action: u8, scope_and_type: u8, list_bytes: u32 },
    Reserve,
    Release,
    Sanitize { immediate: bool, unrestricted: bool },
    ExitSanitizeFailure,
    ExtendedCopy { list_bytes: u32 },
    CopyStatus { list_id: u8, allocation: u32 },
    CopyOperatingParameters { allocation: u32 },
    CopyFailure { list_id: u8, allocation: u32 },
}

/// What a command does as reservations see it (SPC-4 table 67, SBC-3 table 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Allowed to everybody.
    None,
    /// Looks at the medium.
    Read,
    /// Changes the medium or the unit.
    Write,
}

/// The data that the initiator has to send with a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataOut {
    /// None.
    None,
    /// This many bytes, used as they come.
    Stream(u64),
    /// This many bytes, used when all are there.
    Whole(u32),
}

impl DataOut {
    /// Bytes of the data.
    pub fn bytes(&self) -> u64 {
        match *self {
            DataOut::None => 0,
            DataOut::Stream(bytes) => bytes,
            DataOut::Whole(bytes) => u64::from(bytes),
        }
    }
}

/// Most bytes of data that a command needs all at once.
pub const WHOLE_BYTES_MAX: u32 = 256 << 10;

/// Most bytes of the parameter list of a PERSISTENT RESERVE OUT: more than its TransportIDs take.
const RESERVE_LIST_BYTES_MAX: u32 = 64 << 10;

/// Most blocks of a COMPARE AND WRITE: both halves must be there at once.
pub fn compare_and_write_blocks_max(block_bytes: u32) -> u8 {
    u8::try_from(WHOLE_BYTES_MAX / block_bytes.max(1) / 2).unwrap_or(u8::MAX)
}

/// The bytes of a CDB. Fields at fixed places of a fixed array cannot be missing.
struct Cdb([u8; 16]);

impl Cdb {
    fn be16(&self, at: usize) -> u16 {
        let byte = |i: usize| self.0.get(at + i).copied().unwrap_or(0);
        u16::from_be_bytes([byte(0), byte(1)])
    }

    fn be32(&self, at: usize) -> u32 {
        u32::from(self.be16(at)) << 16 | u32::from(self.be16(at + 2))
    }

    fn be64(&self, at: usize) -> u64 {
        u64::from(self.be32(at)) << 32 | u64::from(self.be32(at + 4))
    }

    /// The flags of byte 1.
    fn flag(&self, mask: u8) -> bool {
        self.0[1] & mask != 0
    }

    fn fua(&self) -> bool {
        self.flag(0x08)
    }

    fn extent6(&self) -> Extent {
        let lba = self.be32(0) & 0x1f_ffff;
        let blocks = if self.0[4] == 0 { 256 } else { u64::from(self.0[4]) };
        Extent { lba: u64::from(lba), blocks }
    }

    fn extent10(&self) -> Extent {
        Extent { lba: u64::from(self.be32(2)), blocks: u64::from(self.be16(7)) }
    }

    fn extent12(&self) -> Extent {
        Extent { lba: u64::from(self.be32(2)), blocks: u64::from(self.be32(6)) }
    }

    fn extent16(&self) -> Extent {
        Extent { lba: self.be64(2), blocks: u64::from(self.be32(10)) }
    }

    /// RDPROTECT, WRPROTECT, VRPROTECT and ORPROTECT must be 0: there is no protection information.
    fn unprotected(&self) -> Result<(), Sense> {
        if self.flag(0xe0) { Err(Sense::cdb_field(1)) } else { Ok(()) }
    }

    fn compare(&self) -> Result<Compare, Sense> {
        match self.0[1] >> 1 & 3 {
            0 => Ok(Compare::Nothing),
            1 => Ok(Compare::Blocks),
            3 => Ok(Compare::OneBlock),
            _ => Err(Sense::cdb_field(1)),
        }
    }
}

impl Command {
    /// Decodes a CDB. The error is the sense data to answer with.
    pub fn decode(bytes: &[u8; 16]) -> Result<Command, Sense> {
        let cdb = Cdb(*bytes);
        match cdb.0[0] {
            0x00 => Ok(Command::TestUnitReady),
            0x03 => Ok(Command::RequestSense { descriptor: cdb.flag(1), allocation: u32::from(cdb.0[4]) }),
            0x12 => inquiry(&cdb),
            0x15 => mode_select(&cdb, false, u32::from(cdb.0[4])),
            0x55 => mode_select(&cdb, true, u32::from(cdb.be16(7))),
            0x1a => Ok(mode_sense(&cdb, false, u32::from(cdb.0[4]))),
            0x5a => Ok(mode_sense(&cdb, true, u32::from(cdb.be16(7)))),
            0x1b => start_stop_unit(&cdb),
            0x1c => receive_diagnostic_results(&cdb),
            0x1d => send_diagnostic(&cdb),
            0x4d => log_sense(&cdb),
            0x25 => read_capacity_10(&cdb),
            0x9e => service_action_in(&cdb),
            0xa3 => maintenance_in(&cdb),
            0x5e if cdb.0[1] & 0x1f > 3 => Err(Sense::cdb_field(1)),
            0x5e => Ok(Command::PersistentReserveIn { action: cdb.0[1] & 0x1f, allocation: u32::from(cdb.be16(7)) }),
            0x5f => Ok(Command::PersistentReserveOut {
                action: cdb.0[1] & 0x1f,
                scope_and_type: cdb.0[2],
                list_bytes: cdb.be32(5),
            }),
            0x16 | 0x56 if cdb.flag(0x11) => Err(Sense::cdb_field(1)),
            0x16 | 0x56 => Ok(Command::Reserve),
            0x17 | 0x57 => Ok(Command::Release),
            0x83 if cdb.0[1] & 0x1f != 0 => Err(Sense::cdb_field(1)),
            0x83 => Ok(Command::ExtendedCopy { list_bytes: cdb.be32(10) }),
            0x84 => receive_copy_results(&cdb),
            0xa0 => Ok(Command::ReportLuns { select: cdb.0[2], allocation: cdb.be32(6) }),
            0x37 => Ok(Command::ReadDefectData10 { request: cdb.0[2], allocation: u32::from(cdb.be16(7)) }),
            0xb7 => Ok(Command::ReadDefectData12 { request: cdb.0[1], allocation: cdb.be32(6) }),
            _ => Command::decode_block(&cdb),
        }
    }

    /// The commands about blocks.
    fn decode_block(cdb: &Cdb) -> Result<Command, Sense> {
        let fua = cdb.fua();
        match cdb.0[0] {
            0x08 => Ok(Command::Read { extent: cdb.extent6(), fua: false }),
            0x0a => Ok(Command::Write { extent: cdb.extent6(), fua: false }),
            0x28 => cdb.unprotected().map(|()| Command::Read { extent: cdb.extent10(), fua }),
            0xa8 => cdb.unprotected().map(|()| Command::Read { extent: cdb.extent12(), fua }),
            0x88 => cdb.unprotected().map(|()| Command::Read { extent: cdb.extent16(), fua }),
            0x2a => cdb.unprotected().map(|()| Command::Write { extent: cdb.extent10(), fua }),
            0xaa => cdb.unprotected().map(|()| Command::Write { extent: cdb.extent12(), fua }),
            0x8a => cdb.unprotected().map(|()| Command::Write { extent: cdb.extent16(), fua }),
            0x2e => write_and_verify(cdb, cdb.extent10()),
            0xae => write_and_verify(cdb, cdb.extent12()),
            0x8e => write_and_verify(cdb, cdb.extent16()),
            0x2f => verify(cdb, cdb.extent10()),
            0xaf => verify(cdb, cdb.extent12()),
            0x8f => verify(cdb, cdb.extent16()),
            0x34 => Ok(Command::PreFetch { extent: cdb.extent10() }),
            0x90 => Ok(Command::PreFetch { extent: cdb.extent16() }),
            0x35 => Ok(Command::SynchronizeCache { extent: cdb.extent10() }),
            0x91 => Ok(Command::SynchronizeCache { extent: cdb.extent16() }),
            0x41 => write_same(cdb, cdb.extent10(), false),
            0x93 => write_same(cdb, cdb.extent16(), cdb.flag(0x01)),
            0x42 if cdb.flag(0x01) => Err(Sense::cdb_field(1)),
            0x42 => Ok(Command::Unmap { list_bytes: u32::from(cdb.be16(7)) }),
            0x48 => sanitize(cdb),
            0x89 => {
                let extent = Extent { lba: cdb.be64(2), blocks: u64::from(cdb.0[13]) };
                cdb.unprotected().map(|()| Command::CompareAndWrite { extent, fua })
            }
            0x8b => cdb.unprotected().map(|()| Command::OrWrite { extent: cdb.extent16(), fua }),
            _ => Err(Sense::INVALID_OPCODE),
        }
    }

    /// The data to come with the command.
    pub fn data_out(&self, block_bytes: u32) -> DataOut {
        let bytes = |extent: &Extent| extent.blocks.saturating_mul(u64::from(block_bytes));
        match self {
            Command::Write { extent, .. }
            | Command::WriteAndVerify { extent, .. }
            | Command::OrWrite { extent, .. }
            | Command::Verify { extent, compare: Compare::Blocks } => DataOut::Stream(bytes(extent)),
            Command::Verify { compare: Compare::OneBlock, .. } | Command::WriteSame { no_data: false, .. } => {
                DataOut::Whole(block_bytes)
            }
            // What is too long is refused without its data.
            Command::CompareAndWrite { extent, .. } => match u32::try_from(bytes(extent).saturating_mul(2)) {
                Ok(bytes) if bytes <= WHOLE_BYTES_MAX => DataOut::Whole(bytes),
                _ => DataOut::None,
            },
            Command::PersistentReserveOut { list_bytes, .. } if *list_bytes > RESERVE_LIST_BYTES_MAX => DataOut::None,
            Command::ExtendedCopy { list_bytes } if *list_bytes > COPY_LIST_BYTES_MAX => DataOut::None,
            Command::Unmap { list_bytes }
            | Command::ModeSelect { list_bytes, .. }
            | Command::ExtendedCopy { list_bytes }
            | Command::PersistentReserveOut { list_bytes, .. } => DataOut::Whole(*list_bytes),
            _ => DataOut::None,
        }
    }

    /// What it does as reservations see it.
    pub fn access(&self) -> Access {
        match self {
            Command::Read { .. }
            | Command::Verify { .. }
            | Command::PreFetch { .. }
            | Command::GetLbaStatus { .. }
            | Command::ReadDefectData10 { .. }
            | Command::ReadDefectData12 { .. } => Access::Read,
            Command::ModeSelect { .. }
            | Command::ModeSense(_)
            | Command::StartStopUnit { start: false, .. }
            | Command::SendDiagnostic
            | Command::ReceiveDiagnosticResults { .. }
            | Command::ExitSanitizeFailure
            | Command::ExtendedCopy { .. }
            | Command::CopyStatus { .. }
            | Command::CopyOperatingParameters { .. }
            | Command::CopyFailure { .. }
            | Command::SynchronizeCache { .. } => Access::Write,
            command if command.writes() => Access::Write,
            _ => Access::None,
        }
    }

    /// May change the medium.
    pub fn writes(&self) -> bool {
        matches!(
            self,
            Command::Write { .. }
                | Command::WriteAndVerify { .. }
                | Command::WriteSame { .. }
                | Command::CompareAndWrite { .. }
                | Command::OrWrite { .. }
                | Command::Unmap { .. }
                | Command::Sanitize { .. }
        )
    }
}

fn inquiry(cdb: &Cdb) -> Result<Command, Sense> {
    let page = cdb.flag(0x01).then_some(cdb.0[2]);
    if page.is_none() && cdb.0[2] != 0 {
        return Err(Sense::cdb_field(2));
    }
    Ok(Command::Inquiry { page, allocation: u32::from(cdb.be16(3)) })
}

fn mode_select(cdb: &Cdb, long: bool, list_bytes: u32) -> Result<Command, Sense> {
    if !cdb.flag(0x10) {
        return Err(Sense::cdb_field(1));
    }
    Ok(Command::ModeSelect { long, save: cdb.flag(0x01), list_bytes })
}

fn mode_sense(cdb: &Cdb, long: bool, allocation: u32) -> Command {
    Command::ModeSense(ModeSense {
        long,
        no_descriptors: cdb.flag(0x08),
        long_lba: long && cdb.flag(0x10),
        control: cdb.0[2] >> 6,
        page: cdb.0[2] & 0x3f,
        subpage: cdb.0[3],
        allocation,
    })
}

/// Nothing can be ejected, and there are no power conditions.
fn start_stop_unit(cdb: &Cdb) -> Result<Command, Sense> {
    if cdb.0[4] & 0xf2 != 0 {
        Err(Sense::cdb_field(4))
    } else {
        // NO_FLUSH is bit 2.
        Ok(Command::StartStopUnit { start: cdb.0[4] & 1 != 0, flush: cdb.0[4] & 5 == 0 })
    }
}

/// Only the list of pages, which has itself.
fn receive_diagnostic_results(cdb: &Cdb) -> Result<Command, Sense> {
    match (cdb.flag(0x01), cdb.0[2]) {
        (true, 0) => Ok(Command::ReceiveDiagnosticResults { allocation: u32::from(cdb.be16(3)) }),
        (true, _) => Err(Sense::cdb_field(2)),
        (false, _) => Err(Sense::cdb_field(1)),
    }
}

/// Nothing can be saved. Of which values of a parameter are asked for means nothing to those that are lists.
fn log_sense(cdb: &Cdb) -> Result<Command, Sense> {
    if cdb.flag(0x01) {
        return Err(Sense::cdb_field(1));
    }
    let (page, subpage, pointer) = (cdb.0[2] & 0x3f, cdb.0[3], cdb.be16(5));
    Ok(Command::LogSense(LogSense { page, subpage, pointer, allocation: u32::from(cdb.be16(7)) }))
}

/// Only the default self-test, which always succeeds.
fn send_diagnostic(cdb: &Cdb) -> Result<Command, Sense> {
    if cdb.0[1] & 0xf4 != 0x04 || cdb.be16(3) != 0 { Err(Sense::cdb_field(1)) } else { Ok(Command::SendDiagnostic) }
}

fn read_capacity_10(cdb: &Cdb) -> Result<Command, Sense> {
    let partial = cdb.0[8] & 1 != 0;
    if !partial && cdb.be32(2) != 0 { Err(Sense::cdb_field(2)) } else { Ok(Command::ReadCapacity10) }
}

fn service_action_in(cdb: &Cdb) -> Result<Command, Sense> {
    match cdb.0[1] & 0x1f {
        0x10 => Ok(Command::ReadCapacity16 { allocation: cdb.be32(10) }),
        0x12 => Ok(Command::GetLbaStatus { lba: cdb.be64(2), allocation: cdb.be32(10) }),
        _ => Err(Sense::cdb_field(1)),
    }
}

fn maintenance_in(cdb: &Cdb) -> Result<Command, Sense> {
    let allocation = cdb.be32(6);
    match cdb.0[1] & 0x1f {
        0x0a => match cdb.0[1] >> 5 {
            format @ 0..=1 => Ok(Command::ReportTargetPortGroups { extended: format == 1, allocation }),
            _ => Err(Sense::cdb_field(1)),
        },
        0x0c => Ok(Command::ReportOpcodes(ReportOpcodes {
            timeouts: cdb.0[2] & 0x80 != 0,
            option: cdb.0[2] & 0x07,
            opcode: cdb.0[3],
            action: cdb.be16(4),
            allocation,
        })),
        0x0d => Ok(Command::ReportTaskManagement { extended: cdb.0[2] & 0x80 != 0, allocation }),
        _ => Err(Sense::cdb_field(1)),
    }
}

fn receive_copy_results(cdb: &Cdb) -> Result<Command, Sense> {
    let (list_id, allocation) = (cdb.0[2], cdb.be32(10));
    match cdb.0[1] & 0x1f {
        0x00 => Ok(Command::CopyStatus { list_id, allocation }),
        0x03 => Ok(Command::CopyOperatingParameters { allocation }),
        0x04 => Ok(Command::CopyFailure { list_id, allocation }),
        _ => Err(Sense::cdb_field(1)),
    }
}

fn write_and_verify(cdb: &Cdb, extent: Extent) -> Result<Command, Sense> {
    cdb.unprotected()?;
    match cdb.compare()? {
        Compare::OneBlock => Err(Sense::cdb_field(1)),
        compare => Ok(Command::WriteAndVerify { extent, compare }),
    }
}

fn verify(cdb: &Cdb, extent: Extent) -> Result<Command, Sense> {
    cdb.unprotected()?;
    Ok(Command::Verify { extent, compare: cdb.compare()? })
}

fn write_same(cdb: &Cdb, extent: Extent, no_data: bool) -> Result<Command, Sense> {
    cdb.unprotected()?;
    // No anchored blocks (ANC_SUP is 0); LBDATA and PBDATA are obsolete.
    if cdb.flag(0x10) || cdb.flag(0x06) {
        return Err(Sense::cdb_field(1));
    }
    Ok(Command::WriteSame { extent, unmap: cdb.flag(0x08), no_data })
}

/// By block erase only. ZNR is for devices with zones; there are no parameters.
fn sanitize(cdb: &Cdb) -> Result<Command, Sense> {
    let command = match cdb.0[1] & 0x5f {
        0x02 => Command::Sanitize { immediate: cdb.flag(0x80), unrestricted: cdb.flag(0x20) },
        0x1f => Command::ExitSanitizeFailure,
        _ => return Err(Sense::cdb_field(1)),
    };
    if cdb.be32(2) != 0 || cdb.0[6] != 0 {
        return Err(Sense::cdb_field(2));
    }
    if cdb.be16(7) != 0 { Err(Sense::cdb_field(7)) } else { Ok(command) }
}

#[cfg(test)]
mod tests;
