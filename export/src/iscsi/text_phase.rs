//! Text requests of the full-feature phase (RFC 7143 sections 11.10, 13.3 and appendix C): SendTargets, and keys
//! that may be declared at any time. A state machine over requests and text.

use super::params::is_login_only;
use super::text::{Malformed, SentKeys, TEXT_BYTES_MAX, TextWriter, number, pairs};
use alloc::string::String;
use alloc::vec::Vec;

/// The text exchange of a connection: one at a time.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The tag under which the initiator has to go on.
    tag: Option<u32>,
    /// Text received so far.
    collected: Vec<u8>,
    /// The answer, of which some was sent.
    answer: Vec<u8>,
    sent: usize,
}

/// What to do about a text request.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The text is complete: answer it with [`Exchange::answer`].
    Answer(Vec<u8>),
    /// Send the next part of the exchange.
    Go,
    /// Refuse it; the exchange is over.
    Refuse,
}

/// A part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The text.
    pub text: Vec<u8>,
    /// More follows: the initiator asks for it by an empty request (C bit).
    pub continues: bool,
    /// It is the last PDU of the exchange (F bit). If not, the response carries a tag.
    pub last: bool,
}

impl Exchange {
    /// Takes a request: its target transfer tag if it continues an exchange, its C bit, its text.
    pub fn request(&mut self, tag: Option<u32>, continues: bool, text: &[u8]) -> Step {
        match tag {
            None => *self = Exchange::default(),
            Some(_) if tag != self.tag => {
                *self = Exchange::default();
                return Step::Refuse;
            }
            Some(_) => {}
        }
        if !self.answer.is_empty() {
            return if text.is_empty() { Step::Go } else { Step::Refuse };
        }
        if self.collected.len().saturating_add(text.len()) > TEXT_BYTES_MAX {
            *self = Exchange::default();
            return Step::Refuse;
        }
        self.collected.extend_from_slice(text);
        if continues { Step::Go } else { Step::Answer(core::mem::take(&mut self.collected)) }
    }

    /// The answer to the complete text.
    pub fn answer(&mut self, answer: Vec<u8>) {
        (self.answer, self.sent) = (answer, 0);
    }

    /// The next part of the exchange, of at most `most` bytes. `final_request`: the request had the F bit.
    /// `tag` is used if the exchange goes on.
    pub fn next(&mut self, final_request: bool, most: usize, tag: u32) -> Part {
        let rest = self.answer.get(self.sent..).unwrap_or_default();
        let (text, left) = rest.split_at(most.min(rest.len()));
        let (text, continues) = (text.to_vec(), !left.is_empty());
        match continues {
            true => self.sent += text.len(),
            false => self.answer(Vec::new()),
        }
        let last = final_request && !continues;
        self.tag = (!last).then_some(tag);
        Part { text, continues, last }
    }
}

/// A target as SendTargets lists it.
pub struct Listed {
    /// iSCSI name.
    pub name: String,
    /// `host:port,group` of each portal.
    pub addresses: Vec<String>,
}

/// What an answer changes in the connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The initiator's new MaxRecvDataSegmentLength.
    pub initiator_segment_bytes: Option<u32>,
}

/// Answers a text. `list` gives the targets for a value of SendTargets, or `None` if that value is not allowed.
pub fn answer(text: &[u8], list: impl Fn(&str) -> Option<Vec<Listed>>) -> Result<(Vec<u8>, Changes), Malformed> {
    let mut reply = TextWriter::default();
    let mut changes = Changes::default();
    let mut sent = SentKeys::default();
    for pair in pairs(text) {
        let pair = pair?;
        sent.note(pair.0)?;
        match pair {
            ("SendTargets", value) => match list(value) {
                None => reply.put("SendTargets", "Reject"),
                Some(targets) => {
                    for target in targets {
                        reply.put("TargetName", &target.name);
                        target.addresses.iter().for_each(|address| reply.put("TargetAddress", address));
                    }
                }
            },
            ("MaxRecvDataSegmentLength", value) => match number(value) {
                Some(bytes) if (512..1 << 24).contains(&bytes) => changes.initiator_segment_bytes = Some(bytes),
                _ => reply.put("MaxRecvDataSegmentLength", "Reject"),
            },
            ("InitiatorAlias", _) => {}
            (key, _) if is_login_only(key) => reply.put(key, "Reject"),
            (key, _) => reply.put(key, "NotUnderstood"),
        }
    }
    Ok((reply.into_bytes(), changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(value: &str) -> Option<Vec<Listed>> {
        let listed = |name: &str| Listed { name: name.into(), addresses: alloc::vec!["10.0.0.1:3260,1".into()] };
        (value == "All").then(|| alloc::vec![listed("iqn.a"), listed("iqn.b")])
    }

    #[test]
    fn send_targets() {
        let (reply, _) = answer(b"SendTargets=All\0", two).unwrap();
        let one = "TargetName=iqn.a\0TargetAddress=10.0.0.1:3260,1\0";
        assert_eq!(reply, [one, &one.replace("iqn.a", "iqn.b")].concat().as_bytes());
        assert_eq!(answer(b"SendTargets=x\0", two).unwrap().0, b"SendTargets=Reject\0");
        assert_eq!(answer(b"X-a=1\0InitialR2T=No\0", two).unwrap().0, b"X-a=NotUnderstood\0InitialR2T=Reject\0");
        let (reply, changes) = answer(b"MaxRecvDataSegmentLength=1024\0", two).unwrap();
        assert_eq!((reply.len(), changes.initiator_segment_bytes), (0, Some(1024)));
        assert!(answer(b"nonsense\0", two).is_err());
    }

    /// A text of bounded length has an answer of bounded length.
    #[test]
    fn an_answer_is_not_multiplied() {
        assert!(answer(&b"SendTargets=All\0".repeat(2), two).is_err());
        let keys = |n: u32| (0..n).flat_map(|n| alloc::format!("X-{n}=1\0").into_bytes()).collect::<Vec<u8>>();
        assert!(answer(&keys(64), two).is_ok());
        assert!(answer(&keys(65), two).is_err());
    }

    #[test]
    fn a_long_answer_is_sent_in_parts() {
        let mut exchange = Exchange::default();
        assert_eq!(exchange.request(None, false, b"A=1\0"), Step::Answer(b"A=1\0".to_vec()));
        exchange.answer(b"0123456789".to_vec());
        assert_eq!(exchange.next(true, 4, 7), Part { text: b"0123".to_vec(), continues: true, last: false });
        assert_eq!(exchange.request(Some(8), false, b""), Step::Refuse);
        assert_eq!(exchange.request(None, false, b"A=1\0"), Step::Answer(b"A=1\0".to_vec()));
        exchange.answer(b"0123456789".to_vec());
        exchange.next(true, 4, 7);
        assert_eq!(exchange.request(Some(7), false, b""), Step::Go);
        assert_eq!(exchange.next(true, 4, 8).text, b"4567");
        assert_eq!(exchange.request(Some(8), false, b""), Step::Go);
        assert_eq!(exchange.next(true, 4, 9), Part { text: b"89".to_vec(), continues: false, last: true });
    }

    #[test]
    fn a_long_request_comes_in_parts() {
        let mut exchange = Exchange::default();
        assert_eq!(exchange.request(None, true, b"A="), Step::Go);
        assert_eq!(exchange.next(false, 512, 1), Part { text: Vec::new(), continues: false, last: false });
        assert_eq!(exchange.request(Some(1), false, b"1\0"), Step::Answer(b"A=1\0".to_vec()));
        assert_eq!(exchange.request(None, true, &[b'x'; TEXT_BYTES_MAX]), Step::Go);
        exchange.next(false, 512, 2);
        assert_eq!(exchange.request(Some(2), true, b"x"), Step::Refuse);
    }
}
