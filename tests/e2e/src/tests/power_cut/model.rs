//! What each sector of a volume may hold, and the load that makes it hold something.
//!
//! Every write has a number of its own, its version, and fills its sectors with that number and the sector's place.
//! So what is read tells which write it came from, and one that belongs elsewhere is seen at once.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Result, bail};
use xtask::dice::Dice;

use crate::iscsi::{BLOCK_BYTES, Error, Session};

/// Commands in flight at a time.
const DEPTH: usize = 8;

/// The contents of a sector that this version wrote; version 0 is zeroes.
fn render(version: u64, lba: u64) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    if version != 0 {
        let words = [version.to_le_bytes(), lba.to_le_bytes()];
        for (word, place) in words.iter().cycle().zip(bytes.as_chunks_mut::<8>().0) {
            *place = *word;
        }
    }
    bytes
}

/// The version that a sector's contents claim.
fn version_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

/// A volume as it may be.
#[derive(Clone)]
pub struct Model {
    /// The volume's name.
    pub name: String,
    /// For each sector the versions it may hold after a power cut, oldest first. The last is what it holds now.
    sectors: Vec<Vec<u64>>,
    /// Writes acknowledged since the last flush was.
    acknowledged: Vec<(Range<u64>, u64)>,
}

impl Model {
    /// A new volume: all zero.
    pub fn new(name: &str, sectors: u64) -> Model {
        Model { name: name.to_owned(), sectors: vec![vec![0]; sectors as usize], acknowledged: Vec::new() }
    }

    /// The same contents under another name.
    pub fn snapshot(&self, name: &str) -> Model {
        Model { name: name.to_owned(), ..self.clone() }
    }

    /// How many sectors it has.
    pub fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    fn issued(&mut self, range: Range<u64>, version: u64) {
        self.sectors[range.start as usize..range.end as usize].iter_mut().for_each(|versions| versions.push(version));
    }

    /// These writes are durable: what was there before them cannot come back.
    fn durable(&mut self, writes: &[(Range<u64>, u64)]) {
        for (range, version) in writes {
            for versions in &mut self.sectors[range.start as usize..range.end as usize] {
                // A later flush or FUA write may have taken it off the list already.
                if let Some(at) = versions.iter().position(|candidate| candidate == version) {
                    versions.drain(..at);
                }
            }
        }
    }

    /// Reads the whole volume; each sector must hold what it may, and from then on holds that.
    pub fn verify(&mut self, session: &mut Session) -> Result<Verdict> {
        let bytes = session.read(0, self.sectors.len())?;
        let mut verdict = Verdict::default();
        for ((lba, versions), bytes) in self.sectors.iter_mut().enumerate().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
            let found = version_of(bytes);
            if *bytes != render(found, lba as u64) {
                verdict.wrong.push(format!("volume {} sector {lba}: torn or foreign contents {found:#x}", self.name));
            } else if !versions.contains(&found) {
                let line = format!("volume {} sector {lba}: version {found}, may be {versions:?}", self.name);
                verdict.wrong.push(line);
            }
            verdict.open += usize::from(versions.len() > 1);
            verdict.older += usize::from(versions.last() != Some(&found));
            *versions = vec![found];
        }
        self.acknowledged.clear();
        Ok(verdict)
    }
}

/// What reading a volume back showed.
#[derive(Default)]
pub struct Verdict {
    /// Sectors that hold what they must not.
    pub wrong: Vec<String>,
    /// Sectors that might have held several things.
    pub open: usize,
    /// Of these, the ones that did not keep the newest.
    pub older: usize,
}

enum Command {
    Write { range: Range<u64>, version: u64, fua: bool },
    Flush { covers: usize },
}

/// A mixed load on one volume until the power goes.
pub struct Load<'a> {
    session: &'a mut Session,
    model: &'a mut Model,
    dice: &'a mut Dice,
    next_version: &'a mut dyn FnMut() -> u64,
    in_flight: HashMap<u32, Command>,
}

impl<'a> Load<'a> {
    /// A load on `model`'s volume; `next_version` numbers the writes of all volumes.
    pub fn new(
        session: &'a mut Session,
        model: &'a mut Model,
        dice: &'a mut Dice,
        next_version: &'a mut dyn FnMut() -> u64,
    ) -> Load<'a> {
        Load { session, model, dice, next_version, in_flight: HashMap::new() }
    }

    /// So many commands, then waits for all of them.
    pub fn run(&mut self, commands: u64) -> Result<()> {
        for _ in 0..commands {
            while self.in_flight.len() >= DEPTH {
                self.complete()?;
            }
            self.submit()?;
        }
        while !self.in_flight.is_empty() {
            self.complete()?;
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<(), Error> {
        let kind = self.dice.below(100);
        if kind < 12 {
            let covers = self.model.acknowledged.len();
            let flushing = self.in_flight.values().any(|command| matches!(command, Command::Flush { .. }));
            if !flushing {
                let tag = self.session.submit_flush()?;
                self.in_flight.insert(tag, Command::Flush { covers });
            }
            return Ok(());
        }
        let Some(range) = self.free_range() else { return Ok(()) };
        // From here on the power may go: the model must know before the command is sent.
        if kind < 20 {
            self.model.issued(range.clone(), 0);
            let tag = self.session.submit_unmap(range.start, (range.end - range.start) as u32)?;
            self.in_flight.insert(tag, Command::Write { range, version: 0, fua: false });
            return Ok(());
        }
        let version = (self.next_version)();
        let fua = self.dice.chance(10);
        self.model.issued(range.clone(), version);
        let data = range.clone().flat_map(|lba| render(version, lba)).collect();
        let tag = self.session.submit_write(range.start, data, fua)?;
        self.in_flight.insert(tag, Command::Write { range, version, fua });
        Ok(())
    }

    /// A range that no command in flight touches: half of them small, half in the first eighth of the volume.
    fn free_range(&mut self) -> Option<Range<u64>> {
        let sectors = self.model.len();
        let len = if self.dice.chance(50) { self.dice.between(1, 16) } else { 8 * self.dice.between(1, 32) };
        let within = if self.dice.chance(50) { sectors / 8 } else { sectors };
        let start = self.dice.below(within - len);
        let start = if self.dice.chance(60) { start & !7 } else { start };
        let overlaps = |command: &Command| match command {
            Command::Write { range, .. } => range.start < start + len && start < range.end,
            Command::Flush { .. } => false,
        };
        (!self.in_flight.values().any(overlaps)).then_some(start..start + len)
    }

    fn complete(&mut self) -> Result<()> {
        let completion = self.session.complete()?;
        let Some(command) = self.in_flight.remove(&completion.tag) else {
            bail!("the answer to a command that was not sent: tag {}", completion.tag);
        };
        completion.result?;
        match command {
            Command::Write { range, version, fua } => {
                let write = [(range, version)];
                if fua {
                    self.model.durable(&write);
                }
                self.model.acknowledged.extend(write);
            }
            Command::Flush { covers } => {
                let flushed: Vec<_> = self.model.acknowledged.drain(..covers).collect();
                self.model.durable(&flushed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_ends_the_choice_of_what_came_before_it() {
        let mut model = Model::new("v", 4);
        model.issued(0..2, 7);
        model.issued(1..3, 8);
        assert_eq!(model.sectors, [vec![0, 7], vec![0, 7, 8], vec![0, 8], vec![0]]);
        model.durable(&[(0..2, 7)]);
        assert_eq!(model.sectors, [vec![7], vec![7, 8], vec![0, 8], vec![0]]);
        model.durable(&[(1..3, 8)]);
        assert_eq!(model.sectors, [vec![7], vec![8], vec![8], vec![0]]);
    }

    #[test]
    fn contents_tell_their_version_and_place() {
        assert_eq!(version_of(&render(5, 9)), 5);
        assert_ne!(render(5, 9), render(5, 10));
        assert_eq!(render(0, 9), [0; BLOCK_BYTES]);
    }
}
