//! A volume as other machines use it: a guest boots from it over iSCSI; reservations outlive a crash of the appliance, and a
//! sanitize operation goes on after one.

use std::fs::File;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use xtask::process;

use crate::appliance::{IQN, Site};
use crate::context::Context;
use crate::iscsi::{BLOCK_BYTES, Error, Sense, Session, Transfer};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    Test::new("scsi::a_guest_boots_from_a_volume", a_guest_boots),
    Test::new("scsi::reservations_outlive_a_crash", reservations_outlive_a_crash),
    Test::new("scsi::a_sanitize_goes_on_after_a_crash", a_sanitize_goes_on_after_a_crash),
];

const MIB: u64 = 1 << 20;

/// SeaBIOS under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What the guest prints, and with which value it leaves.
const GREETING: &str = "GUEST UP";
const LEAVES_WITH: u8 = 0x10;
/// How QEMU then ends.
const STATUS: i32 = (LEAVES_WITH as i32) << 1 | 1;

/// Sectors behind the first that the guest reads and adds up, and the sector that it writes.
const SECTORS: usize = 64;
const WRITTEN_LBA: u64 = 100;

/// A boot sector in 16-bit code: reads [`SECTORS`] sectors through the BIOS, compares the sum of their words, writes itself to
/// [`WRITTEN_LBA`], greets over the serial port and leaves through the debug port.
fn boot_sector(sum: u16) -> Vec<u8> {
    // Where things lie: the code from 0, packets for the BIOS, the sum and the greeting from 256 on; all at 7C00h.
    let code: &[u8] = &[
        0xfa,
        0x31,
        0xc0,
        0x8e,
        0xd8,
        0x8e,
        0xd0,
        0xbc,
        0x00,
        0x7c,
        0xfb, // cli; DS = SS = 0; SP = 7C00h; sti
        0x52, // push dx: the drive
        0xbe,
        0x00,
        0x7d,
        0xb4,
        0x42,
        0xcd,
        0x13, // extended read by the packet at 7D00h
        0x72,
        0x38, // jc fail
        0xb8,
        0x00,
        0x10,
        0x8e,
        0xc0,
        0x31,
        0xdb,
        0x31,
        0xd2,
        0xb9,
        0x00,
        0x40, // ES = 1000h; BX = DX = 0; CX = 4000h
        0x26,
        0x03,
        0x17,
        0x83,
        0xc3,
        0x02,
        0xe2,
        0xf8, // add dx, es:[bx]; add bx, 2; loop
        0x3b,
        0x16,
        0x20,
        0x7d, // cmp dx, [7D20h]
        0x75,
        0x1e, // jne fail
        0x5a, // pop dx
        0xbe,
        0x10,
        0x7d,
        0xb8,
        0x00,
        0x43,
        0xcd,
        0x13, // extended write by the packet at 7D10h
        0x72,
        0x13, // jc fail
        0xbe,
        0x30,
        0x7d, // mov si, greeting
        0xac,
        0x84,
        0xc0,
        0x74,
        0x06,
        0xba,
        0xf8,
        0x03,
        0xee,
        0xeb,
        0xf5, // lodsb; test al, al; jz; out 3F8h; again
        0xb0,
        LEAVES_WITH,
        0xe6,
        0xf4,
        0xf4, // out 0F4h; hlt
        0xb0,
        0x7f,
        0xe6,
        0xf4,
        0xf4, // fail: out 0F4h; hlt
    ];
    let packet = |sectors: u8, segment: u16, offset: u16, lba: u64| {
        let [[a, b], [c, d]] = [offset.to_le_bytes(), segment.to_le_bytes()];
        [&[16, 0, sectors, 0, a, b, c, d][..], &lba.to_le_bytes()].concat()
    };
    let mut sector = code.to_vec();
    sector.resize(256, 0);
    sector.extend(packet(SECTORS as u8, 0x1000, 0, 1));
    sector.extend(packet(1, 0, 0x7c00, WRITTEN_LBA));
    sector.extend(sum.to_le_bytes());
    sector.resize(0x130, 0);
    sector.extend(format!("{GREETING}\r\n\0").bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

fn a_guest_boots(context: &Context) -> Result<()> {
    let site = Site::new(context, 16 * MIB, 256 * MIB)?;
    let appliance = site.start()?;
    appliance.make_volume("system", 64 * MIB)?;
    let payload: Vec<u8> = (0..SECTORS * BLOCK_BYTES).map(|at| (at * 31 + at / 7) as u8).collect();
    let words = payload.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    let sector = boot_sector(words.fold(0, u16::wrapping_add));
    let mut session = appliance.login("system")?;
    session.write(0, &[sector.clone(), payload].concat(), true)?;
    drop(session);

    let mut qemu = process::tied("qemu-system-x86_64");
    qemu.args(["-M", "pc", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-serial", "stdio"]);
    let drive = format!("file={},format=raw,if=virtio,cache=none", appliance.url(&format!("{IQN}:system"))?);
    let ended = process::run(qemu.args(["-drive", &drive]), BOOT_LIMIT)?;
    ensure!(ended.status.code() == Some(STATUS), "the guest ended with {}: {}", ended.status, ended.text());
    ensure!(ended.text().contains(GREETING), "the guest did not greet: {}", ended.text());
    let mut session = appliance.login("system")?;
    ensure!(session.read(WRITTEN_LBA, 1)? == sector, "what the guest wrote is not there");
    drop(session);
    appliance.power_off()
}

/// Parameter list of a PERSISTENT RESERVE OUT, with APTPL.
fn keys(key: u8, action_key: u8) -> Transfer {
    let mut list = vec![0; 24];
    (list[7], list[15], list[20]) = (key, action_key, 1);
    Transfer::Out(list)
}

fn persistent_reserve(action: u8, kind: u8) -> [u8; 10] {
    [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

fn reservations_outlive_a_crash(context: &Context) -> Result<()> {
    let site = Site::new(context, 16 * MIB, 256 * MIB)?;
    let appliance = site.start()?;
    appliance.make_volume("shared", 64 * MIB)?;
    let mut holder = appliance.login("shared")?;
    holder.run(&persistent_reserve(6, 0), keys(0, 7))?;
    holder.run(&persistent_reserve(1, 3), keys(7, 0))?;
    appliance.kill()?;

    let appliance = site.start()?;
    let mut other = appliance.login("shared")?;
    refused(&mut other, "after a crash")?;
    let held = other.run(&[0x5e, 1, 0, 0, 0, 0, 0, 0, 24, 0], Transfer::In(24))?;
    ensure!(held[15] == 7 && held[21] == 3, "READ RESERVATION tells {held:02x?}");
    other.run(&persistent_reserve(6, 0), keys(0, 8))?;
    other.run(&persistent_reserve(4, 3), keys(8, 7))?;
    other.write(0, &[1; BLOCK_BYTES], false)?;
    other.run(&persistent_reserve(3, 0), keys(8, 0))?;
    appliance.kill()?;

    let appliance = site.start()?;
    appliance.login("shared")?.write(0, &[2; BLOCK_BYTES], false)?;
    appliance.power_off()
}

/// SANITIZE, block erase: status at once.
const SANITIZE: [u8; 10] = [0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];
const SANITIZE_IN_PROGRESS: Sense = Sense { key: 2, asc: 0x04, ascq: 0x1b };
const COMMAND_SEQUENCE_ERROR: Sense = Sense { key: 5, asc: 0x2c, ascq: 0x00 };
const SANITIZE_LIMIT: Duration = Duration::from_secs(60);
/// What is to be destroyed.
const PATTERN: u8 = 0xa7;

/// However far it was: afterwards the volume is empty, and the data disk holds nothing of it.
fn a_sanitize_goes_on_after_a_crash(context: &Context) -> Result<()> {
    const WRITTEN_MIB: u64 = 192;
    let site = Site::new(context, 16 * MIB, 512 * MIB)?;
    let appliance = site.start()?;
    appliance.make_volume("v", 256 * MIB)?;
    let mut session = appliance.login("v")?;
    for at in 0..WRITTEN_MIB {
        session.write(at * MIB / 512, &vec![PATTERN; MIB as usize], false)?;
    }
    session.flush()?;
    appliance.make_snapshot("s", "v")?;
    let shared = session.run(&SANITIZE, Transfer::None);
    ensure!(matches!(shared, Err(Error::Check(COMMAND_SEQUENCE_ERROR))), "with a snapshot: {shared:?}");
    ensure!(session.read(0, 8)? == [PATTERN; 8 * BLOCK_BYTES], "what was refused destroyed something");
    appliance.call("DELETE", "/v1/volumes/s", &Value::Null)?;
    ensure!(sectors_of_pattern(&site)? >= WRITTEN_MIB * MIB / 512, "the data disk does not hold what was written");
    session.run(&SANITIZE, Transfer::None)?;
    appliance.kill()?;

    let mut appliance = site.start()?;
    let mut session =
        Session::login_as(appliance.portal()?, "iqn.2001-04.com.example:later", Some(&format!("{IQN}:v")))?;
    let (begun, mut refusals) = (Instant::now(), 0);
    loop {
        match session.test_unit_ready() {
            Ok(()) => break,
            Err(Error::Check(SANITIZE_IN_PROGRESS)) => refusals += 1,
            Err(Error::Check(Sense { key: 6, .. })) => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(begun.elapsed() < SANITIZE_LIMIT, "it goes on for {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    println!("after the crash it went on for {} ms, {refusals} commands were refused", begun.elapsed().as_millis());
    for at in 0..256 {
        ensure!(session.read(at * MIB / 512, MIB as usize / 512)? == vec![0; MIB as usize], "MiB {at} is not zero");
    }
    let volume = appliance.call("GET", "/v1/volumes/v", &Value::Null)?;
    ensure!(volume["mapped_bytes"] == 0, "{volume}");
    session.write(0, &[1; BLOCK_BYTES], true)?;
    appliance.check_alive()?;
    appliance.power_off()?;
    let left = sectors_of_pattern(&site)?;
    ensure!(left == 0, "{left} sectors of the volume are still on the data disk");
    context.thin_check(&site.meta)
}

/// Sectors of the data disk that are full of [`PATTERN`].
fn sectors_of_pattern(site: &Site) -> Result<u64> {
    let (mut disk, mut bytes, mut found) = (File::open(&site.data)?, vec![0; MIB as usize], 0);
    loop {
        let len = disk.read(&mut bytes)?;
        if len == 0 {
            return Ok(found);
        }
        found += bytes[..len].chunks(512).filter(|sector| sector.iter().all(|byte| *byte == PATTERN)).count() as u64;
    }
}

fn refused(session: &mut Session, when: &str) -> Result<()> {
    match session.write(0, &[0; BLOCK_BYTES], false) {
        Err(Error::Status(0x18)) => Ok(()),
        other => bail!("{when} a write is not a reservation conflict: {other:?}"),
    }
}
