//! Several initiators on one volume: they read, write, compare and write, and reserve it, all at once, over a network that
//! delays, cuts and resets. What they are answered must be explained by one order of their commands ([`crate::history`]);
//! what a power cut leaves is for the model to judge, as everywhere.

use crate::clients::Client;
use crate::history::{Ask, History, RESERVATION_TYPES, Register, Reservation, Touch, Touched};
use crate::initiator::{Broken, Outcome, Session};
use crate::life::{self, Birth, Life, PATIENCE};
use crate::manager;
use crate::model::{Write, number_of, word};
use crate::net::Wire;
use crate::recover::words_of;
use crate::site::{self, Instance, Site};
use platform::Runtime;
use platform::block::Disk;
use platform::time::Duration;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The sectors that are fought over. Those across the boundary of two data blocks only by commands that are to be atomic.
const REGISTERS: [Range<u64>; 4] = [3..4, 130..131, 127..129, 255..257];

/// Of them, so many are of one sector.
const NARROW: usize = 2;

/// MISCOMPARE DURING VERIFY OPERATION.
const DIFFERS: Outcome = Outcome::Check(0xe, 0x1d, 0);

/// RESERVATION CONFLICT.
const CONFLICT: Outcome = Outcome::Status(0x18);

/// Sense key: the command was not carried out.
const UNIT_ATTENTION: u8 = 6;

/// What everybody in a contest shares.
struct Ring {
    life: Rc<Life>,
    volume: String,
    registers: RefCell<Vec<History<Register>>>,
    reservation: RefCell<History<Reservation>>,
    /// Type of the reservations.
    kind: u8,
}

/// A command under way, as the histories and the model know it.
struct Sent {
    /// The register and the command's number there.
    touch: Option<(usize, u64)>,
    ask: u64,
    write: Option<Write>,
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
    let registers = first_writes(&life, &volume).await.into_iter().map(|number| History::new(Register(number)));
    let kind = RESERVATION_TYPES[world.below(RESERVATION_TYPES.len() as u64) as usize];
    let ring = Rc::new(Ring {
        registers: RefCell::new(registers.collect()),
        reservation: RefCell::new(History::new(Reservation::new(kind))),
        life: life.clone(),
        volume,
        kind,
    });
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

/// Writes each register; returns what is in them now.
async fn first_writes(life: &Rc<Life>, volume: &str) -> Vec<u64> {
    let login = Session::login(&life.site.iscsi, "first", 0, volume).await.expect("nobody troubles this connection");
    let mut session = login.expect("the volume is exported");
    let mut numbers = Vec::new();
    for sectors in REGISTERS {
        let write = life.model.borrow_mut().begin_write(volume, sectors.clone(), false);
        let outcome = session.write(sectors.start, &contents(&sectors, write.number), true).await;
        assert_eq!(outcome.expect("nobody troubles this connection"), Outcome::Good(Vec::new()));
        life.model.borrow_mut().write_done(&write, true);
        numbers.push(write.number);
    }
    session.logout().await.expect("nobody troubles this connection");
    numbers
}

/// What a write of this number leaves in the sectors; the first contents are zeroes.
fn contents(sectors: &Range<u64>, number: u64) -> Vec<u8> {
    let words = sectors.clone().map(|sector| if number == 0 { 0 } else { word(number, sector) });
    words.flat_map(|word| word.to_le_bytes().repeat(64)).collect()
}

/// The number of the write that left this.
fn read_number(sectors: &Range<u64>, bytes: &[u8]) -> u64 {
    let found: Vec<Option<u64>> =
        sectors.clone().zip(words_of(bytes)).map(|(sector, word)| number_of(word, sector)).collect();
    let whole = found[0].filter(|_| found.len() as u64 == sectors.end - sectors.start);
    let same = whole.filter(|_| found.iter().all(|number| *number == found[0]));
    same.unwrap_or_else(|| panic!("sectors {sectors:?}, which are always written together, hold {found:x?}"))
}

impl Fighter {
    fn new(ring: &Rc<Ring>, number: u64) -> Fighter {
        let client = Client::new(ring.life.clone(), number);
        Fighter { ring: ring.clone(), client, number, known: [0; REGISTERS.len()], lost: None }
    }

    async fn work(mut self) {
        let ring = self.ring.clone();
        while ring.life.goes_on() {
            let Some(mut session) = self.client.login(&ring.volume).await else { continue };
            // The session that this one replaces is over, and everything that it had under way.
            if let Some(lost) = self.lost.take() {
                self.give_up(lost);
            }
            let mut used = Ok(());
            for _ in 0..1 + self.below(30) {
                if used.is_err() || !ring.life.goes_on() {
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
            0..35 => self.read(session).await,
            35..55 => self.write(session).await,
            55..80 => self.compare_and_write(session).await,
            80..88 => self.flush(session).await,
            _ => self.reserve(session).await,
        }
    }

    async fn read(&mut self, session: &mut Session) -> Result<(), Broken> {
        let at = self.below(REGISTERS.len() as u64) as usize;
        let sectors = REGISTERS[at].clone();
        let sent = self.send(Some((at, Touch::Read)), Ask::Read, None);
        let wire = session.wire.clone();
        let command = session.read(sectors.start, (sectors.end - sectors.start) as u32);
        if let Outcome::Good(bytes) = self.judge(sent, &wire, command).await? {
            self.known[at] = read_number(&sectors, &bytes);
        }
        Ok(())
    }

    async fn write(&mut self, session: &mut Session) -> Result<(), Broken> {
        let at = self.below(NARROW as u64) as usize;
        let (sectors, write) = self.begin_write(at);
        let bytes = contents(&sectors, write.number);
        let sent = self.send(Some((at, Touch::Write(write.number))), Ask::Write, Some(write));
        let wire = session.wire.clone();
        self.judge(sent, &wire, session.write(sectors.start, &bytes, false)).await.map(drop)
    }

    async fn compare_and_write(&mut self, session: &mut Session) -> Result<(), Broken> {
        let at = self.below(REGISTERS.len() as u64) as usize;
        let (sectors, write) = self.begin_write(at);
        let (expected, new) = (self.known[at], write.number);
        let bytes = [contents(&sectors, expected), contents(&sectors, new)].concat();
        let sent = self.send(Some((at, Touch::CompareAndWrite { expected, new })), Ask::Write, Some(write));
        let wire = session.wire.clone();
        if let Outcome::Good(_) = self.judge(sent, &wire, session.compare_and_write(sectors.start, &bytes)).await? {
            self.known[at] = new;
        }
        Ok(())
    }

    async fn flush(&mut self, session: &mut Session) -> Result<(), Broken> {
        let begun = self.ring.life.model.borrow_mut().now();
        let sent = self.send(None, Ask::Write, None);
        let wire = session.wire.clone();
        if let Outcome::Good(_) = self.judge(sent, &wire, session.flush()).await? {
            self.ring.life.model.borrow_mut().flushed(&self.ring.volume, begun);
        }
        Ok(())
    }

    async fn reserve(&mut self, session: &mut Session) -> Result<(), Broken> {
        let victim = (self.number + 1 + self.below(self.ring.life.shape.clients - 1)) % self.ring.life.shape.clients;
        let (ask, action, own_key, action_key) = match self.below(12) {
            0..4 => (Ask::Register, 6, 0, key(self.number)),
            4 => (Ask::Unregister, 6, 0, 0),
            5..7 => (Ask::Reserve, 1, key(self.number), 0),
            7..9 => (Ask::Release, 2, key(self.number), 0),
            9 => (Ask::Clear, 3, key(self.number), 0),
            _ => (Ask::Preempt(victim), 4, key(self.number), key(victim)),
        };
        let sent = self.send(None, ask, None);
        let wire = session.wire.clone();
        let command = session.persistent_reserve_out(action, self.ring.kind, own_key, action_key);
        self.judge(sent, &wire, command).await.map(drop)
    }

    fn begin_write(&self, at: usize) -> (Range<u64>, Write) {
        let sectors = REGISTERS[at].clone();
        (sectors.clone(), self.ring.life.model.borrow_mut().begin_write(&self.ring.volume, sectors, false))
    }

    /// A command is about to be sent.
    fn send(&self, touch: Option<(usize, Touch)>, ask: Ask, write: Option<Write>) -> Sent {
        let touch = touch.map(|(at, touch)| (at, self.ring.registers.borrow_mut()[at].begin(touch)));
        Sent { touch, ask: self.ring.reservation.borrow_mut().begin((self.number, ask)), write }
    }

    /// Waits for the answer, now and then not for long, and judges it.
    async fn judge(
        &mut self,
        sent: Sent,
        wire: &Wire,
        command: impl Future<Output = Result<Outcome, Broken>>,
    ) -> Result<Outcome, Broken> {
        let life = &self.ring.life;
        let impatient = life.shape.faults.network && life.world.once_in(30);
        let patience = if impatient { Duration::from_micros(self.below(5000)) } else { PATIENCE };
        let outcome = life.runtime.timers.timeout(patience, command).await;
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
        let explained = ring.reservation.borrow_mut().lost(lost.ask)
            && lost.touch.is_none_or(|(at, touch)| ring.registers.borrow_mut()[at].lost(touch));
        assert!(explained, "what was never answered is explained by anything");
        if let Some(write) = &lost.write {
            ring.life.model.borrow_mut().write_failed(write);
        }
    }
}

fn key(number: u64) -> u64 {
    1000 + number
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
            Outcome::Check(UNIT_ATTENTION, ..) => None,
            other => panic!("a command fails for no reason: {other:?}"),
        };
        let allowed = match outcome {
            Outcome::Check(UNIT_ATTENTION, ..) => None,
            outcome => Some(*outcome != CONFLICT),
        };
        let mut reservation = self.reservation.borrow_mut();
        let explained = match allowed {
            Some(allowed) => reservation.answered(sent.ask, &allowed),
            None => reservation.refused(sent.ask),
        };
        assert!(explained, "no order of the commands explains who may use the volume: {outcome:?}");
        if let Some((at, touch)) = sent.touch {
            let register = &mut self.registers.borrow_mut()[at];
            let explained = match &touched {
                Some(touched) => register.answered(touch, touched),
                None => register.refused(touch),
            };
            assert!(explained, "no order of the commands explains that register {at} answers {touched:?}");
        }
        if let Some(write) = &sent.write {
            let mut model = self.life.model.borrow_mut();
            match touched {
                Some(Touched::Written) => model.write_done(write, false),
                _ => model.write_refused(write),
            }
        }
    }
}
