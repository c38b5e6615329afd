//! Malformed HTTP or iSCSI ends that connection, with the protocol's own error, and no other.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::dice::Dice;

use crate::appliance::{Appliance, IQN, Site};
use crate::context::Context;
use crate::iscsi::{Error, INITIATOR, Pdu, Sense, Session, Transfer};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    Test::new("bad_peers::malformed_http", malformed_http),
    Test::new("bad_peers::malformed_iscsi", malformed_iscsi),
    Test::new("bad_peers::commands_that_make_no_sense", commands_that_make_no_sense),
    Test::new("bad_peers::noise_and_silence", noise_and_silence),
];

const TIMEOUT: Duration = Duration::from_secs(20);

/// An appliance with a volume, and a session that must go on whatever others do.
struct Bystander {
    appliance: Appliance,
    session: Session,
    writes: u64,
}

impl Bystander {
    fn new(context: &Context) -> Result<Bystander> {
        let appliance = Site::new(context, 8 << 20, 64 << 20)?.start()?;
        appliance.make_volume("v", 16 << 20)?;
        let session = appliance.login("v")?;
        Ok(Bystander { appliance, session, writes: 0 })
    }

    /// The session still works, and so does the management interface.
    fn carry_on(&mut self, after: &str) -> Result<()> {
        self.appliance.check_alive().with_context(|| format!("after {after}"))?;
        self.writes += 1;
        let data = [self.writes as u8; 4096];
        self.session.write(self.writes * 8, &data, false).with_context(|| format!("a write after {after}"))?;
        let back = self.session.read(self.writes * 8, 8).with_context(|| format!("a read after {after}"))?;
        ensure!(back == data, "after {after} another session reads what it did not write");
        self.appliance.call("GET", "/v1/pool", &Value::Null).with_context(|| format!("after {after}"))?;
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.session.logout()?;
        self.appliance.power_off()
    }
}

fn malformed_http(context: &Context) -> Result<()> {
    let mut bystander = Bystander::new(context)?;
    let token = format!("Authorization: Bearer {}\r\n", crate::appliance::TOKEN);
    let long = "x".repeat(64 << 10);
    let cases: Vec<(&str, Vec<u8>, &[u16])> =
        vec![
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400]),
        ("a request line of one word", b"GET\r\n\r\n".to_vec(), &[400]),
        ("HTTP/9.9", b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n".to_vec(), &[400, 505]),
        ("a header without a colon", b"GET /healthz HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n".to_vec(), &[400]),
        ("no Host", b"GET /healthz HTTP/1.1\r\n\r\n".to_vec(), &[400]),
        ("endless headers", format!("GET /healthz HTTP/1.1\r\nHost: x\r\nA: {long}\r\n\r\n").into_bytes(), &[400, 431]),
        ("an endless path", format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes(), &[400, 414, 431]),
        (
            "a length that is no number",
            format!("POST /v1/volumes HTTP/1.1\r\nHost: x\r\n{token}Content-Length: ten\r\n\r\n").into_bytes(),
            &[400],
        ),
        (
            "two lengths",
            format!("POST /v1/volumes HTTP/1.1\r\nHost: x\r\n{token}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")
                .into_bytes(),
            &[400],
        ),
        (
            "length and chunks",
            format!(
                "POST /v1/volumes HTTP/1.1\r\nHost: x\r\n{token}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                 0\r\n\r\n"
            )
            .into_bytes(),
            &[400],
        ),
        (
            "a body beyond reason",
            format!(
                "POST /v1/volumes HTTP/1.1\r\nHost: x\r\n{token}Content-Type: application/json\r\n\
                 Content-Length: 99999999999\r\n\r\n"
            )
            .into_bytes(),
            &[413],
        ),
    ];
    for (what, message, statuses) in cases {
        let answer = bystander.appliance.http.exchange(&message).with_context(|| what.to_owned())?;
        ensure!(statuses.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
        bystander.carry_on(what)?;
    }
    for (what, body) in [("no JSON", "{"), ("another JSON", "[1]"), ("a field too many", r#"{"name":"x","sise":1}"#)] {
        let answer = bystander.appliance.http.request("POST", "/v1/volumes", "application/json", body.as_bytes())?;
        ensure!(answer.status == 400, "{what}: {} {}", answer.status, answer.text());
        ensure!(answer.json()?["hint"].is_string(), "{what}: no hint in {}", answer.text());
    }
    // The connection is closed after an error of its framing: what follows is not taken for a request.
    let smuggled = b"BAD\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let everything = speak(bystander.appliance.http.address, smuggled)?;
    let answers = String::from_utf8_lossy(&everything).lines().filter(|line| line.starts_with("HTTP/1.1 ")).count();
    ensure!(answers == 1, "{answers} answers to one broken request");
    bystander.carry_on("a smuggled request")?;
    bystander.end()
}

fn malformed_iscsi(context: &Context) -> Result<()> {
    let mut bystander = Bystander::new(context)?;
    let portal = bystander.appliance.portal()?;
    let keys = format!("InitiatorName={INITIATOR}\0SessionType=Normal\0TargetName={IQN}:v\0AuthMethod=None\0");
    let login = |flags: u8, versions: [u8; 2], text: &str| {
        let mut pdu = Pdu::new(0x43);
        pdu.bhs[1] = flags;
        pdu.bhs[2..4].copy_from_slice(&versions);
        pdu.bhs[8..14].copy_from_slice(&[0x80, 0, 0, 1, 2, 3]);
        pdu.data = text.as_bytes().to_vec();
        pdu
    };
    // (what, the PDU, the login status class expected; None: the connection just ends, or a Reject says why)
    let mut command_first = Pdu::new(0x01);
    command_first.bhs[1] = 0x80;
    let mut giant = login(0x81, [0, 0], "");
    giant.data = vec![b'A'; 600 << 10];
    let cases = [
        ("a SCSI command before login", command_first, None),
        ("an unknown opcode", Pdu::new(0x3e), None),
        ("a protocol version of the future", login(0x81, [9, 9], &keys), Some(2)),
        ("no initiator name", login(0x81, [0, 0], "AuthMethod=None\0"), Some(2)),
        ("no target name", login(0x81, [0, 0], &format!("InitiatorName={INITIATOR}\0AuthMethod=None\0")), Some(2)),
        ("text without an equals sign", login(0x81, [0, 0], "InitiatorName\0"), Some(2)),
        ("a stage that does not exist", login(0x82, [0, 0], &keys), Some(2)),
        ("an authentication that is not there", login(0x81, [0, 0], &keys.replace("=None", "=KRB5")), Some(2)),
        ("a login of 600 KiB", giant, None),
    ];
    for (what, pdu, class) in cases {
        let answer = exchange(portal, &pdu).with_context(|| what.to_owned())?;
        match (class, &answer) {
            (Some(class), Some(answer)) => ensure!(
                answer.opcode() == 0x23 && answer.bhs[36] == class,
                "{what}: opcode {:#04x}, status class {}",
                answer.opcode(),
                answer.bhs[36]
            ),
            (Some(_), None) => bail!("{what}: closed without a login response"),
            // A refusal, if one comes at all, must not look like success.
            (None, Some(answer)) => ensure!(
                answer.opcode() == 0x3f || answer.opcode() == 0x23 && answer.bhs[36] != 0,
                "{what}: answered with opcode {:#04x}",
                answer.opcode()
            ),
            (None, None) => {}
        }
        bystander.carry_on(what)?;
    }
    broken_after_login(&mut bystander)?;
    bystander.end()
}

/// Nonsense from a peer that has logged in ends its session and no other.
fn broken_after_login(bystander: &mut Bystander) -> Result<()> {
    let mut data_out = Pdu::new(0x05);
    data_out.bhs[1] = 0x80;
    data_out.set_u32(16, 77);
    data_out.set_u32(20, 0xdead);
    data_out.data = vec![0; 512];
    let mut second_login = Pdu::new(0x43);
    second_login.bhs[1] = 0x87;
    let mut too_long = Pdu::new(0x40);
    too_long.bhs[1] = 0x80;
    too_long.data = vec![0; 0xff_fff0];
    // Data for a task that is not there may be the rest of one that was aborted: it may be dropped in silence.
    for (what, pdu, may_be_ignored) in [
        ("data that nobody asked for", data_out, true),
        ("a second login", second_login, false),
        ("a ping of 16 MiB", too_long, false),
    ] {
        let mut session = bystander.appliance.login("v")?;
        let mut stream = session.stream();
        // The target may hang up before all of it is sent.
        let _ = stream.write_all(&pdu.to_bytes());
        let goes_on = session.ping().is_ok();
        ensure!(may_be_ignored || !goes_on, "after {what} the session goes on as if it made sense");
        drop(session);
        let mut again = bystander.appliance.login("v").with_context(|| format!("a login after {what}"))?;
        again.ping()?;
        bystander.carry_on(what)?;
    }
    Ok(())
}

/// Commands that a correct peer may send but that cannot be done: a CHECK CONDITION each, and the session goes on.
fn commands_that_make_no_sense(context: &Context) -> Result<()> {
    let mut bystander = Bystander::new(context)?;
    let mut session = bystander.appliance.login("v")?;
    let last = session.capacity_blocks()?;
    const ILLEGAL_REQUEST: u8 = 5;
    let sense = |result: Result<Vec<u8>, Error>, what: &str| match result {
        Err(Error::Check(sense)) => Ok(sense),
        other => bail!("{what}: {other:?}"),
    };
    let mut read_beyond = [0; 16];
    read_beyond[0] = 0x88;
    read_beyond[2..10].copy_from_slice(&last.to_be_bytes());
    read_beyond[13] = 1;
    let found = sense(session.run(&read_beyond, Transfer::In(512)), "a read beyond the end")?;
    ensure!(found == Sense { key: ILLEGAL_REQUEST, asc: 0x21, ascq: 0 }, "a read beyond the end: {found}");
    read_beyond[2..10].copy_from_slice(&u64::MAX.to_be_bytes());
    let found = sense(session.run(&read_beyond, Transfer::In(512)), "a read beyond all ends")?;
    ensure!(found.key == ILLEGAL_REQUEST && found.asc == 0x21, "a read beyond all ends: {found}");
    let found = sense(session.run(&[0xff; 16], Transfer::None), "an unknown command")?;
    ensure!(found == Sense { key: ILLEGAL_REQUEST, asc: 0x20, ascq: 0 }, "an unknown command: {found}");
    let found = sense(session.inquiry(Some(0x77)), "an unknown page")?;
    ensure!(found.key == ILLEGAL_REQUEST && found.asc == 0x24, "an unknown page: {found}");
    let mut short_list = [0; 10];
    (short_list[0], short_list[8]) = (0x42, 4);
    let found = sense(session.run(&short_list, Transfer::Out(vec![0xff; 4])), "an unmap list cut short")?;
    ensure!(found.key == ILLEGAL_REQUEST, "an unmap list cut short: {found}");
    session.ping()?;
    session.write(0, &[1; 512], true)?;
    session.logout()?;
    bystander.carry_on("commands that make no sense")?;
    bystander.end()
}

/// Random bytes, connections that say nothing, and ones that end in the middle.
fn noise_and_silence(context: &Context) -> Result<()> {
    let mut bystander = Bystander::new(context)?;
    let mut dice = Dice::new(context.seed);
    let (portal, http) = (bystander.appliance.portal()?, bystander.appliance.http.address);
    let silent: Vec<TcpStream> =
        [portal, http, portal, http].iter().map(TcpStream::connect).collect::<Result<_, _>>()?;
    for round in 0..40 * context.effort {
        let mut noise = vec![0; dice.between(1, 2000) as usize];
        dice.fill(&mut noise);
        if dice.chance(50) && noise.len() > 8 {
            // As if a login of about this length began.
            noise[..8].copy_from_slice(&[0x43, 0x81, 0, 0, 0, 0, 1, dice.below(256) as u8]);
        }
        let address = if dice.chance(50) { portal } else { http };
        let mut stream = TcpStream::connect(address)?;
        // Being hung up on is as good as being listened to.
        let _ = stream.write_all(&noise);
        if dice.chance(50) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(stream);
        if round % 8 == 0 {
            bystander.carry_on("noise")?;
        }
    }
    bystander.appliance.call("POST", "/v1/volumes", &json!({"name": "after-noise", "size_bytes": 1 << 20}))?;
    bystander.appliance.login("v")?.logout()?;
    drop(silent);
    bystander.end()
}

/// Sends bytes and reads until the other side closes.
fn speak(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("the connection was not closed")?;
    Ok(answer)
}

/// Sends one PDU on a new connection; the answer, or `None` when the connection just ended. It must end in any case.
fn exchange(portal: SocketAddr, pdu: &Pdu) -> Result<Option<Pdu>> {
    let mut stream = TcpStream::connect(portal)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let bytes = pdu.to_bytes();
    // A PDU that is refused by its header need not be read to its end.
    let _ = stream.write_all(&bytes);
    let answer = match Pdu::read(&mut stream) {
        Ok(answer) => Some(answer),
        Err(Error::Closed(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => Ok(answer),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(answer),
        Err(error) => bail!("the connection was not closed: {error}"),
    }
}
