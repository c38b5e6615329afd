//! Builds the bare-metal image, and refuses one that is not freestanding.

use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "image";

/// Builds the image from the tree at `root` and returns its path.
///
/// Fails if the image has an undefined symbol, wants a dynamic linker, cannot be booted by PVH, or names the
/// builder's home.
pub fn build(root: &Path) -> Result<PathBuf> {
    let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    build_into(root, &target_dir.join("image"))
}

/// [`build`] with everything that cargo makes below `target_dir`.
pub fn build_into(root: &Path, target_dir: &Path) -> Result<PathBuf> {
    let home = PathBuf::from(env::var_os("HOME").context("HOME is not set")?);
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--package", "kernel", "--profile", PROFILE, "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, &home)?)
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "building the kernel failed");
    let image = target_dir.join(TARGET).join(PROFILE).join("kernel");
    let bytes = fs::read(&image).with_context(|| format!("{} cannot be read", image.display()))?;
    check(&bytes, &home).with_context(|| format!("{} is no good image", image.display()))?;
    Ok(image)
}

/// The compiler's flags: fixed addresses, and no path of this machine in the image.
fn flags(root: &Path, home: &Path) -> Result<OsString> {
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let rustup_home = env::var_os("RUSTUP_HOME").map_or_else(|| home.join(".rustup"), PathBuf::from);
    let mut flags = OsString::from("-Crelocation-model=static");
    // The last prefix that fits wins.
    for (path, name) in [(home, "/home"), (&cargo_home, "/cargo"), (&rustup_home, "/rustup"), (root, "/gossamer")] {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(path);
        flags.push("=");
        flags.push(name);
    }
    Ok(flags)
}

/// Says what is wrong with an image.
fn check(bytes: &[u8], home: &Path) -> Result<()> {
    let elf = Elf::parse(bytes).context("it is no 64-bit ELF file for x86-64")?;
    let mut pvh = false;
    for segment in elf.entries(elf.segments) {
        match segment.u32(0)? {
            PT_DYNAMIC => bail!("it has a dynamic segment"),
            PT_INTERP => bail!("it names a dynamic linker"),
            PT_NOTE => pvh |= elf.slice(segment.u64(8)?, segment.u64(32)?)?.windows(4).any(|name| name == b"Xen\0"),
            _ => {}
        }
    }
    ensure!(pvh, "it has no PVH entry point");
    let undefined = elf.undefined_symbols()?;
    ensure!(undefined.is_empty(), "it has undefined symbols: {}", undefined.join(", "));
    let home = [home.as_os_str().as_encoded_bytes(), b"/"].concat();
    if let Some(at) = bytes.windows(home.len()).position(|window| window == home) {
        let text: String =
            bytes[at..].iter().take(120).take_while(|b| b.is_ascii_graphic()).map(|b| *b as char).collect();
        bail!("it names a path of the builder's home: {text}");
    }
    Ok(())
}

/// Says why a program needs other files to run.
pub fn check_static(bytes: &[u8]) -> Result<()> {
    let elf = Elf::parse(bytes).context("it is no 64-bit ELF file for x86-64")?;
    for segment in elf.entries(elf.segments) {
        ensure!(segment.u32(0)? != PT_INTERP, "it names a dynamic linker");
    }
    Ok(())
}

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;

/// The parts of an ELF file that the checks read. Offsets are those of the System V ABI's 64-bit structures.
struct Elf<'a> {
    bytes: Fields<'a>,
    segments: Table,
    sections: Table,
}

/// Entries of one size, one after another in the file.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    entry_bytes: u64,
    entries: u64,
}

#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(self, at: usize) -> Result<[u8; N]> {
        let field = at.checked_add(N).and_then(|end| self.0.get(at..end)).context("it is cut short")?;
        Ok(field.try_into()?)
    }

    fn u16(self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

impl<'a> Elf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Elf<'a>> {
        const EM_X86_64: u16 = 62;
        let fields = Fields(bytes);
        ensure!(fields.array(0)? == *b"\x7fELF\x02\x01" && fields.u16(18)? == EM_X86_64, "the header is another one");
        let table = |offset, sizes| -> Result<Table> {
            let (entry_bytes, entries) = (fields.u16(sizes)?.into(), fields.u16(sizes + 2)?.into());
            Ok(Table { offset: fields.u64(offset)?, entry_bytes, entries })
        };
        Ok(Elf { bytes: fields, segments: table(32, 54)?, sections: table(40, 58)? })
    }

    fn slice(&self, offset: u64, len: u64) -> Result<&'a [u8]> {
        let (start, end) = (usize::try_from(offset)?, usize::try_from(offset.saturating_add(len))?);
        self.bytes.0.get(start..end).context("it is cut short")
    }

    fn entries(&self, table: Table) -> impl Iterator<Item = Fields<'a>> {
        let bytes = self.slice(table.offset, table.entry_bytes.saturating_mul(table.entries)).unwrap_or_default();
        bytes.chunks_exact(table.entry_bytes.max(1) as usize).map(Fields)
    }

    fn undefined_symbols(&self) -> Result<Vec<String>> {
        let mut tables = 0;
        let mut undefined = Vec::new();
        for section in self.entries(self.sections) {
            if ![SHT_SYMTAB, SHT_DYNSYM].contains(&section.u32(4)?) {
                continue;
            }
            tables += 1;
            let strings =
                self.entries(self.sections).nth(section.u32(40)? as usize).context("it has no symbol names")?;
            let strings = self.slice(strings.u64(24)?, strings.u64(32)?)?;
            let entry_bytes = section.u64(56)?.max(1);
            let symbols = Table { offset: section.u64(24)?, entry_bytes, entries: section.u64(32)? / entry_bytes };
            for symbol in self.entries(symbols) {
                let name = strings.get(symbol.u32(0)? as usize..).unwrap_or_default();
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                if symbol.u16(6)? == 0 && !name.is_empty() {
                    undefined.push(String::from_utf8_lossy(name).into_owned());
                }
            }
        }
        ensure!(tables > 0, "it has no symbol table to look for undefined symbols in");
        Ok(undefined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: &str = "/home/builder";

    /// An ELF file with one segment of `kind`, the PVH note, and one symbol.
    fn elf(kind: u32, symbol_section: u16, text: &str) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, b"\x7fELF\x02\x01");
        put(18, &62u16.to_le_bytes());
        put(32, &64u64.to_le_bytes()); // segments: 2 of 56 bytes
        put(40, &256u64.to_le_bytes()); // sections: 2 of 64 bytes
        for (at, value) in [(54, 56u16), (56, 2), (58, 64), (60, 2)] {
            put(at, &value.to_le_bytes());
        }
        put(64, &PT_NOTE.to_le_bytes());
        put(64 + 8, &512u64.to_le_bytes());
        put(64 + 32, &16u64.to_le_bytes());
        put(64 + 56, &kind.to_le_bytes());
        put(256 + 4, &SHT_SYMTAB.to_le_bytes());
        put(256 + 24, &600u64.to_le_bytes());
        put(256 + 32, &24u64.to_le_bytes());
        put(256 + 40, &1u32.to_le_bytes());
        put(256 + 56, &24u64.to_le_bytes());
        put(320 + 24, &700u64.to_le_bytes());
        put(320 + 32, &16u64.to_le_bytes());
        put(512, b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
        put(600, &1u32.to_le_bytes());
        put(600 + 6, &symbol_section.to_le_bytes());
        put(700, b"\0getrandom\0");
        put(800, text.as_bytes());
        bytes
    }

    fn complaint(bytes: &[u8]) -> String {
        format!("{:#}", check(bytes, Path::new(HOME)).unwrap_err())
    }

    #[test]
    fn a_static_program_names_no_linker() {
        check_static(&elf(PT_DYNAMIC, 1, "text")).unwrap();
        assert!(check_static(&elf(PT_INTERP, 1, "text")).is_err());
        assert!(check_static(b"#!/bin/sh").is_err());
    }

    #[test]
    fn a_freestanding_image_passes() {
        check(&elf(1, 7, "/home/builders/other"), Path::new(HOME)).unwrap();
    }

    #[test]
    fn what_is_not_freestanding_is_refused() {
        assert!(complaint(&elf(PT_DYNAMIC, 7, "")).contains("dynamic segment"));
        assert!(complaint(&elf(PT_INTERP, 7, "")).contains("dynamic linker"));
        assert!(complaint(&elf(1, 0, "")).contains("undefined symbols: getrandom"));
        assert!(complaint(&elf(1, 7, "/home/builder/.cargo/registry/x.rs")).contains(".cargo/registry/x.rs"));
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        let mut no_note = elf(1, 7, "");
        no_note[524..528].fill(0);
        assert!(complaint(&no_note).contains("PVH"));
        let mut stripped = elf(1, 7, "");
        stripped[60] = 0;
        assert!(complaint(&stripped).contains("no symbol table"));
        assert!(complaint(b"#!/bin/sh").contains("no 64-bit ELF"));
    }
}
