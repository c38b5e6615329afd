//! Clients that read and write volumes, and judge every answer by the model.

use crate::faults;
use crate::initiator::{Broken, Outcome, Session};
use crate::life::{Life, PATIENCE};
use crate::model::{BLOCK, Word, Write, word};
use crate::recover::words_of;
use platform::time::Duration;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

/// A client with at most one session.
pub struct Client {
    life: Rc<Life>,
    name: String,
    number: u64,
}

impl Client {
    pub fn new(life: Rc<Life>, number: u64) -> Client {
        Client { life, name: format!("client-{number}"), number }
    }

    /// Works until the life is over.
    pub async fn work(self) {
        while self.life.goes_on() {
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
            self.write(&mut session, volume, sector..sector + 1, false).await.expect("nobody troubles this connection");
        }
        self.flush(&mut session, volume).await.expect("nobody troubles this connection");
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
        let usable = model.volumes.iter().filter(|(_, volume)| volume.is_usable());
        let names: Vec<&String> = usable.map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| names[self.below(names.len() as u64) as usize].clone())
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
        let used = self.use_session(&mut session, volume).await;
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
            if !self.life.goes_on() {
                break;
            }
            self.life.trouble_a_wire(&session.wire);
            self.life.patiently(self.command(session, volume, filling)).await.ok_or(Broken)??;
            if self.life.world.once_in(4) {
                self.pause(500).await;
            }
        }
        Ok(())
    }

    async fn command(&self, session: &mut Session, volume: &str, filling: bool) -> Result<(), Broken> {
        let (size, read_only) = {
            let mut model = self.life.model.borrow_mut();
            let volume = model.volume(volume);
            (*volume.size_sectors.known().expect("nobody resizes it"), volume.read_only)
        };
        if read_only {
            return self.read(session, volume, self.some_sectors(size)).await;
        }
        if filling {
            // Mostly into blocks that are not mapped yet.
            let sector = self.below(size);
            return self.write(session, volume, sector..sector + 1, self.life.world.once_in(12)).await;
        }
        match self.below(100) {
            0..45 => self.write(session, volume, self.some_sectors(size), self.life.world.once_in(12)).await,
            45..50 => self.write_and_unmap(session, volume, self.below(size)).await,
            50..53 => self.write_zeroes(session, volume, self.some_sectors(size)).await,
            53..68 => self.read(session, volume, self.some_sectors(size)).await,
            68..84 => self.unmap(session, volume, self.sectors_to_unmap(size)).await,
            _ => self.flush(session, volume).await,
        }
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

    /// Keeps others away from some sectors; false if somebody is there.
    fn claim(&self, volume: &str, sectors: &Range<u64>) -> bool {
        self.life.model.borrow_mut().claim(volume, sectors)
    }

    fn release(&self, volume: &str, sectors: &Range<u64>) {
        self.life.model.borrow_mut().release(volume, sectors);
    }

    /// Whether a command ended well; if not there must be a reason for it.
    fn is_good(&self, what: &str, outcome: &Outcome) -> bool {
        let good = matches!(outcome, Outcome::Good(_));
        assert!(good || self.life.troubled.get(), "{what} fails for no reason: {outcome:?}");
        good
    }

    /// Overwrites parts of a volume until a command fails, which is returned, or so many were done.
    pub async fn overwrite(&self, volume: &str, commands: u64) -> Option<Outcome> {
        let mut session = self.login(volume).await?;
        for _ in 0..commands {
            let size = *self.life.model.borrow_mut().volume(volume).size_sectors.known().expect("nobody resizes it");
            let done = match self.below(6) {
                0 => Some(self.try_flush(&mut session, volume).await),
                _ => self.try_write(&mut session, volume, self.some_sectors(size), false).await.transpose(),
            };
            let outcome = done.map(|done| done.expect("nobody troubles this connection"));
            if let Some(failed) = outcome.filter(|outcome| !matches!(outcome, Outcome::Good(_))) {
                return Some(failed);
            }
            self.pause(20_000).await;
        }
        session.logout().await.expect("nobody troubles this connection");
        None
    }

    async fn write(&self, session: &mut Session, volume: &str, sectors: Range<u64>, fua: bool) -> Result<(), Broken> {
        let outcome = self.try_write(session, volume, sectors, fua).await?;
        if let Some(outcome) = outcome {
            self.is_good("a write", &outcome);
        }
        Ok(())
    }

    /// `None` if somebody else works on these sectors.
    async fn try_write(
        &self,
        session: &mut Session,
        volume: &str,
        sectors: Range<u64>,
        fua: bool,
    ) -> Result<Option<Outcome>, Broken> {
        if !self.claim(volume, &sectors) {
            return Ok(None);
        }
        let write = self.life.model.borrow_mut().begin_write(volume, sectors.clone(), false);
        let bytes = contents(&write);
        let outcome = session.write(sectors.start, &bytes, fua).await?;
        self.end_write(&write, matches!(outcome, Outcome::Good(_)), fua);
        self.release(volume, &sectors);
        Ok(Some(outcome))
    }

    async fn write_zeroes(&self, session: &mut Session, volume: &str, sectors: Range<u64>) -> Result<(), Broken> {
        if !self.claim(volume, &sectors) {
            return Ok(());
        }
        let write = self.life.model.borrow_mut().begin_write(volume, sectors.clone(), true);
        let outcome = session.write_zeroes(sectors.start, (sectors.end - sectors.start) as u32).await?;
        self.end_write(&write, self.is_good("a write of zeroes", &outcome), false);
        self.release(volume, &sectors);
        Ok(())
    }

    async fn unmap(&self, session: &mut Session, volume: &str, sectors: Range<u64>) -> Result<(), Broken> {
        if !self.claim(volume, &sectors) {
            return Ok(());
        }
        // Unmapped space reads as zero.
        let write = self.life.model.borrow_mut().begin_write(volume, sectors.clone(), true);
        let outcome = session.unmap(sectors.start, (sectors.end - sectors.start) as u32).await?;
        self.end_unmap(&write, &outcome);
        self.release(volume, &sectors);
        Ok(())
    }

    /// What came of an unmap is known.
    fn end_unmap(&self, write: &Write, outcome: &Outcome) {
        // In a read-only pool it succeeds and does nothing (reference 9.1, trap 26).
        let read_only = self.life.model.borrow().needs_check.known() != Some(&false);
        self.end_write(write, self.is_good("an unmap", outcome) && !read_only, false);
    }

    /// What came of a write is known.
    fn end_write(&self, write: &Write, done: bool, durable: bool) {
        let mut model = self.life.model.borrow_mut();
        if done { model.write_done(write, durable) } else { model.write_failed(write) }
    }

    /// Writes a sector, and at the same time unmaps the block that it is in: either may be the last.
    async fn write_and_unmap(&self, session: &mut Session, volume: &str, sector: u64) -> Result<(), Broken> {
        // Where a block is mapped nothing but the unmap has to wait for the write.
        self.write(session, volume, sector..sector + 1, false).await?;
        let first = sector / BLOCK * BLOCK;
        let sectors = first..first + BLOCK;
        if !self.claim(volume, &sectors) {
            return Ok(());
        }
        let write = self.life.model.borrow_mut().begin_write(volume, sector..sector + 1, false);
        let unmap = self.life.model.borrow_mut().begin_write(volume, sectors.clone(), true);
        let (written, unmapped) = session.write_and_unmap(sector, &contents(&write), first, BLOCK as u32).await?;
        self.end_write(&write, self.is_good("a write", &written), false);
        self.end_unmap(&unmap, &unmapped);
        self.release(volume, &sectors);
        Ok(())
    }

    async fn read(&self, session: &mut Session, volume: &str, sectors: Range<u64>) -> Result<(), Broken> {
        if !self.claim(volume, &sectors) {
            return Ok(());
        }
        let begun = self.life.model.borrow_mut().now();
        let outcome = session.read(sectors.start, (sectors.end - sectors.start) as u32).await?;
        // It may have seen what was there before.
        let exchanged = self.life.model.borrow_mut().volume(volume).is_exchanged_since(begun);
        if let Outcome::Good(bytes) = &outcome {
            assert_eq!(bytes.len() as u64, (sectors.end - sectors.start) * 512, "a read is answered in full");
            if !exchanged {
                self.compare(volume, sectors.start, words_of(bytes));
            }
        } else {
            self.is_good("a read", &outcome);
        }
        self.release(volume, &sectors);
        Ok(())
    }

    fn compare(&self, volume: &str, first: u64, words: impl Iterator<Item = Word>) {
        let model = self.life.model.borrow();
        for (sector, word) in (first..).zip(words) {
            assert!(
                model.may_read(volume, sector, word) || faults::lied(),
                "sector {sector} of volume {volume} reads as {word:x}, not {}",
                model.describe(volume, sector)
            );
        }
    }

    async fn flush(&self, session: &mut Session, volume: &str) -> Result<(), Broken> {
        let outcome = self.try_flush(session, volume).await?;
        self.is_good("a flush", &outcome);
        Ok(())
    }

    async fn try_flush(&self, session: &mut Session, volume: &str) -> Result<Outcome, Broken> {
        let begun = self.life.model.borrow_mut().now();
        let outcome = session.flush().await?;
        if let Outcome::Good(_) = outcome {
            self.life.model.borrow_mut().flushed(volume, begun);
        }
        Ok(outcome)
    }
}

/// The bytes of a write.
fn contents(write: &Write) -> Vec<u8> {
    let words = write.sectors.clone().map(|sector| word(write.number, sector));
    words.flat_map(|word| word.to_le_bytes().repeat(64)).collect()
}
