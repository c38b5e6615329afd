//! Settings: words `key=value` from the kernel's command line (or after `hosted`'s flags).
//!
//! A word that is not understood never stops the appliance: it is told as a warning, and the default holds.

use crate::utc;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddr};
use platform::time::{Instant, Timers, WallClock};

/// What the appliance is told from outside the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the address comes from.
    pub net: Net,
    /// TCP ports of the iSCSI portal, a portal group each.
    pub iscsi_ports: Vec<u16>,
    /// What discovery tells initiators to connect to, where that is not the address at which they reached us: behind
    /// forwarded ports, say. Nothing of groups where it is.
    pub iscsi_portals: Vec<ToldPortal>,
    /// TCP port of the management interface.
    pub http_port: u16,
    /// What a volume's name is appended to, after a colon.
    pub iqn_prefix: String,
    /// Format the disks even if they are not blank.
    pub format: bool,
    /// Use a pool that another instance activated and did not close: that one is known to be dead.
    pub take_over: bool,
    /// Sectors in a data block, for a pool that is made now.
    pub data_block_sectors: u32,
    /// At so many free data blocks an event is raised.
    pub low_water_blocks: u64,
    /// The metadata is checked after each start, while the pool is served.
    pub check_at_start: bool,
    /// So fast a check of the metadata reads at most.
    pub check_bytes_per_second: u64,
    /// What a panic or an exception ends in.
    pub on_panic: OnPanic,
    /// Where the first token comes from.
    pub token: TokenSource,
    /// What time it is, where the machine does not know or is wrong.
    pub time: Option<GivenTime>,
    /// Log what helps to find faults, too.
    pub log_debug: bool,
}

/// An address that discovery tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldPortal {
    /// `host:port`.
    pub address: String,
    /// Tag of the portal group to which it leads: they count from 1.
    pub group: u16,
}

impl ToldPortal {
    /// `host:port`, of the first group, or `host:port@group`.
    fn parse(text: &str) -> Option<ToldPortal> {
        let (address, group) = text.split_once('@').unwrap_or((text, "1"));
        let group = group.parse().ok().filter(|group| *group > 0)?;
        Some(ToldPortal { address: address.parse::<SocketAddr>().ok()?.to_string(), group })
    }
}

/// The network address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// Asked for by DHCP.
    Dhcp,
    /// Given.
    Static {
        /// Our address.
        address: Ipv4Addr,
        /// Bits of the network's prefix.
        prefix_bits: u8,
        /// Where everything else is.
        gateway: Option<Ipv4Addr>,
    },
}

/// How the machine ends after a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPanic {
    /// Start again.
    Reset,
    /// Stop, with a failing exit code where the machine can give one.
    Exit,
}

/// Who makes the first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// The appliance, at the first boot; it prints it once.
    Generate,
    /// Whoever started the machine; without one nobody gets in.
    Given,
}

/// The time of day at the start, as somebody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenTime {
    /// In seconds since 1970-01-01 UTC.
    pub unix_seconds: u64,
}

impl GivenTime {
    fn parse(text: &str) -> Result<GivenTime, &'static str> {
        const WHY: &str = "use the time in UTC, as time=20261129t101500z, or in seconds since 1970";
        let seconds = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let unix_seconds = seconds.or_else(|| utc::parse(&text.to_ascii_lowercase())).ok_or(WHY)?;
        Ok(GivenTime { unix_seconds })
    }

    /// A clock that shows this time now, and goes on from it.
    pub fn from_now(self, timers: &Timers) -> Rc<dyn WallClock> {
        Rc::new(Started { timers: timers.clone(), at: timers.now(), unix_seconds: self.unix_seconds })
    }
}

struct Started {
    timers: Timers,
    at: Instant,
    unix_seconds: u64,
}

impl WallClock for Started {
    fn unix_seconds(&self) -> Option<u64> {
        self.unix_seconds.checked_add((self.timers.now() - self.at).as_secs())
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            net: Net::Dhcp,
            iscsi_ports: [3260].into(),
            iscsi_portals: Vec::new(),
            http_port: 80,
            iqn_prefix: "iqn.2026-11.io.gossamer".to_string(),
            format: false,
            take_over: false,
            data_block_sectors: 128,
            low_water_blocks: 0,
            check_at_start: true,
            check_bytes_per_second: 4 << 20,
            on_panic: OnPanic::Reset,
            token: TokenSource::Generate,
            time: None,
            log_debug: false,
        }
    }
}

/// Keys that other programs put on the same command line.
const FOREIGN: [&str; 3] = ["virtio_mmio.device", "console", "BOOT_IMAGE"];

impl Settings {
    /// Reads a command line. The second part says which words were not understood, and why.
    pub fn parse(text: &str) -> (Settings, Vec<String>) {
        let mut settings = Settings::default();
        let mut warnings = Vec::new();
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if FOREIGN.contains(&key) {
                continue;
            }
            if let Err(why) = settings.set(key, value) {
                warnings.push(format!("setting `{word}` is ignored: {why}"));
            }
        }
        (settings, warnings)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "net" => self.net = parse_net(value).ok_or("use net=dhcp or net=10.0.2.15/24,10.0.2.2")?,
            "iscsi.port" => self.iscsi_ports = parse_ports(value)?,
            "iscsi.portal" => {
                let portals = value.split(',').map(ToldPortal::parse).collect::<Option<_>>();
                self.iscsi_portals =
                    portals.ok_or("use iscsi.portal=192.0.2.1:3260, several with commas, @2 for group 2")?;
            }
            "http.port" => self.http_port = parse_port(value)?,
            "iqn" if is_iqn(value) => self.iqn_prefix = value.to_string(),
            "iqn" => return Err("use a name like iqn.2026-11.com.example, of a-z, 0-9, dots and hyphens"),
            "format" => self.format = parse_yes_no(value)?,
            "takeover" => self.take_over = parse_yes_no(value)?,
            "block" => self.data_block_sectors = parse_block(value)?,
            "low_water" => self.low_water_blocks = value.parse().map_err(|_| "use a number of data blocks")?,
            "check.start" => self.check_at_start = parse_yes_no(value)?,
            "check.rate" => self.check_bytes_per_second = parse_rate(value)?,
            "on_panic" => {
                self.on_panic = match value {
                    "reset" => OnPanic::Reset,
                    "exit" => OnPanic::Exit,
                    _ => return Err("use on_panic=reset or on_panic=exit"),
                }
            }
            "token" => {
                self.token = match value {
                    "generate" => TokenSource::Generate,
                    "given" => TokenSource::Given,
                    _ => return Err("use token=generate or token=given (a token itself does not belong here)"),
                }
            }
            "time" => self.time = Some(GivenTime::parse(value)?),
            "log" => {
                self.log_debug = match value {
                    "info" => false,
                    "debug" => true,
                    _ => return Err("use log=info or log=debug"),
                }
            }
            _ => return Err("there is no such setting"),
        }
        Ok(())
    }
}

fn parse_net(value: &str) -> Option<Net> {
    if value == "dhcp" {
        return Some(Net::Dhcp);
    }
    let (interface, gateway) = match value.split_once(',') {
        Some((interface, gateway)) => (interface, Some(gateway.parse().ok()?)),
        None => (value, None),
    };
    let (address, prefix) = interface.split_once('/')?;
    let prefix_bits = prefix.parse().ok().filter(|bits| (1..=32).contains(bits))?;
    Some(Net::Static { address: address.parse().ok()?, prefix_bits, gateway })
}

fn parse_port(value: &str) -> Result<u16, &'static str> {
    value.parse().ok().filter(|port| *port > 0).ok_or("use a port number, 1 to 65535")
}

fn parse_ports(value: &str) -> Result<Vec<u16>, &'static str> {
    let ports: Vec<u16> = value.split(',').map(parse_port).collect::<Result<_, _>>()?;
    let mut others = ports.clone();
    others.sort_unstable();
    others.dedup();
    if others.len() == ports.len() { Ok(ports) } else { Err("use different ports") }
}

fn parse_yes_no(value: &str) -> Result<bool, &'static str> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("use yes or no"),
    }
}

/// 64K to 1G in steps of 64K (reference 1.5), in sectors.
fn parse_block(value: &str) -> Result<u32, &'static str> {
    const WHY: &str = "use a multiple of 64K from 64K to 1G, as block=64K or block=1M";
    let digits = value.trim_end_matches(['K', 'M', 'G']);
    let unit_sectors: u32 = match value.get(digits.len()..) {
        Some("K") => 2,
        Some("M") => 2 << 10,
        Some("G") => 2 << 20,
        _ => return Err(WHY),
    };
    let sectors = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit_sectors)).ok_or(WHY)?;
    if (128..=2_097_152).contains(&sectors) && sectors.is_multiple_of(128) { Ok(sectors) } else { Err(WHY) }
}

/// Bytes a second.
fn parse_rate(value: &str) -> Result<u64, &'static str> {
    const WHY: &str = "use bytes a second in steps of 64K, as check.rate=512K or check.rate=4M";
    let digits = value.trim_end_matches(['K', 'M', 'G']);
    let unit_bytes: u64 = match value.get(digits.len()..) {
        Some("K") => 1 << 10,
        Some("M") => 1 << 20,
        Some("G") => 1 << 30,
        _ => return Err(WHY),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_bytes)).ok_or(WHY)?;
    if bytes > 0 && bytes.is_multiple_of(64 << 10) { Ok(bytes) } else { Err(WHY) }
}

/// `iqn.yyyy-mm.reversed-domain`, short enough that a volume's name still fits into 223 bytes.
fn is_iqn(value: &str) -> bool {
    value.len() <= 128
        && value.starts_with("iqn.")
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood() {
        let (settings, warnings) = Settings::parse(
            "net=192.168.7.2/24,192.168.7.1 iscsi.port=3261,3262 iscsi.portal=127.0.0.1:13260,[::1]:13260@2 \
             http.port=8080 iqn=iqn.2001-04.com.example format=yes takeover=yes \
             block=1M low_water=64 check.start=no check.rate=512K on_panic=exit token=given time=20261129T101500Z log=debug virtio_mmio.device=512@0xfeb00e00:12",
        );
        assert_eq!(warnings, [""; 0]);
        let net = Net::Static {
            address: Ipv4Addr::new(192, 168, 7, 2),
            prefix_bits: 24,
            gateway: Some(Ipv4Addr::new(192, 168, 7, 1)),
        };
        let expected = Settings {
            net,
            iscsi_ports: [3261, 3262].into(),
            iscsi_portals: [("127.0.0.1:13260", 1), ("[::1]:13260", 2)]
                .map(|(a, group)| ToldPortal { address: a.into(), group })
                .into(),
            http_port: 8080,
            iqn_prefix: "iqn.2001-04.com.example".into(),
            format: true,
            take_over: true,
            data_block_sectors: 2048,
            low_water_blocks: 64,
            check_at_start: false,
            check_bytes_per_second: 512 << 10,
            on_panic: OnPanic::Exit,
            token: TokenSource::Given,
            time: Some(GivenTime { unix_seconds: 1_795_947_300 }),
            log_debug: true,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn a_bad_word_is_told_and_changes_nothing() {
        let bad = "net=10.0.0.1 net=10.0.0.1/33 iscsi.port=65536 iscsi.port=0 iscsi.port=3260,0 http.port=0 iscsi.port=3260, iscsi.port=3260,3260 iscsi.portal=host:1 iscsi.portal=127.0.0.1:1@0 iqn=x format=maybe block=65K block=2G block=0K \
                   block=99999999999M low_water=1M check.start=1 check.rate=7 check.rate=1K on_panic=hang token=secret time=now time=20261329t101500z log=all colour=red format";
        let (settings, warnings) = Settings::parse(bad);
        assert_eq!(settings, Settings::default());
        assert_eq!(warnings.len(), bad.split_whitespace().count());
        assert!(warnings[0].contains("net=10.0.0.1"), "{}", warnings[0]);
    }
}
