//! Persistent reservations as conversations between ports.

use super::*;
use alloc::vec;

const WE: u8 = 1;
const EA: u8 = 3;
const WE_RO: u8 = 5;
const EA_AR: u8 = 8;

/// A nexus of the initiator port `port` with target port 1.
fn path(port: &str) -> Path {
    Path { initiator: port.into(), target_port: 1 }
}

/// Carries out a request as the unit does: what is refused changes nothing.
fn send(r: &mut Reservations, from: &Path, request: &Request) -> Result<Effects, Refused> {
    let initiators = ["iqn.a:x,i,0x000000000001", "iqn.a:x,i,0x000000000002", "iqn.a:y,i,0x000000000001"];
    let initiators = initiators.map(String::from);
    let mut next = r.clone();
    let effects = next.out(from, request, Known { target_ports: &[1, 2], initiators: &initiators })?;
    *r = next;
    Ok(effects)
}

fn ask(r: &mut Reservations, port: &str, action: u8, kind: u8, key: u64, action_key: u64) -> Result<Effects, Refused> {
    let request = Request { action, scope_and_type: kind, key, action_key, ..Request::default() };
    send(r, &path(port), &request)
}

/// Ports a, b and c registered with keys 1, 2 and 3.
fn three() -> Reservations {
    let mut r = Reservations::default();
    for (port, key) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(ask(&mut r, port, 0, 0, 0, key), Ok(Effects::default()));
    }
    r
}

fn told(effects: Result<Effects, Refused>) -> Vec<(Path, Sense)> {
    effects.unwrap().attentions
}

#[test]
fn registering_needs_the_right_key() {
    let mut r = three();
    assert_eq!(r.keys()[..8], [0, 0, 0, 3, 0, 0, 0, 24]);
    assert_eq!(ask(&mut r, "d", 0, 0, 9, 4), Err(Refused::Conflict), "not registered: the key must be 0");
    assert_eq!(ask(&mut r, "a", 0, 0, 0, 4), Err(Refused::Conflict));
    assert!(ask(&mut r, "a", 6, 0, 99, 7).is_ok(), "REGISTER AND IGNORE EXISTING KEY");
    assert_eq!(r.key_of(&path("a")), Some(7));
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
            assert_eq!(
                (!r.conflicts(&path(port), Read), !r.conflicts(&path(port), Write)),
                (reads, writes),
                "{kind} {port}"
            );
            assert!(!r.conflicts(&path(port), None));
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
    let released = |port: &str| (path(port), Sense::RESERVATIONS_RELEASED);
    assert_eq!(told(ask(&mut r, "a", 2, WE_RO, 1, 0)), [released("b"), released("c")]);
    ask(&mut r, "a", 1, WE, 1, 0).unwrap();
    assert!(told(ask(&mut r, "a", 2, WE, 1, 0)).is_empty());
    ask(&mut r, "a", 1, WE_RO, 1, 0).unwrap();
    assert_eq!(told(ask(&mut r, "a", 0, 0, 1, 0)), [released("b"), released("c")], "unregistering releases, too");
    assert!(!r.conflicts(&path("x"), Access::Write));
}

#[test]
fn all_registrants_hold_to_the_last() {
    let mut r = three();
    ask(&mut r, "a", 1, EA_AR, 1, 0).unwrap();
    for (port, key) in [("a", 1), ("b", 2)] {
        assert!(told(ask(&mut r, port, 0, 0, key, 0)).is_empty());
        assert!(r.conflicts(&path("x"), Access::Read));
    }
    ask(&mut r, "c", 0, 0, 3, 0).unwrap();
    assert!(!r.conflicts(&path("x"), Access::Read));
}

#[test]
fn preempting() {
    let mut r = three();
    ask(&mut r, "a", 1, WE, 1, 0).unwrap();
    assert_eq!(ask(&mut r, "b", 4, EA, 2, 77), Err(Refused::Conflict), "nobody has that key");
    assert_eq!(ask(&mut r, "b", 4, EA, 2, 0), Err(Refused::Check(Sense::parameter_field(8))));
    let effects = ask(&mut r, "b", 5, EA, 2, 1).unwrap();
    let told = [(path("c"), Sense::RESERVATIONS_RELEASED), (path("a"), Sense::REGISTRATIONS_PREEMPTED)];
    assert_eq!(effects.attentions, told, "the type has changed, too");
    assert_eq!(effects.aborts, [path("a")]);
    assert!(r.conflicts(&path("a"), Access::Read) && !r.conflicts(&path("b"), Access::Write));
    assert_eq!(r.key_of(&path("a")), None);
    assert!(ask(&mut r, "b", 4, EA, 2, 3).is_ok(), "a mere registrant");
    assert_eq!((r.key_of(&path("c")), r.conflicts(&path("b"), Access::Write)), (None, false));
}

#[test]
fn clearing() {
    let mut r = three();
    ask(&mut r, "a", 1, EA, 1, 0).unwrap();
    let preempted = |port: &str| (path(port), Sense::RESERVATIONS_PREEMPTED);
    assert_eq!(told(ask(&mut r, "b", 3, 0, 2, 0)), [preempted("a"), preempted("c")]);
    assert!(!r.is_used() && !r.conflicts(&path("x"), Access::Write));
}

#[test]
fn full_status_names_the_ports() {
    let mut r = three();
    ask(&mut r, "b", 1, WE, 2, 0).unwrap();
    let status = r.full_status();
    assert_eq!(status.len(), 8 + 3 * (24 + 24));
    let b = &status[8 + 48..8 + 96];
    assert_eq!(b[..24], [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, WE, 0, 0, 0, 0, 0, 1, 0, 0, 0, 24]);
    assert_eq!(b[24..30], [0x45, 0, 0, 20, b'b', 0]);
}

/// A parameter list with these flags in byte 20.
fn list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    list
}

/// A REGISTER AND MOVE list.
fn move_list(action_key: u64, flags: u8, target_port: u16, transport: &[u8]) -> Vec<u8> {
    let mut list = list(1, action_key, 0);
    list[17] = flags;
    list[18..20].copy_from_slice(&target_port.to_be_bytes());
    list[20..24].copy_from_slice(&(transport.len() as u32).to_be_bytes());
    [&list, transport].concat()
}

fn with_transports(mut list: Vec<u8>, transports: &[Vec<u8>]) -> Vec<u8> {
    let transports = transports.concat();
    list.extend((transports.len() as u32).to_be_bytes());
    list.extend(transports);
    list
}

/// A TransportID of a whole initiator.
fn device(name: &str) -> Vec<u8> {
    let mut id = parameters::encode_transport(name);
    id[0] = 5;
    id
}

const X1: &str = "iqn.a:x,i,0x000000000001";
const X2: &str = "iqn.a:x,i,0x000000000002";
const Y1: &str = "iqn.a:y,i,0x000000000001";

#[test]
fn parameter_lists() {
    let request = Request::new(1, 3, &list(1, 2, 0), true).unwrap();
    assert_eq!((request.key, request.action_key), (1, 2));
    for wrong in [0, 8, 23, 25, 28] {
        let mut list = list(1, 2, 0);
        list.resize(wrong, 0);
        assert_eq!(Request::new(1, 3, &list, true), Err(Sense::PARAMETER_LIST_LENGTH), "{wrong} bytes");
        assert_eq!(Request::new(7, 3, &list, true), Err(Sense::PARAMETER_LIST_LENGTH), "{wrong} bytes to move");
    }
    assert!(Request::new(0, 0, &list(0, 1, 1), true).unwrap().persists);
    assert_eq!(Request::new(0, 0, &list(0, 1, 1), false), Err(Sense::parameter_field(20)), "it cannot keep them");
    assert_eq!(Request::new(1, 0, &list(0, 1, 8), true), Err(Sense::parameter_field(20)), "SPEC_I_PT registers");
    for cut in 24..80 {
        let whole = with_transports(list(0, 9, 8), &[parameters::encode_transport(X1), device("iqn.a:y")]);
        let cut = Request::new(0, 0, &whole[..cut.min(whole.len() - 1)], true);
        assert_eq!(cut, Err(Sense::PARAMETER_LIST_LENGTH));
    }
    let mut strange = parameters::encode_transport(X1);
    strange[0] = 0x46;
    let strange = with_transports(list(0, 9, 8), &[device("iqn.a:y"), strange]);
    assert_eq!(Request::new(0, 0, &strange, true), Err(Sense::parameter_field(52)), "not of iSCSI");
    let many = |n: usize| Request::new(0, 0, &with_transports(list(0, 9, 8), &vec![device("iqn.a:y"); n]), true);
    assert!(many(128).is_ok());
    assert_eq!(many(129), Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES));
    let nobody = with_transports(list(0, 9, 8), &[device("")]);
    assert_eq!(Request::new(0, 0, &nobody, true), Err(Sense::parameter_field(28)));
}

#[test]
fn one_registers_for_others() {
    let mut r = Reservations::default();
    let register = with_transports(list(0, 9, 8), &[parameters::encode_transport(X1), device("iqn.a:y")]);
    let request = Request::new(0, 0, &register, true).unwrap();
    assert_eq!(send(&mut r, &path("a"), &request), Ok(Effects::default()));
    assert_eq!([X1, X2, Y1, "a"].map(|port| r.key_of(&path(port))), [Some(9), None, Some(9), Some(9)]);
    assert_eq!(send(&mut r, &path("b"), &request), Err(Refused::Conflict), "they are registered already");
    assert_eq!(r.key_of(&path("b")), None, "all or nothing");
    let again = Request { key: 9, ..request.clone() };
    let flags = Err(Refused::Check(Sense::parameter_field(20)));
    assert_eq!(send(&mut r, &path("a"), &again), flags, "only with the first registration");
    assert_eq!(send(&mut r, &path("b"), &Request { action: 6, ..request }), flags, "not if the key is ignored");
    let unknown = Request::new(0, 0, &with_transports(list(0, 9, 8), &[device("iqn.a:z")]), true).unwrap();
    let place = Err(Refused::Check(Sense::parameter_field(28)));
    assert_eq!(send(&mut r, &path("b"), &unknown), place, "nobody knows its ports");
}

#[test]
fn all_target_ports_at_once() {
    let mut r = Reservations::default();
    let other = Path { target_port: 2, ..path("a") };
    let request = Request::new(0, 0, &list(0, 9, 4), true).unwrap();
    send(&mut r, &path("a"), &request).unwrap();
    assert_eq!((r.key_of(&path("a")), r.key_of(&other)), (Some(9), Some(9)));
    send(&mut r, &other, &Request::new(0, 0, &list(9, 8, 0), true).unwrap()).unwrap();
    assert_eq!(r.key_of(&path("a")), Some(9), "each is a nexus of its own");
    let change = Request::new(0, 0, &list(9, 7, 4), true).unwrap();
    assert_eq!(send(&mut r, &path("a"), &change), Err(Refused::Conflict));
    ask(&mut r, "a", 1, WE, 9, 0).unwrap();
    assert!(r.conflicts(&other, Access::Write), "the holder's other path is not the holder");
}

#[test]
fn moving_a_reservation() {
    let to = parameters::encode_transport(Y1);
    let request = |list: &[u8]| Request::new(7, 0, list, true).unwrap();
    let check = |sense| Err(Refused::Check(sense));
    let mut r = three();
    let plain = request(&move_list(5, 0, 2, &to));
    assert_eq!(send(&mut r, &path("a"), &plain), check(Sense::cdb_field(1)), "there is no reservation");
    ask(&mut r, "a", 1, EA_AR, 1, 0).unwrap();
    assert_eq!(send(&mut r, &path("a"), &plain), Err(Refused::Conflict), "all hold it");
    ask(&mut r, "a", 2, EA_AR, 1, 0).unwrap();
    ask(&mut r, "a", 1, EA, 1, 0).unwrap();
    let of_b = Request { key: 2, ..plain.clone() };
    assert_eq!(send(&mut r, &path("b"), &of_b), check(Sense::cdb_field(1)), "not the holder");
    assert_eq!(send(&mut r, &path("x"), &plain), Err(Refused::Conflict), "not registered");
    assert_eq!(send(&mut r, &path("a"), &request(&move_list(0, 0, 2, &to))), check(Sense::parameter_field(8)));
    assert_eq!(send(&mut r, &path("a"), &request(&move_list(5, 0, 3, &to))), check(Sense::parameter_field(18)));
    assert_eq!(Request::new(7, 0, &move_list(5, 0, 2, &device("iqn.a:y")), true), Err(Sense::parameter_field(24)));
    let generation = r.generation;
    assert_eq!(send(&mut r, &path("a"), &plain), Ok(Effects::default()));
    let holder = Path { initiator: Y1.into(), target_port: 2 };
    assert!(r.holds(&holder) && r.key_of(&holder) == Some(5) && r.key_of(&path("a")) == Some(1));
    assert_eq!(r.generation, generation + 1);
    let back = move_list(6, 3, 1, &parameters::encode_transport(X1));
    send(&mut r, &holder, &Request { key: 5, ..request(&back) }).unwrap();
    assert!(r.holds(&path(X1)) && r.key_of(&holder).is_none(), "UNREG");
    assert_eq!(r.kept().reservation, Some((EA, path(X1))), "APTPL");
}

#[test]
fn what_outlives_a_restart() {
    let mut r = three();
    ask(&mut r, "a", 1, WE_RO, 1, 0).unwrap();
    assert_eq!(r.kept(), Kept::default(), "nobody asked for it");
    let persist = Request::new(0, 0, &list(2, 20, 1), true).unwrap();
    send(&mut r, &path("b"), &persist).unwrap();
    let restored = Reservations::restored(r.kept());
    assert_eq!(Reservations { generation: 0, ..r.clone() }, restored, "all but the generation");
    assert_eq!(restored.capabilities(true)[2..4], [0x0d, 0x81]);
    assert_eq!(Reservations::default().capabilities(false)[2..4], [0x0c, 0x80]);
    ask(&mut r, "a", 0, 0, 1, 10).unwrap();
    assert_eq!(r.kept(), Kept::default(), "the last registration says without");
}

#[test]
fn registrations_have_a_limit() {
    let mut r = Reservations::default();
    for port in 0..REGISTRATIONS_MAX {
        ask(&mut r, &alloc::format!("p{port}"), 0, 0, 0, 1).unwrap();
    }
    let full = Err(Refused::Check(Sense::INSUFFICIENT_REGISTRATION_RESOURCES));
    assert_eq!(ask(&mut r, "one more", 0, 0, 0, 1), full);
    ask(&mut r, "p3", 0, 0, 1, 0).unwrap();
    assert!(ask(&mut r, "one more", 0, 0, 0, 1).is_ok());
}

/// What there is not is no matter of who asks for it.
#[test]
fn a_service_action_that_there_is_not() {
    let mut r = three();
    for (port, key) in [("a", 1), ("a", 2), ("d", 0)] {
        assert_eq!(ask(&mut r, port, 8, 0, key, 0), Err(Refused::Check(Sense::cdb_field(1))), "{port}");
    }
}
