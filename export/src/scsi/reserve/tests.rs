//! Persistent reservations as conversations between ports.

use super::*;

const WE: u8 = 1;
const EA: u8 = 3;
const WE_RO: u8 = 5;
const EA_AR: u8 = 8;

fn ask(r: &mut Reservations, port: &str, action: u8, kind: u8, key: u64, action_key: u64) -> Result<Effects, Refused> {
    r.out(port, &Request { action, scope_and_type: kind, key, action_key })
}

/// Ports a, b and c registered with keys 1, 2 and 3.
fn three() -> Reservations {
    let mut r = Reservations::default();
    for (port, key) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(ask(&mut r, port, 0, 0, 0, key), Ok(Effects::default()));
    }
    r
}

fn told(effects: Result<Effects, Refused>) -> Vec<(String, Sense)> {
    effects.unwrap().attentions
}

#[test]
fn registering_needs_the_right_key() {
    let mut r = three();
    assert_eq!(r.keys()[..8], [0, 0, 0, 3, 0, 0, 0, 24]);
    assert_eq!(ask(&mut r, "d", 0, 0, 9, 4), Err(Refused::Conflict), "not registered: the key must be 0");
    assert_eq!(ask(&mut r, "a", 0, 0, 0, 4), Err(Refused::Conflict));
    assert!(ask(&mut r, "a", 6, 0, 99, 7).is_ok(), "REGISTER AND IGNORE EXISTING KEY");
    assert_eq!(r.key_of("a"), Some(7));
    assert!(ask(&mut r, "a", 0, 0, 7, 0).is_ok());
    assert_eq!(r.keys()[..8], [0, 0, 0, 5, 0, 0, 0, 16]);
    assert_eq!(ask(&mut r, "x", 1, WE, 1, 0), Err(Refused::Conflict), "RESERVE needs a registration");
}

#[test]
fn who_may_do_what() {
    use Access::*;
    // Type, then for holder, registrant and stranger: may read, may write.
    let table = [
        (1, [(true, true), (true, false), (true, false)]),
        (3, [(true, true), (false, false), (false, false)]),
        (5, [(true, true), (true, true), (true, false)]),
        (6, [(true, true), (true, true), (false, false)]),
        (7, [(true, true), (true, true), (true, false)]),
        (8, [(true, true), (true, true), (false, false)]),
    ];
    for (kind, expected) in table {
        let mut r = three();
        assert!(ask(&mut r, "a", 1, kind, 1, 0).is_ok());
        for (port, (reads, writes)) in ["a", "b", "stranger"].iter().zip(expected) {
            assert_eq!((!r.conflicts(port, Read), !r.conflicts(port, Write)), (reads, writes), "{kind} {port}");
            assert!(!r.conflicts(port, None));
        }
        assert!(ask(&mut r, "a", 1, kind, 1, 0).is_ok(), "again is fine");
        let other = if kind == WE { EA } else { WE };
        assert_eq!(ask(&mut r, "a", 1, other, 1, 0), Err(Refused::Conflict));
        assert_eq!(ask(&mut r, "b", 1, kind, 2, 0).is_ok(), kind >= 7, "all registrants hold it");
        let key = if kind >= 7 { 0 } else { 1 };
        assert_eq!(r.reservation()[4..], [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, key, 0, 0, 0, 0, 0, kind, 0, 0]);
    }
    assert_eq!(ask(&mut three(), "a", 1, 2, 1, 0), Err(Refused::Check(Sense::cdb_field(2))));
    assert_eq!(ask(&mut three(), "a", 1, 0x11, 1, 0), Err(Refused::Check(Sense::cdb_field(2))));
}

#[test]
fn releasing_tells_registrants() {
    let mut r = three();
    ask(&mut r, "a", 1, WE_RO, 1, 0).unwrap();
    assert!(told(ask(&mut r, "b", 2, WE_RO, 2, 0)).is_empty(), "not the holder: nothing happens");
    assert_eq!(ask(&mut r, "a", 2, WE, 1, 0), Err(Refused::Check(Sense::INVALID_RELEASE)));
    let released = |port: &str| (String::from(port), Sense::RESERVATIONS_RELEASED);
    assert_eq!(told(ask(&mut r, "a", 2, WE_RO, 1, 0)), [released("b"), released("c")]);
    ask(&mut r, "a", 1, WE, 1, 0).unwrap();
    assert!(told(ask(&mut r, "a", 2, WE, 1, 0)).is_empty());
    ask(&mut r, "a", 1, WE_RO, 1, 0).unwrap();
    assert_eq!(told(ask(&mut r, "a", 0, 0, 1, 0)), [released("b"), released("c")], "unregistering releases, too");
    assert!(!r.conflicts("x", Access::Write));
}

#[test]
fn all_registrants_hold_to_the_last() {
    let mut r = three();
    ask(&mut r, "a", 1, EA_AR, 1, 0).unwrap();
    for (port, key) in [("a", 1), ("b", 2)] {
        assert!(told(ask(&mut r, port, 0, 0, key, 0)).is_empty());
        assert!(r.conflicts("x", Access::Read));
    }
    ask(&mut r, "c", 0, 0, 3, 0).unwrap();
    assert!(!r.conflicts("x", Access::Read));
}

#[test]
fn preempting() {
    let mut r = three();
    ask(&mut r, "a", 1, WE, 1, 0).unwrap();
    assert_eq!(ask(&mut r, "b", 4, EA, 2, 77), Err(Refused::Conflict), "nobody has that key");
    assert_eq!(ask(&mut r, "b", 4, EA, 2, 0), Err(Refused::Check(Sense::parameter_field(8))));
    let effects = ask(&mut r, "b", 5, EA, 2, 1).unwrap();
    assert_eq!(effects.attentions, [(String::from("a"), Sense::REGISTRATIONS_PREEMPTED)]);
    assert_eq!(effects.aborts, ["a"]);
    assert!(r.conflicts("a", Access::Read) && !r.conflicts("b", Access::Write));
    assert_eq!(r.key_of("a"), None);
    assert!(ask(&mut r, "b", 4, EA, 2, 3).is_ok(), "a mere registrant");
    assert_eq!((r.key_of("c"), r.conflicts("b", Access::Write)), (None, false));
}

#[test]
fn clearing() {
    let mut r = three();
    ask(&mut r, "a", 1, EA, 1, 0).unwrap();
    let preempted = |port: &str| (String::from(port), Sense::RESERVATIONS_PREEMPTED);
    assert_eq!(told(ask(&mut r, "b", 3, 0, 2, 0)), [preempted("a"), preempted("c")]);
    assert!(!r.is_used() && !r.conflicts("x", Access::Write));
}

#[test]
fn parameter_lists() {
    let mut list = [0; 24];
    list[7] = 1;
    list[15] = 2;
    let request = Request::new(1, 3, &list).unwrap();
    assert_eq!((request.key, request.action_key), (1, 2));
    assert_eq!(Request::new(1, 3, &list[..23]), Err(Sense::PARAMETER_LIST_LENGTH));
    for flag in [1, 4, 8] {
        list[20] = flag;
        assert_eq!(Request::new(0, 0, &list), Err(Sense::parameter_field(20)));
    }
}

#[test]
fn full_status_names_the_ports() {
    let mut r = three();
    ask(&mut r, "b", 1, WE, 2, 0).unwrap();
    let status = r.full_status(1);
    assert_eq!(status.len(), 8 + 3 * (24 + 24));
    let b = &status[8 + 48..8 + 96];
    assert_eq!(b[..24], [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, WE, 0, 0, 0, 0, 0, 1, 0, 0, 0, 24]);
    assert_eq!(b[24..30], [0x45, 0, 0, 20, b'b', 0]);
}
