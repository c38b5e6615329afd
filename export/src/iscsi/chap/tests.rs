//! CHAP by tables; the hashes are those of Python's hashlib.

use super::*;
use crate::unit::Credentials;
use alloc::string::ToString;
use platform::secret::Secret;

const SECRET: &str = "a secret of 20 bytes";

/// Every byte that it makes is 7.
struct Sevens;

impl Random for Sevens {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

fn chap(mutual: bool) -> Rc<Chap> {
    let credentials = |name: &str, secret: &str| Credentials { name: name.into(), secret: Secret::new(secret.into()) };
    let target = mutual.then(|| credentials("the target", "the target's own secret"));
    Rc::new(Chap { initiator: credentials("0x user", SECRET), target })
}

fn exchange(mutual: bool) -> Exchange {
    Exchange::new(chap(mutual), Challenges::new(Rc::new(Sevens)))
}

/// One text: keys in, keys out.
fn step(exchange: &mut Exchange, text: &[(&str, &str)]) -> Result<String, Status> {
    let mut keys = Keys::default();
    for (key, value) in text {
        assert!(keys.take(key, value), "{key}");
    }
    let mut reply = TextWriter::default();
    exchange.step(&keys, &mut reply)?;
    Ok(String::from_utf8(reply.into_bytes()).unwrap().replace('\0', " "))
}

/// An exchange that waits for the response to a challenge by this algorithm.
fn challenged(mutual: bool, algorithm: &str) -> Exchange {
    let mut exchange = exchange(mutual);
    step(&mut exchange, &[("CHAP_A", algorithm)]).unwrap();
    exchange
}

const RESPONSES: [(&str, &str); 4] = [
    ("5", "0b0db8387d901ea91c41e4231747f0d3"),
    ("6", "d264d12e9df6b77fbbf3f7ff4604ea973ab83b2f"),
    ("7", "0a55632a04e5aae1f5cb9022e632b7d74e3de0784a122283de48a6cbd9e817b6"),
    ("8", "ab37ca8226cffcdcdf56ecc939f21ab70fbe63e7edf83c17a5d3aefbf940364a"),
];

/// Of the target, to identifier 42 and challenge 00112233.
const OWN_RESPONSE: &str = "9ba57cf7dfb19ad3f6df9aa31db97f2de399ab653c36ee0ebf6476d205739534";

#[test]
fn each_algorithm_is_challenged_and_verified() {
    for (algorithm, response) in RESPONSES {
        let mut exchange = exchange(false);
        let asked = step(&mut exchange, &[("CHAP_A", algorithm)]).unwrap();
        let challenge = "07".repeat(response.len() / 2);
        assert_eq!(asked, format!("CHAP_A={algorithm} CHAP_I=7 CHAP_C=0x{challenge} "));
        let base64 = BASE64_STANDARD.encode(binary(&format!("0x{response}")).unwrap());
        let forms = [format!("0x{response}"), format!("0X{}", response.to_uppercase()), format!("0b{base64}")];
        for form in forms {
            let mut exchange = challenged(false, algorithm);
            assert!(exchange.proven().is_none());
            assert_eq!(step(&mut exchange, &[("CHAP_N", "0x user"), ("CHAP_R", &form)]), Ok(String::new()), "{form}");
            assert!(exchange.proven().is_some());
        }
    }
}

#[test]
fn the_first_algorithm_that_is_known_is_taken() {
    for (list, chosen) in [("7,5", 7), ("99,8,5", 8), ("0x6", 6), ("x,5", 5), ("56,5", 5)] {
        let asked = step(&mut exchange(false), &[("CHAP_A", list)]).unwrap();
        assert!(asked.starts_with(&format!("CHAP_A={chosen} ")), "{list}: {asked}");
    }
    for list in ["", "56", "4,9", "5 ", "None", "-5", "05x"] {
        let refused = step(&mut exchange(false), &[("CHAP_A", list)]);
        assert_eq!(refused, Err(Status::AuthenticationFailure), "{list}");
    }
}

#[test]
fn what_proves_nothing() {
    let right = format!("0x{}", RESPONSES[2].1);
    let other_id = format!("0x{}{}", RESPONSES[2].1.split_at(62).0, "00");
    let wrong = [
        ("0x user", "0x".to_string()),
        ("0x user", String::new()),
        ("0x user", right[2..].to_string()),
        ("0x user", right[..64].to_string()),
        ("0x user", right[..65].to_string()),
        ("0x user", format!("{right}00")),
        ("0x user", other_id),
        ("0x user", format!("0b{}", &right[2..])),
        ("0x use", right.clone()),
        ("0x userx", right.clone()),
        ("0X USER", right.clone()),
        ("", right.clone()),
    ];
    for (name, response) in wrong {
        let mut exchange = challenged(false, "7");
        let refused = step(&mut exchange, &[("CHAP_N", name), ("CHAP_R", &response)]);
        assert_eq!(refused, Err(Status::AuthenticationFailure), "{name} {response}");
        assert!(exchange.proven().is_none());
    }
    // Another algorithm's response, and one that is right but comes before the challenge or a second time.
    let md5 = format!("0x{}", RESPONSES[0].1);
    assert!(step(&mut challenged(false, "7"), &[("CHAP_N", "0x user"), ("CHAP_R", &md5)]).is_err());
    let answer = [("CHAP_N", "0x user"), ("CHAP_R", right.as_str())];
    assert_eq!(step(&mut exchange(false), &answer), Err(Status::InitiatorError));
    let mut done = challenged(false, "7");
    step(&mut done, &answer).unwrap();
    assert_eq!(step(&mut done, &answer), Err(Status::InitiatorError));
    for partial in [&answer[..1], &answer[1..], &[("CHAP_A", "7")], &[("CHAP_I", "1"), ("CHAP_C", "0x00")]] {
        assert_eq!(step(&mut challenged(false, "7"), partial), Err(Status::InitiatorError), "{partial:?}");
    }
    assert_eq!(step(&mut challenged(false, "7"), &[]), Ok(String::new()), "an empty text changes nothing");
}

#[test]
fn the_target_proves_itself_if_it_is_asked_to_and_can() {
    let right = format!("0x{}", RESPONSES[2].1);
    let ask = |mutual, id: &str, challenge: &str| {
        let text = [("CHAP_N", "0x user"), ("CHAP_R", right.as_str()), ("CHAP_I", id), ("CHAP_C", challenge)];
        step(&mut challenged(mutual, "7"), &text)
    };
    let answer = Ok(format!("CHAP_N=the target CHAP_R=0x{OWN_RESPONSE} "));
    assert_eq!(ask(true, "42", "0x00112233"), answer);
    assert_eq!(ask(true, "0x2a", "0bABEiMw=="), answer);
    assert!(ask(true, "255", &format!("0x{}", "5a".repeat(1024))).is_ok());
    let refused = Err(Status::AuthenticationFailure);
    assert_eq!(ask(false, "42", "0x00112233"), refused, "there is no secret of the target");
    for (id, challenge) in
        [("256", "0x00"), ("", "0x00"), ("x", "0x00"), ("1", "0x"), ("1", ""), ("1", "0x0"), ("1", "7")]
    {
        assert_eq!(ask(true, id, challenge), refused, "{id} {challenge}");
    }
    assert_eq!(ask(true, "1", &format!("0x{}", "5a".repeat(1025))), refused);
    let half = [("CHAP_N", "0x user"), ("CHAP_R", right.as_str()), ("CHAP_C", "0x00")];
    assert_eq!(step(&mut challenged(true, "7"), &half), refused);
    // Nothing is answered to somebody who has not proven himself.
    let stranger = [("CHAP_N", "0x user"), ("CHAP_R", "0x00"), ("CHAP_I", "42"), ("CHAP_C", "0x00112233")];
    assert_eq!(step(&mut challenged(true, "7"), &stranger), refused);
}

#[test]
fn a_challenge_of_ours_is_not_answered() {
    let challenges = Challenges::new(Rc::new(platform::random::Seeded::from_u64(7)));
    let begin = || {
        let mut exchange = Exchange::new(chap(true), challenges.clone());
        let asked = step(&mut exchange, &[("CHAP_A", "7")]).unwrap();
        let value = |key: &str| asked.split(' ').find_map(|pair| pair.strip_prefix(key)).unwrap().to_string();
        let (id, challenge) = (value("CHAP_I="), value("CHAP_C="));
        let bytes = binary(&challenge).unwrap();
        let response = hex(&Algorithm::Sha256.response(id.parse().unwrap(), SECRET.as_bytes(), &bytes));
        (exchange, challenge, response)
    };
    let (mut mine, own, response) = begin();
    let text = [("CHAP_N", "0x user"), ("CHAP_R", response.as_str()), ("CHAP_I", "1"), ("CHAP_C", own.as_str())];
    assert_eq!(step(&mut mine, &text), Err(Status::AuthenticationFailure), "the challenge of the same login");
    drop(mine);
    let (mut mine, _, response) = begin();
    let (other, theirs, _) = begin();
    assert_ne!(own, theirs, "each is fresh");
    let text = [("CHAP_N", "0x user"), ("CHAP_R", response.as_str()), ("CHAP_I", "1"), ("CHAP_C", theirs.as_str())];
    assert_eq!(step(&mut mine, &text), Err(Status::AuthenticationFailure), "the challenge of another login");
    drop((mine, other));
    assert!(challenges.outstanding.borrow().is_empty(), "nothing is kept of logins that are over");
}
