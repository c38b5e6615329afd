//! Who proves what: CHAP over whole logins.

use crate::common::TARGET;
use crate::initiator::{Initiator, World, cdb, cdb_10, run};
use core::time::Duration;
use export::iscsi::pdu::LoginResponse;
use export::{Chap, Credentials, PortalOptions};
use platform::secret::Secret;
use sha2::{Digest, Sha256};
use std::rc::Rc;

const SECRET: &str = "the secret of host a";
const OWN_SECRET: &str = "the target's own secret";

fn chap(secret: &str) -> Option<Rc<Chap>> {
    let credentials = |name: &str, secret: &str| Credentials { name: name.into(), secret: Secret::new(secret.into()) };
    Some(Rc::new(Chap { initiator: credentials("host-a", secret), target: Some(credentials("gossamer", OWN_SECRET)) }))
}

fn response(id: u8, secret: &str, challenge: &[u8]) -> String {
    let hash = Sha256::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn value(text: &str, key: &str) -> String {
    text.split(' ').find_map(|pair| pair.strip_prefix(key)).unwrap_or_else(|| panic!("{key} in {text}")).to_owned()
}

/// Logs in by CHAP as far as the target lets it, and asks it to prove itself.
async fn login(initiator: &mut Initiator, who: &[&str], secret: &str) -> LoginResponse {
    let (first, _) = initiator.login_step(0x81, &[who, &["AuthMethod=CHAP,None"]].concat()).await;
    if first.status() != 0 {
        return first;
    }
    assert_eq!(first.flags, 0x00, "it stays in its stage");
    let (_, asked) = initiator.login_step(0x00, &["CHAP_A=7,5"]).await;
    let challenge = value(&asked, "CHAP_C=0x");
    let challenge: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&challenge[2 * i..2 * i + 2], 16).unwrap()).collect();
    let proof = response(value(&asked, "CHAP_I=").parse().unwrap(), secret, &challenge);
    let keys = ["CHAP_N=host-a", &format!("CHAP_R=0x{proof}"), "CHAP_I=9", "CHAP_C=0x0102"];
    let (second, answer) = initiator.login_step(0x81, &keys).await;
    if second.status() != 0 {
        return second;
    }
    assert_eq!(second.flags, 0x81);
    assert_eq!(answer, format!("CHAP_N=gossamer CHAP_R=0x{} ", response(9, OWN_SECRET, &[1, 2])));
    initiator.login_with(&[]).await.0
}

async fn status_of(world: &World, secret: &str) -> u16 {
    let mut initiator = world.connect();
    let status =
        login(&mut initiator, &["InitiatorName=iqn.a", &format!("TargetName={TARGET}")], secret).await.status();
    assert!(status == 0 || initiator.receive().await.is_none(), "a refused connection is closed");
    status
}

#[test]
fn both_sides_prove_themselves() {
    run(PortalOptions::default(), |world| async move {
        *world.disk.chap.borrow_mut() = chap(SECRET);
        let mut initiator = world.connect();
        let who = ["InitiatorName=iqn.test:a", &format!("TargetName={TARGET}")];
        assert_eq!(login(&mut initiator, &who, SECRET).await.status(), 0);
        assert_eq!(initiator.command("00", 0).await.sense_code(), (6, 0x29, 0));
        assert_eq!(initiator.write(0, &[7; 512]).await.status, 0);
        assert_eq!(status_of(&world, "not the secret").await, 0x0201);
        let mut without = world.connect();
        assert_eq!(without.login_with(&who).await.0.status(), 0x0201, "nobody gets in without");
        assert_eq!(initiator.read(0, 1).await.data, [7; 512], "and who is in is not thrown out by that");
        let mut finder = world.connect();
        assert_eq!(login(&mut finder, &["InitiatorName=iqn.a", "SessionType=Discovery"], SECRET).await.status(), 0);
    });
}

/// Who cannot prove that he is the initiator cannot end its session by logging in under its name.
#[test]
fn a_session_is_not_reinstated_by_a_stranger() {
    run(PortalOptions::default(), |world| async move {
        *world.disk.chap.borrow_mut() = chap(SECRET);
        let who = ["InitiatorName=iqn.a", &format!("TargetName={TARGET}")];
        let mut old = world.connect();
        login(&mut old, &who, SECRET).await;
        assert_eq!(status_of(&world, "not the secret").await, 0x0201);
        assert_eq!(old.command("00", 0).await.sense_code(), (6, 0x29, 0), "it lives");
        let mut new = world.connect();
        assert_eq!(login(&mut new, &who, SECRET).await.status(), 0);
        assert!(old.receive().await.is_none(), "its own initiator can");
    });
}

/// A rule that changes while a login is under way is the one that counts.
#[test]
fn the_rule_at_the_end_of_the_login_decides() {
    run(PortalOptions::default(), |world| async move {
        let who = ["InitiatorName=iqn.a", &format!("TargetName={TARGET}")];
        let mut early = world.connect();
        early.login_step(0x81, &[&who[..], &["AuthMethod=None"]].concat()).await;
        *world.disk.chap.borrow_mut() = chap(SECRET);
        assert_eq!(early.login_with(&[]).await.0.status(), 0x0202);
        world.portal.end_sessions(Some(TARGET), |peer| peer.proven.is_some()).await;
        assert!(world.portal.sessions().is_empty());
    });
}

/// So does one that changes while the session ends that the login reinstates.
#[test]
fn the_rule_after_the_end_of_the_old_session_decides() {
    run(PortalOptions::default(), |world| async move {
        let mut old = world.login("a", &[]).await;
        world.disk.slow.set(Some(world.runtime.timers.clone()));
        world.disk.hangs.set(true);
        let read = old.scsi(0x40, 512, cdb(&cdb_10(0x28, 0, 1)));
        old.send(read, &[]).await;
        let (disk, timers) = (world.disk.clone(), world.runtime.timers.clone());
        world.runtime.spawner.spawn(async move {
            timers.sleep(Duration::from_secs(1)).await;
            *disk.chap.borrow_mut() = chap(SECRET);
            timers.sleep(Duration::from_secs(1)).await;
            disk.hangs.set(false);
        });
        let mut new = world.connect();
        let who = ["InitiatorName=iqn.test:a", &format!("TargetName={TARGET}")];
        assert_eq!(new.login_with(&who).await.0.status(), 0x0202);
        assert!(world.portal.sessions().is_empty());
    });
}

#[test]
fn guesses_are_slow() {
    run(PortalOptions::default(), |world| async move {
        *world.disk.chap.borrow_mut() = chap(SECRET);
        for guess in 0..10 {
            assert_eq!(status_of(&world, &format!("guess {guess}")).await, 0x0201);
        }
        assert_eq!(status_of(&world, "guess").await, 0x0301, "no longer looked at");
        assert_eq!(status_of(&world, SECRET).await, 0x0301, "not even the right one");
        world.runtime.timers.sleep(Duration::from_secs(10)).await;
        assert_eq!(status_of(&world, SECRET).await, 0);
        world.runtime.timers.sleep(Duration::from_secs(20)).await;
        for _ in 0..3 {
            assert_eq!(status_of(&world, "guess").await, 0x0201);
        }
        assert_eq!(status_of(&world, "guess").await, 0x0301, "one more for each ten seconds");
    });
}

/// Who does not even offer CHAP guesses nothing, and keeps nobody out.
#[test]
fn who_offers_no_chap_locks_nobody_out() {
    run(PortalOptions::default(), |world| async move {
        *world.disk.chap.borrow_mut() = chap(SECRET);
        for _ in 0..200 {
            let mut without = world.connect();
            let who = ["InitiatorName=iqn.a", &format!("TargetName={TARGET}")];
            assert_eq!(without.login_with(&who).await.0.status(), 0x0201);
        }
        assert_eq!(status_of(&world, SECRET).await, 0);
    });
}
