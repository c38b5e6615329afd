//! Linux's checkers as judges: `thin_check` 1.x, and 0.9 as packaged. Several work at once, for one of 1.x sleeps for
//! half a second whatever it is given.

use crate::harness::{skipped, temporary_file, tools};
use platform::mem::MemDisk;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Judgements under way at most.
const ASKED_MAX: usize = 12;

/// What the two say of an image; an error is their output.
pub struct Verdicts {
    /// 0.9.
    pub old: Result<(), String>,
    /// 1.x.
    pub new: Result<(), String>,
}

/// A judgement under way.
pub struct Asked {
    file: PathBuf,
    old: Child,
    new: Child,
}

/// `thin_check` 0.9, if this machine has it.
fn old_thin_check() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = PathBuf::from("/usr/sbin/thin_check");
        let out = Command::new(&path).arg("-V").output().ok()?;
        String::from_utf8_lossy(&out.stdout).starts_with("0.9").then_some(path)
    };
    let found = FOUND.get_or_init(find).as_deref();
    if found.is_none() {
        skipped("thin_check 0.9 (package thin-provisioning-tools)");
    }
    found
}

/// Both tools look at what is on the disk now. `None` where a tool is missing.
pub fn ask(disk: &MemDisk) -> Option<Asked> {
    let (old, new) = (old_thin_check()?, tools()?.join("thin_check"));
    let file = temporary_file(disk);
    Some(Asked { old: start(old, &file), new: start(&new, &file), file })
}

fn start(tool: &Path, file: &Path) -> Child {
    // Of damage they may not return.
    let mut command = Command::new("timeout");
    command.arg("30").arg(tool).arg(file).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

impl Asked {
    pub fn wait(self) -> Verdicts {
        let verdict = |tool: Child| {
            let out = tool.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            if out.status.success() { Ok(()) } else { Err(format!("{}: {text}", out.status)) }
        };
        let mut verdicts = Verdicts { old: verdict(self.old), new: verdict(self.new) };
        // The machine's contexts for asynchronous I/O, of which 0.9 takes one each, may all be in use.
        for _ in 0..50 {
            let Some(old) = old_thin_check().filter(|_| is_out_of_contexts(&verdicts.old)) else { break };
            std::thread::sleep(Duration::from_millis(200));
            verdicts.old = verdict(start(old, &self.file));
        }
        std::fs::remove_file(&self.file).unwrap();
        verdicts
    }
}

fn is_out_of_contexts(verdict: &Result<(), String>) -> bool {
    verdict.as_ref().is_err_and(|why| why.contains("io_setup failed"))
}

/// Demands that both tools are content with each of many images.
#[derive(Default)]
pub struct Judge {
    asked: RefCell<VecDeque<(String, Asked)>>,
    judged: Cell<u64>,
}

impl Judge {
    /// What is on the disk now must be clean. The verdict may be heard in a later call.
    pub fn must_be_clean(&self, disk: &MemDisk, what: String) {
        if self.asked.borrow().len() >= ASKED_MAX {
            self.hear();
        }
        if let Some(asked) = ask(disk) {
            self.asked.borrow_mut().push_back((what, asked));
        }
    }

    fn hear(&self) {
        let Some((what, asked)) = self.asked.borrow_mut().pop_front() else { return };
        let verdicts = asked.wait();
        for (tool, verdict) in [("0.9", verdicts.old), ("1.x", verdicts.new)] {
            if let Err(why) = verdict {
                panic!("{what}: thin_check {tool}: {why}");
            }
        }
        self.judged.set(self.judged.get() + 1);
    }

    /// Hears the verdicts still out. Returns how many there were in all.
    pub fn finish(&self) -> u64 {
        while !self.asked.borrow().is_empty() {
            self.hear();
        }
        self.judged.get()
    }
}
