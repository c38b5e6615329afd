//! The keys of RFC 7143 section 13: what the initiator offers, what comes of it.

use super::text::{TextWriter, boolean, number, yes_no};

/// The two kinds of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionType {
    /// Only SendTargets.
    Discovery,
    /// To one target.
    Normal,
}

/// The parameters of a session and its connection, all negotiated or at their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// PDU headers carry a CRC32C.
    pub header_digest: bool,
    /// Data segments carry a CRC32C.
    pub data_digest: bool,
    /// The initiator sends no Data-Out before an R2T.
    pub initial_r2t: bool,
    /// Commands may carry data.
    pub immediate_data: bool,
    /// Most bytes of a data sequence.
    pub max_burst_bytes: u32,
    /// Most unsolicited bytes of a command.
    pub first_burst_bytes: u32,
    /// Most R2Ts of a task at a time.
    pub max_outstanding_r2t: u32,
    /// Longest data segment that the initiator takes.
    pub initiator_segment_bytes: u32,
    /// Longest data segment that we take, as told to the initiator.
    pub target_segment_bytes: u32,
    /// iSCSIProtocolLevel: 2 adds the task management functions of RFC 7144.
    pub protocol_level: u32,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            max_outstanding_r2t: 1,
            initiator_segment_bytes: 8192,
            target_segment_bytes: 8192,
            protocol_level: 1,
        }
    }
}

/// The most that we agree to.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// MaxRecvDataSegmentLength that we declare.
    pub segment_bytes: u32,
    /// MaxBurstLength.
    pub max_burst_bytes: u32,
    /// FirstBurstLength.
    pub first_burst_bytes: u32,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u32,
}

/// The negotiation of a login's operational keys.
#[derive(Debug)]
pub struct Negotiation {
    offer: Offer,
    params: Params,
    declared: bool,
    /// What belongs to the session was settled by its leading login.
    is_resumed: bool,
}

impl Negotiation {
    /// Nothing is negotiated yet.
    pub fn new(offer: Offer) -> Negotiation {
        Negotiation { offer, params: Params::default(), declared: false, is_resumed: false }
    }

    /// For a further connection of a session with these parameters: what belongs to the connection starts anew.
    pub fn resumed(offer: Offer, session: Params) -> Negotiation {
        let Params { header_digest, data_digest, initiator_segment_bytes, target_segment_bytes, .. } =
            Params::default();
        let params = Params { header_digest, data_digest, initiator_segment_bytes, target_segment_bytes, ..session };
        Negotiation { params, is_resumed: true, ..Negotiation::new(offer) }
    }

    /// Answers one key of the operational stage. Declarations have no answer.
    pub fn answer(&mut self, kind: SessionType, key: &str, value: &str, reply: &mut TextWriter) {
        let p = &mut self.params;
        let o = self.offer;
        if kind == SessionType::Discovery && NORMAL_ONLY.contains(&key) {
            return reply.put(key, "Irrelevant");
        }
        if self.is_resumed && is_leading_only(key) {
            return reply.put(key, "Reject");
        }
        match key {
            "HeaderDigest" => list(key, value, &["CRC32C", "None"], reply, |v| p.header_digest = v == "CRC32C"),
            "DataDigest" => list(key, value, &["CRC32C", "None"], reply, |v| p.data_digest = v == "CRC32C"),
            "TaskReporting" => list(key, value, &["RFC3720"], reply, |_| ()),
            "InitialR2T" => flag(key, value, reply, |v| v, |v| p.initial_r2t = v),
            "ImmediateData" => flag(key, value, reply, |v| v, |v| p.immediate_data = v),
            "DataPDUInOrder" | "DataSequenceInOrder" => flag(key, value, reply, |_| true, |_| ()),
            "IFMarker" | "OFMarker" => flag(key, value, reply, |_| false, |_| ()),
            "IFMarkInt" | "OFMarkInt" => reply.put(key, "Reject"),
            "MaxConnections" => size(key, value, (1, 65535), reply, |_| 1, |_| ()),
            "MaxBurstLength" => {
                size(key, value, SEGMENT, reply, |v| v.min(o.max_burst_bytes), |v| p.max_burst_bytes = v)
            }
            "FirstBurstLength" => {
                let most = o.first_burst_bytes.min(p.max_burst_bytes);
                size(key, value, SEGMENT, reply, |v| v.min(most), |v| p.first_burst_bytes = v)
            }
            "MaxOutstandingR2T" => {
                let ours = |v: u32| v.min(o.max_outstanding_r2t);
                size(key, value, (1, 65535), reply, ours, |v| p.max_outstanding_r2t = v)
            }
            // A session ends with its connection: there is nothing to wait for nor to retain.
            "DefaultTime2Wait" => size(key, value, (0, 3600), reply, |v| v, |_| ()),
            "DefaultTime2Retain" => size(key, value, (0, 3600), reply, |_| 0, |_| ()),
            "ErrorRecoveryLevel" => size(key, value, (0, 2), reply, |_| 0, |_| ()),
            "iSCSIProtocolLevel" => size(key, value, (0, 31), reply, |v| v.min(2), |v| p.protocol_level = v),
            "MaxRecvDataSegmentLength" => match number(value).filter(|v| in_range(*v, SEGMENT)) {
                Some(bytes) => p.initiator_segment_bytes = bytes,
                None => reply.put(key, "Reject"),
            },
            "InitiatorAlias" => {}
            // Known, but not to be sent by an initiator, or not now.
            "SendTargets" | "TargetAlias" | "TargetAddress" | "TargetPortalGroupTag" => reply.put(key, "Reject"),
            _ => reply.put(key, "NotUnderstood"),
        }
    }

    /// Declares what we declare, once, in the operational stage.
    pub fn declare(&mut self, reply: &mut TextWriter) {
        if !self.declared {
            self.declared = true;
            self.params.target_segment_bytes = self.offer.segment_bytes;
            reply.put("MaxRecvDataSegmentLength", self.offer.segment_bytes);
        }
    }

    /// What was agreed.
    pub fn params(&self) -> Params {
        let mut params = self.params.clone();
        // A key that was not offered keeps its default, which may be above what was agreed for its neighbour.
        params.first_burst_bytes = params.first_burst_bytes.min(params.max_burst_bytes);
        params
    }
}

const SEGMENT: (u32, u32) = (512, (1 << 24) - 1);

/// What discovery has no use for.
const NORMAL_ONLY: &[&str] = &[
    "MaxConnections",
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
];

/// What else the whole session has in common.
const OF_SESSION: &[&str] =
    &["DefaultTime2Wait", "DefaultTime2Retain", "ErrorRecoveryLevel", "TaskReporting", "iSCSIProtocolLevel"];

/// What is of a connection, of the login itself, or not for initiators to send.
const OF_LOGIN: &[&str] = &[
    "AuthMethod",
    "HeaderDigest",
    "DataDigest",
    "TargetName",
    "InitiatorName",
    "SessionType",
    "TargetAlias",
    "TargetAddress",
    "TargetPortalGroupTag",
    "IFMarker",
    "OFMarker",
    "IFMarkInt",
    "OFMarkInt",
];

/// Only the leading login of a session negotiates this key (RFC 7143 section 13, "LO").
fn is_leading_only(key: &str) -> bool {
    NORMAL_ONLY.contains(&key) || OF_SESSION.contains(&key)
}

/// The key is known, and cannot be sent after the login.
pub fn is_login_only(key: &str) -> bool {
    is_leading_only(key) || OF_LOGIN.contains(&key)
}

fn in_range(value: u32, (least, most): (u32, u32)) -> bool {
    (least..=most).contains(&value)
}

/// The first of the initiator's choices that we support.
fn list(key: &str, value: &str, ours: &[&str], reply: &mut TextWriter, store: impl FnOnce(&str)) {
    match value.split(',').find(|choice| ours.contains(choice)) {
        Some(choice) => {
            store(choice);
            reply.put(key, choice);
        }
        None => reply.put(key, "Reject"),
    }
}

/// A boolean: `result` of the initiator's value is the outcome.
fn flag(key: &str, value: &str, reply: &mut TextWriter, result: impl FnOnce(bool) -> bool, store: impl FnOnce(bool)) {
    match boolean(value).map(result) {
        Some(outcome) => {
            store(outcome);
            reply.put(key, yes_no(outcome));
        }
        None => reply.put(key, "Reject"),
    }
}

/// A number within `range`: `result` of the initiator's value is the outcome.
fn size(
    key: &str,
    value: &str,
    range: (u32, u32),
    reply: &mut TextWriter,
    result: impl FnOnce(u32) -> u32,
    store: impl FnOnce(u32),
) {
    match number(value).filter(|v| in_range(*v, range)).map(result) {
        Some(outcome) => {
            store(outcome);
            reply.put(key, outcome);
        }
        None => reply.put(key, "Reject"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};

    pub const OFFER: Offer =
        Offer { segment_bytes: 262_144, max_burst_bytes: 262_144, first_burst_bytes: 65_536, max_outstanding_r2t: 4 };

    fn answer(kind: SessionType, key: &str, value: &str) -> (String, Params) {
        let mut negotiation = Negotiation::new(OFFER);
        let mut reply = TextWriter::default();
        negotiation.answer(kind, key, value, &mut reply);
        let text = String::from_utf8(reply.into_bytes()).unwrap();
        let answer = text.trim_end_matches('\0').strip_prefix(key).unwrap_or("").trim_start_matches('=').to_string();
        (answer, negotiation.params())
    }

    #[test]
    fn each_key_has_its_result_function() {
        let table = [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("HeaderDigest", "None,CRC32C", "None"),
            ("DataDigest", "None", "None"),
            ("DataDigest", "X-md5", "Reject"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "Yes", "Yes"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "No", "No"),
            ("ImmediateData", "Yes", "Yes"),
            ("DataPDUInOrder", "No", "Yes"),
            ("DataSequenceInOrder", "No", "Yes"),
            ("IFMarker", "Yes", "No"),
            ("OFMarkInt", "2048~4096", "Reject"),
            ("MaxConnections", "8", "1"),
            ("MaxConnections", "0", "Reject"),
            ("MaxBurstLength", "16776192", "262144"),
            ("MaxBurstLength", "0x1000", "4096"),
            ("MaxBurstLength", "511", "Reject"),
            ("FirstBurstLength", "262144", "65536"),
            ("FirstBurstLength", "16777216", "Reject"),
            ("MaxOutstandingR2T", "16", "4"),
            ("DefaultTime2Wait", "2", "2"),
            ("DefaultTime2Retain", "20", "0"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("iSCSIProtocolLevel", "5", "2"),
            ("TaskReporting", "FastAbort,RFC3720", "RFC3720"),
            ("MaxRecvDataSegmentLength", "65536", ""),
            ("MaxRecvDataSegmentLength", "1", "Reject"),
            ("InitiatorAlias", "box", ""),
            ("SendTargets", "All", "Reject"),
            ("TargetAlias", "x", "Reject"),
            ("TargetAddress", "10.0.0.1:3260,1", "Reject"),
            ("TargetPortalGroupTag", "1", "Reject"),
            ("X-org.example", "1", "NotUnderstood"),
        ];
        for (key, value, expected) in table {
            assert_eq!(answer(SessionType::Normal, key, value).0, expected, "{key}={value}");
        }
    }

    #[test]
    fn results_are_kept() {
        assert!(answer(SessionType::Normal, "HeaderDigest", "CRC32C").1.header_digest);
        assert!(!answer(SessionType::Normal, "InitialR2T", "No").1.initial_r2t);
        let small = answer(SessionType::Normal, "MaxBurstLength", "1024").1;
        assert_eq!((small.max_burst_bytes, small.first_burst_bytes), (1024, 1024));
        assert_eq!(answer(SessionType::Normal, "MaxRecvDataSegmentLength", "512").1.initiator_segment_bytes, 512);
    }

    #[test]
    fn a_further_connection_settles_what_is_its_own() {
        let session =
            Params { initial_r2t: false, header_digest: true, initiator_segment_bytes: 512, ..Params::default() };
        let mut negotiation = Negotiation::resumed(OFFER, session);
        let mut reply = TextWriter::default();
        for (key, value) in [("InitialR2T", "Yes"), ("DataDigest", "CRC32C"), ("MaxRecvDataSegmentLength", "1024")] {
            negotiation.answer(SessionType::Normal, key, value, &mut reply);
        }
        assert_eq!(reply.into_bytes(), b"InitialR2T=Reject\0DataDigest=CRC32C\0");
        let params = negotiation.params();
        assert_eq!((params.initial_r2t, params.header_digest, params.data_digest), (false, false, true));
        assert_eq!(params.initiator_segment_bytes, 1024);
    }

    #[test]
    fn discovery_has_no_use_for_scsi_keys() {
        for key in NORMAL_ONLY {
            assert_eq!(answer(SessionType::Discovery, key, "1").0, "Irrelevant", "{key}");
        }
    }
}
