//! `docs/errors.md` row by row: each error goes through the real HTTP interface and, where an I/O request can meet it,
//! through a real iSCSI session, and the row is what came back.

#[path = "../../../export/tests/common/mod.rs"]
mod common;
mod failing;
#[path = "../../../export/tests/portal/initiator.rs"]
mod initiator;
#[path = "../../../export/tests/portal/pipe.rs"]
mod pipe;
mod samples;

use appliance::errors::unit_error;
use appliance::service::ServiceError;
use export::PortalOptions;
use failing::answer_over_http;
use initiator::{Outcome, World, run};
use mgmt::ControlError;
use std::collections::BTreeSet;
use thinp::OpenError;
use thinp::control::Errno;
use thinp::error::Answer;

const PAGE: &str = include_str!("../../../docs/errors.md");

/// The page must have this table.
fn assert_shown(table: &[String]) {
    let table = table.join("\n") + "\n";
    assert!(PAGE.contains(&table), "docs/errors.md should have this table:\n\n{table}");
}

fn head(columns: &str) -> Vec<String> {
    let rule = "| --- ".repeat(columns.split(" | ").count()) + "|";
    vec![format!("| {columns} |"), rule]
}

/// How HTTP answers an error: `error` and status. Its body must say what the error says, and what to do.
async fn http(world: &World, error: ServiceError, errno: Option<Errno>) -> (String, u16) {
    let said = error.to_string();
    let (status, body) = answer_over_http(&world.runtime, ControlError::from(error)).await;
    assert_eq!(body["message"], said.as_str());
    assert_eq!(body["errno"].as_i64(), errno.map(|errno| -i64::from(errno.number())), "{said}");
    assert!(body["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{said}");
    (body["error"].as_str().expect("a word").to_string(), status)
}

/// Sense key, additional sense code and qualifier, or the status of a command without sense data.
fn told(outcome: &Outcome) -> String {
    match outcome.status {
        0x02 => {
            let [key, asc, ascq] = [outcome.sense[2], outcome.sense[12], outcome.sense[13]];
            format!("{key:x}/{asc:02x}/{ascq:02x}")
        }
        0x08 => "BUSY".to_string(),
        other => panic!("status {other:#x}"),
    }
}

#[test]
fn errors_of_the_pool() {
    let samples = samples::of_the_pool();
    let kinds: Vec<Answer> = samples.iter().map(thinp::Error::answer).collect();
    assert_eq!(kinds, Answer::ALL, "one sample of each kind, in the order of the table");
    run(PortalOptions::default(), move |world| async move {
        let mut initiator = world.login("host", &[]).await;
        let mut table = head("error | what it says | errno | HTTP | read | write");
        for error in samples {
            let (word, status) = http(&world, error.into(), Some(error.errno())).await;
            assert_eq!(word, error.errno().to_string());
            world.disk.fails.set(Some(unit_error(&error, 7 * 512)));
            let (read, write) = (initiator.read(7, 1).await, initiator.write(7, &[0; 512]).await);
            let place = |outcome: &Outcome| (outcome.sense[0] == 0xf0).then(|| outcome.sense[6]);
            if read.sense_code().0 == 3 {
                assert_eq!((place(&read), place(&write)), (Some(7), Some(7)), "a medium error names its block");
            }
            let kind = error.answer().kind;
            table.push(format!("| {kind} | {error} | {word} | {status} | {} | {} |", told(&read), told(&write)));
        }
        assert_shown(&table);
    });
}

#[test]
fn errors_of_opening() {
    let samples = samples::of_opening();
    let kinds: Vec<(&str, Errno)> = samples.iter().map(OpenError::answer).collect();
    assert_eq!(kinds, OpenError::KINDS, "one sample of each kind, in the order of the table");
    run(PortalOptions::default(), move |world| async move {
        let mut table = head("error | what it says | errno | HTTP");
        for error in samples {
            let (word, status) = http(&world, ServiceError::NoPool(error.to_string()), None).await;
            let (kind, errno) = error.answer();
            table.push(format!("| {kind} | {error} | {errno} | {status} {word} |"));
        }
        assert_shown(&table);
    });
}

#[test]
fn errors_of_the_appliance() {
    run(PortalOptions::default(), move |world| async move {
        let mut table = head("what it says | what to do | errno | HTTP");
        for error in samples::of_the_appliance() {
            let said = error.to_string();
            let ControlError { code, hint, .. } = error.clone().into();
            let (word, status) = http(&world, error, code.errno()).await;
            table.push(format!("| {said} | {hint} | {word} | {status} |"));
        }
        assert_shown(&table);
    });
}

#[test]
fn every_message_names_what_failed_and_what_to_do() {
    let pool = samples::of_the_pool().into_iter().map(|error| error.to_string());
    let opening = samples::of_opening().into_iter().map(|error| error.to_string());
    let said: Vec<String> = pool.chain(opening).collect();
    let things = ["disk", "block", "device", "thin id", "pool", "metadata", "buffer", "superblock", "sectors"];
    for message in &said {
        assert!(things.iter().any(|thing| message.contains(thing)), "what failed? {message}");
        assert!(message.contains(": ") || message.contains("; "), "what is to be done? {message}");
    }
    let different: BTreeSet<&String> = said.iter().collect();
    let shared = 1; // Both have NoBuffers.
    assert_eq!(different.len(), said.len() - shared, "two kinds of error say the same");
}
