//! The 48-byte basic header segments of RFC 7143 section 11, as overlays of their bytes.
//!
//! Any 48 bytes are a valid overlay of each request: reading a field cannot fail, and judging it is left to the
//! reader. Numbering fields of responses (StatSN, ExpCmdSN, MaxCmdSN) are stamped when the PDU is sent.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute, transmute_ref};

/// Bytes of a basic header segment.
pub const BHS_BYTES: usize = 48;

/// "No task": the reserved value of initiator and target task tags.
pub const NO_TAG: u32 = 0xffff_ffff;

/// The final bit of byte 1.
pub const FINAL: u8 = 0x80;

/// The continue bit of byte 1 in login and text PDUs.
pub const CONTINUE: u8 = 0x40;

/// Opcodes (RFC 7143 section 11.2.1.2).
pub mod opcode {
    #![expect(missing_docs, reason = "the names are those of the RFC")]
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT_REQUEST: u8 = 0x02;
    pub const LOGIN_REQUEST: u8 = 0x03;
    pub const TEXT_REQUEST: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT_REQUEST: u8 = 0x06;
    pub const SNACK: u8 = 0x10;
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI_RESPONSE: u8 = 0x21;
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}

/// Reject reasons (RFC 7143 section 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// A data digest was wrong.
    DataDigest = 0x02,
    /// SNACK is not served at error recovery level 0.
    Snack = 0x03,
    /// The PDU breaks the protocol.
    Protocol = 0x04,
    /// The opcode is not supported.
    Unsupported = 0x05,
    /// More immediate commands than are served at a time.
    TooManyImmediate = 0x06,
    /// The task tag is in use.
    TaskInProgress = 0x07,
    /// A field has an invalid value.
    InvalidField = 0x09,
    /// There is no memory for it now.
    OutOfResources = 0x0a,
}

/// Any request: the fields common to all.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Bhs {
    /// Bit 6 immediate delivery, bits 5-0 opcode.
    pub opcode: u8,
    /// Bit 7 final, the rest by opcode.
    pub flags: u8,
    /// By opcode.
    pub specific: [u8; 2],
    /// Length of the additional header segments in 4-byte words.
    pub ahs_words: u8,
    /// Length of the data segment without padding.
    pub data_bytes: [u8; 3],
    /// Logical unit number, or by opcode.
    pub lun: [u8; 8],
    /// Initiator task tag.
    pub task_tag: U32,
    /// By opcode.
    pub specific_20: [u8; 4],
    /// CmdSN of a request, StatSN of a response.
    pub sn: U32,
    /// ExpStatSN of a request, ExpCmdSN of a response.
    pub expected_sn: U32,
    /// MaxCmdSN of a response.
    pub max_cmd_sn: U32,
    /// By opcode.
    pub specific_36: [u8; 12],
}

impl Bhs {
    /// The header in these bytes.
    pub fn from_bytes(bytes: [u8; BHS_BYTES]) -> Bhs {
        transmute!(bytes)
    }

    /// The bytes of this header.
    pub fn to_bytes(self) -> [u8; BHS_BYTES] {
        transmute!(self)
    }

    /// The opcode without the immediate bit.
    pub fn operation(&self) -> u8 {
        self.opcode & 0x3f
    }

    /// To be delivered at once, outside the command numbering.
    pub fn is_immediate(&self) -> bool {
        self.opcode & 0x40 != 0
    }

    /// The final bit.
    pub fn is_final(&self) -> bool {
        self.flags & FINAL != 0
    }

    /// The continue bit of login and text PDUs.
    pub fn continues(&self) -> bool {
        self.flags & CONTINUE != 0
    }

    /// Bytes of the data segment without padding.
    pub fn data_len(&self) -> usize {
        let [a, b, c] = self.data_bytes;
        u32::from_be_bytes([0, a, b, c]) as usize
    }

    /// Sets the length of the data segment, which is below 2^24.
    pub fn set_data_len(&mut self, len_bytes: usize) {
        debug_assert!(len_bytes < 1 << 24, "a data segment is shorter than 16 MiB");
        let [_, a, b, c] = (len_bytes as u32).to_be_bytes();
        self.data_bytes = [a, b, c];
    }
}

macro_rules! overlays {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        #[expect(missing_docs, reason = "the fields are those of the RFC")]
        pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }

        impl $name {
            /// This kind of PDU laid over a header.
            pub fn of(bhs: &Bhs) -> &$name {
                transmute_ref!(bhs)
            }

            /// The header that holds these fields.
            pub fn into_bhs(self) -> Bhs {
                transmute!(self)
            }
        }
    )*};
}

overlays! {
    /// SCSI Command, section 11.3.
    ScsiCommand {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        expected_transfer_bytes: U32, cmd_sn: U32, exp_stat_sn: U32, cdb: [u8; 16],
    }
    /// SCSI Response, section 11.4.
    ScsiResponse {
        opcode: u8, flags: u8, response: u8, status: u8, ahs_words: u8, data_bytes: [u8; 3], reserved: [u8; 8],
        task_tag: U32, snack_tag: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, exp_data_sn: U32,
        bidirectional_residual: U32, residual: U32,
    }
    /// Task Management Function Request, section 11.5.
    TaskManagementRequest {
        opcode: u8, function: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        referenced_task_tag: U32, cmd_sn: U32, exp_stat_sn: U32, ref_cmd_sn: U32, exp_data_sn: U32, reserved_40: [u8; 8],
    }
    /// Task Management Function Response, section 11.6.
    TaskManagementResponse {
        opcode: u8, flags: u8, response: u8, reserved: u8, ahs_words: u8, data_bytes: [u8; 3], reserved_8: [u8; 8],
        task_tag: U32, reserved_20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, reserved_36: [u8; 12],
    }
    /// SCSI Data-Out, section 11.7.
    DataOut {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        transfer_tag: U32, reserved_24: U32, exp_stat_sn: U32, reserved_32: U32, data_sn: U32, offset_bytes: U32,
        reserved_44: U32,
    }
    /// SCSI Data-In, section 11.7.
    DataIn {
        opcode: u8, flags: u8, reserved: u8, status: u8, ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        transfer_tag: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, data_sn: U32, offset_bytes: U32, residual: U32,
    }
    /// Ready To Transfer, section 11.8.
    R2t {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        transfer_tag: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, r2t_sn: U32, offset_bytes: U32,
        desired_bytes: U32,
    }
    /// Asynchronous Message, section 11.9.
    AsyncMessage {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        reserved_20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, event: u8, vendor: u8, parameter_1: U16,
        parameter_2: U16, parameter_3: U16, reserved_44: U32,
    }
    /// Text Request, section 11.10.
    TextRequest {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        transfer_tag: U32, cmd_sn: U32, exp_stat_sn: U32, reserved_32: [u8; 16],
    }
    /// Text Response, section 11.11.
    TextResponse {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        transfer_tag: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, reserved_36: [u8; 12],
    }
    /// Login Request, section 11.12.
    LoginRequest {
        opcode: u8, flags: u8, version_max: u8, version_min: u8, ahs_words: u8, data_bytes: [u8; 3], isid: [u8; 6],
        tsih: U16, task_tag: U32, cid: U16, reserved_22: U16, cmd_sn: U32, exp_stat_sn: U32, reserved_32: [u8; 16],
    }
    /// Login Response, section 11.13.
    LoginResponse {
        opcode: u8, flags: u8, version_max: u8, version_active: u8, ahs_words: u8, data_bytes: [u8; 3], isid: [u8; 6],
        tsih: U16, task_tag: U32, reserved_20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, status_class: u8,
        status_detail: u8, reserved_38: [u8; 10],
    }
    /// Logout Request, section 11.14.
    LogoutRequest {
        opcode: u8, reason: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], reserved_8: [u8; 8], task_tag: U32,
        cid: U16, reserved_22: U16, cmd_sn: U32, exp_stat_sn: U32, reserved_32: [u8; 16],
    }
    /// Logout Response, section 11.15.
    LogoutResponse {
        opcode: u8, flags: u8, response: u8, reserved: u8, ahs_words: u8, data_bytes: [u8; 3], reserved_8: [u8; 8],
        task_tag: U32, reserved_20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, reserved_36: U32,
        time_to_wait_seconds: U16, time_to_retain_seconds: U16, reserved_44: U32,
    }
    /// Reject, section 11.17.
    Reject {
        opcode: u8, flags: u8, reason: u8, reserved: u8, ahs_words: u8, data_bytes: [u8; 3], reserved_8: [u8; 8],
        task_tag: U32, reserved_20: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, data_sn: U32,
        reserved_40: [u8; 8],
    }
    /// NOP-Out, section 11.18.
    NopOut {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        transfer_tag: U32, cmd_sn: U32, exp_stat_sn: U32, reserved_32: [u8; 16],
    }
    /// NOP-In, section 11.19.
    NopIn {
        opcode: u8, flags: u8, reserved: [u8; 2], ahs_words: u8, data_bytes: [u8; 3], lun: [u8; 8], task_tag: U32,
        transfer_tag: U32, stat_sn: U32, exp_cmd_sn: U32, max_cmd_sn: U32, reserved_36: [u8; 12],
    }
}

macro_rules! responses {
    ($($name:ident = $opcode:ident,)*) => {$(
        impl $name {
            /// An empty PDU of this kind with the final bit.
            pub fn new() -> $name {
                let mut bhs = Bhs::from_bytes([0; BHS_BYTES]);
                bhs.opcode = opcode::$opcode;
                bhs.flags = FINAL;
                bhs.task_tag = U32::new(NO_TAG);
                transmute!(bhs)
            }
        }

        impl Default for $name {
            fn default() -> $name {
                $name::new()
            }
        }
    )*};
}

responses! {
    ScsiResponse = SCSI_RESPONSE,
    TaskManagementResponse = TASK_MANAGEMENT_RESPONSE,
    DataIn = DATA_IN,
    R2t = R2T,
    AsyncMessage = ASYNC,
    TextResponse = TEXT_RESPONSE,
    LoginResponse = LOGIN_RESPONSE,
    LogoutResponse = LOGOUT_RESPONSE,
    Reject = REJECT,
    NopIn = NOP_IN,
}

impl ScsiCommand {
    /// Task attribute: 0 untagged, 1 simple, 2 ordered, 3 head of queue, 4 ACA.
    pub fn attribute(&self) -> u8 {
        self.flags & 0x07
    }

    /// The R flag: data to the initiator is expected.
    pub fn reads(&self) -> bool {
        self.flags & 0x40 != 0
    }

    /// The W flag: data from the initiator is expected.
    pub fn writes(&self) -> bool {
        self.flags & 0x20 != 0
    }
}

impl LoginResponse {
    /// Status class and detail.
    pub fn status(&self) -> u16 {
        u16::from_be_bytes([self.status_class, self.status_detail])
    }
}

/// Bytes to add to a segment so that it ends on a word.
pub fn padding(len_bytes: usize) -> usize {
    len_bytes.wrapping_neg() & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_rfc_puts_them() {
        let bytes: [u8; BHS_BYTES] = core::array::from_fn(|i| i as u8);
        let bhs = Bhs::from_bytes(bytes);
        assert_eq!(bhs.to_bytes(), bytes);
        assert_eq!((bhs.ahs_words, bhs.data_len()), (4, 0x050607));
        let command = ScsiCommand::of(&bhs);
        assert_eq!(command.expected_transfer_bytes.get(), 0x14151617);
        assert_eq!(command.cmd_sn.get(), 0x18191a1b);
        assert_eq!(command.cdb, *bytes.last_chunk::<16>().unwrap());
        let data = DataOut::of(&bhs);
        assert_eq!((data.data_sn.get(), data.offset_bytes.get()), (0x24252627, 0x28292a2b));
        let login = LoginRequest::of(&bhs);
        assert_eq!((login.isid, login.tsih.get(), login.cid.get()), ([8, 9, 10, 11, 12, 13], 0x0e0f, 0x1415));
        assert_eq!(TaskManagementRequest::of(&bhs).ref_cmd_sn.get(), 0x20212223);
        assert_eq!(LogoutResponse::of(&bhs).time_to_wait_seconds.get(), 0x2829);
        assert_eq!(AsyncMessage::of(&bhs).parameter_3.get(), 0x2a2b);
        assert_eq!(LoginResponse::of(&bhs).status_class, 36);
    }

    #[test]
    fn lengths_and_padding() {
        let mut bhs = NopIn::new().into_bhs();
        bhs.set_data_len(0x123456);
        assert_eq!(bhs.data_len(), 0x123456);
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
    }
}
