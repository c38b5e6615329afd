//! QEMU's command line: a machine profile (`qemu/*.toml`), an image, disks, ports and settings.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::console::Console;
use crate::process;

/// QEMU's exit status after the image wrote [`POWER_OFF_CODE`] to the debug port.
pub const EXIT_POWER_OFF: i32 = 0x10 << 1 | 1;
/// The same after a panic with `on_panic=exit`.
pub const EXIT_PANIC: i32 = 0x11 << 1 | 1;
/// Written to port 0xf4 by a clean power-off.
pub const POWER_OFF_CODE: u8 = 0x10;

/// The names of the profiles.
pub const MACHINES: [&str; 2] = ["q35", "microvm"];

/// A kind of machine, as its profile tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its name: the file's.
    pub name: String,
    /// QEMU's `-M`.
    pub machine: String,
    /// QEMU's `-cpu` under emulation.
    pub cpu: String,
    /// The `-device` of a disk.
    pub block_device: String,
    /// The `-device` of the network card.
    pub net_device: String,
    /// More arguments.
    pub arguments: Vec<String>,
}

impl Profile {
    /// Reads `qemu/NAME.toml` of the tree at `root`.
    pub fn load(root: &Path, name: &str) -> Result<Profile> {
        let path = root.join("qemu").join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: the machines are {}", path.display(), MACHINES.join(" and ")))?;
        Profile::parse(name, &text).with_context(|| path.display().to_string())
    }

    fn parse(name: &str, text: &str) -> Result<Profile> {
        let table: Value = basic_toml::from_str(text)?;
        let word = |key: &str| table[key].as_str().map(str::to_owned).with_context(|| format!("no string {key:?}"));
        let arguments = table["arguments"].as_array().context("no array \"arguments\"")?;
        let arguments = arguments.iter().map(|word| word.as_str().map(str::to_owned).context("not a string"));
        Ok(Profile {
            name: name.to_owned(),
            machine: word("machine")?,
            cpu: word("cpu")?,
            block_device: word("block_device")?,
            net_device: word("net_device")?,
            arguments: arguments.collect::<Result<_>>()?,
        })
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        })
    }
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// In a raw file.
    File(PathBuf),
    /// Behind an NBD server on a unix socket.
    Nbd {
        /// The socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
}

/// A virtio disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its virtio serial, by which the appliance knows it.
    pub serial: String,
    /// Its bytes.
    pub source: DiskSource,
}

impl Disk {
    /// A disk in a raw file.
    pub fn file(serial: &str, path: &Path) -> Disk {
        Disk { serial: serial.to_owned(), source: DiskSource::File(path.to_owned()) }
    }

    /// A disk behind an NBD server; the export has the serial's name.
    pub fn nbd(serial: &str, socket: &Path) -> Disk {
        let source = DiskSource::Nbd { socket: socket.to_owned(), export: serial.to_owned() };
        Disk { serial: serial.to_owned(), source }
    }

    fn drive(&self, id: &str) -> String {
        match &self.source {
            DiskSource::File(path) => {
                format!("file={},if=none,id={id},format=raw,cache=writeback,discard=unmap", escape(path))
            }
            DiskSource::Nbd { socket, export } => format!(
                "file.driver=nbd,file.server.type=unix,file.server.path={},file.export={export},if=none,id={id},\
                 format=raw,cache=writeback,discard=unmap",
                escape(socket)
            ),
        }
    }
}

/// A comma ends an option in QEMU's syntax, two stand for one.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// A machine with the image in it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What kind.
    pub profile: Profile,
    /// What runs it.
    pub accelerator: Accelerator,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The image.
    pub image: PathBuf,
    /// The kernel command line's words.
    pub settings: Vec<String>,
    /// A file with the access token, handed over by fw_cfg (a command line is for everyone to see).
    pub token: Option<PathBuf>,
    /// Who the instance is, as 32 hexadecimal digits, handed over by fw_cfg.
    pub identity: Option<String>,
    /// The disks, in order; their drives are called `disk0`, `disk1` and so on.
    pub disks: Vec<Disk>,
    /// Where QEMU's monitor listens, a unix socket for [`crate::qmp`].
    pub qmp: Option<PathBuf>,
    /// The port on 127.0.0.1 that leads to the guest's port 3260.
    pub iscsi_port: u16,
    /// Ports on 127.0.0.1 that lead to the guest's ports from 3261 on: to further portal groups.
    pub more_iscsi_ports: Vec<u16>,
    /// The port on 127.0.0.1 that leads to the guest's port 80.
    pub http_port: u16,
}

impl Machine {
    /// QEMU's arguments.
    pub fn arguments(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", &self.profile.machine]);
        let cpu = if self.accelerator == Accelerator::Kvm { "host" } else { &self.profile.cpu };
        add(&["-accel", &self.accelerator.to_string(), "-cpu", cpu, "-smp", "1"]);
        add(&["-m", &format!("{}M", self.memory_mib)]);
        add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        for (i, disk) in self.disks.iter().enumerate() {
            let id = format!("disk{i}");
            let device = format!("{},drive={id},serial={}", self.profile.block_device, disk.serial);
            add(&["-drive", &disk.drive(&id), "-device", &device]);
        }
        let (iscsi, http) = (self.iscsi_port, self.http_port);
        let mut forward = format!(
            "user,id=net,hostfwd=tcp:127.0.0.1:{iscsi}-10.0.2.15:3260,hostfwd=tcp:127.0.0.1:{http}-10.0.2.15:80"
        );
        for (port, guest) in self.more_iscsi_ports.iter().zip(3261u16..) {
            forward += &format!(",hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{guest}");
        }
        add(&["-netdev", &forward, "-device", &format!("{},netdev=net", self.profile.net_device)]);
        if let Some(socket) = &self.qmp {
            add(&["-qmp", &format!("unix:{},server=on,wait=off", escape(socket))]);
        }
        if let Some(identity) = &self.identity {
            add(&["-fw_cfg", &format!("name=opt/io.gossamer/identity,string={identity}")]);
        }
        if let Some(token) = &self.token {
            add(&["-fw_cfg", &format!("name=opt/io.gossamer/token,file={}", escape(token))]);
        }
        add(&["-kernel", &self.image.to_string_lossy(), "-append", &self.settings.join(" ")]);
        all.extend(self.profile.arguments.iter().cloned());
        all
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        let mut command = process::tied("qemu-system-x86_64");
        command.args(self.arguments());
        command
    }

    /// Starts it.
    pub fn start(&self, echo: bool) -> Result<Console> {
        Console::start(&mut self.command(), echo)
    }
}

/// What the appliance's ready line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The words after `gossamer: ready`, as key and value.
    words: Vec<(String, String)>,
}

impl Ready {
    /// Parses `gossamer: ready KEY=VALUE...`; `None` for another line.
    pub fn parse(line: &str) -> Option<Ready> {
        Ready::after(line, "gossamer: ready ")
    }

    /// Parses the line of an appliance without a pool, `gossamer: serving KEY=VALUE...`.
    pub fn parse_serving(line: &str) -> Option<Ready> {
        Ready::after(line, "gossamer: serving ")
    }

    fn after(line: &str, start: &str) -> Option<Ready> {
        let (_, rest) = line.split_once(start)?;
        let words = rest.split(' ').filter_map(|word| word.split_once('='));
        Some(Ready { words: words.map(|(key, value)| (key.to_owned(), value.to_owned())).collect() })
    }

    /// The value of a word.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.words.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_can_be_read() {
        for name in MACHINES {
            let profile = Profile::load(&crate::root(), name).unwrap();
            assert!(profile.machine.starts_with(name));
        }
        assert!(Profile::parse("x", "machine = 'q35'").is_err());
        assert!(Profile::load(&crate::root(), "pdp11").unwrap_err().to_string().contains("q35 and microvm"));
    }

    #[test]
    fn the_command_line_names_disks_ports_and_settings() {
        let machine = Machine {
            profile: Profile::load(&crate::root(), "microvm").unwrap(),
            accelerator: Accelerator::Tcg,
            memory_mib: 64,
            image: "/i".into(),
            settings: vec!["net=dhcp".into(), "token=given".into()],
            token: Some("/t".into()),
            identity: Some("11223344556677889900aabbccddeeff".into()),
            disks: vec![Disk::file("meta", Path::new("/a,b")), Disk::nbd("data", Path::new("/s"))],
            qmp: Some("/q".into()),
            iscsi_port: 1,
            more_iscsi_ports: vec![3],
            http_port: 2,
        };
        let line = machine.arguments().join(" ");
        for part in [
            "file=/a,,b,if=none,id=disk0",
            "virtio-blk-device,drive=disk1,serial=data",
            "file.server.path=/s,file.export=data",
            "hostfwd=tcp:127.0.0.1:2-10.0.2.15:80,hostfwd=tcp:127.0.0.1:3-10.0.2.15:3261",
            "-append net=dhcp token=given",
            "name=opt/io.gossamer/identity,string=11223344556677889900aabbccddeeff",
            "name=opt/io.gossamer/token,file=/t",
            "-m 64M",
            "-qmp unix:/q,server=on,wait=off",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn ready_lines() {
        let ready = Ready::parse("[0.123] gossamer: ready iscsi=10.0.2.15:3260 http=10.0.2.15:80 pool=write").unwrap();
        assert_eq!((ready.get("iscsi"), ready.get("pool")), (Some("10.0.2.15:3260"), Some("write")));
        assert_eq!(Ready::parse("gossamer: panic at ready"), None);
    }
}
