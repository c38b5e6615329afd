//! Clients that read and write volumes, and judge every answer by the model.

use crate::events::{self, Event};
use crate::faults;
use crate::initiator::{Broken, Command, Outcome, SANITIZE_FAILED, SANITIZING, Session};
use crate::life::{Life, PATIENCE};
use crate::model::{BLOCK, Reading, Volume, Write, word};
use crate::recover::words_of;
use platform::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

/// A client with at most one session.
pub struct Client {
    life: Rc<Life>,
    name: String,
    number: u64,
    /// A command has failed, and nothing was asked since.
    failed: Cell<bool>,
    /// What it has copied: from which volume, and a sector of it.
    copied: RefCell<Option<(String, u64)>>,
}

/// What a client asks for.
enum Action {
    Read(Range<u64>),
    Write {
        sectors: Range<u64>,
        fua: bool,
    },
    Zeroes(Range<u64>),
    Unmap(Range<u64>),
    /// From the same place of another volume.
    Copy {
        source: String,
        sectors: Range<u64>,
    },
    Flush,
}

/// The same once it is sent, as the model knows it.
enum Sent {
    Read(Reading),
    Write { write: Write, fua: bool },
    Zeroes(Write),
    Unmap(Write),
    Copy { write: Write, source: String },
    Flush { begun: u64 },
}

/// Of so many sessions one begins with sanitizing its volume; and where nothing of what that held may be left.
const SANITIZE_ONE_IN: u64 = 12;
const SANITIZE_ALONE_ONE_IN: u64 = 2;

/// COMMAND SEQUENCE ERROR: what a SANITIZE is told while others share blocks with the volume.
const SHARES: Outcome = Outcome::Check(5, 0x2c, 0);

/// THIRD PARTY DEVICE FAILURE: what a copy is told when one of its units fails.
const COPY_FAILED: Outcome = Outcome::Check(0x0a, 0x0d, 1);

/// Commands that one session has under way at once, at most.
const AT_ONCE_MAX: u64 = 6;

impl Client {
    pub fn new(life: Rc<Life>, number: u64) -> Client {
        Client { life, name: format!("client-{number}"), number, failed: Cell::default(), copied: RefCell::default() }
    }

    /// Works until the life is over.
    pub async fn work(self) {
        while self.life.goes_on().await {
            let Some(volume) = self.any_volume() else {
                self.pause(2000).await;
                continue;
            };
            self.life.model.borrow_mut().volume(&volume).users += 1;
            self.visit(&volume).await;
            if let Some(volume) = self.life.model.borrow_mut().volumes.get_mut(&volume) {
                volume.users -= 1;
            }
        }
    }

    /// Writes a sector in each of some blocks of a new volume, in any order.
    pub async fn fill(self, volume: &str) {
        let Some(mut session) = self.login(volume).await else { return };
        let size = *self.life.model.borrow_mut().volume(volume).size_sectors.known().expect("nobody resizes it");
        let mut written = BTreeSet::new();
        while (written.len() as u64) < self.life.shape.filled_blocks {
            let sector = self.below(size);
            if !written.insert(sector / BLOCK) {
                continue;
            }
            let write = Action::Write { sectors: sector..sector + 1, fua: false };
            self.act(&mut session, volume, vec![write]).await.expect("nobody troubles this connection");
        }
        self.act(&mut session, volume, vec![Action::Flush]).await.expect("nobody troubles this connection");
        session.logout().await.expect("nobody troubles this connection");
    }

    fn below(&self, limit: u64) -> u64 {
        self.life.world.below(limit)
    }

    async fn pause(&self, most_micros: u64) {
        let micros = self.below(most_micros);
        self.life.runtime.timers.sleep(Duration::from_micros(micros)).await;
    }

    /// A volume that can be logged in to.
    fn any_volume(&self) -> Option<String> {
        let model = self.life.model.borrow();
        let usable = model.volumes.iter().filter(|(_, volume)| volume.is_usable() || volume.ends_empty());
        let names: Vec<&String> = usable.map(|(name, _)| name).collect();
        if names.is_empty() {
            return None;
        }
        if let Some((source, _)) = self.copied.borrow().as_ref().filter(|(source, _)| names.contains(&source)) {
            return Some(source.clone());
        }
        let any = names[self.below(names.len() as u64) as usize];
        // What a snapshot holds is still undecided where it is young.
        let youngest = model.youngest(&names).filter(|_| self.life.world.once_in(4));
        Some(youngest.unwrap_or(any).clone())
    }

    /// A session with some commands.
    async fn visit(&self, volume: &str) {
        let Some(mut session) = self.login(volume).await else { return self.pause(2000).await };
        let wire = session.wire.clone();
        // Who loses a session does not know when the target does.
        let sure = !self.life.shape.faults.network;
        if sure {
            self.life.model.borrow_mut().session_begun(volume);
        }
        let used = match self.life.patiently(self.sanitize(&mut session, volume)).await {
            Some(Ok(true)) => self.use_session(&mut session, volume).await,
            Some(Ok(false)) => Ok(()),
            _ => Err(Broken),
        };
        // What is read-only could not be written.
        self.copied.borrow_mut().take_if(|(source, _)| source == volume);
        if sure {
            self.life.model.borrow_mut().session_over(volume);
        }
        let left = if used.is_ok() { self.life.patiently(session.logout()).await } else { None };
        assert!(matches!(left, Some(Ok(()))) || wire.is_troubled(), "an answer is missing");
    }

    /// `None` if there is a reason for which it is refused.
    pub async fn login(&self, volume: &str) -> Option<Session> {
        let timers = &self.life.runtime.timers;
        let until = timers.now() + PATIENCE;
        loop {
            let login = Session::login(&self.life.site.iscsi, &self.name, self.number as u8, volume);
            match self.life.patiently(login).await {
                Some(Ok(Ok(session))) => return Some(session),
                Some(Ok(Err(why))) => {
                    assert!(self.life.troubled.get(), "volume {volume} refuses a login: {why:?}");
                    return None;
                }
                // The target has dropped it; an initiator tries again, but not for ever.
                Some(Err(Broken)) if self.login_may_take_long() => {
                    assert!(timers.now() < until, "a login is not answered again and again");
                    self.pause(1_000_000).await;
                }
                _ => panic!("a login is not answered"),
            }
        }
    }

    /// Longer than the target allows: a disk hangs, or a write waits for space that is from a session which the network
    /// broke and this login replaces.
    fn login_may_take_long(&self) -> bool {
        let faults = self.life.shape.faults;
        let no_space = self.life.shape.tight || faults.full;
        faults.errors || no_space && faults.network
    }

    async fn use_session(&self, session: &mut Session, volume: &str) -> Result<(), Broken> {
        let filling = self.life.shape.filled_blocks > 0 && self.life.world.once_in(2);
        for _ in 0..1 + self.below(30) {
            if !self.life.goes_on().await {
                break;
            }
            self.life.trouble_a_wire(&session.wire);
            let actions = self.next_actions(volume, filling);
            self.life.patiently(self.act(session, volume, actions)).await.ok_or(Broken)??;
            if self.life.world.once_in(4) {
                self.pause(500).await;
            }
        }
        Ok(())
    }

    /// Now and then sanitizes the volume, or waits for the end of that; false if it cannot be used now.
    async fn sanitize(&self, session: &mut Session, volume: &str) -> Result<bool, Broken> {
        let ends_empty = self.life.model.borrow_mut().volume(volume).ends_empty();
        if ends_empty {
            return self.sanitized(session, volume).await;
        }
        let alone = self.life.model.borrow_mut().volume(volume).is_alone();
        let one_in = if alone { SANITIZE_ALONE_ONE_IN } else { SANITIZE_ONE_IN };
        if !self.life.world.once_in(one_in) || !self.life.model.borrow_mut().begin_sanitize(volume) {
            return Ok(self.life.model.borrow_mut().volume(volume).is_settled());
        }
        let immediate = self.life.world.once_in(2);
        let _asked = events::asked(Event::Sanitize);
        let outcome = session.command(Command::sanitize(immediate)).await?;
        match outcome {
            Outcome::Good(_) if immediate => {
                self.life.model.borrow_mut().sanitize_begun(volume);
                if !self.sanitized(session, volume).await? {
                    return Ok(false);
                }
            }
            Outcome::Good(_) => self.life.model.borrow_mut().sanitized(volume),
            SHARES => self.life.model.borrow_mut().not_sanitized(volume),
            // Nobody knows how far it came.
            other => return Ok(self.is_good("a sanitize", &other)),
        }
        // What it left on the disk matters now.
        self.pause(1000).await;
        Ok(true)
    }

    /// Waits until nothing is left of what the volume held; false if that failed.
    async fn sanitized(&self, session: &mut Session, volume: &str) -> Result<bool, Broken> {
        loop {
            match session.command(Command::test_unit_ready()).await? {
                Outcome::Good(_) => break,
                SANITIZING => self.pause(2000).await,
                SANITIZE_FAILED if self.life.model.borrow_mut().volume(volume).may_fail_to_be_sanitized() => {
                    return Ok(false);
                }
                other => return Ok(self.is_good("a sanitize", &other)),
            }
        }
        let mut model = self.life.model.borrow_mut();
        // Another client may have been the first to see it.
        if model.volume(volume).ends_empty() {
            model.sanitized(volume);
        }
        Ok(true)
    }

    /// What to ask for next, all of it at once.
    fn next_actions(&self, volume: &str, filling: bool) -> Vec<Action> {
        let (size, read_only) = {
            let mut model = self.life.model.borrow_mut();
            let volume = model.volume(volume);
            (*volume.size_sectors.known().expect("nobody resizes it"), volume.read_only)
        };
        if read_only {
            return vec![self.some_read(volume, size)];
        }
        // Who was told of a failure wants to know what is left.
        if self.failed.take() {
            return vec![Action::Flush];
        }
        // What is written there now must not be in the copy.
        if let Some((_, sector)) =
            self.copied.borrow_mut().take_if(|(source, sector)| source == volume && *sector < size)
        {
            return vec![Action::Write { sectors: sector..sector + 1, fua: self.life.world.once_in(4) }];
        }
        if filling {
            // Mostly into blocks that are not mapped yet.
            let sector = self.below(size);
            return vec![Action::Write { sectors: sector..sector + 1, fua: self.life.world.once_in(12) }];
        }
        if self.life.world.once_in(4) {
            return self.actions_at_once(size);
        }
        if self.life.shape.copies && self.life.world.once_in(3) {
            return vec![self.some_copy(volume, size)];
        }
        vec![self.some_action(volume, size)]
    }

    fn some_action(&self, volume: &str, size: u64) -> Action {
        match self.below(100) {
            0..48 => Action::Write { sectors: self.some_sectors(size), fua: self.life.world.once_in(16) },
            48..52 => Action::Zeroes(self.some_sectors(size)),
            52..70 => self.some_read(volume, size),
            70..90 => Action::Unmap(self.sectors_to_unmap(size)),
            _ => Action::Flush,
        }
    }

    /// From a volume that nobody else has.
    fn some_copy(&self, volume: &str, size: u64) -> Action {
        let model = self.life.model.borrow();
        let quiet = |alone: bool| {
            let fits =
                move |name: &str, other: &Volume| name != volume && other.is_quiet() && (!alone || other.is_alone());
            let names = model.volumes.iter().filter(move |(name, other)| fits(name, other)).map(|(name, _)| name);
            names.collect::<Vec<_>>()
        };
        // Blocks that others have are copied as data.
        let alone = quiet(true);
        let sources = if alone.is_empty() || self.life.world.once_in(4) { quiet(false) } else { alone };
        if sources.is_empty() {
            return Action::Flush;
        }
        let source = sources[self.below(sources.len() as u64) as usize];
        let (doubtful, sure) = model.blocks(source);
        let held: Vec<u64> = doubtful.into_iter().chain(sure).filter(|block| (block + 1) * BLOCK <= size).collect();
        if held.is_empty() {
            return Action::Flush;
        }
        let begin = held[self.below(held.len() as u64) as usize] * BLOCK;
        let skew = if self.life.world.once_in(4) { self.below(BLOCK) } else { 0 };
        let end = begin + (1 + self.below(4)) * BLOCK + skew / 2;
        let source_size = *model.volumes[source].size_sectors.known().expect("nobody resizes it");
        let sectors = (begin + skew).min(source_size - 1)..end.min(size).min(source_size);
        if sectors.is_empty() { Action::Flush } else { Action::Copy { source: source.clone(), sectors } }
    }

    /// Several at once, of which most meet in one block.
    fn actions_at_once(&self, size: u64) -> Vec<Action> {
        let first = self.below(size / BLOCK) * BLOCK;
        let block = first..first + BLOCK;
        let some = || {
            let at = first + self.below(BLOCK);
            at..(at + 1 + self.below(12)).min(block.end)
        };
        let action = |_| match self.below(16) {
            0..6 => Action::Write { sectors: some(), fua: self.life.world.once_in(12) },
            6..9 => Action::Read(some()),
            9..12 => Action::Unmap(block.clone()),
            12 => Action::Zeroes(some()),
            13 => Action::Flush,
            14 => Action::Unmap(self.sectors_to_unmap(size)),
            _ => Action::Write { sectors: self.some_sectors(size), fua: false },
        };
        (0..2 + self.below(AT_ONCE_MAX - 1)).map(action).collect()
    }

    /// Often where nobody knows what is there.
    fn some_read(&self, volume: &str, size: u64) -> Action {
        let mut doubtful = self.life.model.borrow().doubtful_blocks(volume);
        // What was under way as the volume went back to a smaller snapshot may be beyond its end.
        doubtful.retain(|block| block * BLOCK < size);
        if doubtful.is_empty() || self.life.world.once_in(2) {
            return Action::Read(self.some_sectors(size));
        }
        let first = doubtful[self.below(doubtful.len() as u64) as usize] * BLOCK;
        Action::Read(first..(first + BLOCK).min(size))
    }

    /// A part of a block, a whole one, or across a boundary.
    fn some_sectors(&self, size: u64) -> Range<u64> {
        let blocks = size / BLOCK;
        // The first blocks more often than the others.
        let first = self.below(blocks).min(self.below(blocks)) * BLOCK;
        let (at, len) = match self.below(10) {
            0..7 => (first + self.below(BLOCK), 1 + self.below(12)),
            7..9 => (first, BLOCK),
            _ => (first + self.below(BLOCK), 1 + self.below(BLOCK + 20)),
        };
        at..(at + len).min(size)
    }

    /// Mostly whole blocks, now and then many.
    fn sectors_to_unmap(&self, size: u64) -> Range<u64> {
        let blocks = size / BLOCK;
        let first = self.below(blocks);
        let count = if self.life.world.once_in(6) { 1 + self.below(blocks.min(400)) } else { 1 + self.below(3) };
        let skew = if self.life.world.once_in(3) { self.below(BLOCK) } else { 0 };
        let begin = first * BLOCK + skew;
        begin..((first + count) * BLOCK + skew / 2).min(size).max(begin + 1)
    }

    /// Whether a command ended well; if not there must be a reason for it.
    fn is_good(&self, what: &str, outcome: &Outcome) -> bool {
        let good = matches!(outcome, Outcome::Good(_));
        assert!(good || self.life.troubled.get(), "{what} fails for no reason: {outcome:?}");
        self.failed.set(self.failed.get() || !good);
        good
    }

    /// Overwrites parts of a volume until a command fails, which is returned, or so many were done.
    pub async fn overwrite(&self, volume: &str, commands: u64) -> Option<Outcome> {
        let mut session = self.login(volume).await?;
        for _ in 0..commands {
            let size = *self.life.model.borrow_mut().volume(volume).size_sectors.known().expect("nobody resizes it");
            let action = match self.below(6) {
                0 => Action::Flush,
                _ => Action::Write { sectors: self.some_sectors(size), fua: false },
            };
            let outcome = self.try_one(&mut session, volume, action).await.expect("nobody troubles this connection");
            if !matches!(outcome, Outcome::Good(_)) {
                return Some(outcome);
            }
            self.pause(20_000).await;
        }
        session.logout().await.expect("nobody troubles this connection");
        None
    }

    /// Asks for this, all of it at once, and judges the answers: a failure must have a reason.
    async fn act(&self, session: &mut Session, volume: &str, actions: Vec<Action>) -> Result<(), Broken> {
        let (sent, commands): (Vec<Sent>, Vec<Command>) =
            actions.into_iter().map(|action| self.begin(volume, action)).unzip();
        session.all(&commands, |number, outcome| self.judge(volume, &sent[number], &outcome)).await
    }

    /// Asks for something that may fail.
    async fn try_one(&self, session: &mut Session, volume: &str, action: Action) -> Result<Outcome, Broken> {
        let (sent, command) = self.begin(volume, action);
        let mut ended = None;
        session.all(&[command], |_, outcome| ended = Some(outcome)).await?;
        let outcome = ended.expect("it was answered");
        self.end(volume, &sent, &outcome);
        Ok(outcome)
    }

    /// Something is about to be asked for.
    fn begin(&self, volume: &str, action: Action) -> (Sent, Command) {
        let mut model = self.life.model.borrow_mut();
        let len = |sectors: &Range<u64>| (sectors.end - sectors.start) as u32;
        match action {
            Action::Read(sectors) => {
                let command = Command::read(sectors.start, len(&sectors));
                (Sent::Read(model.begin_read(volume, sectors)), command)
            }
            Action::Write { sectors, fua } => {
                let write = model.begin_write(volume, sectors.clone(), false);
                let command = Command::write(sectors.start, &contents(&write), fua);
                (Sent::Write { write, fua }, command)
            }
            Action::Zeroes(sectors) => {
                let command = Command::write_same(sectors.start, len(&sectors), &[0; 512]);
                (Sent::Zeroes(model.begin_write(volume, sectors, true)), command)
            }
            // Unmapped space reads as zero.
            Action::Unmap(sectors) => {
                let command = Command::unmap(sectors.start, len(&sectors));
                (Sent::Unmap(model.begin_write(volume, sectors, true)), command)
            }
            Action::Copy { source, sectors } => {
                let write = model.begin_copy(volume, &source, sectors.clone());
                let command = Command::copy(&model.naa(&source), sectors.start, len(&sectors) as u16);
                (Sent::Copy { write, source }, command)
            }
            Action::Flush => (Sent::Flush { begun: model.now() }, Command::flush()),
        }
    }

    fn judge(&self, volume: &str, sent: &Sent, outcome: &Outcome) {
        let what = match sent {
            Sent::Read(_) => "a read",
            Sent::Write { .. } => "a write",
            Sent::Zeroes(_) => "a write of zeroes",
            Sent::Unmap(_) => "an unmap",
            Sent::Copy { .. } => "a copy",
            Sent::Flush { .. } => "a flush",
        };
        let begun = match sent {
            Sent::Read(reading) => reading.begun(),
            Sent::Write { write, .. } | Sent::Zeroes(write) | Sent::Unmap(write) | Sent::Copy { write, .. } => {
                write.begun
            }
            Sent::Flush { begun } => *begun,
        };
        let refused = matches!(*outcome, SANITIZING | SANITIZE_FAILED | COPY_FAILED)
            && self.life.model.borrow_mut().volume(volume).may_be_sanitized_since(begun);
        if !refused {
            self.is_good(what, outcome);
        }
        self.end(volume, sent, outcome);
    }

    /// What came of it is known.
    fn end(&self, volume: &str, sent: &Sent, outcome: &Outcome) {
        let mut model = self.life.model.borrow_mut();
        if let Sent::Copy { source, write } = sent {
            model.copied(source);
            self.copied.replace(Some((source.clone(), write.sectors.start)));
        }
        match (sent, outcome) {
            (Sent::Read(reading), Outcome::Good(bytes)) => {
                assert_eq!(bytes.len() as u64, reading.sectors() * 512, "a read is answered in full");
                let objection = model.end_read(volume, reading, words_of(bytes));
                assert!(objection.is_none() || faults::lied(), "volume {volume}: {}", objection.unwrap_or_default());
            }
            (Sent::Write { write, fua }, Outcome::Good(_)) => model.write_done(write, *fua),
            (Sent::Zeroes(write) | Sent::Copy { write, .. }, Outcome::Good(_)) => model.write_done(write, false),
            // In a read-only pool it succeeds and does nothing (reference 9.1, trap 26).
            (Sent::Unmap(write), Outcome::Good(_)) if model.needs_check.known() == Some(&false) => {
                model.write_done(write, false);
            }
            (Sent::Write { write, .. } | Sent::Zeroes(write) | Sent::Unmap(write) | Sent::Copy { write, .. }, _) => {
                model.write_failed(write)
            }
            (Sent::Flush { begun }, Outcome::Good(_)) => model.flushed(volume, *begun),
            (Sent::Read(_) | Sent::Flush { .. }, _) => {}
        }
    }
}

/// The bytes of a write.
fn contents(write: &Write) -> Vec<u8> {
    let words = write.sectors.clone().map(|sector| word(write.number, sector));
    words.flat_map(|word| word.to_le_bytes().repeat(64)).collect()
}
