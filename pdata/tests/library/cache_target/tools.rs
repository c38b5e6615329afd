//! Linux's `cache_check`, `cache_dump` and `cache_restore`, of both generations.

use super::Model;
use platform::block::BlockDevice;
use platform::mem::MemDisk;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A generation of the tools.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tool {
    /// 1.x.
    Modern,
    /// What Debian 12 has installed: 0.9. It does not look into the dirty bitset, and knows one width of hints.
    Packaged,
}

/// What `cache_dump` tells: all but the discards, which only `cache_check` looks at.
#[derive(Clone, Default)]
pub struct Dump {
    /// Attributes of the superblock: block size, cache blocks, policy, hint width.
    superblock: Vec<String>,
    /// Origin block, and dirty or not, by cache block.
    mappings: BTreeMap<u64, (u64, bool)>,
    /// Hints of the cache blocks in use, as base64.
    hints: BTreeMap<u64, String>,
}

impl Dump {
    /// What it should tell.
    pub fn of(model: &Model) -> Dump {
        let in_use = (0..).zip(&model.mappings).filter_map(|(at, (origin, dirty))| Some((at, ((*origin)?, *dirty))));
        let mappings: BTreeMap<u64, (u64, bool)> = in_use.collect();
        let hints = (0..).zip(&model.hints).filter(|(at, _)| mappings.contains_key(at));
        let hints: BTreeMap<u64, String> = hints.map(|(at, hint)| (at, base64(hint.to_le_bytes()))).collect();
        let (policy, width) = if model.hints.is_empty() { ("", "0") } else { ("smq", "4") };
        let superblock = ["128", &model.mappings.len().to_string(), policy, width].map(str::to_owned).to_vec();
        Dump { superblock, mappings, hints }
    }

    /// Without what this generation does not tell.
    pub fn as_seen_by(&self, tool: Tool) -> Dump {
        let mut seen = self.clone();
        if tool == Tool::Packaged {
            seen.mappings.values_mut().for_each(|(_, dirty)| *dirty = false);
            seen.superblock[3] = "4".into();
        }
        seen
    }

    /// The first thing in which two differ.
    pub fn difference(&self, other: &Dump) -> Option<String> {
        fn first<T: PartialEq + std::fmt::Debug>(
            a: impl Iterator<Item = T>,
            b: impl Iterator<Item = T>,
        ) -> Option<String> {
            let (mut a, mut b) = (a.fuse(), b.fuse());
            loop {
                match (a.next(), b.next()) {
                    (None, None) => return None,
                    (a, b) if a != b => return Some(format!("{a:?} and {b:?}")),
                    _ => {}
                }
            }
        }
        let superblock = first(self.superblock.iter(), other.superblock.iter());
        let mappings = || first(self.mappings.iter(), other.mappings.iter());
        let hints = || first(self.hints.iter(), other.hints.iter());
        superblock.or_else(mappings).or_else(hints)
    }

    fn parse(xml: &str) -> Dump {
        let mut dump = Dump::default();
        for line in xml.lines() {
            let attribute = |name: &str| {
                let value = line.split_once(&format!(" {name}=\""))?.1;
                Some(value.split_once('"')?.0.to_owned())
            };
            let text = |name: &str| attribute(name).unwrap_or_else(|| panic!("no {name} in {line}"));
            let number = |name: &str| text(name).parse::<u64>().unwrap();
            match line.trim().split([' ', '>']).next().unwrap_or_default() {
                "<superblock" => {
                    let names = ["block_size", "nr_cache_blocks", "policy", "hint_width"];
                    dump.superblock = names.map(&text).to_vec();
                }
                "<mapping" => {
                    let value = (number("origin_block"), text("dirty") == "true");
                    assert_eq!(dump.mappings.insert(number("cache_block"), value), None);
                }
                "<hint" => assert_eq!(dump.hints.insert(number("cache_block"), text("data")), None),
                _ => {}
            }
        }
        dump
    }
}

impl Tool {
    /// The program, if this machine has it.
    fn command(self, name: &str) -> Option<Command> {
        static FOLDERS: OnceLock<[Option<PathBuf>; 2]> = OnceLock::new();
        let find = || {
            let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
            let shared = std::env::var_os("GOSSAMER_SHARED").map_or_else(beside, PathBuf::from);
            let modern = Command::new(shared.join("lab/thin-tools")).output().ok().filter(|out| out.status.success());
            let modern = modern.map(|out| PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()));
            [modern, Some(PathBuf::from("/usr/sbin")).filter(|folder| folder.join("cache_check").exists())]
        };
        let Some(folder) = &FOLDERS.get_or_init(find)[self as usize] else {
            assert!(std::env::var_os("CI").is_none(), "CI needs {self:?} thin-provisioning-tools");
            println!("skipped: no {self:?} thin-provisioning-tools here");
            return None;
        };
        Some(Command::new(folder.join(name)))
    }

    /// Runs a program over a disk. Returns what it said, and the disk as it left it.
    fn run(self, name: &str, args: &[&str], bytes: &[u8]) -> Option<(Output, Vec<u8>)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("gossamer-{}-{n}.cache", std::process::id()));
        let mut command = self.command(name)?;
        std::fs::write(&file, bytes).unwrap();
        let out = command.args(args).arg(&file).output().unwrap();
        let bytes = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        Some((out, bytes))
    }

    /// `cache_check` is content.
    pub fn check(self, disk: &MemDisk) {
        let Some((out, _)) = self.run("cache_check", &[], &bytes_of(disk)) else { return };
        let told = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(out.status.success(), "{self:?} cache_check: {}", told.concat());
    }

    /// What `cache_dump` tells. The modern one cannot dump a cache without a hint array.
    pub fn dump(self, disk: &MemDisk, has_hints: bool) -> Option<Dump> {
        if self == Tool::Modern && !has_hints {
            return None;
        }
        let (out, _) = self.run("cache_dump", &[], &bytes_of(disk))?;
        assert!(out.status.success(), "{self:?} cache_dump: {out:?}");
        Some(Dump::parse(std::str::from_utf8(&out.stdout).unwrap()))
    }

    /// The disk that `cache_restore` makes of a model.
    pub fn restore(self, model: &Model, metadata_blocks: u64) -> Option<MemDisk> {
        let dump = Dump::of(model);
        let mut xml = format!(
            "<superblock uuid=\"\" block_size=\"128\" nr_cache_blocks=\"{}\" policy=\"smq\" hint_width=\"4\">\n<mappings>\n",
            model.mappings.len()
        );
        for (cache_block, (origin_block, dirty)) in &dump.mappings {
            xml += &format!(
                "<mapping cache_block=\"{cache_block}\" origin_block=\"{origin_block}\" dirty=\"{dirty}\"/>\n"
            );
        }
        xml += "</mappings>\n<hints>\n";
        for (cache_block, data) in &dump.hints {
            xml += &format!("<hint cache_block=\"{cache_block}\" data=\"{data}\"/>\n");
        }
        xml += "</hints>\n</superblock>\n";
        let file = std::env::temp_dir().join(format!("gossamer-{}-{self:?}.xml", std::process::id()));
        std::fs::write(&file, xml).unwrap();
        let args = ["--metadata-version", "2", "-i", file.to_str().unwrap(), "-o"];
        let restored = self.run("cache_restore", &args, &vec![0; metadata_blocks as usize * 4096]);
        std::fs::remove_file(&file).unwrap();
        let (out, bytes) = restored?;
        assert!(out.status.success(), "{self:?} cache_restore: {out:?}");
        Some(MemDisk::from_bytes(&bytes))
    }
}

fn bytes_of(disk: &MemDisk) -> Vec<u8> {
    disk.peek(0, disk.limits().size_sectors as usize * 512)
}

/// Four bytes as base64.
fn base64(bytes: [u8; 4]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let word = u64::from(u32::from_be_bytes(bytes)) << 4;
    let digits = (0..6).rev().map(|n| char::from(DIGITS[(word >> (6 * n) & 63) as usize]));
    digits.chain("==".chars()).collect()
}
