//! All sense data that is ever sent (SPC-4 section 4.5), and how unit errors become it.

use crate::unit::UnitError;
use alloc::vec::Vec;

/// Sense key, additional sense code and qualifier, and what else is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    key: u8,
    asc: u8,
    ascq: u8,
    information: Option<u64>,
    field: Option<Field>,
    cause: Option<Cause>,
}

/// What a unit answered that a copy failed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// It was written, not read.
    pub is_target: bool,
    /// Its status.
    pub status: u8,
    /// Sense key, additional sense code and qualifier.
    sense: [u8; 3],
}

/// What the sense-key-specific bytes tell: the byte of a CDB or of a parameter list that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Cdb(u16),
    Parameter(u16),
    /// No field but how much is done, in 65536ths.
    Progress(u16),
}

macro_rules! senses {
    ($($(#[$doc:meta])* $name:ident = $key:literal / $asc:literal / $ascq:literal;)*) => {
        impl Sense {
            $($(#[$doc])* pub const $name: Sense = Sense::new($key, $asc, $ascq);)*
        }
    };
}

senses! {
    /// Nothing to report.
    NO_SENSE = 0x00 / 0x00 / 0x00;
    /// Logical unit not ready, sanitize in progress.
    SANITIZE_IN_PROGRESS = 0x02 / 0x04 / 0x1b;
    /// Write error.
    WRITE_ERROR = 0x03 / 0x0c / 0x00;
    /// Unrecovered read error.
    READ_ERROR = 0x03 / 0x11 / 0x00;
    /// Sanitize command failed.
    SANITIZE_FAILED = 0x03 / 0x31 / 0x03;
    /// Internal target failure.
    INTERNAL_FAILURE = 0x04 / 0x44 / 0x00;
    /// Operation in progress.
    OPERATION_IN_PROGRESS = 0x05 / 0x00 / 0x16;
    /// Parameter list length error.
    PARAMETER_LIST_LENGTH = 0x05 / 0x1a / 0x00;
    /// Invalid command operation code.
    INVALID_OPCODE = 0x05 / 0x20 / 0x00;
    /// Logical block address out of range.
    LBA_OUT_OF_RANGE = 0x05 / 0x21 / 0x00;
    /// Invalid field in CDB.
    INVALID_FIELD_IN_CDB = 0x05 / 0x24 / 0x00;
    /// Logical unit not supported.
    LUN_NOT_SUPPORTED = 0x05 / 0x25 / 0x00;
    /// Invalid field in parameter list.
    INVALID_FIELD_IN_PARAMETERS = 0x05 / 0x26 / 0x00;
    /// Invalid release of persistent reservation.
    INVALID_RELEASE = 0x05 / 0x26 / 0x04;
    /// Too many target descriptors.
    TOO_MANY_TARGET_DESCRIPTORS = 0x05 / 0x26 / 0x06;
    /// Unsupported target descriptor type code.
    UNSUPPORTED_TARGET_DESCRIPTOR = 0x05 / 0x26 / 0x07;
    /// Too many segment descriptors.
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x05 / 0x26 / 0x08;
    /// Unsupported segment descriptor type code.
    UNSUPPORTED_SEGMENT_DESCRIPTOR = 0x05 / 0x26 / 0x09;
    /// Inline data length exceeded.
    INLINE_DATA_LENGTH_EXCEEDED = 0x05 / 0x26 / 0x0b;
    /// Command sequence error.
    COMMAND_SEQUENCE_ERROR = 0x05 / 0x2c / 0x00;
    /// Saving parameters not supported.
    SAVING_NOT_SUPPORTED = 0x05 / 0x39 / 0x00;
    /// Insufficient registration resources.
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x05 / 0x55 / 0x04;
    /// Power on, reset or bus device reset occurred.
    POWER_ON = 0x06 / 0x29 / 0x00;
    /// Bus device reset function occurred.
    DEVICE_RESET = 0x06 / 0x29 / 0x03;
    /// I_T nexus loss occurred.
    NEXUS_LOSS = 0x06 / 0x29 / 0x07;
    /// Mode parameters changed.
    MODE_PARAMETERS_CHANGED = 0x06 / 0x2a / 0x01;
    /// Reservations preempted.
    RESERVATIONS_PREEMPTED = 0x06 / 0x2a / 0x03;
    /// Reservations released.
    RESERVATIONS_RELEASED = 0x06 / 0x2a / 0x04;
    /// Registrations preempted.
    REGISTRATIONS_PREEMPTED = 0x06 / 0x2a / 0x05;
    /// Not ready to ready change, medium may have changed.
    MEDIUM_CHANGED = 0x06 / 0x28 / 0x00;
    /// Capacity data has changed.
    CAPACITY_CHANGED = 0x06 / 0x2a / 0x09;
    /// Commands cleared by another initiator.
    COMMANDS_CLEARED = 0x06 / 0x2f / 0x00;
    /// Thin provisioning soft threshold reached.
    SOFT_THRESHOLD_REACHED = 0x06 / 0x38 / 0x07;
    /// Write protected.
    WRITE_PROTECTED = 0x07 / 0x27 / 0x00;
    /// Logical unit software write protected.
    SOFTWARE_WRITE_PROTECTED = 0x07 / 0x27 / 0x02;
    /// Space allocation failed write protect.
    SPACE_ALLOCATION_FAILED = 0x07 / 0x27 / 0x07;
    /// Copy aborted.
    COPY_ABORTED = 0x0a / 0x00 / 0x00;
    /// Copy aborted: third party device failure.
    COPY_DEVICE_FAILURE = 0x0a / 0x0d / 0x01;
    /// Copy aborted: copy target device not reachable.
    COPY_TARGET_NOT_REACHABLE = 0x0a / 0x0d / 0x02;
    /// Copy aborted: incorrect copy target device type.
    COPY_TARGET_TYPE = 0x0a / 0x0d / 0x03;
    /// Copy aborted: unexpected inexact segment.
    INEXACT_SEGMENT = 0x0a / 0x26 / 0x0a;
    /// Unexpected unsolicited data.
    UNEXPECTED_UNSOLICITED_DATA = 0x0b / 0x0c / 0x0c;
    /// Not enough unsolicited data.
    NOT_ENOUGH_UNSOLICITED_DATA = 0x0b / 0x0c / 0x0d;
    /// Protocol service CRC error.
    CRC_ERROR = 0x0b / 0x47 / 0x05;
    /// Data phase error.
    DATA_PHASE_ERROR = 0x0b / 0x4b / 0x00;
    /// Miscompare during verify operation.
    MISCOMPARE = 0x0e / 0x1d / 0x00;
}

/// Bytes of sense data in fixed format.
const FIXED_LEN: u8 = 18;

impl Cause {
    /// The status, and sense data in fixed format.
    fn fixed_format(&self) -> Vec<u8> {
        let [key, asc, ascq] = self.sense;
        alloc::vec![self.status, 0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0]
    }
}

impl Sense {
    const fn new(key: u8, asc: u8, ascq: u8) -> Sense {
        Sense { key, asc, ascq, information: None, field: None, cause: None }
    }

    /// Invalid field in CDB, at this byte.
    pub const fn cdb_field(byte: u16) -> Sense {
        Sense { field: Some(Field::Cdb(byte)), ..Sense::INVALID_FIELD_IN_CDB }
    }

    /// Invalid field in parameter list, at this byte.
    pub const fn parameter_field(byte: u16) -> Sense {
        Sense { field: Some(Field::Parameter(byte)), ..Sense::INVALID_FIELD_IN_PARAMETERS }
    }

    /// Sanitize in progress, of which so much is done, in 65536ths.
    pub const fn sanitize_in_progress(progress: u16) -> Sense {
        Sense { field: Some(Field::Progress(progress)), ..Sense::SANITIZE_IN_PROGRESS }
    }

    /// The same with the INFORMATION field, whose meaning depends on the code: an LBA, or the offset of a byte.
    pub const fn with_information(self, information: u64) -> Sense {
        Sense { information: Some(information), ..self }
    }

    /// The same with what a unit answered: a status, and sense data if that is CHECK CONDITION.
    pub fn with_cause(self, is_target: bool, status: u8, sense: Option<Sense>) -> Sense {
        let sense = sense.map_or([0; 3], |sense| [sense.key, sense.asc, sense.ascq]);
        Sense { cause: Some(Cause { is_target, status, sense }), ..self }
    }

    /// What a read or write that failed with `error` reports. `block_bytes` turns its place into an LBA.
    pub fn of_unit(error: UnitError, writing: bool, block_bytes: u32) -> Sense {
        match error {
            UnitError::OutOfRange => Sense::LBA_OUT_OF_RANGE,
            UnitError::RecordsFull => Sense::INSUFFICIENT_REGISTRATION_RESOURCES,
            UnitError::NoSpace => Sense::SPACE_ALLOCATION_FAILED,
            UnitError::ReadOnly => Sense::WRITE_PROTECTED,
            UnitError::Medium { offset_bytes } => {
                let sense = if writing { Sense::WRITE_ERROR } else { Sense::READ_ERROR };
                sense.with_information(offset_bytes / u64::from(block_bytes.max(1)))
            }
            UnitError::Sanitizing => Sense::SANITIZE_IN_PROGRESS,
            UnitError::NotNow => Sense::COMMAND_SEQUENCE_ERROR,
            UnitError::Busy | UnitError::Failed => Sense::INTERNAL_FAILURE,
        }
    }

    /// The sense data of a current error, in descriptor or in fixed format.
    pub fn encode(&self, descriptor: bool) -> Vec<u8> {
        if descriptor { self.descriptor_format() } else { self.fixed_format() }
    }

    fn fixed_format(&self) -> Vec<u8> {
        let information = self.information.and_then(|i| u32::try_from(i).ok());
        let mut sense = Vec::with_capacity(18);
        sense.extend([if information.is_some() { 0xf0 } else { 0x70 }, 0, self.key]);
        sense.extend(information.unwrap_or(0).to_be_bytes());
        // Where the status and sense data of the copy source and of the copy destination begin (SPC-4 section 6.4.3).
        let [source, target] = match self.cause {
            Some(cause) => [u8::from(!cause.is_target) * FIXED_LEN, u8::from(cause.is_target) * FIXED_LEN],
            None => [0; 2],
        };
        let nested = self.cause.map(|cause| cause.fixed_format()).unwrap_or_default();
        sense.extend([FIXED_LEN - 8 + nested.len() as u8, source, target, 0, 0, self.asc, self.ascq, 0]);
        sense.extend(self.sense_key_specific());
        sense.extend(nested);
        sense
    }

    fn descriptor_format(&self) -> Vec<u8> {
        let mut descriptors = Vec::new();
        if let Some(information) = self.information {
            descriptors.extend([0x00, 0x0a, 0x80, 0x00]);
            descriptors.extend(information.to_be_bytes());
        }
        if self.field.is_some() {
            descriptors.extend([0x02, 0x06, 0, 0]);
            descriptors.extend(self.sense_key_specific());
            descriptors.push(0);
        }
        if let Some(cause) = self.cause {
            let [key, asc, ascq] = cause.sense;
            // Forwarded sense data, of the copy source or the copy destination.
            descriptors.extend([0x0c, 10, 1 + u8::from(cause.is_target), cause.status]);
            descriptors.extend([0x72, key, asc, ascq, 0, 0, 0, 0]);
        }
        let mut sense = Vec::with_capacity(8 + descriptors.len());
        sense.extend([0x72, self.key, self.asc, self.ascq, 0, 0, 0, descriptors.len() as u8]);
        sense.extend(descriptors);
        sense
    }

    fn sense_key_specific(&self) -> [u8; 3] {
        let (flags, value) = match self.field {
            None => return [0; 3],
            Some(Field::Cdb(byte)) => (0xc0, byte),
            Some(Field::Parameter(byte)) => (0x80, byte),
            Some(Field::Progress(progress)) => (0x80, progress),
        };
        let [high, low] = value.to_be_bytes();
        [flags, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format() {
        let sense = Sense::cdb_field(2).encode(false);
        assert_eq!(sense, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xc0, 0, 2]);
        let sense = Sense::MISCOMPARE.with_information(0x0102_0304).encode(false);
        assert_eq!(sense[..14], [0xf0, 0, 0x0e, 1, 2, 3, 4, 10, 0, 0, 0, 0, 0x1d, 0]);
        let beyond = Sense::READ_ERROR.with_information(1 << 32).encode(false);
        assert_eq!(beyond[..7], [0x70, 0, 3, 0, 0, 0, 0], "an LBA that does not fit is not valid");
    }

    #[test]
    fn progress() {
        let sense = Sense::sanitize_in_progress(0x1234);
        assert_eq!(sense.encode(false), [0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 4, 0x1b, 0, 0x80, 0x12, 0x34]);
        assert_eq!(sense.encode(true), [0x72, 2, 4, 0x1b, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0x12, 0x34, 0]);
    }

    #[test]
    fn what_a_unit_answered_to_a_copy() {
        let sense = Sense::COPY_DEVICE_FAILURE.with_information(3).with_cause(true, 2, Some(Sense::WRITE_PROTECTED));
        let fixed = sense.encode(false);
        assert_eq!(fixed[..14], [0xf0, 0, 0x0a, 0, 0, 0, 3, 29, 0, 18, 0, 0, 0x0d, 1]);
        assert_eq!(fixed[18..22], [2, 0x70, 0, 7]);
        assert_eq!((fixed[31], fixed[32], fixed.len()), (0x27, 0, 37));
        let descriptors = sense.encode(true);
        assert_eq!(descriptors[..8], [0x72, 0x0a, 0x0d, 1, 0, 0, 0, 24]);
        assert_eq!(descriptors[20..], [0x0c, 10, 2, 2, 0x72, 7, 0x27, 0, 0, 0, 0, 0]);
        let of_source = Sense::COPY_DEVICE_FAILURE.with_cause(false, 0x18, None).encode(false);
        assert_eq!((of_source[8], of_source[9], of_source[18]), (18, 0, 0x18));
    }

    #[test]
    fn descriptor_format() {
        let sense = Sense::READ_ERROR.with_information(1 << 32).encode(true);
        assert_eq!(sense, [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        let sense = Sense::parameter_field(9).encode(true);
        assert_eq!(sense, [0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0, 9, 0]);
    }
}
