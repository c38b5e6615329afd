//! Disks of many pools side by side: each history has a slot on two disks of the guest, and the same bytes in memory for
//! our side.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result};
use platform::block::SECTOR_BYTES;
use platform::mem::MemDisk;

use crate::script::{Extent, pattern};

const CHUNK_SECTORS: u64 = 128;

/// The seed of the external origins' contents.
const ORIGIN_SEED: u64 = 0x0121_6114;

/// A disk of that many sectors, full of what tells each sector.
pub fn patterned(sectors: u64, seed: u64) -> MemDisk {
    let disk = MemDisk::new(sectors);
    for sector in (0..sectors).step_by(CHUNK_SECTORS as usize) {
        let at = Extent { sector, sectors: CHUNK_SECTORS.min(sectors - sector) };
        disk.poke(sector * SECTOR_BYTES as u64, &pattern(at, seed));
    }
    disk
}

/// What external origins hold.
pub fn origins(sectors: u64) -> MemDisk {
    patterned(sectors, ORIGIN_SEED)
}

/// A file of slots of equal size.
pub struct Slots {
    file: File,
    sectors: u64,
}

impl Slots {
    /// Makes the file, sparse.
    pub fn create(path: &Path, slots: usize, sectors: u64) -> Result<Slots> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(slots as u64 * sectors * SECTOR_BYTES as u64)?;
        Ok(Slots { file, sectors })
    }

    /// First sector of a slot.
    pub fn base(&self, slot: usize) -> u64 {
        slot as u64 * self.sectors
    }

    /// Copies a disk into a slot that is still blank.
    pub fn put(&self, slot: usize, disk: &MemDisk, sectors: u64) -> Result<()> {
        let base = self.base(slot) * SECTOR_BYTES as u64;
        each_chunk(sectors, |at_bytes, len| {
            let bytes = disk.peek(at_bytes, len);
            if bytes.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(&bytes, base + at_bytes)?;
            }
            Ok(())
        })
    }

    /// A disk with the contents of the first sectors of a slot.
    pub fn get(&self, slot: usize, sectors: u64) -> Result<MemDisk> {
        let base = self.base(slot) * SECTOR_BYTES as u64;
        let disk = MemDisk::new(sectors);
        let mut bytes = vec![0; CHUNK_SECTORS as usize * SECTOR_BYTES];
        each_chunk(sectors, |at_bytes, len| {
            let bytes = &mut bytes[..len];
            self.file.read_exact_at(bytes, base + at_bytes)?;
            if bytes.iter().any(|byte| *byte != 0) {
                disk.poke(at_bytes, bytes);
            }
            Ok(())
        })?;
        Ok(disk)
    }
}

fn each_chunk(sectors: u64, mut f: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
    for sector in (0..sectors).step_by(CHUNK_SECTORS as usize) {
        f(sector * SECTOR_BYTES as u64, CHUNK_SECTORS.min(sectors - sector) as usize * SECTOR_BYTES)?;
    }
    Ok(())
}

/// The first byte in which two disks differ.
pub fn first_difference(a: &MemDisk, b: &MemDisk, sectors: u64) -> Option<u64> {
    let mut found = None;
    let compared = each_chunk(sectors, |at_bytes, len| {
        if found.is_none() {
            let (a, b) = (a.peek(at_bytes, len), b.peek(at_bytes, len));
            found = a.iter().zip(&b).position(|(a, b)| a != b).map(|at| at_bytes + at as u64);
        }
        Ok(())
    });
    compared.ok().and(found)
}
