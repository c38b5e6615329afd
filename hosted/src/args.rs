//! The command line.

use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

/// How to call it.
pub const USAGE: &str = "\
Usage: hosted --meta FILE --data FILE --iscsi ADDRESS:PORT --http ADDRESS:PORT [--token TOKEN]
              [--meta-new FILE] [--identity HEX] [KEY=VALUE ...]

  --meta FILE     the metadata disk, a file or block device
  --data FILE     the data disk
  --identity HEX  who this instance is, 32 hexadecimal digits: give each host that can reach the disks its own
  --meta-new FILE the disk that a repair of the metadata writes to
  --iscsi, --http where to listen; port 0 is any free port, which the ready line tells. Each --iscsi is a portal group
  --token TOKEN   the token of the management interface; without one the appliance makes one at first boot
  KEY=VALUE       a setting, as on the appliance's kernel command line: format=yes, block=1M, log=debug ...";

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// The metadata disk.
    pub meta: PathBuf,
    /// The data disk.
    pub data: PathBuf,
    /// The disk that a repair writes.
    pub meta_new: Option<PathBuf>,
    /// Who this instance is.
    pub identity: Option<String>,
    /// Where the iSCSI portal listens: a portal group each.
    pub iscsi: Vec<SocketAddr>,
    /// Where the management interface listens.
    pub http: SocketAddr,
    /// The first token.
    pub token: Option<String>,
    /// The settings, as one text.
    pub settings: String,
}

/// Reads the arguments; `None` if only help is asked for.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Args>, lexopt::Error> {
    let (mut meta, mut data, mut meta_new, mut http, mut token) = (None, None, None, None, None);
    let (mut identity, mut iscsi) = (None, Vec::new());
    let mut settings = Vec::new();
    let mut parser = Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("meta") => meta = Some(PathBuf::from(parser.value()?)),
            Arg::Long("data") => data = Some(PathBuf::from(parser.value()?)),
            Arg::Long("identity") => identity = Some(parser.value()?.string()?),
            Arg::Long("meta-new") => meta_new = Some(PathBuf::from(parser.value()?)),
            Arg::Long("iscsi") => iscsi.push(parser.value()?.parse()?),
            Arg::Long("http") => http = Some(parser.value()?.parse()?),
            Arg::Long("token") => token = Some(parser.value()?.string()?),
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Value(word) => settings.push(word.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let missing = |name| move || lexopt::Error::from(format!("{name} is missing"));
    Ok(Some(Args {
        meta: meta.ok_or_else(missing("--meta FILE"))?,
        data: data.ok_or_else(missing("--data FILE"))?,
        meta_new,
        identity,
        iscsi: Some(iscsi).filter(|all| !all.is_empty()).ok_or_else(missing("--iscsi ADDRESS:PORT"))?,
        http: http.ok_or_else(missing("--http ADDRESS:PORT"))?,
        token,
        settings: settings.join(" "),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Option<Args>, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_is_understood() {
        let line = "--meta m.img --data=d.img --meta-new n.img --iscsi 127.0.0.1:0 --iscsi [::1]:1 --http [::1]:80 --token secret format=yes block=1M";
        let args = read(line).unwrap().unwrap();
        let expected = Args {
            meta: "m.img".into(),
            data: "d.img".into(),
            meta_new: Some("n.img".into()),
            identity: None,
            iscsi: ["127.0.0.1:0", "[::1]:1"].map(|address| address.parse().unwrap()).into(),
            http: "[::1]:80".parse().unwrap(),
            token: Some("secret".into()),
            settings: "format=yes block=1M".into(),
        };
        assert_eq!(args, expected);
        assert_eq!(read("--help"), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let cases = [
            ("--meta m --data d --http 127.0.0.1:1", "--iscsi ADDRESS:PORT is missing"),
            ("--colour red", "invalid option '--colour'"),
            ("--iscsi 127.0.0.1", "cannot parse argument"),
            ("--meta", "missing argument"),
        ];
        for (line, told) in cases {
            let error = read(line).unwrap_err();
            assert!(error.contains(told), "`{line}`: {error}");
        }
    }
}
