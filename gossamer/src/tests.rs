//! The commands on backups, against a small appliance of this test's: volumes in memory, one request a connection, links that break.

mod fake;

use crate::api::Api;
use crate::args::{self, Arguments};
use crate::calendar::Period;
use crate::failure::Failure;
use crate::manifest::{Backup, Folder};
use crate::{backup, prune, restore};
use clap::Parser;
use fake::{BLOCK_BYTES, Dice, Fake};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thinp::stream::STRETCH_BYTES;

/// A folder that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("gossamer-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn api(fake: &Fake) -> Api {
    Api { client: crate::http::Client::new(&fake.url, Some("gsm-secret".into())).unwrap() }
}

fn back_up(fake: &Fake, folder: &Path) -> Result<Vec<Backup>, Failure> {
    backup::run(&api(fake), folder, "v1", false, true)
}

fn keep(words: &[&str]) -> args::Prune {
    let arguments = Arguments::try_parse_from([&["gossamer", "prune", "f"], words].concat()).unwrap();
    match arguments.command {
        args::Command::Prune(keep) => keep,
        other => panic!("{other:?}"),
    }
}

/// What a restore of the backup `id` brings.
fn restored(folder: &Path, id: u64, into: &Path) -> Vec<u8> {
    let folder = Folder::look(folder).unwrap();
    restore::to_file(&folder, folder.find(Some(id)).unwrap(), into, true, true).unwrap();
    fs::read(into).unwrap()
}

#[test]
fn each_backup_is_what_the_volume_held_also_when_others_were_pruned() {
    for round in 0..6 {
        let mut dice = Dice::new(round);
        let (scratch, fake) = (Scratch::new(&format!("history-{round}")), Fake::start());
        let folder = scratch.join("backups");
        fake.make("v1", 40 * BLOCK_BYTES);
        let mut held = Vec::new();
        for _ in 0..11 {
            fake.change("v1", &mut dice);
            let made = back_up(&fake, &folder).unwrap();
            assert_eq!(made.len(), 1);
            held.push((made[0].id, fake.contents("v1")));
            assert_eq!(fake.snapshots(), [made[0].snapshot.clone()], "only the next base stays");
        }
        let kinds: Vec<_> = Folder::look(&folder).unwrap().manifest.backups.iter().map(|b| b.base.is_some()).collect();
        assert_eq!(kinds, [&[false][..], &[true; 10]].concat());
        loop {
            assert!(restore::verify(&Folder::look(&folder).unwrap(), true).unwrap().iter().all(|v| v.damage.is_none()));
            for (id, contents) in &held {
                assert!(restored(&folder, *id, &scratch.join("restored")) == *contents, "backup {id}");
            }
            if held.len() == 1 {
                break;
            }
            let mut opened = Folder::open(&folder).unwrap();
            let last = dice.between(1, held.len() as u64 - 1) as usize;
            let plan = prune::plan(&opened.manifest.backups, &keep(&["--keep-last", &last.to_string()]));
            held.retain(|(id, _)| !plan.gone.contains(id));
            assert_eq!(held.len(), last);
            prune::run(&mut opened, &plan, true).unwrap();
            let files = fs::read_dir(&folder).unwrap().count();
            assert_eq!(files, last + 2, "streams, manifest and lock, and nothing else");
        }
        // The chain goes on after that.
        fake.change("v1", &mut dice);
        let made = back_up(&fake, &folder).unwrap();
        assert!(made[0].base.is_some());
        assert!(restored(&folder, made[0].id, &scratch.join("restored")) == fake.contents("v1"));
    }
}

#[test]
fn any_that_stay_are_whole_whichever_go() {
    let mut dice = Dice::new(0);
    let (scratch, fake) = (Scratch::new("subsets"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", 20 * BLOCK_BYTES - 512);
    let mut held = Vec::new();
    for n in 0..9 {
        fake.change("v1", &mut dice);
        let full = n == 4;
        // A bar that nobody sees, as under cron.
        let made = backup::run(&api(&fake), &folder, "v1", full, false).unwrap();
        held.push((made[0].id, fake.contents("v1")));
    }
    let mut opened = Folder::open(&folder).unwrap();
    // Days without a pattern: three that stay in the first chain's and the second chain's middle, by their times.
    let days = [0, 0, 1, 1, 1, 1, 2, 2, 3];
    opened.manifest.backups.iter_mut().zip(days).for_each(|(backup, day)| backup.time = day * 86400);
    let plan = prune::plan(&opened.manifest.backups, &keep(&["--keep-daily", "9"]));
    assert_eq!(plan.gone, [1, 3, 4, 5, 7]);
    prune::run(&mut opened, &plan, true).unwrap();
    drop(opened);
    for (id, contents) in held.iter().filter(|(id, _)| !plan.gone.contains(id)) {
        assert!(restored(&folder, *id, &scratch.join("restored")) == *contents, "backup {id}");
    }
    let left: Vec<_> = Folder::look(&folder).unwrap().manifest.backups.iter().map(|b| b.base.is_none()).collect();
    assert_eq!(left, [true, true, false, false], "2 stands alone, 6 is full with 5 in it");
}

#[test]
fn what_is_pruned_while_others_are_verified_is_not_damaged() {
    let mut dice = Dice::new(1);
    let (scratch, fake) = (Scratch::new("beside"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", 8 * BLOCK_BYTES);
    for _ in 0..4 {
        fake.change("v1", &mut dice);
        back_up(&fake, &folder).unwrap();
    }
    let looked = Folder::look(&folder).unwrap();
    let mut opened = Folder::open(&folder).unwrap();
    let plan = prune::plan(&opened.manifest.backups, &keep(&["--keep-last", "2"]));
    prune::run(&mut opened, &plan, true).unwrap();
    let verdicts = restore::verify(&looked, true).unwrap();
    assert_eq!(verdicts.iter().map(|v| (v.id, v.damage.clone())).collect::<Vec<_>>(), [(4, None)]);
    // But a file that is gone is missed.
    fs::remove_file(folder.join(&looked.manifest.backups[3].file)).unwrap();
    assert!(restore::verify(&looked, true).unwrap()[0].damage.is_some());
}

#[test]
fn a_broken_link_costs_what_no_digest_covered() {
    let (scratch, fake) = (Scratch::new("link"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", 64 * BLOCK_BYTES);
    fake.fill("v1", 0..64, 7);
    // Twice in the middle: the run goes on by itself.
    fake.cut_downloads(&[30 * BLOCK_BYTES, 20 * BLOCK_BYTES]);
    let made = back_up(&fake, &folder).unwrap();
    assert_eq!(fake.resumed(), 2);
    assert!(restored(&folder, made[0].id, &scratch.join("restored")) == fake.contents("v1"));
    assert!(
        fake.sent_bytes() < 64 * BLOCK_BYTES + 3 * (fake::STRETCH_BLOCKS + 2) * BLOCK_BYTES,
        "little was sent twice"
    );
}

#[test]
fn an_interrupted_run_is_finished_by_the_next() {
    let (scratch, fake) = (Scratch::new("interrupted"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", 8 * BLOCK_BYTES);
    fake.fill("v1", 0..8, 7);
    let before = fake.contents("v1");
    fake.refuse_streams(true);
    assert!(matches!(back_up(&fake, &folder), Err(Failure::Refused { status: 503, .. })));
    assert!(Folder::look(&folder).unwrap().manifest.backups.is_empty());
    fake.fill("v1", 2..3, 9);
    fake.refuse_streams(false);
    let made = back_up(&fake, &folder).unwrap();
    assert_eq!(made.iter().map(|backup| backup.base.is_some()).collect::<Vec<_>>(), [false, true]);
    assert!(restored(&folder, 1, &scratch.join("restored")) == before);
    assert!(restored(&folder, 2, &scratch.join("restored")) == fake.contents("v1"));
    assert_eq!(fake.snapshots().len(), 1);
    // Its snapshot is gone: nothing to finish, and a new one is made. So is the base: it is a full one.
    fake.refuse_streams(true);
    assert!(back_up(&fake, &folder).is_err());
    fake.refuse_streams(false);
    fake.snapshots().iter().for_each(|name| fake.remove(name));
    let made = back_up(&fake, &folder).unwrap();
    assert_eq!((made.len(), made[0].base.is_none()), (1, true));
    assert!(restored(&folder, made[0].id, &scratch.join("restored")) == fake.contents("v1"));
}

#[test]
fn a_base_that_was_written_to_is_none() {
    let (scratch, fake) = (Scratch::new("base"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", 8 * BLOCK_BYTES);
    let made = back_up(&fake, &folder).unwrap();
    fake.spoil(&made[0].snapshot);
    assert!(back_up(&fake, &folder).unwrap()[0].base.is_none());
}

#[test]
fn a_snapshot_in_use_stays_until_it_is_not() {
    let (scratch, fake) = (Scratch::new("held"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", 8 * BLOCK_BYTES);
    let first = back_up(&fake, &folder).unwrap()[0].snapshot.clone();
    fake.hold(Some(&first));
    back_up(&fake, &folder).unwrap();
    back_up(&fake, &folder).unwrap();
    assert_eq!(fake.snapshots().len(), 2, "the one in use, and the base");
    fake.hold(None);
    back_up(&fake, &folder).unwrap();
    assert_eq!(fake.snapshots().len(), 1);
}

#[test]
fn damage_is_found_and_nothing_is_restored_from_it() {
    let (scratch, fake) = (Scratch::new("damage"), Fake::start());
    let (folder, into) = (scratch.join("backups"), scratch.join("restored"));
    fake.make("v1", 8 * BLOCK_BYTES);
    for n in 0..3 {
        fake.fill("v1", n..n + 2, n as u8 + 1);
        back_up(&fake, &folder).unwrap();
    }
    let look = || Folder::look(&folder).unwrap();
    let second = folder.join(&look().manifest.backups[1].file);
    let whole = fs::read(&second).unwrap();
    let damaged = |bytes: &[u8]| {
        fs::write(&second, bytes).unwrap();
        let verdicts = restore::verify(&look(), true).unwrap();
        assert_eq!(verdicts.iter().map(|v| v.damage.is_some()).collect::<Vec<_>>(), [false, true, false]);
        for at in [1, 2] {
            let failed = restore::to_file(&look(), at, &into, false, true);
            assert!(matches!(failed, Err(Failure::Damaged(_) | Failure::Here(_))), "{failed:?}");
            assert!(!into.exists() && fs::read_dir(&scratch.0).unwrap().count() == 1, "nothing is left");
        }
        restore::to_file(&look(), 0, &into, false, true).unwrap();
        fs::remove_file(&into).unwrap();
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    damaged(&flipped);
    damaged(&whole[..whole.len() - 1]);
    damaged(&[]);
    damaged(&fs::read(folder.join(&look().manifest.backups[2].file)).unwrap());
    fs::remove_file(&second).unwrap();
    assert!(restore::verify(&look(), true).unwrap()[1].damage.is_some());
}

#[test]
fn a_restored_file_is_sparse_and_nothing_is_overwritten_unasked() {
    let (scratch, fake) = (Scratch::new("sparse"), Fake::start());
    let (folder, into) = (scratch.join("backups"), scratch.join("restored"));
    fake.make("v1", 1024 * BLOCK_BYTES);
    fake.fill("v1", 1000..1001, 7);
    back_up(&fake, &folder).unwrap();
    assert!(restored(&folder, 1, &into) == fake.contents("v1"));
    let blocks = fs::metadata(&into).unwrap().blocks();
    assert!(blocks * 512 <= 2 * BLOCK_BYTES, "{blocks} sectors for one block");
    let again = restore::to_file(&Folder::look(&folder).unwrap(), 0, &into, false, true);
    assert!(matches!(again, Err(Failure::Usage(_))));
}

#[test]
fn a_restore_into_a_volume_goes_on_where_it_broke_off() {
    let (scratch, fake) = (Scratch::new("volume"), Fake::start());
    let folder = scratch.join("backups");
    // More than one stretch.
    let blocks = STRETCH_BYTES / BLOCK_BYTES + 100;
    fake.make("v1", blocks * BLOCK_BYTES);
    fake.fill("v1", 0..blocks, 3);
    back_up(&fake, &folder).unwrap();
    fake.fill("v1", 10..20, 4);
    fake.fill("v1", blocks - 20..blocks - 10, 5);
    back_up(&fake, &folder).unwrap();
    let into =
        |name: &str, force| restore::to_volume(&api(&fake), &Folder::look(&folder).unwrap(), 1, name, force, true);
    into("v2", false).unwrap();
    assert!(fake.contents("v2") == fake.contents("v1"));
    assert!(matches!(into("v2", false), Err(Failure::Usage(_))), "it is there");
    fake.cut_uploads_at(Some(STRETCH_BYTES + 50 * BLOCK_BYTES));
    let lost = into("v3", false);
    assert!(matches!(lost, Err(Failure::Unreachable(_))), "{lost:?}");
    fake.cut_uploads_at(None);
    into("v3", false).unwrap();
    assert!(fake.contents("v3") == fake.contents("v1"));
    assert_eq!(fake.resumed(), 1);
}

#[test]
fn what_the_appliance_says_in_the_middle_of_an_upload_is_heard() {
    let (scratch, fake) = (Scratch::new("refused"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", 1024 * BLOCK_BYTES);
    fake.fill("v1", 0..1024, 3);
    back_up(&fake, &folder).unwrap();
    fake.full_at(Some(2 * BLOCK_BYTES));
    let refused = restore::to_volume(&api(&fake), &Folder::look(&folder).unwrap(), 0, "v2", false, true);
    let Err(Failure::Refused { status: 507, message, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(message, "the pool is full");
    assert!(fake.sent_after_answer() < 256 * BLOCK_BYTES, "it was not heard in the middle");
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let (scratch, fake) = (Scratch::new("lock"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", BLOCK_BYTES);
    back_up(&fake, &folder).unwrap();
    let held = Folder::open(&folder).unwrap();
    assert!(matches!(back_up(&fake, &folder), Err(Failure::Locked(_))));
    drop(held);
    back_up(&fake, &folder).unwrap();
    let other = backup::run(&api(&fake), &folder, "v2", false, true);
    assert!(matches!(other, Err(Failure::Usage(_))), "a folder is for one volume");
}

#[test]
fn a_manifest_that_leads_out_of_its_folder_is_refused() {
    let (scratch, fake) = (Scratch::new("manifest"), Fake::start());
    let folder = scratch.join("backups");
    fake.make("v1", BLOCK_BYTES);
    back_up(&fake, &folder).unwrap();
    let text = fs::read_to_string(folder.join("manifest.json")).unwrap();
    let file = Folder::look(&folder).unwrap().manifest.backups[0].file.clone();
    for other in ["../x", "", "/etc/passwd", "manifest.json"] {
        fs::write(folder.join("manifest.json"), text.replace(&file, other)).unwrap();
        assert!(matches!(Folder::look(&folder), Err(Failure::Damaged(_))), "{other}");
    }
    fs::write(folder.join("manifest.json"), text.replace("\"version\": 1", "\"version\": 2")).unwrap();
    assert!(matches!(Folder::look(&folder), Err(Failure::Usage(_))));
}

#[test]
fn what_stays_is_the_last_of_each_period() {
    let backup = |id, time| Backup {
        id,
        time,
        file: format!("{id}.stream"),
        snapshot: String::new(),
        identity: String::new(),
        base: (id != 1).then(String::new),
        volume_bytes: 0,
        stream_bytes: 0,
        data_bytes: 0,
        digest: String::new(),
    };
    const HOUR: i64 = 3600;
    let backups: Vec<_> = (0..96).map(|n| backup(n as u64 + 1, n * HOUR)).collect();
    let staying = |words: &[&str]| {
        let gone = prune::plan(&backups, &keep(words)).gone;
        backups.iter().map(|backup| backup.id).filter(|id| !gone.contains(id)).collect::<Vec<_>>()
    };
    assert_eq!(staying(&["--keep-last", "2"]), [95, 96]);
    assert_eq!(staying(&["--keep-hourly", "3"]), [94, 95, 96]);
    assert_eq!(staying(&["--keep-daily", "3"]), [48, 72, 96]);
    assert_eq!(staying(&["--keep-daily", "2", "--keep-hourly", "2"]), [72, 95, 96]);
    assert_eq!(staying(&["--keep-monthly", "12"]), [96]);
    assert_eq!(staying(&["--keep-last", "0"]), [96], "the newest stays always");
}

#[test]
fn periods_are_those_of_the_calendar() {
    // 2026-11-29 was a Sunday.
    let sunday = 1_795_910_400;
    assert_eq!(crate::calendar::rfc3339(sunday), "2026-11-29T00:00:00Z");
    assert_eq!(crate::calendar::compact(sunday + 3661), "20261129-010101");
    let same = |period: Period, one: i64, other: i64| period.of(one) == period.of(other);
    let day = 86400;
    assert!(same(Period::Week, sunday, sunday - 6 * day) && !same(Period::Week, sunday, sunday + day));
    assert!(same(Period::Day, sunday, sunday + day - 1) && !same(Period::Day, sunday, sunday - 1));
    assert!(same(Period::Month, sunday, sunday + day) && !same(Period::Month, sunday, sunday + 2 * day));
    assert!(same(Period::Year, sunday, sunday + 32 * day) && !same(Period::Year, sunday, sunday + 33 * day));
}

#[test]
fn the_token_is_not_told() {
    let client = crate::http::Client::new("http://127.0.0.1:1", Some("gsm-secret".into())).unwrap();
    assert!(!format!("{client:?}").contains("secret"));
    let failure = client.send("GET", "/", None).unwrap_err();
    assert!(matches!(failure, Failure::Unreachable(_)) && !failure.to_string().contains("secret"));
    for url in ["https://h", "h:80", "http://", "http://u@h", "http://h/path", "http://h\r\nX: y"] {
        assert!(crate::http::Client::new(url, None).is_err(), "{url:?}");
    }
    assert!(crate::http::Client::new("http://h", Some("a\r\nb".into())).is_err());
}
