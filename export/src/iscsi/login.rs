//! The login phase (RFC 7143 section 6) as a state machine: login requests and their text in, responses out.
//!
//! It knows no target and no session: when an initiator has negotiated its way to the full-feature phase, the
//! caller looks up what it [agreed](Agreed) on and sends the last response, or [`Login::refuse`]s.

use super::chap::{self, Challenges};
use super::params::{Negotiation, Offer, Params, SessionType};
use super::pdu::{CONTINUE, FINAL, LoginRequest, LoginResponse};
use super::text::{SentKeys, TEXT_BYTES_MAX, TextWriter, normalise_name, pairs};
use crate::unit::Chap;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use zerocopy::byteorder::big_endian::U32;

/// Login status: class and detail (RFC 7143 section 11.13.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// Go on.
    Success = 0x0000,
    /// The negotiation is malformed.
    InitiatorError = 0x0200,
    /// Authentication failed, or is missing.
    AuthenticationFailure = 0x0201,
    /// The initiator may not use this target.
    AuthorizationFailure = 0x0202,
    /// There is no such target.
    NotFound = 0x0203,
    /// No version in common.
    UnsupportedVersion = 0x0205,
    /// The session has as many connections as it may.
    TooManyConnections = 0x0206,
    /// A mandatory key is missing.
    MissingParameter = 0x0207,
    /// No such session type.
    SessionTypeNotSupported = 0x0209,
    /// There is no session with this TSIH.
    SessionDoesNotExist = 0x020a,
    /// Not allowed during login.
    InvalidDuringLogin = 0x020b,
    /// The target cannot serve now.
    ServiceUnavailable = 0x0301,
    /// A limit is reached.
    OutOfResources = 0x0302,
}

/// What an initiator asked for and got, when its login is complete but for the session itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Name of the initiator, normalised.
    pub initiator: String,
    /// The target of a normal session, normalised; `None` for discovery.
    pub target: Option<String>,
    /// The initiator's part of the session id.
    pub isid: [u8; 6],
    /// The target's part as the initiator sent it: 0 for a new session.
    pub tsih: u16,
    /// Connection id.
    pub cid: u16,
    /// CmdSN of the first command.
    pub cmd_sn: u32,
    /// StatSN of the first response in the full-feature phase.
    pub stat_sn: u32,
    /// What the initiator has proven.
    pub proven: Option<Rc<Chap>>,
    /// The negotiated parameters.
    pub params: Params,
}

/// What to do after a login request.
#[derive(Debug)]
pub enum Step {
    /// Send this and wait for the next request.
    Send(LoginResponse, Vec<u8>),
    /// Complete: if the session can be had send this, with its TSIH, else [`Login::refuse`].
    Finish(Agreed, LoginResponse, Vec<u8>),
    /// Send this and close.
    Refuse(LoginResponse),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Security = 0,
    Operational = 1,
    FullFeature = 3,
}

impl Stage {
    fn of(bits: u8) -> Option<Stage> {
        match bits & 3 {
            0 => Some(Stage::Security),
            1 => Some(Stage::Operational),
            3 => Some(Stage::FullFeature),
            _ => None,
        }
    }
}

/// The keys of the first request, which say who wants what.
#[derive(Debug)]
struct Leading {
    initiator: String,
    target: Option<String>,
    kind: SessionType,
}

/// What the target wants for a login: of the initiator's name and the target's (`None` for discovery).
pub type Wanted<'a> = dyn Fn(&str, Option<&str>) -> Option<Rc<Chap>> + 'a;

/// The parameters of the session whose connection a login reinstates: by its request, the initiator's name and the
/// target's. `None` for a new session.
pub type Former<'a> = dyn Fn(&LoginRequest, &str, Option<&str>) -> Result<Option<Params>, Status> + 'a;

/// What is common to all logins of a portal.
pub struct Terms<'a> {
    /// The most that is agreed to.
    pub offer: Offer,
    /// Target portal group tag.
    pub portal_group: u16,
    /// Commands that a session may have outstanding.
    pub window: u32,
    /// Sessions that go on.
    pub former: Box<Former<'a>>,
    /// Who has to prove what.
    pub wanted: Box<Wanted<'a>>,
    /// Makes the challenges for that.
    pub challenges: Rc<Challenges>,
    /// There were not too many wrong answers to them of late.
    pub may_try: Box<dyn Fn() -> bool + 'a>,
    /// Another one was wrong.
    pub failed: Box<dyn Fn() + 'a>,
}

/// How an initiator is authenticated.
enum Security {
    /// Nothing is wanted.
    Free,
    /// AuthMethod has to be settled first.
    Wanted(Rc<Chap>),
    /// By CHAP.
    Chap(chap::Exchange),
}

impl Security {
    /// Nothing is left to be proven.
    fn is_done(&self) -> bool {
        match self {
            Security::Free => true,
            Security::Wanted(_) => false,
            Security::Chap(exchange) => exchange.proven().is_some(),
        }
    }
}

/// A login in progress.
pub struct Login<'a> {
    terms: Terms<'a>,
    security: Security,
    /// The stage and the first request; fields that may not change are compared with it.
    current: Option<(Stage, LoginRequest)>,
    leading: Option<Leading>,
    sent: SentKeys,
    negotiation: Negotiation,
    collected: Vec<u8>,
    stat_sn: u32,
}

impl<'a> Login<'a> {
    /// A connection on which nothing was received.
    pub fn new(terms: Terms<'a>) -> Login<'a> {
        Login {
            current: None,
            leading: None,
            security: Security::Free,
            sent: SentKeys::default(),
            negotiation: Negotiation::new(terms.offer),
            terms,
            collected: Vec::new(),
            stat_sn: 0,
        }
    }

    /// Takes a login request and its data segment.
    pub fn step(&mut self, request: &LoginRequest, text: &[u8]) -> Step {
        match self.try_step(request, text) {
            Ok(step) => step,
            Err(status) => Step::Refuse(self.refuse(request, status)),
        }
    }

    /// The response that ends a login with `status`.
    pub fn refuse(&mut self, request: &LoginRequest, status: Status) -> LoginResponse {
        self.response(request, 0, status)
    }

    fn try_step(&mut self, request: &LoginRequest, text: &[u8]) -> Result<Step, Status> {
        if request.version_min > 0 {
            return Err(Status::UnsupportedVersion);
        }
        let stage = self.check(request)?;
        let transit = request.flags & FINAL != 0;
        let next = Stage::of(request.flags).filter(|next| *next as u8 > stage as u8);
        let next = if transit { Some(next.ok_or(Status::InitiatorError)?) } else { None };
        if self.collected.len().saturating_add(text.len()) > TEXT_BYTES_MAX {
            return Err(Status::OutOfResources);
        }
        self.collected.extend_from_slice(text);
        if request.flags & CONTINUE != 0 {
            if transit {
                return Err(Status::InitiatorError);
            }
            return Ok(Step::Send(self.response(request, (stage as u8) << 2, Status::Success), Vec::new()));
        }
        let text = core::mem::take(&mut self.collected);
        let reply = self.answer(stage, request, &text)?;
        if next.is_some() && matches!(self.security, Security::Wanted(_)) {
            return Err(Status::AuthenticationFailure);
        }
        // The stage of security is left when everything is proven, not before.
        let next = next.filter(|_| self.security.is_done());
        let flags = match next {
            Some(next) => FINAL | (stage as u8) << 2 | next as u8,
            None => (stage as u8) << 2,
        };
        let response = self.response(request, flags, Status::Success);
        if next == Some(Stage::FullFeature) {
            return Ok(Step::Finish(self.agreed(request)?, response, reply));
        }
        if let (Some(next), Some((stage, _))) = (next, &mut self.current) {
            *stage = next;
        }
        Ok(Step::Send(response, reply))
    }

    /// The stage of a request that fits to those before it.
    fn check(&mut self, request: &LoginRequest) -> Result<Stage, Status> {
        let stage = Stage::of(request.flags >> 2).filter(|stage| *stage != Stage::FullFeature);
        let stage = stage.ok_or(Status::InitiatorError)?;
        match &self.current {
            None => self.current = Some((stage, *request)),
            Some((current, first)) => {
                let same = first.isid == request.isid
                    && first.tsih == request.tsih
                    && first.cid == request.cid
                    && first.task_tag == request.task_tag;
                if !same || *current != stage {
                    return Err(Status::InitiatorError);
                }
            }
        }
        Ok(stage)
    }

    /// Answers a complete text.
    fn answer(&mut self, stage: Stage, request: &LoginRequest, text: &[u8]) -> Result<Vec<u8>, Status> {
        let mut reply = TextWriter::default();
        let leads = self.leading.is_none();
        let kind = match &self.leading {
            Some(leading) => leading.kind,
            None => self.lead(request, text, &mut reply)?,
        };
        if stage == Stage::Operational && !self.security.is_done() {
            return Err(Status::AuthenticationFailure);
        }
        let mut keys = chap::Keys::default();
        let mut first_burst = None;
        for pair in pairs(text) {
            let (key, value) = pair.map_err(|_| Status::InitiatorError)?;
            self.sent.note(key).map_err(|_| Status::InitiatorError)?;
            match key {
                // Part of the first text, where they were read.
                "InitiatorName" | "TargetName" | "SessionType" if leads => {}
                "InitiatorName" | "TargetName" | "SessionType" => return Err(Status::InitiatorError),
                "AuthMethod" => self.choose_method(stage, value, &mut reply)?,
                // What comes of it depends on MaxBurstLength, wherever that stands.
                "FirstBurstLength" => first_burst = Some(value),
                _ if keys.take(key, value) => {}
                _ => self.negotiation.answer(kind, key, value, &mut reply),
            }
        }
        if let Some(value) = first_burst {
            self.negotiation.answer(kind, "FirstBurstLength", value, &mut reply);
        }
        self.authenticate(stage, &keys, &mut reply)?;
        if stage == Stage::Operational {
            self.negotiation.declare(&mut reply);
        }
        Ok(reply.into_bytes())
    }

    /// Takes the first text, which says who wants what.
    fn lead(&mut self, request: &LoginRequest, text: &[u8], reply: &mut TextWriter) -> Result<SessionType, Status> {
        let leading = Leading::find(text)?;
        let kind = leading.kind;
        if let Some(params) = (self.terms.former)(request, &leading.initiator, leading.target.as_deref())? {
            self.negotiation = Negotiation::resumed(self.terms.offer, params);
        }
        if let Some(chap) = (self.terms.wanted)(&leading.initiator, leading.target.as_deref()) {
            self.security = Security::Wanted(chap);
        }
        self.leading = Some(leading);
        if kind == SessionType::Normal {
            reply.put("TargetPortalGroupTag", self.terms.portal_group);
        }
        Ok(kind)
    }

    /// AuthMethod: CHAP if something is to be proven, else nothing.
    fn choose_method(&mut self, stage: Stage, methods: &str, reply: &mut TextWriter) -> Result<(), Status> {
        if stage != Stage::Security {
            return Err(Status::InitiatorError);
        }
        let method = if self.security.is_done() { "None" } else { "CHAP" };
        if !methods.split(',').any(|offered| offered == method) {
            return Err(Status::AuthenticationFailure);
        }
        reply.put("AuthMethod", method);
        if let Security::Wanted(chap) = &self.security {
            self.security = Security::Chap(chap::Exchange::new(chap.clone(), self.terms.challenges.clone()));
        }
        Ok(())
    }

    fn authenticate(&mut self, stage: Stage, keys: &chap::Keys<'_>, reply: &mut TextWriter) -> Result<(), Status> {
        match &mut self.security {
            Security::Chap(_) if keys.has_response() && !(self.terms.may_try)() => Err(Status::ServiceUnavailable),
            Security::Chap(exchange) if stage == Stage::Security => {
                let result = exchange.step(keys, reply);
                if keys.has_response() && result == Err(Status::AuthenticationFailure) {
                    (self.terms.failed)();
                }
                result
            }
            _ if keys.is_empty() => Ok(()),
            _ => Err(Status::InitiatorError),
        }
    }

    fn agreed(&mut self, request: &LoginRequest) -> Result<Agreed, Status> {
        let leading = self.leading.take().ok_or(Status::InitiatorError)?;
        Ok(Agreed {
            initiator: leading.initiator,
            target: leading.target,
            isid: request.isid,
            tsih: request.tsih.get(),
            cid: request.cid.get(),
            cmd_sn: request.cmd_sn.get(),
            stat_sn: self.stat_sn,
            params: self.negotiation.params(),
            proven: match &self.security {
                Security::Chap(exchange) => exchange.proven().cloned(),
                Security::Free | Security::Wanted(_) => None,
            },
        })
    }

    fn response(&mut self, request: &LoginRequest, flags: u8, status: Status) -> LoginResponse {
        let [class, detail] = (status as u16).to_be_bytes();
        let stat_sn = U32::new(self.stat_sn);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        LoginResponse {
            flags,
            isid: request.isid,
            tsih: request.tsih,
            task_tag: request.task_tag,
            stat_sn,
            exp_cmd_sn: request.cmd_sn,
            max_cmd_sn: U32::new(request.cmd_sn.get().wrapping_add(self.terms.window).wrapping_sub(1)),
            status_class: class,
            status_detail: detail,
            ..LoginResponse::new()
        }
    }
}

impl Leading {
    fn find(text: &[u8]) -> Result<Leading, Status> {
        let value = |wanted: &str| {
            let found = pairs(text).filter_map(Result::ok).find(|(key, _)| *key == wanted);
            found.map(|(_, value)| value)
        };
        let name = |key| match value(key) {
            Some(name) => normalise_name(name).map(Some).ok_or(Status::InitiatorError),
            None => Ok(None),
        };
        let initiator = name("InitiatorName")?.ok_or(Status::MissingParameter)?;
        let kind = match value("SessionType").unwrap_or("Normal") {
            "Normal" => SessionType::Normal,
            "Discovery" => SessionType::Discovery,
            _ => return Err(Status::SessionTypeNotSupported),
        };
        let target = match kind {
            SessionType::Normal => Some(name("TargetName")?.ok_or(Status::MissingParameter)?),
            SessionType::Discovery => None,
        };
        Ok(Leading { initiator, target, kind })
    }
}

#[cfg(test)]
mod tests;
