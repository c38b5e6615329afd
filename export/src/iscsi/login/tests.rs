//! Logins as tables of requests and what comes of them.

use super::*;
use crate::iscsi::pdu::opcode;
use crate::unit::Credentials;
use alloc::string::ToString;
use alloc::vec;
use platform::random::Seeded;
use platform::secret::Secret;

const OFFER: Offer =
    Offer { segment_bytes: 262_144, max_burst_bytes: 262_144, first_burst_bytes: 65_536, max_outstanding_r2t: 4 };

const WHO: &str = "InitiatorName=iqn.i\0TargetName=iqn.t\0";

/// A login request: stage flags as `T`, CSG, NSG.
fn request(transit: bool, csg: u8, nsg: u8) -> LoginRequest {
    let mut bytes = [0; 48];
    bytes[0] = 0x40 | opcode::LOGIN_REQUEST;
    bytes[1] = if transit { 0x80 } else { 0 } | csg << 2 | nsg;
    bytes[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, 1]);
    bytes[19] = 7;
    bytes[27] = 100;
    *LoginRequest::of(&super::super::pdu::Bhs::from_bytes(bytes))
}

fn text(step: &Step) -> String {
    let bytes = match step {
        Step::Send(_, text) | Step::Finish(_, _, text) => text,
        Step::Refuse(_) => return String::new(),
    };
    String::from_utf8(bytes.clone()).unwrap().replace('\0', " ")
}

fn header(step: &Step) -> LoginResponse {
    match step {
        Step::Send(response, _) | Step::Finish(_, response, _) | Step::Refuse(response) => *response,
    }
}

fn status(step: &Step) -> u16 {
    u16::from_be_bytes([header(step).status_class, header(step).status_detail])
}

fn terms<'a>(chap: Option<Rc<Chap>>, may_try: impl Fn() -> bool + 'a) -> Terms<'a> {
    Terms {
        offer: OFFER,
        portal_group: 1,
        window: 32,
        former: Box::new(|_, _, _| Ok(None)),
        wanted: Box::new(move |_, _| chap.clone()),
        challenges: Challenges::new(Rc::new(Seeded::from_u64(1))),
        may_try: Box::new(may_try),
        failed: Box::new(|| ()),
    }
}

fn login() -> Login<'static> {
    Login::new(terms(None, || true))
}

/// A login that has to prove a secret.
fn guarded() -> Login<'static> {
    Login::new(terms(Some(chap()), || true))
}

fn chap() -> Rc<Chap> {
    let secret = Secret::new(b"a secret of 20 bytes".to_vec());
    Rc::new(Chap { initiator: Credentials { name: "user".into(), secret }, target: None })
}

#[test]
fn open_iscsi_logs_in_over_both_stages() {
    let mut login = login();
    let first = format_keys(&["InitiatorName=iqn.I", "TargetName=iqn.T", "SessionType=Normal", "AuthMethod=None"]);
    let step = login.step(&request(true, 0, 1), &first);
    assert_eq!(text(&step), "TargetPortalGroupTag=1 AuthMethod=None ");
    let response = header(&step);
    assert_eq!((response.flags, response.stat_sn.get(), response.exp_cmd_sn.get()), (0x81, 0, 100));
    assert_eq!(response.max_cmd_sn.get(), 131);
    let second = format_keys(&[
        "HeaderDigest=None,CRC32C",
        "InitialR2T=No",
        "ImmediateData=Yes",
        "MaxBurstLength=16776192",
        "FirstBurstLength=262144",
        "MaxRecvDataSegmentLength=262144",
        "ErrorRecoveryLevel=0",
    ]);
    let step = login.step(&request(true, 1, 3), &second);
    assert_eq!(
        text(&step),
        "HeaderDigest=None InitialR2T=No ImmediateData=Yes MaxBurstLength=262144 ErrorRecoveryLevel=0 \
         FirstBurstLength=65536 MaxRecvDataSegmentLength=262144 "
    );
    let Step::Finish(agreed, response, _) = step else { panic!("not finished: {step:?}") };
    assert_eq!((response.flags, response.stat_sn.get(), agreed.stat_sn), (0x87, 1, 2));
    assert_eq!((agreed.initiator.as_str(), agreed.target.as_deref()), ("iqn.i", Some("iqn.t")));
    assert_eq!((agreed.isid, agreed.tsih, agreed.cid, agreed.cmd_sn), ([0, 2, 0x3d, 0, 0, 1], 0, 0, 100));
    assert!(!agreed.params.initial_r2t && !agreed.params.header_digest);
    assert_eq!((agreed.params.target_segment_bytes, agreed.params.initiator_segment_bytes), (262_144, 262_144));
}

fn format_keys(keys: &[&str]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.bytes().chain([0])).collect()
}

#[test]
fn a_login_may_skip_a_stage() {
    for csg in [0, 1] {
        let step = login().step(&request(true, csg, 3), WHO.as_bytes());
        let Step::Finish(agreed, response, _) = step else { panic!("stage {csg}") };
        assert_eq!(response.flags, 0x83 | csg << 2);
        let declared = if csg == 1 { 262_144 } else { 8192 };
        assert_eq!(agreed.params.target_segment_bytes, declared, "only what was declared counts");
    }
}

#[test]
fn discovery_needs_no_target() {
    let step = login().step(&request(true, 1, 3), b"InitiatorName=iqn.i\0SessionType=Discovery\0InitialR2T=No\0");
    assert_eq!(text(&step), "InitialR2T=Irrelevant MaxRecvDataSegmentLength=262144 ");
    assert!(matches!(step, Step::Finish(Agreed { target: None, .. }, ..)));
}

#[test]
fn first_requests_that_are_refused() {
    let named = |keys: &str| [WHO, keys].concat().into_bytes();
    let mut newer = request(true, 1, 3);
    newer.version_min = 1;
    let mut both = request(true, 1, 3);
    both.flags |= CONTINUE;
    let table: Vec<(LoginRequest, Vec<u8>, Status)> = vec![
        (newer, named(""), Status::UnsupportedVersion),
        (both, named(""), Status::InitiatorError),
        (request(true, 1, 1), named(""), Status::InitiatorError),
        (request(true, 1, 0), named(""), Status::InitiatorError),
        (request(true, 0, 2), named(""), Status::InitiatorError),
        (request(true, 3, 3), named(""), Status::InitiatorError),
        (request(false, 2, 0), named(""), Status::InitiatorError),
        (request(true, 1, 3), b"TargetName=iqn.t\0".to_vec(), Status::MissingParameter),
        (request(true, 1, 3), b"InitiatorName=iqn.i\0".to_vec(), Status::MissingParameter),
        (request(true, 1, 3), Vec::new(), Status::MissingParameter),
        (request(true, 1, 3), b"InitiatorName=\0TargetName=t\0".to_vec(), Status::InitiatorError),
        (request(true, 1, 3), named("SessionType=Other\0"), Status::SessionTypeNotSupported),
        (request(true, 1, 3), named("InitialR2T=No\0InitialR2T=No\0"), Status::InitiatorError),
        (request(true, 1, 3), named("nonsense\0"), Status::InitiatorError),
        (request(true, 1, 3), named("AuthMethod=None\0"), Status::InitiatorError),
        (request(true, 0, 1), named("AuthMethod=CHAP\0"), Status::AuthenticationFailure),
        (request(true, 0, 1), named("AuthMethod=\0"), Status::AuthenticationFailure),
    ];
    for (request, text, expected) in table {
        let step = login().step(&request, &text);
        assert!(matches!(step, Step::Refuse(_)), "{:?}", core::str::from_utf8(&text));
        assert_eq!(status(&step), expected as u16, "{:?}", core::str::from_utf8(&text));
    }
}

#[test]
fn who_has_to_prove_something_stays_in_its_stage_until_it_has() {
    let mut login = guarded();
    let first = [WHO, "AuthMethod=None,CHAP\0"].concat();
    let step = login.step(&request(true, 0, 1), first.as_bytes());
    assert_eq!((text(&step).as_str(), header(&step).flags), ("TargetPortalGroupTag=1 AuthMethod=CHAP ", 0x00));
    let step = login.step(&request(true, 0, 1), b"");
    assert_eq!((text(&step).as_str(), header(&step).flags), ("", 0x00), "nothing is proven yet");
    let step = login.step(&request(false, 0, 0), b"CHAP_A=5\0");
    let asked = text(&step);
    let value = |key: &str| asked.split(' ').find_map(|pair| pair.strip_prefix(key)).unwrap().to_string();
    let challenge = value("CHAP_C=0x");
    let challenge = (0..16).map(|i| u8::from_str_radix(&challenge[2 * i..2 * i + 2], 16).unwrap());
    let mut hash = <md5::Md5 as md5::Digest>::new();
    md5::Digest::update(&mut hash, [value("CHAP_I=").parse().unwrap()]);
    md5::Digest::update(&mut hash, b"a secret of 20 bytes");
    md5::Digest::update(&mut hash, challenge.collect::<Vec<u8>>());
    let response: String = md5::Digest::finalize(hash).iter().map(|byte| alloc::format!("{byte:02x}")).collect();
    let step = login
        .step(&request(true, 0, 1), format_keys(&["CHAP_N=user", &alloc::format!("CHAP_R=0x{response}")]).as_slice());
    assert_eq!((text(&step).as_str(), header(&step).flags), ("", 0x81));
    let Step::Finish(agreed, ..) = login.step(&request(true, 1, 3), b"") else { panic!("not finished") };
    assert_eq!(agreed.proven, Some(chap()));
}

#[test]
fn ways_around_authentication_are_closed() {
    let named = |keys: &str| [WHO, keys].concat().into_bytes();
    let table = [
        (request(true, 1, 3), named("")),
        (request(false, 1, 0), named("")),
        (request(true, 0, 1), named("")),
        (request(true, 0, 3), named("")),
        (request(true, 0, 3), named("AuthMethod=None\0")),
        (request(true, 0, 3), named("AuthMethod=KRB5\0")),
        (request(true, 0, 3), b"InitiatorName=iqn.i\0SessionType=Discovery\0AuthMethod=None\0".to_vec()),
    ];
    for (request, text) in table {
        let step = guarded().step(&request, &text);
        assert_eq!(status(&step), Status::AuthenticationFailure as u16, "{:?}", core::str::from_utf8(&text));
    }
    // The next stage cannot be had by asking for it, nor CHAP be answered before it was chosen.
    let mut early = guarded();
    assert!(matches!(early.step(&request(false, 0, 0), WHO.as_bytes()), Step::Send(..)));
    assert_eq!(status(&early.step(&request(true, 1, 3), b"")), Status::InitiatorError as u16);
    let step = guarded().step(&request(false, 0, 0), &named("CHAP_A=5\0"));
    assert_eq!(status(&step), Status::InitiatorError as u16);
    let step = login().step(&request(false, 0, 0), &named("AuthMethod=None\0CHAP_A=5\0"));
    assert_eq!(status(&step), Status::InitiatorError as u16, "CHAP was not chosen");
}

#[test]
fn after_too_many_wrong_answers_no_more_are_looked_at() {
    let mut login = Login::new(terms(Some(chap()), || false));
    login.step(&request(false, 0, 0), [WHO, "AuthMethod=CHAP\0"].concat().as_bytes());
    assert!(matches!(login.step(&request(false, 0, 0), b"CHAP_A=5\0"), Step::Send(..)));
    let step = login.step(&request(true, 0, 1), b"CHAP_N=user\0CHAP_R=0x00\0");
    assert_eq!(status(&step), Status::ServiceUnavailable as u16);
}

#[test]
fn what_may_not_change_between_requests() {
    let changes: [fn(&mut LoginRequest); 5] =
        [|r| r.isid[5] = 9, |r| r.tsih = 1.into(), |r| r.cid = 1.into(), |r| r.task_tag = 9.into(), |r| r.flags = 0x00];
    for change in changes {
        let mut login = login();
        assert!(matches!(login.step(&request(true, 0, 1), WHO.as_bytes()), Step::Send(..)));
        let mut second = request(true, 1, 3);
        change(&mut second);
        assert_eq!(status(&login.step(&second, b"")), Status::InitiatorError as u16);
    }
    let mut login = login();
    login.step(&request(false, 1, 0), WHO.as_bytes());
    let again = login.step(&request(true, 1, 3), b"TargetName=iqn.other\0");
    assert_eq!(status(&again), Status::InitiatorError as u16, "a name is settled once");
}

#[test]
fn text_in_parts() {
    let mut login = login();
    let mut part = request(false, 1, 0);
    part.flags |= CONTINUE;
    let step = login.step(&part, b"InitiatorName=iqn.i\0Targ");
    assert!(matches!(step, Step::Send(..)) && text(&step).is_empty());
    assert_eq!(header(&step).flags, 0x04);
    assert!(matches!(login.step(&request(true, 1, 3), b"etName=iqn.t\0"), Step::Finish(..)));
}

#[test]
fn text_without_end_is_refused() {
    let mut login = login();
    let mut part = request(false, 1, 0);
    part.flags |= CONTINUE;
    for _ in 0..TEXT_BYTES_MAX / 8192 {
        assert!(matches!(login.step(&part, &[b'x'; 8192]), Step::Send(..)));
    }
    assert_eq!(status(&login.step(&part, b"x")), Status::OutOfResources as u16);
}

proptest::proptest! {
    #[test]
    fn anything_gets_an_answer(
        requests in proptest::collection::vec((proptest::array::uniform32(0u8..), proptest::collection::vec(0u8.., 0..64)), 0..6)
    ) {
        let mut login = login();
        for (bytes, text) in requests {
            let mut header = [0; 48];
            header[..32].copy_from_slice(&bytes);
            header[2..4].fill(0);
            let request = *LoginRequest::of(&super::super::pdu::Bhs::from_bytes(header));
            login.step(&request, &text);
        }
    }

    #[test]
    fn any_keys_get_an_answer(keys in "([A-Za-z]{1,20}=[A-Za-z0-9,~]{0,20}\0){0,8}", stage in 0u8..2) {
        login().step(&request(true, stage, 3), [WHO, &keys].concat().as_bytes());
    }
}

#[test]
fn who_wants_what_is_said_at_once() {
    for late in ["TargetName=iqn.t\0", "SessionType=Discovery\0"] {
        let mut login = login();
        let first = b"InitiatorName=iqn.i\0SessionType=Discovery\0".as_slice();
        let first = if late.starts_with('T') { first } else { WHO.as_bytes() };
        assert_eq!(status(&login.step(&request(false, 1, 0), first)), 0);
        assert_eq!(status(&login.step(&request(false, 1, 0), late.as_bytes())), 0x0200, "{late}");
    }
}

#[test]
fn keys_are_not_many() {
    let keys: String = (0..70).map(|n| alloc::format!("X-{n:061}=1\0")).collect();
    let mut within = login();
    let step = within.step(&request(false, 1, 0), [WHO, &keys[..62 * 66]].concat().as_bytes());
    assert_eq!(status(&step), 0);
    assert!(text(&step).len() <= 8192, "it fits into a PDU");
    let mut login = login();
    assert_eq!(status(&login.step(&request(false, 1, 0), [WHO, &keys[..63 * 66]].concat().as_bytes())), 0x0200);
}

#[test]
fn the_first_burst_is_no_longer_than_any() {
    for keys in ["MaxBurstLength=4096\0FirstBurstLength=8192\0", "FirstBurstLength=8192\0MaxBurstLength=4096\0"] {
        let step = login().step(&request(true, 1, 3), [WHO, keys].concat().as_bytes());
        assert!(text(&step).contains("FirstBurstLength=4096 "), "{}", text(&step));
        let Step::Finish(agreed, ..) = step else { panic!("{step:?}") };
        assert_eq!(agreed.params.first_burst_bytes, 4096);
    }
}
