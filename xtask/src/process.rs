//! Runs other programs: with a time limit, and so that none outlives this process.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dice::Dice;

/// Ports that are not given a second time at once.
const PORTS_REMEMBERED: usize = 1000;

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A command that the kernel ends when the *thread* that starts it ends, however that happens (`PR_SET_PDEATHSIG`,
/// through util-linux's `setpriv`; where that is missing it is a plain command).
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    match find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "SIGTERM", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// The path of a program, also looking where root's programs lie.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// What a program that ended left behind.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Ended {
    /// Both outputs as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned() + &String::from_utf8_lossy(&self.stderr)
    }
}

/// Runs a program to its end, at most `limit`; an error when it cannot be started or takes longer.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended> {
    let name = describe(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let Some(status) = wait(&mut child, limit)? else {
        end(&mut child)?;
        let output = [join(stdout), join(stderr)].concat();
        bail!("{name} took longer than {limit:?}; so far it said:\n{}", String::from_utf8_lossy(&output));
    };
    Ok(Ended { status, stdout: join(stdout), stderr: join(stderr) })
}

/// Runs a program that must succeed.
pub fn succeed(command: &mut Command, limit: Duration) -> Result<Ended> {
    let ended = run(command, limit)?;
    if !ended.status.success() {
        bail!("{}: {}\n{}", describe(command), ended.status, ended.text());
    }
    Ok(ended)
}

/// The command as one would type it.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Waits for a child, at most `limit`; `None` when it still runs.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Ends a child at once, without its consent.
pub fn end(child: &mut Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before a broken pipe is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn join(thread: JoinHandle<Vec<u8>>) -> Vec<u8> {
    thread.join().unwrap_or_default()
}

/// A TCP port that is free on the loopback address, below the range that the kernel hands to outgoing connections, and none of
/// the last ones: whom those were for may not have taken them yet.
pub fn free_port() -> Result<u16> {
    static LAST: Mutex<VecDeque<u16>> = Mutex::new(VecDeque::new());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let mut dice = Dice::new(Dice::fresh_seed());
    for _ in 0..200 {
        let port = dice.between(16_000, 29_999) as u16;
        if !last.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            last.push_back(port);
            if last.len() > PORTS_REMEMBERED {
                last.pop_front();
            }
            return Ok(port);
        }
    }
    bail!("no free TCP port between 16000 and 29999 on 127.0.0.1")
}

/// A sparse file of this size, made when it is not there; true when it was made.
pub fn sparse_file(path: &Path, size_bytes: u64) -> Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(size_bytes).with_context(|| format!("{}: {size_bytes} bytes", path.display()))?;
    Ok(true)
}

/// `64K`, `4G`, `4096` in bytes.
pub fn size_bytes(text: &str) -> Result<u64> {
    let shift = match text.chars().last() {
        Some('K' | 'k') => 10,
        Some('M' | 'm') => 20,
        Some('G' | 'g') => 30,
        Some('T' | 't') => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.with_context(|| format!("{text}: not a size; write 4096, 64K, 512M, 4G or 1T"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn sizes() {
        assert_eq!(size_bytes("4096").unwrap(), 4096);
        assert_eq!(size_bytes("64K").unwrap(), 65_536);
        assert_eq!(size_bytes("2T").unwrap(), 2 << 40);
        for bad in ["", "G", "-1", "1.5G", "99999999999T", "4 G"] {
            assert!(size_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_are_not_given_twice() {
        let ports: BTreeSet<u16> = (0..900).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 900);
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended() {
        let started = Instant::now();
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("sleep 60 took longer"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_tied_program_runs_and_tells_its_status() {
        let ended = run(tied("sh").args(["-c", "echo out; echo err >&2; exit 3"]), Duration::from_secs(20)).unwrap();
        assert_eq!((ended.status.code(), ended.text().as_str()), (Some(3), "out\nerr\n"));
    }
}
