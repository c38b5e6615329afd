//! The program as its users call it: exit codes, what it prints, what it leaves alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A pool of two devices that share a run of blocks, as thin_dump 1.x writes it.
const XML: &str = r#"<superblock uuid="" time="1" transaction="3" version="2" data_block_size="128" nr_data_blocks="64">
  <def name="0">
    <range_mapping origin_begin="0" data_begin="0" length="20" time="0"/>
  </def>
  <device dev_id="1" mapped_blocks="21" transaction="0" creation_time="0" snap_time="1">
    <ref name="0"/>
    <single_mapping origin_block="40" data_block="33" time="1"/>
  </device>
  <device dev_id="7" mapped_blocks="20" transaction="1" creation_time="1" snap_time="1">
    <ref name="0"/>
  </device>
</superblock>
"#;

/// A folder of a test's own, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    /// An image with the pool of [`XML`].
    fn pool(&self) -> PathBuf {
        let image = self.file("pool.img", &[0; 128 << 12]);
        let restored = run(&[&"restore", &"-i", &self.file("pool.xml", XML.as_bytes()), &"-o", &image]);
        assert_eq!((restored.status.code(), stderr(&restored)), (Some(0), String::new()));
        assert!(stdout(&restored).contains("2 devices, 41 mappings"), "{}", stdout(&restored));
        image
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(args: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gossamer-pool")).args(args.iter().map(|arg| arg.as_ref())).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_is_restored_is_good_and_dumps_as_it_was() {
    let folder = Folder::new("good");
    let image = folder.pool();
    let before = fs::read(&image).unwrap();
    let checked = run(&[&"check", &image]);
    assert_eq!((checked.status.code(), stdout(&checked).trim()), (Some(0), "2 devices, 41 mappings: good"));
    let quiet = run(&[&"check", &"-q", &image]);
    assert_eq!((quiet.status.code(), stdout(&quiet)), (Some(0), String::new()));
    let dumped = run(&[&"dump", &image]);
    assert_eq!((dumped.status.code(), stderr(&dumped)), (Some(0), String::new()));
    let again = folder.file("again.img", &[0; 128 << 12]);
    let restored = run(&[&"restore", &"-i", &folder.file("again.xml", &dumped.stdout), &"-o", &again, &"-q"]);
    assert_eq!((restored.status.code(), stdout(&restored)), (Some(0), String::new()));
    let to = folder.0.join("to.xml");
    assert_eq!(run(&[&"dump", &again, &"-o", &to]).status.code(), Some(0));
    assert_eq!(fs::read(&to).unwrap(), dumped.stdout);
    let one = stdout(&run(&[&"dump", &"--dev-id", &"7", &image]));
    assert!(one.contains("dev_id=\"7\"") && !one.contains("dev_id=\"1\""), "{one}");
    assert_eq!(fs::read(&image).unwrap(), before, "check and dump change nothing");
}

#[test]
fn every_damaged_block_in_use_is_found() {
    let folder = Folder::new("damaged");
    let image = folder.pool();
    let sound = fs::read(&image).unwrap();
    let in_use = (0..sound.len() / 4096).filter(|block| sound[block * 4096..][..4096].iter().any(|byte| *byte != 0));
    let mut damaged = 0;
    for block in in_use {
        let mut bytes = sound.clone();
        bytes[block * 4096 + 100] ^= 1;
        fs::write(&image, bytes).unwrap();
        let checked = run(&[&"check", &image]);
        let told = stdout(&checked) + &stderr(&checked);
        assert_eq!(checked.status.code(), Some(1), "block {block}: {told}");
        assert!(told.contains(&format!("block {block}")) || block == 0 && told.contains("superblock"), "{told}");
        damaged += 1;
    }
    assert!(damaged >= 8, "{damaged} blocks");
}

#[test]
fn what_cannot_be_is_told_and_nothing_is_written() {
    let folder = Folder::new("wrong");
    let blank = folder.file("blank.img", &[0; 128 << 12]);
    let absent = folder.0.join("absent");
    let image = folder.pool();
    let xml = folder.0.join("pool.xml");
    let truncated = folder.file("truncated.xml", &XML.as_bytes()[..XML.len() / 2]);
    let small = folder.file("small.img", &[0; 10 << 12]);
    for (code, names, args) in [
        (2, "Usage", vec![]),
        (2, "nonsense", vec!["nonsense".into()]),
        (2, "file", vec!["check".into()]),
        (1, "absent", vec!["check".into(), absent.clone()]),
        (1, "blank.img", vec!["check".into(), blank.clone()]),
        (1, "blank.img", vec!["dump".into(), blank.clone()]),
        (1, "metadata snapshot", vec!["dump".into(), "-m".into(), image.clone()]),
        (1, "absent", vec!["restore".into(), "-i".into(), absent.clone(), "-o".into(), blank.clone()]),
        (1, "truncated.xml", vec!["restore".into(), "-i".into(), truncated, "-o".into(), blank.clone()]),
        (1, "at least 64", vec!["restore".into(), "-i".into(), xml, "-o".into(), small]),
    ] {
        let args: Vec<&dyn AsRef<std::ffi::OsStr>> = args.iter().map(|arg: &PathBuf| arg as _).collect();
        let output = run(&args);
        let told = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(names), "{names} is not in: {told}");
    }
    assert!(!absent.exists());
    let checked = run(&[&"check", &blank]);
    assert_eq!(checked.status.code(), Some(1), "what a restore began is no pool: {}", stdout(&checked));
}

/// A pool whose root of the details (reference 1.1) is gone, and its bytes.
fn without_details(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let image = folder.pool();
    let mut bytes = fs::read(&image).unwrap();
    let root = u64::from_le_bytes(bytes[328..336].try_into().unwrap()) as usize;
    bytes[root * 4096..][..4096].fill(0);
    fs::write(&image, &bytes).unwrap();
    (image, bytes)
}

#[test]
fn a_repair_writes_another_file_and_tells_what_was_lost() {
    let folder = Folder::new("repair");
    let (image, damaged) = without_details(&folder);
    assert_eq!(run(&[&"check", &"-q", &image]).status.code(), Some(1));
    let fresh = folder.file("fresh.img", &[0; 128 << 12]);
    let repaired = run(&[&"repair", &"-i", &image, &"-o", &fresh]);
    assert_eq!((repaired.status.code(), stderr(&repaired)), (Some(0), String::new()));
    let told = stdout(&repaired);
    for line in [
        "2 devices and 41 mappings, from the state of the last commit",
        "transaction id: 3, as in the superblock",
        "device 1: 21 mappings, it is not known of how many; its details were lost",
        "device 7: 20 mappings, it is not known of how many; its details were lost",
    ] {
        assert!(told.contains(line), "{line} is not in: {told}");
    }
    let checked = run(&[&"check", &fresh]);
    assert_eq!((checked.status.code(), stdout(&checked).trim()), (Some(0), "2 devices, 41 mappings: good"));

    let made = fs::read(&fresh).unwrap();
    let again = run(&[&"repair", &"-i", &image, &"-o", &fresh]);
    assert_eq!((again.status.code(), stdout(&again)), (Some(1), String::new()));
    assert!(stderr(&again).contains("not blank at sector 0"), "{}", stderr(&again));
    assert_eq!(fs::read(&fresh).unwrap(), made, "what is refused is not written");
    let forced = run(&[&"repair", &"-q", &"--force", &"-i", &image, &"-o", &fresh]);
    assert_eq!((forced.status.code(), stdout(&forced) + &stderr(&forced)), (Some(0), String::new()));
    assert_eq!(run(&[&"check", &"-q", &fresh]).status.code(), Some(0));
    assert_eq!(fs::read(&image).unwrap(), damaged, "the only copy");
}

#[test]
fn a_repair_takes_what_was_lost_with_the_superblock_from_the_command_line() {
    let folder = Folder::new("superblock");
    let image = folder.pool();
    let before = run(&[&"dump", &image]).stdout;
    let mut damaged = fs::read(&image).unwrap();
    damaged[..4096].fill(0xff);
    fs::write(&image, &damaged).unwrap();
    let fresh = folder.file("fresh.img", &[0; 128 << 12]);
    let unknown = run(&[&"repair", &"-i", &image, &"-o", &fresh]);
    assert_eq!((unknown.status.code(), stdout(&unknown)), (Some(1), String::new()));
    assert!(stderr(&unknown).contains("data block size"), "{}", stderr(&unknown));
    assert_eq!(fs::read(&fresh).unwrap(), [0; 128 << 12]);
    let given = ["--data-block-size=128", "--nr-data-blocks=64", "--transaction-id=3"];
    let repaired = run(&[&"repair", &"-i", &image, &"-o", &fresh, &given[0], &given[1], &given[2]]);
    assert_eq!((repaired.status.code(), stderr(&repaired)), (Some(0), String::new()));
    assert!(stdout(&repaired).contains("data blocks: 64, as given"), "{}", stdout(&repaired));
    assert_eq!(run(&[&"dump", &fresh]).stdout, before);
    assert_eq!(fs::read(&image).unwrap(), damaged, "the only copy");
}

#[test]
fn a_repair_refuses_what_will_not_do() {
    let folder = Folder::new("refused");
    let (image, damaged) = without_details(&folder);
    let (symbolic, hard) = (folder.0.join("symbolic"), folder.0.join("hard"));
    std::os::unix::fs::symlink(&image, &symbolic).unwrap();
    fs::hard_link(&image, &hard).unwrap();
    let small = folder.file("small.img", &[0; 10 << 12]);
    let used = folder.file("used.img", &[&[0; 100 << 12][..], &[7; 28 << 12][..]].concat());
    let noise = folder.file("noise.img", &[0xa5; 128 << 12]);
    let blank = folder.file("blank.img", &[0; 128 << 12]);
    for (from, to, told) in [
        (&image, &image, "the damaged metadata itself"),
        (&image, &symbolic, "the damaged metadata itself"),
        (&hard, &image, "the damaged metadata itself"),
        (&image, &small, "at least 64"),
        (&image, &used, "not blank at sector 800"),
        (&image, &folder.0.join("absent"), "absent"),
        (&noise, &blank, "none of the 128 blocks"),
    ] {
        let refused = run(&[&"repair", &"-i", from, &"-o", to]);
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(1), String::new()), "{told}");
        assert!(stderr(&refused).contains(told), "{told} is not in: {}", stderr(&refused));
    }
    assert_eq!(run(&[&"repair", &"-i", &image]).status.code(), Some(2));
    assert!(!folder.0.join("absent").exists());
    assert_eq!(fs::read(&image).unwrap(), damaged, "the only copy");
    assert_eq!(fs::read(&small).unwrap(), [0; 10 << 12]);
    assert_eq!(fs::read(&blank).unwrap(), [0; 128 << 12]);
}
