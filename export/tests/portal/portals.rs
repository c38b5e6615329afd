//! One unit through several portal groups.

use crate::common::TARGET;
use crate::initiator::{Initiator, World, run};
use crate::sessions::text;
use export::{PortalGroup, PortalOptions};

/// Groups at two ports, the second behind a forwarded one.
fn two() -> PortalOptions {
    let first = PortalGroup { port: 3260, addresses: Vec::new() };
    let second = PortalGroup { port: 3261, addresses: vec!["198.51.100.1:13261".into()] };
    PortalOptions { groups: vec![first, second], ..PortalOptions::default() }
}

/// The designators of VPD page 83h: association and type, and the bytes.
async fn designators(initiator: &mut Initiator) -> Vec<(u8, Vec<u8>)> {
    let page = initiator.command("12 01 83 04 00 00", 1024).await.data;
    let (mut rest, mut found) = (&page[4..], Vec::new());
    while let [_, kind, _, len, ..] = *rest {
        found.push((kind & 0x3f, rest[4..4 + usize::from(len)].to_vec()));
        rest = &rest[4 + usize::from(len)..];
    }
    found
}

#[test]
fn discovery_tells_each_with_its_tag_and_a_login_its_own() {
    run(two(), |world| async move {
        let second = World { port: 3261, ..world.clone() };
        for way in [&world, &second] {
            let mut finder = way.connect();
            finder.login_with(&["InitiatorName=iqn.test:f", "SessionType=Discovery"]).await;
            let told =
                format!("TargetName={TARGET} TargetAddress=192.0.2.1:3260,1 TargetAddress=198.51.100.1:13261,2 ");
            assert_eq!(text(&mut finder, u32::MAX, b"SendTargets=All\0").await.1, told);
            let mut initiator = way.connect();
            let target = format!("TargetName={TARGET}");
            let (_, keys) = initiator.login_with(&["InitiatorName=iqn.test:a", &target]).await;
            let tag = if way.port == 3260 { 1 } else { 2 };
            assert!(keys.contains(&format!("TargetPortalGroupTag={tag} ")), "{keys}");
        }
    });
}

#[test]
fn each_is_a_target_port_of_one_unit() {
    run(two(), |world| async move {
        let second = World { port: 3261, ..world.clone() };
        // The same initiator port at two target ports: two sessions, none of which reinstates the other.
        let (mut a, mut b) = (world.login("a", &[]).await, second.login("a", &[]).await);
        assert_eq!(world.portal.sessions().len(), 2);
        let (of_a, of_b) = (designators(&mut a).await, designators(&mut b).await);
        let port = |number: u8| (0x14, vec![0, 0, 0, number]);
        let name = |number: u8| format!("{TARGET},t,0x000{number}");
        for (own, other, number) in [(&of_a, &of_b, 1), (&of_b, &of_a, 2)] {
            assert!(own.contains(&port(number)) && !other.contains(&port(number)));
            assert!(own.iter().any(|(kind, text)| *kind == 0x18 && text.starts_with(name(number).as_bytes())));
        }
        let unit = |all: &[(u8, Vec<u8>)]| all.iter().filter(|(kind, _)| kind & 0x30 == 0).cloned().collect::<Vec<_>>();
        assert_eq!(unit(&of_a), unit(&of_b), "it is one disk");
        for who in [&mut a, &mut b] {
            let groups = who.command("a3 0a 00 00 00 00 00 00 00 40 00 00", 64).await.data;
            assert_eq!(groups, [0, 0, 0, 16, 0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
            assert_eq!(who.command("12 00 00 00 60 00", 96).await.data[6] & 0x10, 0x10, "MULTIP");
        }
        assert_eq!(a.write(0, &[0xaa; 512]).await.status, 0);
        assert_eq!(b.read(0, 1).await.data, [0xaa; 512]);
        // A login at the same port does reinstate, and leaves the other alone.
        let mut again = second.login("a", &[]).await;
        assert!(b.receive().await.is_none());
        assert_eq!(
            (world.portal.sessions().len(), a.read(0, 1).await.status, again.read(0, 1).await.status),
            (2, 0, 0)
        );
    });
}

#[test]
fn reservations_know_the_ports() {
    run(two(), |world| async move {
        let second = World { port: 3261, ..world.clone() };
        let (mut a, mut b) = (world.login("a", &[]).await, second.login("a", &[]).await);
        let list = |key: u8, action_key: u8, flags: u8| {
            let mut list = vec![0; 24];
            (list[7], list[15], list[20]) = (key, action_key, flags);
            list
        };
        let register = "5f 00 00 00 00 00 00 00 18";
        assert_eq!(a.command_out(register, &list(0, 1, 0), 24, 24, 8192).await.status, 0);
        assert_eq!(a.command_out("5f 01 01 00 00 00 00 00 18", &list(1, 0, 0), 24, 24, 8192).await.status, 0);
        assert_eq!(b.write(0, &[1; 512]).await.status, 0x18, "the other path is not registered");
        assert_eq!(a.command_out(register, &list(1, 0, 0), 24, 24, 8192).await.status, 0);
        // ALL_TG_PT: through all target ports.
        assert_eq!(a.command_out(register, &list(0, 2, 4), 24, 24, 8192).await.status, 0);
        let full = a.command("5e 03 00 00 00 00 00 01 00", 256).await.data;
        let ports: Vec<u8> =
            full[8..].windows(2).filter(|pair| pair[0] == 0 && [1, 2].contains(&pair[1])).map(|pair| pair[1]).collect();
        assert!(ports.contains(&1) && ports.contains(&2), "{full:02x?}");
        assert_eq!(b.command_out("5f 01 06 00 00 00 00 00 18", &list(2, 0, 0), 24, 24, 8192).await.status, 0);
        assert_eq!(a.write(0, &[1; 512]).await.status, 0, "registrants only");
    });
}
