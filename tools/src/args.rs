//! The command line.

use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::path::PathBuf;
use thinp::control::DeviceId;
use thinp::metadata::VirtualBlock;
use thinp::metadata::delta;
use thinp::metadata::dump::{Format, Options};
use thinp::metadata::repair;
use thinp::metadata::restore::Overrides;

/// How to call it.
pub const USAGE: &str = "\
Usage: gossamer-pool COMMAND [options]

Looks at the metadata of thin pools, in image files or on block devices: those of Gossamer and those of Linux.

  check FILE                 verify everything; changes nothing
      -q, --quiet            tell the verdict by the exit code only
      --memory MIB           for the counts of data blocks (default 32); with less the leaves are read more often

  dump FILE                  print devices and mappings, as thin_dump does; changes nothing
      -f, --format FORMAT    xml (default; as thin_dump 1.x), xml09 (as thin_dump 0.9), human_readable,
                             json (an object a line for each range of mappings)
      -m, --metadata-snap    the metadata snapshot instead of the pool, which may be in use
      --dev-id N             only this device (may be repeated)
      --skip-mappings        only the superblock and the devices
      -o, --output FILE      write there instead of to standard output

  delta --snap1 A --snap2 B FILE
                             print in which blocks two devices differ, as thin_delta 1.x does; changes nothing
      --thin1 A, --thin2 B   the same
      -v, --verbose          with the data blocks
      --json                 a JSON object a line for each run, with the data blocks
      --changes              not what is the same: what the devices share is then not even read
      --from BLOCK           only from this virtual block on
      -m, --metadata-snap    of the metadata snapshot instead of the pool, which may be in use
      -o, --output FILE      write there instead of to standard output

  space FILE                 print what each device maps, alone and with others, in data blocks; changes nothing
      --delete N             only what deleting this device would free (may be repeated: all of them together)
      --memory MIB           for the bits of data blocks (default 32); with less the leaves are read more often

  restore -i XML -o FILE     make a pool's metadata of a dump; what FILE held is lost
      -i, --input XML        the dump; - is standard input
      -o, --output FILE      the metadata device, or a file of its size
      --transaction-id N, --data-block-size SECTORS, --nr-data-blocks N
                             instead of what the dump says
      -q, --quiet            no report

  repair -i FILE -o FILE     rebuild damaged metadata of what is whole in it; what the second FILE held is lost
      -i, --input FILE       the damaged metadata; it is not changed
      -o, --output FILE      another metadata device, or a file: blank, and as large as the damaged one
      --force                overwrite it even if it is not blank
      --last-commit          take what the superblock leads to even where an older state has more mappings
      --transaction-id N, --data-block-size SECTORS, --nr-data-blocks N
                             instead of what the superblock says, or said
      -q, --quiet            no report

Exit code: 0 good, 1 damaged or failed, 2 wrong usage. Hints of a check (totals that others write carelessly) are no
damage.

  gossamer-pool check /dev/vg/pool_tmeta
  gossamer-pool dump -f human_readable meta.img
  diff <(gossamer-pool dump a.img) <(thin_dump b.img)
  truncate -s 64M new.img && gossamer-pool dump old.img | gossamer-pool restore -i - -o new.img
  truncate -s 64M new.img && gossamer-pool repair -i damaged.img -o new.img";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Print how to call it.
    Help,
    /// Print the version.
    Version,
    /// Verify.
    Check {
        /// The metadata.
        file: PathBuf,
        /// Print nothing.
        quiet: bool,
        /// Memory for the counts of data blocks.
        memory_bytes: usize,
    },
    /// Print.
    Dump {
        /// The metadata.
        file: PathBuf,
        /// What, and how.
        options: Options,
        /// Where to; standard output if not given.
        output: Option<PathBuf>,
    },
    /// Compare.
    Delta {
        /// The metadata.
        file: PathBuf,
        /// Of the metadata snapshot.
        metadata_snap: bool,
        /// What, and how.
        options: delta::Options,
        /// Where to; standard output if not given.
        output: Option<PathBuf>,
    },
    /// Account for space.
    Space {
        /// The metadata.
        file: PathBuf,
        /// Devices that might be deleted.
        delete: Vec<DeviceId>,
        /// Memory for the bits of data blocks.
        memory_bytes: usize,
    },
    /// Make metadata.
    Restore {
        /// The dump; `-` is standard input.
        input: PathBuf,
        /// The metadata.
        output: PathBuf,
        /// What not to believe of the dump.
        overrides: Overrides,
        /// Print nothing.
        quiet: bool,
    },
    /// Rebuild metadata.
    Repair {
        /// The damaged metadata.
        input: PathBuf,
        /// The new metadata.
        output: PathBuf,
        /// What not to believe, and which state to take.
        options: repair::Options,
        /// Overwrite what is not blank.
        force: bool,
        /// Print nothing.
        quiet: bool,
    },
}

/// Reads the arguments.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut parser = Parser::from_args(args);
    match parser.next()? {
        Some(Arg::Value(command)) => match command.string()?.as_str() {
            "check" => check(parser),
            "dump" => dump(parser),
            "delta" => delta(parser),
            "restore" => restore(parser),
            "space" => space(parser),
            "repair" => repair(parser),
            "help" => Ok(Command::Help),
            other => Err(format!("{other}? check, dump, delta, space, restore or repair").into()),
        },
        Some(Arg::Long("help") | Arg::Short('h')) => Ok(Command::Help),
        Some(Arg::Long("version") | Arg::Short('V')) => Ok(Command::Version),
        Some(other) => Err(other.unexpected()),
        None => Err("what is to be done? check, dump, delta, space, restore or repair".into()),
    }
}

fn missing(what: &'static str) -> impl Fn() -> lexopt::Error {
    move || format!("{what} is missing").into()
}

/// Takes a file's name, if none was taken yet.
fn take(file: &mut Option<PathBuf>, value: OsString) -> Result<(), lexopt::Error> {
    match file.replace(value.into()) {
        None => Ok(()),
        Some(_) => Err("one file only".into()),
    }
}

fn check(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let (mut file, mut quiet, mut memory_mib) = (None, false, 32u32);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('q') | Arg::Long("quiet") => quiet = true,
            Arg::Long("memory") => memory_mib = parser.value()?.parse()?,
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Value(value) => take(&mut file, value)?,
            other => return Err(other.unexpected()),
        }
    }
    let memory_bytes = (memory_mib as usize).saturating_mul(1 << 20);
    Ok(Command::Check { file: file.ok_or_else(missing("the FILE to check"))?, quiet, memory_bytes })
}

fn dump(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let (mut file, mut output, mut options) = (None, None, Options::default());
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('f') | Arg::Long("format") => options.format = parser.value()?.parse_with(format)?,
            Arg::Short('m') | Arg::Long("metadata-snap") => options.metadata_snap = true,
            Arg::Long("dev-id") => options.devices.push(parser.value()?.parse_with(device)?),
            Arg::Long("skip-mappings") => options.skip_mappings = true,
            Arg::Short('o') | Arg::Long("output") => take(&mut output, parser.value()?)?,
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Value(value) => take(&mut file, value)?,
            other => return Err(other.unexpected()),
        }
    }
    Ok(Command::Dump { file: file.ok_or_else(missing("the FILE to dump"))?, options, output })
}

fn delta(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let (mut file, mut output, mut metadata_snap) = (None, None, false);
    let (mut left, mut right, mut format, mut same, mut from) = (None, None, delta::Format::Xml, true, 0);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("snap1" | "thin1") => left = Some(parser.value()?.parse_with(device)?),
            Arg::Long("snap2" | "thin2") => right = Some(parser.value()?.parse_with(device)?),
            Arg::Short('v') | Arg::Long("verbose") => format = delta::Format::XmlVerbose,
            Arg::Long("json") => format = delta::Format::Json,
            Arg::Long("changes") => same = false,
            Arg::Long("from") => from = parser.value()?.parse()?,
            Arg::Short('m') | Arg::Long("metadata-snap") => metadata_snap = true,
            Arg::Short('o') | Arg::Long("output") => take(&mut output, parser.value()?)?,
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Value(value) => take(&mut file, value)?,
            other => return Err(other.unexpected()),
        }
    }
    let (left, right) = (left.ok_or_else(missing("--snap1 A"))?, right.ok_or_else(missing("--snap2 B"))?);
    let options = delta::Options { left, right, format, same, from: VirtualBlock(from) };
    Ok(Command::Delta { file: file.ok_or_else(missing("the FILE to look at"))?, metadata_snap, options, output })
}

fn space(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let (mut file, mut delete, mut memory_mib) = (None, Vec::new(), 32u32);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("delete") => delete.push(parser.value()?.parse_with(device)?),
            Arg::Long("memory") => memory_mib = parser.value()?.parse()?,
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            Arg::Value(value) => take(&mut file, value)?,
            other => return Err(other.unexpected()),
        }
    }
    let memory_bytes = (memory_mib as usize).saturating_mul(1 << 20);
    Ok(Command::Space { file: file.ok_or_else(missing("the FILE to account for"))?, delete, memory_bytes })
}

fn format(name: &str) -> Result<Format, &'static str> {
    match name {
        "xml" => Ok(Format::Xml),
        "xml09" => Ok(Format::Xml09),
        "human_readable" => Ok(Format::HumanReadable),
        "json" => Ok(Format::Json),
        _ => Err("there are xml, xml09, human_readable and json"),
    }
}

fn device(id: &str) -> Result<DeviceId, &'static str> {
    id.parse().ok().and_then(DeviceId::new).ok_or("ids of devices are 0 to 16777215")
}

fn restore(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let (mut input, mut output, mut overrides, mut quiet) = (None, None, Overrides::default(), false);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('i') | Arg::Long("input") => take(&mut input, parser.value()?)?,
            Arg::Short('o') | Arg::Long("output") => take(&mut output, parser.value()?)?,
            Arg::Long("transaction-id") => overrides.transaction_id = Some(parser.value()?.parse()?),
            Arg::Long("data-block-size") => overrides.data_block_sectors = Some(parser.value()?.parse()?),
            Arg::Long("nr-data-blocks") => overrides.data_blocks = Some(parser.value()?.parse()?),
            Arg::Short('q') | Arg::Long("quiet") => quiet = true,
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    let input = input.ok_or_else(missing("-i XML"))?;
    Ok(Command::Restore { input, output: output.ok_or_else(missing("-o FILE"))?, overrides, quiet })
}

fn repair(mut parser: Parser) -> Result<Command, lexopt::Error> {
    let (mut input, mut output, mut options) = (None, None, repair::Options::default());
    let (mut force, mut quiet) = (false, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('i') | Arg::Long("input") => take(&mut input, parser.value()?)?,
            Arg::Short('o') | Arg::Long("output") => take(&mut output, parser.value()?)?,
            Arg::Long("force") => force = true,
            Arg::Long("last-commit") => options.last_commit = true,
            Arg::Long("transaction-id") => options.overrides.transaction_id = Some(parser.value()?.parse()?),
            Arg::Long("data-block-size") => options.overrides.data_block_sectors = Some(parser.value()?.parse()?),
            Arg::Long("nr-data-blocks") => options.overrides.data_blocks = Some(parser.value()?.parse()?),
            Arg::Short('q') | Arg::Long("quiet") => quiet = true,
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help),
            other => return Err(other.unexpected()),
        }
    }
    let input = input.ok_or_else(missing("-i FILE"))?;
    Ok(Command::Repair { input, output: output.ok_or_else(missing("-o FILE"))?, options, force, quiet })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_is_understood() {
        let check = |quiet, mib: usize| Command::Check { file: "m.img".into(), quiet, memory_bytes: mib << 20 };
        assert_eq!(read("check m.img"), Ok(check(false, 32)));
        assert_eq!(read("check --memory 5 -q m.img"), Ok(check(true, 5)));
        let id = |id| DeviceId::new(id).unwrap();
        let options = Options {
            format: Format::HumanReadable,
            metadata_snap: true,
            devices: vec![id(3), id(0)],
            skip_mappings: true,
        };
        let line = "dump -f human_readable -m --dev-id 3 --dev-id=0 --skip-mappings -o x m.img";
        assert_eq!(read(line), Ok(Command::Dump { file: "m.img".into(), options, output: Some("x".into()) }));
        let options = delta::Options {
            left: id(3),
            right: id(0),
            format: delta::Format::Json,
            same: false,
            from: VirtualBlock(7),
        };
        let delta = Command::Delta { file: "m.img".into(), metadata_snap: true, options, output: Some("x".into()) };
        let line = "delta -m --snap1 3 --thin2=0 --verbose --json --changes --from 7 -o x m.img";
        assert_eq!(read(line), Ok(delta));
        let space = Command::Space { file: "m.img".into(), delete: vec![id(3), id(4)], memory_bytes: 1 << 20 };
        assert_eq!(read("space --delete 3 m.img --delete 4 --memory 1"), Ok(space));
        let overrides = Overrides { transaction_id: Some(1), data_block_sectors: Some(128), data_blocks: Some(9) };
        let line = "restore -i - -o m.img --transaction-id 1 --data-block-size 128 --nr-data-blocks 9";
        let restore = Command::Restore { input: "-".into(), output: "m.img".into(), overrides, quiet: false };
        assert_eq!(read(line), Ok(restore));
        let line = "repair -i m.img -o n.img --transaction-id 1 --data-block-size 128 --nr-data-blocks 9 --force";
        let options = repair::Options { overrides, last_commit: false };
        let repair =
            Command::Repair { input: "m.img".into(), output: "n.img".into(), options, force: true, quiet: false };
        assert_eq!(read(line), Ok(repair));
        assert_eq!(read("dump --help"), Ok(Command::Help));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let cases = [
            ("", "what is to be done"),
            ("mend m.img", "mend? check, dump, delta, space, restore or repair"),
            ("check", "the FILE to check is missing"),
            ("check a b", "one file only"),
            ("dump -f yaml m", "there are xml, xml09, human_readable and json"),
            ("dump --dev-id 16777216 m", "0 to 16777215"),
            ("delta --snap1 3 m", "--snap2 B is missing"),
            ("delta --snap1 3 --snap2 4", "the FILE to look at is missing"),
            ("restore -i x", "-o FILE is missing"),
            ("repair -o x", "-i FILE is missing"),
            ("restore -i x -o y --nr-data-blocks many", "many"),
            ("check --colour m", "invalid option '--colour'"),
        ];
        for (line, told) in cases {
            let error = read(line).unwrap_err();
            assert!(error.contains(told), "`{line}`: {error}");
        }
    }
}
