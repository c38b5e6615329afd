//! A running appliance (QEMU with the image, or `hosted`) seen through the lines that it prints.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process;

/// Lines shown when something went wrong.
const TAIL_LINES: usize = 40;

/// A line, and when it was complete.
#[derive(Debug, Clone)]
pub struct Line {
    /// When the line's end was read.
    pub at: Instant,
    /// Its text without the line's end.
    pub text: String,
}

#[derive(Default)]
struct Output {
    lines: Vec<Line>,
    ended: bool,
}

/// A child process whose output lines are kept. Dropping it ends the process.
pub struct Console {
    child: Child,
    output: Arc<(Mutex<Output>, Condvar)>,
    /// QEMU takes the end of its standard input for a disconnected serial port.
    _stdin: Option<ChildStdin>,
    started: Instant,
}

impl Console {
    /// Starts `command` in a process group of its own (so that Ctrl-C on a terminal reaches only its parent).
    /// With `echo` each line is also written to standard output.
    pub fn start(command: &mut Command, echo: bool) -> Result<Console> {
        let name = process::describe(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        let output: Arc<(Mutex<Output>, Condvar)> = Arc::default();
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let errors = Arc::clone(&output);
        thread::spawn(move || follow(BufReader::new(stderr), &errors, echo));
        let lines = Arc::clone(&output);
        thread::spawn(move || {
            follow(BufReader::new(stdout), &lines, echo);
            lock(&lines.0).ended = true;
            lines.1.notify_all();
        });
        let stdin = child.stdin.take();
        Ok(Console { child, output, _stdin: stdin, started })
    }

    /// When the process was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that `pick` makes something of, looking from the first line on.
    pub fn wait_for<T>(&self, what: &str, limit: Duration, mut pick: impl FnMut(&Line) -> Option<T>) -> Result<T> {
        let end = Instant::now() + limit;
        let mut seen = 0;
        let mut output = lock(&self.output.0);
        loop {
            while let Some(line) = output.lines.get(seen) {
                seen += 1;
                if let Some(found) = pick(line) {
                    return Ok(found);
                }
            }
            if output.ended {
                bail!("it ended before {what}; its last lines:\n{}", tail(&output.lines));
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                bail!("no {what} within {limit:?}; its last lines:\n{}", tail(&output.lines));
            };
            output = self.output.1.wait_timeout(output, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything printed so far.
    pub fn text(&self) -> String {
        let output = lock(&self.output.0);
        output.lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the end of the process; an error, with the last lines, when that takes longer than `limit`.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        match process::wait(&mut self.child, limit)? {
            Some(status) => Ok(status),
            None => bail!("it still runs after {limit:?}; its last lines:\n{}", tail(&lock(&self.output.0).lines)),
        }
    }

    /// Ends the process at once: for QEMU, as if the machine's plug were pulled (its disks are another matter).
    pub fn kill(&mut self) -> Result<()> {
        process::end(&mut self.child)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = process::end(&mut self.child);
    }
}

fn follow(mut source: impl BufRead, output: &(Mutex<Output>, Condvar), echo: bool) {
    let mut bytes = Vec::new();
    while source.read_until(b'\n', &mut bytes).is_ok_and(|len| len > 0) {
        let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned();
        if echo {
            // A closed terminal is no reason to lose the guest.
            let _ = writeln!(std::io::stdout(), "  | {text}");
        }
        lock(&output.0).lines.push(Line { at: Instant::now(), text });
        output.1.notify_all();
        bytes.clear();
    }
}

fn lock(output: &Mutex<Output>) -> std::sync::MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tail(lines: &[Line]) -> String {
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].iter().map(|line| format!("    {}\n", line.text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Console {
        Console::start(process::tied("sh").args(["-c", script]), false).unwrap()
    }

    #[test]
    fn lines_are_found_and_the_status_is_told() {
        let mut console = shell("echo one; echo two; sleep 0.1; echo three; exit 33");
        let limit = Duration::from_secs(20);
        let three = console.wait_for("three", limit, |line| (line.text == "three").then_some(line.at)).unwrap();
        let one = console.wait_for("one", limit, |line| (line.text == "one").then_some(line.at)).unwrap();
        assert!(one < three);
        assert_eq!(console.wait_end(limit).unwrap().code(), Some(33));
    }

    #[test]
    fn what_never_comes_is_an_error_that_shows_the_last_lines() {
        let console = shell("echo alas");
        let error = console.wait_for("a miracle", Duration::from_secs(20), |_| None::<()>).unwrap_err().to_string();
        assert!(error.contains("ended before a miracle") && error.contains("alas"), "{error}");
    }

    #[test]
    fn dropping_ends_the_process() {
        let console = shell("sleep 60");
        let id = console.id();
        drop(console);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}
