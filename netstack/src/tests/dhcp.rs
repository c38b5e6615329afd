//! Leases, from a server of a few lines.

use super::{Card, GOOD, World};
use crate::device::FrameDevice;
use crate::{Address, Stack};
use alloc::rc::Rc;
use alloc::vec;
use core::cell::Cell;
use core::future::poll_fn;
use core::net::Ipv4Addr;
use core::task::Poll;
use platform::time::Duration;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;

const LEASED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LEASE_SECONDS: u32 = 120;

/// Answers DISCOVER and REQUEST while `serving`.
struct Server {
    card: Rc<Card>,
    serving: Rc<Cell<bool>>,
    granted: Rc<Cell<u32>>,
}

impl Server {
    async fn run(self) {
        poll_fn(|cx| {
            self.card.register(cx.waker());
            while self.card.can_receive() {
                self.card.receive(&mut |frame| {
                    if self.serving.get() {
                        self.answer(frame);
                    }
                });
            }
            Poll::<()>::Pending
        })
        .await
    }

    fn answer(&self, frame: &[u8]) -> Option<()> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let client = ethernet.src_addr();
        let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        let udp = UdpPacket::new_checked(ip.payload()).ok()?;
        let packet = DhcpPacket::new_checked(udp.payload()).ok()?;
        let request = DhcpRepr::parse(&packet).ok()?;
        let message_type = match request.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request => {
                self.granted.set(self.granted.get() + 1);
                DhcpMessageType::Ack
            }
            other => panic!("unexpected {other:?}"),
        };
        let reply = DhcpRepr {
            message_type,
            your_ip: LEASED,
            server_ip: GATEWAY,
            router: Some(GATEWAY),
            subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            server_identifier: Some(GATEWAY),
            lease_duration: Some(LEASE_SECONDS),
            requested_ip: None,
            client_identifier: None,
            parameter_request_list: None,
            max_size: None,
            ..request
        };
        self.send(client, &reply);
        Some(())
    }

    fn send(&self, client: EthernetAddress, reply: &DhcpRepr<'_>) {
        let udp = UdpRepr { src_port: 67, dst_port: 68 };
        let udp_bytes = udp.header_len() + reply.buffer_len();
        let ip = Ipv4Repr {
            src_addr: GATEWAY,
            dst_addr: Ipv4Addr::BROADCAST,
            next_header: IpProtocol::Udp,
            payload_len: udp_bytes,
            hop_limit: 64,
        };
        let mut payload = vec![0; reply.buffer_len()];
        reply.emit(&mut DhcpPacket::new_unchecked(&mut payload)).unwrap();
        let sums = ChecksumCapabilities::default();
        self.card.transmit(14 + ip.buffer_len() + udp_bytes, &mut |frame| {
            let src_addr = EthernetAddress(self.card.link().mac);
            let ethernet = EthernetRepr { src_addr, dst_addr: client, ethertype: EthernetProtocol::Ipv4 };
            ethernet.emit(&mut EthernetFrame::new_unchecked(&mut *frame));
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &sums);
            udp.emit(
                &mut UdpPacket::new_unchecked(&mut frame[14 + ip.buffer_len()..]),
                &GATEWAY.into(),
                &Ipv4Addr::BROADCAST.into(),
                payload.len(),
                |bytes| bytes.copy_from_slice(&payload),
                &sums,
            );
            None
        });
    }
}

#[test]
fn an_address_is_leased_renewed_lost_and_leased_again() {
    let world = World::new(1, GOOD);
    let net = world.clone();
    world.run(move |runtime| async move {
        let (serving, granted) = (Rc::new(Cell::new(true)), Rc::new(Cell::new(0)));
        let server = Server { card: Card::client(&net), serving: serving.clone(), granted: granted.clone() };
        runtime.spawner.spawn(server.run());
        let stack = Stack::start(&runtime, Card::server(&net, false), Address::Dhcp);
        assert_eq!(stack.address(), None);
        assert_eq!(stack.configured().await, LEASED);
        assert!(runtime.timers.now().nanos < 2_000_000_000, "a lease takes no second");
        assert_eq!(granted.get(), 1);

        runtime.timers.sleep(Duration::from_secs(150)).await;
        assert!(granted.get() >= 2, "not renewed");
        assert_eq!(stack.address(), Some(LEASED));

        serving.set(false);
        runtime.timers.sleep(Duration::from_secs(150)).await;
        assert_eq!(stack.address(), None, "a lease that ran out is given up");
        serving.set(true);
        assert_eq!(stack.configured().await, LEASED);
    });
}
