//! The portal: logins, sessions, and what ends them.

use crate::budget::Budget;
use crate::entrance::Entrance;
use crate::iscsi::chap::Challenges;
use crate::iscsi::connection::{Connection, Lister, Scsi};
use crate::iscsi::link::{Limits, Link};
use crate::iscsi::login::{Agreed, Login, Status, Step, Terms};
use crate::iscsi::params::Offer;
use crate::iscsi::pdu::{AsyncMessage, LoginRequest, LoginResponse, NopIn, opcode, padding};
use crate::iscsi::send::{self, Outgoing, Payload};
use crate::iscsi::text_phase::{Exchange, Listed};
use crate::iscsi::wire::Receiver;
use crate::scsi::block::CHUNK_BYTES;
use crate::scsi::copy::Neighbours;
use crate::scsi::lu::Lu;
use crate::scsi::reserve::{Path, Reservations};
use crate::scsi::sense::Sense;
use crate::session::{Entered, Session, SessionInfo, Sessions};
use crate::throttle::Throttle;
use crate::unit::{Directory, LogicalUnit, Peer, Refusal};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use embedded_io_async::{Read, Write};
use futures_util::future::{Either, LocalBoxFuture, select};
use platform::Runtime;
use platform::net::{Ends, NetError, Stream};
use platform::time::Duration;
use zerocopy::byteorder::big_endian::{U16, U32};

/// Longest data segment of a login PDU (RFC 7143 section 6.1).
const LOGIN_SEGMENT_BYTES: usize = 8192;

/// Events of asynchronous messages (RFC 7143 section 11.9.1).
const LOGOUT_WANTED: u8 = 1;
const SESSION_DROPPED: u8 = 3;

/// How long the last PDUs of a connection may take to be sent.
const LINGER: Duration = Duration::from_secs(5);

/// A portal group: a way to every target, a SCSI target port of each. A session belongs to the group whose port its
/// connection came in at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalGroup {
    /// The TCP port that is listened at for it.
    pub port: u16,
    /// Addresses to tell in discovery, as `host:port`. Empty: the address that the initiator reached us at, with `port`.
    pub addresses: Vec<String>,
}

/// The portal groups, and the limits of all of them together.
#[derive(Debug, Clone)]
pub struct PortalOptions {
    /// At least one; their tags count from 1 in this order.
    pub groups: Vec<PortalGroup>,
    /// Normal sessions at a time. Beyond it logins end with "out of resources" (0302).
    pub sessions_max: usize,
    /// Discovery sessions at a time. A further one ends the oldest.
    pub discoveries_max: usize,
    /// Connections in the login phase at a time. A further one ends the oldest of the address that has most of them.
    pub logins_max: usize,
    /// Commands that a session may have outstanding: its command window.
    pub commands_max: u32,
    /// Commands of all sessions together. Beyond it commands end with BUSY.
    pub commands_in_all_max: usize,
    /// Memory for payload on its way, of all connections together; beyond it they wait.
    pub payload_bytes_max: usize,
    /// A login that takes longer is dropped.
    pub login_timeout: Duration,
    /// How long initiators that are asked to log out are given for it.
    pub logout_time: Duration,
    /// An initiator that is silent for so long is pinged, and dropped when it is for twice as long.
    pub ping_interval: Duration,
}

impl PortalOptions {
    /// The groups with their tags.
    fn tagged(&self) -> impl Iterator<Item = (u16, &PortalGroup)> {
        (1..).zip(&self.groups)
    }

    /// Tag of the group to which a connection to this address belongs.
    fn group_at(&self, local: SocketAddr) -> u16 {
        self.tagged().find(|(_, group)| group.port == local.port()).map_or(1, |(tag, _)| tag)
    }

    /// What SendTargets tells a session that reached us at `local`: addresses with the tags of their groups.
    fn told(&self, local: SocketAddr) -> Vec<String> {
        let ip = local.ip().to_canonical();
        let of_group = |(tag, group): (u16, &PortalGroup)| {
            let own = alloc::vec![format!("{}", SocketAddr::new(ip, group.port))];
            let addresses = if group.addresses.is_empty() { own } else { group.addresses.clone() };
            addresses.into_iter().map(move |address| format!("{address},{tag}"))
        };
        self.tagged().flat_map(of_group).collect()
    }
}

impl Default for PortalOptions {
    fn default() -> PortalOptions {
        PortalOptions {
            groups: alloc::vec![PortalGroup { port: 3260, addresses: Vec::new() }],
            sessions_max: 128,
            discoveries_max: 16,
            logins_max: 32,
            commands_max: 128,
            commands_in_all_max: 4096,
            payload_bytes_max: 16 << 20,
            login_timeout: Duration::from_secs(15),
            logout_time: Duration::from_secs(2),
            ping_interval: Duration::from_secs(30),
        }
    }
}

/// Serves iSCSI connections. Clones are the same portal.
pub struct Portal<D: Directory>(Rc<Inner<D>>);

impl<D: Directory> Clone for Portal<D> {
    fn clone(&self) -> Self {
        Portal(self.0.clone())
    }
}

struct Inner<D: Directory> {
    runtime: Runtime,
    directory: Rc<D>,
    options: PortalOptions,
    budget: Rc<Budget>,
    sessions: Rc<Sessions>,
    /// Units in use, by target name.
    units: RefCell<BTreeMap<String, Weak<Lu<D::Unit>>>>,
    /// By the units' NAA designators.
    reservations: RefCell<BTreeMap<[u8; 16], Rc<RefCell<Reservations>>>>,
    challenges: Rc<Challenges>,
    throttle: Throttle,
    entrance: Rc<Entrance>,
    /// Commands of all sessions.
    commands: Rc<Cell<usize>>,
    stopping: Cell<bool>,
}

/// A session that was let in, and may start. Dropping it ends the session.
struct Granted<U> {
    entered: Entered,
    scsi: Option<Scsi<U>>,
}

impl<D: Directory> Portal<D> {
    /// A portal to the targets of a directory.
    pub fn new(runtime: &Runtime, directory: Rc<D>, options: PortalOptions) -> Portal<D> {
        Portal(Rc::new(Inner {
            runtime: runtime.clone(),
            directory,
            budget: Budget::new(runtime.bufs.clone(), options.payload_bytes_max),
            sessions: Rc::default(),
            units: RefCell::default(),
            reservations: RefCell::default(),
            challenges: Challenges::new(runtime.random.clone()),
            throttle: Throttle::new(runtime.timers.now()),
            entrance: Entrance::new(options.logins_max),
            commands: Rc::default(),
            options,
            stopping: Cell::new(false),
        }))
    }

    /// Serves one connection to its end.
    pub async fn serve(&self, stream: impl Stream) {
        let inner = &self.0;
        let ends = stream.ends();
        let (reader, mut writer) = stream.split();
        let mut receiver = Receiver::new(reader);
        let outcome = {
            let visit = inner.entrance.enter(ends.peer.ip().to_canonical());
            let login = inner.login(&mut receiver, &mut writer, &ends);
            let login = pin!(inner.runtime.timers.timeout(inner.options.login_timeout, login));
            match select(login, pin!(visit.turned_out())).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(_) => return log::info!("iscsi: login from {ends} made room for others"),
            }
        };
        match outcome {
            Ok(Ok(Some((granted, stat_sn)))) => {
                inner.full_feature(receiver, writer, granted, stat_sn, ends.local).await
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => log::info!("iscsi: login from {ends} failed: {error}"),
            Err(_) => log::info!("iscsi: login from {ends} took too long"),
        }
    }

    /// The sessions now.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.0.sessions.infos()
    }

    /// Ends the sessions of a target, or of discovery (`None`), that `admitted` does not pick, and waits until what
    /// they started is over. Their initiators are asked to log out first. Sessions of other targets stay, but their copies
    /// from and to this one end.
    pub async fn end_sessions(&self, target: Option<&str>, admitted: impl Fn(&Peer) -> bool) {
        self.0.dismiss(|session| session.info.target.as_deref() == target && !admitted(&session.peer)).await;
        let lu = target.and_then(|target| self.0.units.borrow().get(target).and_then(Weak::upgrade));
        if let Some(lu) = lu {
            let barred = self.0.sessions.all(|session| !admitted(&session.peer));
            let nexuses: Vec<_> = barred.iter().filter_map(|session| session.nexus.as_ref()).collect();
            lu.tasks.abort(|nexus| nexuses.iter().any(|other| other.is(nexus))).await;
        }
    }

    /// Tells the initiators of a target that its size has changed.
    pub fn capacity_changed(&self, target: &str) {
        if let Some(lu) = self.0.units.borrow().get(target).and_then(Weak::upgrade) {
            lu.attend(Sense::CAPACITY_CHANGED, |_| true);
        }
    }

    /// Tells the initiators of a target that it holds something else now, so that they forget what they know of it.
    pub fn contents_changed(&self, target: &str) {
        if let Some(lu) = self.0.units.borrow().get(target).and_then(Weak::upgrade) {
            lu.attend(Sense::MEDIUM_CHANGED, |_| true);
        }
    }

    /// Tells all initiators of thin units, as far as they want to know, that the space that is left has reached its
    /// threshold.
    pub fn threshold_reached(&self) {
        let units = self.0.units.borrow();
        let thin = units.values().filter_map(Weak::upgrade).filter(|lu| lu.unit.attributes().is_thin());
        thin.filter(|lu| lu.mode.get().threshold_told)
            .for_each(|lu| lu.attend(Sense::SOFT_THRESHOLD_REACHED, |_| true));
    }

    /// Refuses further logins, asks the initiators to log out, and ends all sessions.
    pub async fn shutdown(&self) {
        self.0.stopping.set(true);
        self.0.dismiss(|_| true).await;
    }
}

impl<D: Directory> Inner<D> {
    /// What a login from `address` to this portal group is held to.
    fn terms(&self, address: IpAddr, group: u16) -> Terms<'_> {
        Terms {
            offer: Offer {
                segment_bytes: CHUNK_BYTES,
                max_burst_bytes: CHUNK_BYTES,
                first_burst_bytes: 65_536,
                max_outstanding_r2t: 4,
            },
            portal_group: group,
            window: self.options.commands_max,
            former: Box::new(move |request, initiator, target| {
                let between = |session: &Session| session.is_between(initiator, request.isid, target, group);
                let session = self.sessions.reinstated(request.tsih.get(), request.cid.get(), between)?;
                Ok(session.map(|session| session.link.params().clone()))
            }),
            wanted: Box::new(move |initiator, target| {
                self.directory.wanted(target, &Peer { initiator: initiator.into(), address, proven: None })
            }),
            challenges: self.challenges.clone(),
            may_try: Box::new(move || self.throttle.may_try(address, self.runtime.timers.now())),
            failed: Box::new(move || self.throttle.failed(address, self.runtime.timers.now())),
        }
    }

    /// Asks for logouts, waits a while for them, and ends the sessions that are left.
    async fn dismiss(&self, chosen: impl Fn(&Session) -> bool) {
        let seconds = U16::new(self.options.logout_time.as_secs() as u16);
        self.tell(&chosen, AsyncMessage { event: LOGOUT_WANTED, parameter_3: seconds, ..AsyncMessage::new() });
        if self.runtime.timers.timeout(self.options.logout_time, self.sessions.gone(&chosen)).await.is_err() {
            // Parameters 2 and 3 are Time2Wait and Time2Retain.
            self.tell(&chosen, AsyncMessage { event: SESSION_DROPPED, ..AsyncMessage::new() });
            self.sessions.end(chosen).await;
        }
    }

    fn tell(&self, chosen: impl Fn(&Session) -> bool, message: AsyncMessage) {
        for session in self.sessions.all(chosen) {
            if session.link.queue.try_push(Outgoing::status(message.into_bhs(), Payload::None)).is_err() {
                log::debug!("iscsi: no room to tell {} that its session ends", session.info.initiator);
            }
        }
    }

    /// The login phase. `None` if it ended without a session.
    async fn login<R, W>(
        self: &Rc<Self>,
        receiver: &mut Receiver<R>,
        writer: &mut W,
        ends: &Ends,
    ) -> Result<Option<(Granted<D::Unit>, u32)>, NetError>
    where
        R: Read<Error = NetError>,
        W: Write<Error = NetError>,
    {
        let (peer, group) = (ends.peer, self.options.group_at(ends.local));
        let address = peer.ip().to_canonical();
        let mut login = Login::new(self.terms(address, group));
        loop {
            let bhs = match receiver.header().await {
                Ok(Some(bhs)) if bhs.operation() == opcode::LOGIN_REQUEST => bhs,
                _ => return Ok(None),
            };
            if bhs.data_len() > LOGIN_SEGMENT_BYTES {
                return Ok(None);
            }
            let mut text = alloc::vec![0; bhs.data_len()];
            if receiver.data(&mut text).await.is_err() || receiver.end().await.is_err() {
                return Ok(None);
            }
            let request = *LoginRequest::of(&bhs);
            let (agreed, response, text) = match login.step(&request, &text) {
                Step::Send(response, text) => {
                    answer(writer, response, &text).await?;
                    continue;
                }
                Step::Refuse(response) => {
                    log::info!("iscsi: login from {peer} refused with status {:04x}h", response.status());
                    answer(writer, response, &[]).await?;
                    return Ok(None);
                }
                Step::Finish(agreed, response, text) => (agreed, response, text),
            };
            if agreed.proven.is_some() {
                self.throttle.succeeded(address, self.runtime.timers.now());
            }
            let stat_sn = agreed.stat_sn;
            return match self.grant(agreed, peer, group).await {
                Ok(granted) => {
                    let tsih = U16::new(granted.entered.session.info.tsih);
                    answer(writer, LoginResponse { tsih, ..response }, &text).await?;
                    Ok(Some((granted, stat_sn)))
                }
                Err(status) => {
                    log::info!("iscsi: login from {peer} refused: {status:?}");
                    answer(writer, login.refuse(&request, status), &[]).await?;
                    Ok(None)
                }
            };
        }
    }

    /// Opens the target, ends the session that this one reinstates, or its connection, and enters the new one.
    async fn grant(self: &Rc<Self>, agreed: Agreed, peer: SocketAddr, group: u16) -> Result<Granted<D::Unit>, Status> {
        let address = peer.ip().to_canonical();
        let who = Peer { initiator: agreed.initiator.clone(), address, proven: agreed.proven.clone() };
        let target = agreed.target.as_deref();
        let mut lu = self.admit(target, &who).await?;
        let same = |session: &Session| session.is_between(&agreed.initiator, agreed.isid, target, group);
        let former = self.sessions.reinstated(agreed.tsih, agreed.cid, same)?;
        while self.sessions.find(same).is_some() {
            self.sessions.end(same).await;
            // That may have taken a while: the rule may be another now.
            lu = self.admit(target, &who).await?;
        }
        self.make_room(agreed.target.is_some())?;
        let tsih = match &former {
            Some(session) => session.info.tsih,
            None => self.sessions.new_tsih().ok_or(Status::OutOfResources)?,
        };
        let isid: String = agreed.isid.iter().map(|byte| format!("{byte:02x}")).collect();
        // Names are compared in lower case.
        let initiator = format!("{},i,0x{isid}", agreed.initiator.to_ascii_lowercase());
        let path = Path { initiator, target_port: group };
        // A session that goes on keeps its nexus: to the unit nothing has happened but that its tasks ended.
        let kept = former.and_then(|session| session.nexus.clone());
        let neighbours = Rc::new(Reach { portal: Rc::downgrade(self), peer: who.clone() });
        let scsi = lu.map(|lu| Scsi { nexus: kept.unwrap_or_else(|| lu.connect(path)), lu, neighbours });
        let limits = Limits {
            window: self.options.commands_max,
            in_all: self.options.commands_in_all_max,
            all: self.commands.clone(),
        };
        let link = Rc::new(Link::new(self.runtime.clone(), &self.budget, agreed.params, agreed.cmd_sn, limits));
        let info = SessionInfo { initiator: agreed.initiator, peer, target: agreed.target, tsih };
        let sessions = Rc::downgrade(&self.sessions);
        let session = Rc::new(Session {
            info,
            peer: who,
            isid: agreed.isid,
            group,
            cid: agreed.cid,
            link,
            nexus: scsi.as_ref().map(|scsi| scsi.nexus.clone()),
            sessions,
        });
        Ok(Granted { entered: self.sessions.enter(session), scsi })
    }

    /// Opens the target for who may use it now; of discovery there is nothing to open.
    async fn admit(&self, target: Option<&str>, who: &Peer) -> Result<Option<Rc<Lu<D::Unit>>>, Status> {
        let lu = match target {
            Some(target) => Some(self.lu(self.directory.open(target, who).await.map_err(refused)?, target)),
            None => None,
        };
        if self.stopping.get() { Err(Status::ServiceUnavailable) } else { Ok(lu) }
    }

    /// A further session is within the limits.
    fn make_room(&self, normal: bool) -> Result<(), Status> {
        let of_kind = |session: &Session| session.info.target.is_some() == normal;
        let room = if normal { self.options.sessions_max } else { self.options.discoveries_max };
        let mut there = self.sessions.all(of_kind);
        let excess = (there.len() + 1).saturating_sub(room);
        if normal {
            return if excess == 0 { Ok(()) } else { Err(Status::OutOfResources) };
        }
        // Discovery takes a moment: who stays longest has got what he came for.
        there.sort_by_key(|session| session.link.started());
        there.iter().take(excess).for_each(|session| session.link.close());
        Ok(())
    }

    /// The state that sessions of one unit share.
    fn lu(&self, unit: Rc<D::Unit>, target: &str) -> Rc<Lu<D::Unit>> {
        let mut units = self.units.borrow_mut();
        units.retain(|_, lu| lu.strong_count() > 0);
        match units.get(target).and_then(Weak::upgrade) {
            Some(lu) if Rc::ptr_eq(&lu.unit, &unit) => lu,
            _ => {
                let reservations = self.reservations(&*unit);
                let ports = self.options.tagged().map(|(tag, _)| tag).collect();
                let lu = Rc::new(Lu::new(unit, target.into(), ports, reservations));
                units.insert(target.into(), Rc::downgrade(&lu));
                lu
            }
        }
    }

    /// The persistent reservations of a unit: what it kept, where nothing is known yet. Those without registrations are
    /// held only while they are in use.
    fn reservations(&self, unit: &D::Unit) -> Rc<RefCell<Reservations>> {
        let mut all = self.reservations.borrow_mut();
        all.retain(|_, reservations| Rc::strong_count(reservations) > 1 || reservations.borrow().is_used());
        let restored = || Rc::new(RefCell::new(Reservations::restored(unit.kept_reservations().unwrap_or_default())));
        all.entry(unit.identity().naa).or_insert_with(restored).clone()
    }

    async fn full_feature<R, W>(
        &self,
        mut receiver: Receiver<R>,
        writer: W,
        granted: Granted<D::Unit>,
        stat_sn: u32,
        local: SocketAddr,
    ) where
        R: Read<Error = NetError>,
        W: Write<Error = NetError> + 'static,
    {
        let Granted { entered, scsi } = &granted;
        let session = &entered.session;
        let link = session.link.clone();
        let info = &session.info;
        let what = info.target.as_deref().unwrap_or("discovery");
        log::info!("iscsi: {} at {} logged in to {what}", info.initiator, info.peer);
        {
            let params = link.params();
            receiver.set_digests(params.header_digest, params.data_digest);
        }
        let sender = self.runtime.spawner.spawn(send_all(link.clone(), writer, stat_sn));
        let mut connection = Connection {
            link: link.clone(),
            session: session.clone(),
            scsi: scsi.clone(),
            lister: self.lister(session, local),
            receiver,
            exchange: Exchange::default(),
            starved: false,
        };
        let reason = {
            let serving = pin!(connection.run());
            let (closed, silent, gapped) = (pin!(link.closed()), pin!(self.watch(&link)), pin!(link.gapped()));
            match select(serving, select(closed, select(silent, gapped))).await {
                Either::Left((end, _)) => format!("{end}"),
                Either::Right((Either::Left(_), _)) => String::from("closed here"),
                Either::Right((Either::Right((Either::Left(_), _)), _)) => String::from("it is silent"),
                Either::Right((Either::Right((Either::Right(_), _)), _)) => String::from("a command is missing"),
            }
        };
        // What is queued is still sent; what the tasks would add is not.
        link.queue.close();
        link.abort_tasks();
        link.tasks_ended().await;
        let writer = self.runtime.timers.timeout(LINGER, sender).await;
        if writer.is_err() {
            link.abandon();
        }
        log::info!("iscsi: session of {} with {what} ended: {reason}", info.initiator);
        // The session is over before the initiator can see the end of the stream.
        drop(granted);
        drop(writer);
    }

    /// Pings an initiator that is silent; returns when it stays silent.
    async fn watch(&self, link: &Link) {
        let interval = self.options.ping_interval;
        loop {
            let due = link.heard() + interval;
            let now = self.runtime.timers.now();
            self.runtime.timers.sleep_until(due.max(now + interval / 4)).await;
            let silent = self.runtime.timers.now() - link.heard();
            if silent >= interval * 2 {
                return;
            }
            if silent >= interval {
                let ping = NopIn { transfer_tag: U32::new(link.new_tag()), ..NopIn::new() };
                if link.queue.try_push(Outgoing::unnumbered(ping.into_bhs(), Payload::None)).is_err() {
                    log::debug!("iscsi: no room for a ping");
                }
            }
        }
    }

    /// Answers SendTargets for a session.
    fn lister(&self, session: &Rc<Session>, local: SocketAddr) -> Box<Lister> {
        let directory = self.directory.clone();
        let info = session.info.clone();
        let peer = session.peer.clone();
        let addresses = self.options.told(local);
        Box::new(move |value| {
            let names = match (value, &info.target) {
                ("All", None) => directory.targets(&peer),
                ("All" | "", Some(own)) => alloc::vec![own.clone()],
                ("", None) => return None,
                (name, None) => directory.targets(&peer).into_iter().filter(|t| t.eq_ignore_ascii_case(name)).collect(),
                (name, Some(own)) => {
                    if own.eq_ignore_ascii_case(name) {
                        alloc::vec![own.clone()]
                    } else {
                        Vec::new()
                    }
                }
            };
            Some(names.into_iter().map(|name| Listed { name, addresses: addresses.clone() }).collect())
        })
    }
}

/// The units that a session's initiator may use: for copies from unit to unit.
struct Reach<D: Directory> {
    portal: Weak<Inner<D>>,
    peer: Peer,
}

impl<D: Directory> Neighbours<D::Unit> for Reach<D> {
    fn find<'a>(&'a self, naa: &'a [u8; 16]) -> LocalBoxFuture<'a, Option<Rc<Lu<D::Unit>>>> {
        Box::pin(async move {
            let portal = self.portal.upgrade()?;
            let target = portal.directory.named(naa, &self.peer)?;
            let unit = portal.directory.open(&target, &self.peer).await.ok()?;
            Some(portal.lu(unit, &target)).filter(|lu| lu.unit.identity().naa == *naa)
        })
    }
}

fn refused(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NotFound => Status::NotFound,
        Refusal::Forbidden => Status::AuthorizationFailure,
        Refusal::Unavailable => Status::ServiceUnavailable,
    }
}

/// Runs the sender until the connection is over, and hands the writer back. When it fails the connection ends.
async fn send_all<W: Write<Error = NetError>>(link: Rc<Link>, mut writer: W, stat_sn: u32) -> W {
    let failed = {
        let sending = pin!(send::run(&link, &mut writer, stat_sn));
        let abandoned = pin!(link.abandoned());
        match select(sending, abandoned).await {
            Either::Left((Err(error), _)) => Some(error),
            _ => None,
        }
    };
    if let Some(error) = failed {
        log::debug!("iscsi: sending failed: {error}");
        link.queue.close();
        link.close();
    }
    writer
}

/// Sends a login response.
async fn answer<W: Write<Error = NetError>>(
    writer: &mut W,
    response: LoginResponse,
    text: &[u8],
) -> Result<(), NetError> {
    let mut bhs = response.into_bhs();
    bhs.set_data_len(text.len());
    writer.write_all(&bhs.to_bytes()).await?;
    writer.write_all(text).await?;
    for _ in 0..padding(text.len()) {
        writer.write_all(&[0]).await?;
    }
    writer.flush().await
}
