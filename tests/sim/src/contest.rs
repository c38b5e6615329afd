//! Several initiators on one volume: they read, write, compare and write, and reserve it, all at once, over a network that
//! delays, cuts and resets. What they are answered must be explained by one order of their commands ([`crate::history`]);
//! what a power cut leaves is for the model to judge, as everywhere.

use crate::clients::Client;
use crate::history::{
    Ask, Bits, EVERYBODY, History, RESERVATION_TYPES, Register, Reservation, Said, Set, Touch, Touched,
};
use crate::initiator::{Broken, Command, Outcome, Session};
use crate::life::{self, Birth, Life, PATIENCE};
use crate::manager;
use crate::model::{self, Write, word};
use crate::recover::words_of;
use crate::site::{self, Instance, Site};
use platform::Runtime;
use platform::block::Disk;
use platform::time::Duration;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The sectors that are fought over. Those across the boundary of two data blocks only by commands that are to be atomic.
const REGISTERS: [Range<u64>; 5] = [3..4, 130..131, 400..401, 127..129, 255..257];

/// Of them, so many are of one sector.
const NARROW: usize = 3;

/// The last of those is in a block that is unmapped now and then.
const UNMAPPED: Range<u64> = 384..512;

/// Where bits are set.
const BITS: Range<u64> = 300..301;

/// The initiator that comes before all others.
const FIRST: u64 = 9;

/// MISCOMPARE DURING VERIFY OPERATION.
const DIFFERS: Outcome = Outcome::Check(0xe, 0x1d, 0);

/// RESERVATION CONFLICT.
pub const CONFLICT: Outcome = Outcome::Status(0x18);

/// INVALID RELEASE OF PERSISTENT RESERVATION.
const INVALID_RELEASE: Outcome = Outcome::Check(5, 0x26, 4);

/// Sense key: the command was not carried out.
const UNIT_ATTENTION: u8 = 6;

/// What everybody in a contest shares.
struct Ring {
    life: Rc<Life>,
    volume: String,
    registers: RefCell<Vec<History<Register>>>,
    bits: RefCell<History<Bits>>,
    reservation: Rc<RefCell<History<Reservation>>>,
}

/// A command under way, as the histories and the model know it.
struct Sent {
    /// The register and the command's number there.
    touch: Option<(usize, u64)>,
    bits: Option<u64>,
    ask: (Ask, u64),
    write: Option<Write>,
    /// It is durable when it is done.
    fua: bool,
}

/// An initiator.
struct Fighter {
    ring: Rc<Ring>,
    client: Client,
    number: u64,
    /// What it last knew of each register.
    known: [u64; REGISTERS.len()],
    /// The command that was not answered when the session broke.
    lost: Option<Sent>,
}

/// A life with a contest.
pub async fn contest(birth: Birth, runtime: Runtime) {
    let (world, shape) = (&birth.world, &birth.shape);
    let disks = (Disk::new(birth.meta.clone()), Disk::new(birth.data.clone()));
    let (site, ended) =
        Site::start(&runtime, world, site::pool(disks.0, disks.1), shape.cache_blocks, Instance::default());
    site.ready(&runtime).await.expect("the appliance serves the pool");
    life::set_faults(world, &birth.meta, &birth.data, &shape.faults);
    let life = Rc::new(Life::new(&birth, runtime, site));
    manager::begin(&life).await;
    let found = life
        .model
        .borrow()
        .volumes
        .iter()
        .find(|(_, volume)| volume.is_usable() && !volume.read_only)
        .map(|(name, _)| name.clone());
    // The network may have lost what makes one.
    let Some(volume) = found else { return };
    // Nobody deletes or resizes it.
    life.model.borrow_mut().volume(&volume).users += 1;
    let before = life.model.borrow_mut().reservations_of(&volume);
    let before = if before.is_empty() { [Reservation::default()].into() } else { before };
    let reservation = Rc::new(RefCell::new(History::of_any(before)));
    life.model.borrow_mut().reserve(&volume, reservation.clone());
    let bits = RefCell::new(History::new(Bits(0)));
    let ring = Rc::new(Ring { life: life.clone(), volume, registers: RefCell::default(), bits, reservation });
    Fighter::new(&ring, FIRST).prepare().await;
    birth.watch();
    let over = life.over();
    let mut tasks = vec![life.runtime.spawner.spawn(manager::work(life.clone()))];
    tasks.extend((0..shape.clients).map(|number| life.runtime.spawner.spawn(Fighter::new(&ring, number).work())));
    if !birth.clean {
        return over.await;
    }
    for task in tasks {
        task.await.expect("initiators end");
    }
    life.site.power_off().await;
    ended.await.expect("the appliance ends");
}

/// What a write of this number leaves in the sectors; the first contents are zeroes.
fn contents(sectors: &Range<u64>, number: u64) -> Vec<u8> {
    let words = sectors.clone().map(|sector| if number == 0 { 0 } else { word(number, sector) });
    words.flat_map(|word| word.to_le_bytes().repeat(64)).collect()
}

/// The number of the write that left this.
fn read_number(sectors: &Range<u64>, bytes: &[u8]) -> u64 {
    let found: Vec<Option<u64>> =
        sectors.clone().zip(words_of(bytes)).map(|(sector, word)| model::number_of(word, sector)).collect();
    let whole = found[0].filter(|_| found.len() as u64 == sectors.end - sectors.start);
    let same = whole.filter(|_| found.iter().all(|number| *number == found[0]));
    same.unwrap_or_else(|| panic!("sectors {sectors:?}, which are always written together, hold {found:x?}"))
}

/// The first sector, filled with this.
fn sector_of(word: u64) -> Vec<u8> {
    word.to_le_bytes().repeat(64)
}

impl Fighter {
    fn new(ring: &Rc<Ring>, number: u64) -> Fighter {
        let client = Client::new(ring.life.clone(), number);
        Fighter { ring: ring.clone(), client, number, known: [0; REGISTERS.len()], lost: None }
    }

    /// Looks at what a restart left of the reservation, ends it, and writes all that is fought over.
    async fn prepare(self) {
        let ring = self.ring.clone();
        let mut session = self.client.login(&ring.volume).await.expect("the volume is exported");
        let mut asks = vec![Ask::Keys, Ask::Holder];
        if ring.reservation.borrow_mut().possible().iter().any(Reservation::is_used) {
            asks.extend([Ask::Register { persists: false }, Ask::Clear]);
        }
        for ask in asks {
            let sent = self.send(None, None, ask, None, false);
            let outcome = session.command(self.command_of(ask)).await.expect("nobody troubles this connection");
            ring.explain(&sent, &outcome);
        }
        for sectors in REGISTERS {
            let write = ring.life.model.borrow_mut().begin_write(&ring.volume, sectors.clone(), false);
            let command = Command::write(sectors.start, &contents(&sectors, write.number), true);
            let outcome = session.command(command).await.expect("nobody troubles this connection");
            assert_eq!(outcome, Outcome::Good(Vec::new()));
            ring.life.model.borrow_mut().write_done(&write, true);
            ring.registers.borrow_mut().push(History::new(Register(write.number)));
        }
        ring.life.model.borrow_mut().give_up(&ring.volume, BITS);
        let outcome = session.command(Command::write(BITS.start, &sector_of(0), true)).await;
        assert_eq!(outcome.expect("nobody troubles this connection"), Outcome::Good(Vec::new()));
        session.logout().await.expect("nobody troubles this connection");
    }

    async fn work(mut self) {
        let ring = self.ring.clone();
        while ring.life.goes_on().await {
            let Some(mut session) = self.client.login(&ring.volume).await else { continue };
            // The session that this one replaces is over, and everything that it had under way.
            if let Some(lost) = self.lost.take() {
                self.give_up(lost);
            }
            let mut used = Ok(());
            for _ in 0..1 + self.below(30) {
                if used.is_err() || !ring.life.goes_on().await {
                    break;
                }
                ring.life.trouble_a_wire(&session.wire);
                used = self.act(&mut session).await;
            }
            // Else the connection just ends.
            if used.is_ok() && self.below(2) == 0 {
                let wire = session.wire.clone();
                let left = ring.life.patiently(session.logout()).await;
                assert!(matches!(left, Some(Ok(()))) || wire.is_troubled(), "a logout is not answered");
            }
        }
    }

    fn below(&self, limit: u64) -> u64 {
        self.ring.life.world.below(limit)
    }

    async fn act(&mut self, session: &mut Session) -> Result<(), Broken> {
        match self.below(100) {
            0..24 => self.read(session).await,
            24..38 => self.write(session).await,
            38..58 => self.compare_and_write(session).await,
            58..66 => self.bits(session).await,
            66..74 => self.unmap(session).await,
            74..79 => self.flush(session).await,
            _ => self.reserve(session).await,
        }
    }

    async fn read(&mut self, session: &mut Session) -> Result<(), Broken> {
        let at = self.below(REGISTERS.len() as u64) as usize;
        let sectors = REGISTERS[at].clone();
        let sent = self.send(Some((at, Touch::Read)), None, Ask::Read, None, false);
        let command = Command::read(sectors.start, (sectors.end - sectors.start) as u32);
        if let Outcome::Good(bytes) = self.judge(sent, session, command).await? {
            self.known[at] = read_number(&sectors, &bytes);
        }
        Ok(())
    }

    async fn write(&mut self, session: &mut Session) -> Result<(), Broken> {
        let at = self.below(NARROW as u64) as usize;
        let (sectors, write) = self.begin_write(at);
        let bytes = contents(&sectors, write.number);
        let (same, fua) = (self.below(4) == 0, self.below(4) == 0);
        let command = match same {
            true => Command::write_same(sectors.start, 1, &bytes),
            false => Command::write(sectors.start, &bytes, fua),
        };
        let sent = self.send(Some((at, Touch::Write(write.number))), None, Ask::Write, Some(write), fua && !same);
        self.judge(sent, session, command).await.map(drop)
    }

    async fn compare_and_write(&mut self, session: &mut Session) -> Result<(), Broken> {
        let at = self.below(REGISTERS.len() as u64) as usize;
        let (sectors, write) = self.begin_write(at);
        let (expected, new, fua) = (self.known[at], write.number, self.below(4) == 0);
        let bytes = [contents(&sectors, expected), contents(&sectors, new)].concat();
        let touch = Touch::CompareAndWrite { expected, new };
        let sent = self.send(Some((at, touch)), None, Ask::Write, Some(write), fua);
        let command = Command::compare_and_write(sectors.start, &bytes, fua);
        if let Outcome::Good(_) = self.judge(sent, session, command).await? {
            self.known[at] = new;
        }
        Ok(())
    }

    /// Unmaps the block of a register.
    async fn unmap(&mut self, session: &mut Session) -> Result<(), Broken> {
        let write = self.ring.life.model.borrow_mut().begin_write(&self.ring.volume, UNMAPPED, true);
        let sent = self.send(Some((NARROW - 1, Touch::Write(0))), None, Ask::Write, Some(write), false);
        let command = Command::unmap(UNMAPPED.start, (UNMAPPED.end - UNMAPPED.start) as u32);
        self.judge(sent, session, command).await.map(drop)
    }

    /// Sets bits, or reads them.
    async fn bits(&mut self, session: &mut Session) -> Result<(), Broken> {
        let bits = if self.below(2) == 0 { 0 } else { 1 << self.below(64) };
        let (ask, command) = match bits {
            0 => (Ask::Read, Command::read(BITS.start, 1)),
            bits => (Ask::Write, Command::or_write(BITS.start, &sector_of(bits), false)),
        };
        let sent = self.send(None, Some(Set(bits)), ask, None, false);
        self.judge(sent, session, command).await.map(drop)
    }

    async fn flush(&mut self, session: &mut Session) -> Result<(), Broken> {
        let begun = self.ring.life.model.borrow_mut().now();
        let sent = self.send(None, None, Ask::Write, None, false);
        if let Outcome::Good(_) = self.judge(sent, session, Command::flush()).await? {
            self.ring.life.model.borrow_mut().flushed(&self.ring.volume, begun);
        }
        Ok(())
    }

    async fn reserve(&mut self, session: &mut Session) -> Result<(), Broken> {
        let victim = (self.number + 1 + self.below(self.ring.life.shape.clients - 1)) % self.ring.life.shape.clients;
        let persists = self.below(4) > 0;
        // What is held is mostly of the type that is asked for most.
        let kind = match self.below(2) {
            0 => RESERVATION_TYPES[0],
            _ => RESERVATION_TYPES[self.below(RESERVATION_TYPES.len() as u64) as usize],
        };
        let ask = match self.below(16) {
            0..5 => Ask::Register { persists },
            5 => Ask::Unregister { persists },
            6..10 => Ask::Reserve(kind),
            10 => Ask::Release(kind),
            11 => Ask::Clear,
            12 | 13 => Ask::Preempt { victim, kind },
            14 => Ask::Keys,
            _ => Ask::Holder,
        };
        let sent = self.send(None, None, ask, None, false);
        self.judge(sent, session, self.command_of(ask)).await.map(drop)
    }

    /// The command of one that is about the reservation.
    fn command_of(&self, ask: Ask) -> Command {
        let own = key(self.number);
        let out = Command::persistent_reserve_out;
        match ask {
            Ask::Register { persists } => out(6, 0, [0, own], persists),
            Ask::Unregister { persists } => out(6, 0, [0, 0], persists),
            Ask::Reserve(kind) => out(1, kind, [own, 0], false),
            Ask::Release(kind) => out(2, kind, [own, 0], false),
            Ask::Clear => out(3, 0, [own, 0], false),
            Ask::Preempt { victim, kind } => out(4, kind, [own, key(victim)], false),
            Ask::Keys => Command::persistent_reserve_in(0),
            Ask::Holder => Command::persistent_reserve_in(1),
            Ask::Read | Ask::Write => panic!("that is about the medium"),
        }
    }

    fn begin_write(&self, at: usize) -> (Range<u64>, Write) {
        let sectors = REGISTERS[at].clone();
        (sectors.clone(), self.ring.life.model.borrow_mut().begin_write(&self.ring.volume, sectors, false))
    }

    /// A command is about to be sent.
    fn send(&self, touch: Option<(usize, Touch)>, set: Option<Set>, ask: Ask, write: Option<Write>, fua: bool) -> Sent {
        let touch = touch.map(|(at, touch)| (at, self.ring.registers.borrow_mut()[at].begin(touch)));
        let bits = set.map(|set| self.ring.bits.borrow_mut().begin(set));
        let ask = (ask, self.ring.reservation.borrow_mut().begin((self.number, ask)));
        Sent { touch, bits, ask, write, fua }
    }

    /// Waits for the answer, now and then not for long, and judges it.
    async fn judge(&mut self, sent: Sent, session: &mut Session, command: Command) -> Result<Outcome, Broken> {
        let (life, wire) = (&self.ring.life, session.wire.clone());
        let impatient = life.shape.faults.network && life.world.once_in(15);
        let patience = if impatient { Duration::from_micros(self.below(5000)) } else { PATIENCE };
        let outcome = life.runtime.timers.timeout(patience, session.command(command)).await;
        if impatient && outcome.is_err() {
            // The target is not told; the next login tells it.
            wire.cut();
        }
        match outcome {
            Ok(Ok(outcome)) => {
                self.ring.explain(&sent, &outcome);
                Ok(outcome)
            }
            _ => {
                assert!(wire.is_troubled(), "an answer is missing");
                self.lost = Some(sent);
                Err(Broken)
            }
        }
    }

    /// Nobody will ever tell what came of a command.
    fn give_up(&self, lost: Sent) {
        let ring = &self.ring;
        let explained = ring.reservation.borrow_mut().lost(lost.ask.1)
            && lost.touch.is_none_or(|(at, touch)| ring.registers.borrow_mut()[at].lost(touch))
            && lost.bits.is_none_or(|bits| ring.bits.borrow_mut().lost(bits));
        assert!(explained, "what was never answered is explained by anything");
        if let Some(write) = &lost.write {
            ring.life.model.borrow_mut().write_failed(write);
        }
    }
}

/// Ends whatever reservation there is.
pub async fn end_reservation(session: &mut Session) {
    let own = key(FIRST);
    for command in
        [Command::persistent_reserve_out(6, 0, [0, own], false), Command::persistent_reserve_out(3, 0, [own, 0], false)]
    {
        let outcome = session.command(command).await.expect("a network that works");
        assert_eq!(outcome, Outcome::Good(Vec::new()), "an end of a reservation");
    }
}

/// The number of the initiator with this port: `iqn.sim:client-NUMBER,i,0xISID`.
pub fn number_of(port: &str) -> u64 {
    let number = port.rsplit_once(",i,").and_then(|(name, _)| name.rsplit_once('-')?.1.parse().ok());
    number.unwrap_or_else(|| panic!("who is {port}?"))
}

fn key(number: u64) -> u64 {
    1000 + number
}

/// What PERSISTENT RESERVE IN says.
fn said(ask: Ask, bytes: &[u8]) -> Said {
    if !matches!(ask, Ask::Keys | Ask::Holder) {
        return Said::Allowed;
    }
    let (head, list) = bytes.split_at(8);
    let len = u32::from_be_bytes(*head[4..].first_chunk().expect("a length")) as usize;
    let list = &list[..len];
    let number = |bytes: &[u8]| u64::from_be_bytes(*bytes.first_chunk().expect("a key"));
    match ask {
        Ask::Keys => Said::Keys(list.chunks_exact(8).map(|bytes| number(bytes) - key(0)).collect()),
        _ if list.is_empty() => Said::Held(None),
        // The scope, of the whole unit, is zero.
        _ => Said::Held(Some((number(list).checked_sub(key(0)).unwrap_or(EVERYBODY), list[13]))),
    }
}

impl Ring {
    /// An answer must be explained.
    fn explain(&self, sent: &Sent, outcome: &Outcome) {
        let touched = match outcome {
            Outcome::Good(bytes) => sent.touch.map(|(at, _)| match sent.write {
                Some(_) => Touched::Written,
                None => Touched::Holds(read_number(&REGISTERS[at], bytes)),
            }),
            differs if *differs == DIFFERS => Some(Touched::Differs),
            conflict if *conflict == CONFLICT => None,
            release if *release == INVALID_RELEASE => None,
            Outcome::Check(UNIT_ATTENTION, ..) => None,
            other => panic!("a command fails for no reason: {other:?}"),
        };
        self.explain_reservation(sent, outcome);
        if let Some((at, touch)) = sent.touch {
            let register = &mut self.registers.borrow_mut()[at];
            let explained = match &touched {
                Some(touched) => register.answered(touch, touched),
                None => register.refused(touch),
            };
            assert!(explained, "no order of the commands explains that register {at} answers {touched:?}");
        }
        if let Some(number) = sent.bits {
            let bits = &mut self.bits.borrow_mut();
            let explained = match outcome {
                Outcome::Good(bytes) => bits.answered(number, &words_of(bytes).next().unwrap_or(0)),
                _ => bits.refused(number),
            };
            assert!(explained, "no order of the commands explains the bits that were read: {outcome:x?}");
        }
        if let Some(write) = &sent.write {
            let mut model = self.life.model.borrow_mut();
            match touched {
                Some(Touched::Written) => model.write_done(write, sent.fua),
                _ => model.write_refused(write),
            }
        }
    }

    fn explain_reservation(&self, sent: &Sent, outcome: &Outcome) {
        let mut reservation = self.reservation.borrow_mut();
        let (ask, number) = sent.ask;
        let explained = match outcome {
            Outcome::Check(UNIT_ATTENTION, ..) => reservation.refused(number),
            Outcome::Good(bytes) => reservation.answered(number, &said(ask, bytes)),
            conflict if *conflict == CONFLICT => reservation.answered(number, &Said::Conflict),
            release if *release == INVALID_RELEASE => reservation.answered(number, &Said::OtherType),
            _ => reservation.answered(number, &Said::Allowed),
        };
        assert!(explained, "no order of the commands explains who may use the volume: {ask:?} ends with {outcome:?}");
    }
}
