//! Each image with random bytes altered, checksums right: no panic, no endless loop, and what our check lets pass
//! `thin_check` 1.x lets pass, too.

use super::image;
use crate::harness::*;
use crate::hostile::{damage, use_it};
use crate::image::{Map, count, nr_blocks};
use crate::judge::{self, Asked};
use pdata::check::Severity;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Altered images of each case in CI.
fn rounds(case: &str) -> u64 {
    effort() * if case == "big" { 30 } else { 300 }
}

/// One of the two in CI: how many altered images of each case are shown to the tools, of those that we accept and of those
/// that we do not.
const ASKED: [u64; 2] = [30, 5];

/// Longer than this is for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// What we say of an image: nothing that anybody needs to care about is wrong with it.
fn accepted(disk: &MemDisk) -> bool {
    report(disk).is_ok_and(|report| report.worst() <= Some(Severity::Hint))
}

/// Verdicts of the tools to be compared with ours.
#[derive(Default)]
struct CrossCheck {
    asked: VecDeque<(String, bool, Asked)>,
    counts: [u64; 2],
    stricter: u64,
    laxer: Vec<String>,
}

impl CrossCheck {
    fn ask(&mut self, disk: &MemDisk, what: String, accepted: bool) {
        let kind = usize::from(!accepted);
        if self.counts[kind] >= ASKED[kind] * effort() {
            return;
        }
        self.counts[kind] += 1;
        if self.asked.len() >= 8 {
            self.hear();
        }
        self.asked.extend(judge::ask(disk).map(|asked| (what, accepted, asked)));
    }

    fn hear(&mut self) {
        let Some((what, accepted, asked)) = self.asked.pop_front() else { return };
        match (accepted, asked.wait().new) {
            (true, Err(why)) => self.laxer.push(format!("{what}: {why}")),
            (false, Ok(())) => self.stricter += 1,
            _ => {}
        }
    }
}

fn damaged_at_random(case: &str) {
    let Some(base) = image(case) else { return };
    let seed = seed();
    let used: Vec<u64> = (0..nr_blocks(&base, Map::Metadata)).filter(|b| count(&base, Map::Metadata, *b) > 0).collect();
    block_on_ready(use_it(&base.fork(), &Dice::new(seed))).expect("it can be used as it is");
    let (mut cross, mut fine, mut refused) = (CrossCheck::default(), 0, 0);
    for round in 0..rounds(case) {
        let dice = Dice::new(seed + round);
        let disk = base.fork();
        for _ in 0..1 + dice.below(3) {
            damage(&disk, used[dice.below(used.len() as u64) as usize], &dice);
        }
        let started = Instant::now();
        let accepted = accepted(&disk);
        fine += u64::from(accepted);
        cross.ask(&disk, format!("{case}, SEED={}", seed + round), accepted);
        refused += u64::from(block_on_ready(use_it(&disk, &dice)).is_err());
        assert!(started.elapsed() < LIMIT, "{case}, SEED={} takes for ever", seed + round);
    }
    while !cross.asked.is_empty() {
        cross.hear();
    }
    let [asked_fine, asked_bad] = cross.counts;
    println!(
        "{case}: {} altered, {fine} accepted, {refused} uses ended by an error; thin_check 1.x saw {asked_fine} of the \
         accepted and {asked_bad} others, of which it accepted {}",
        rounds(case),
        cross.stricter
    );
    assert!(cross.laxer.is_empty(), "{:#?}", cross.laxer);
    assert!(fine < rounds(case));
}

super::for_each_case!(damaged_at_random);
