//! The seam to the network card.
//!
//! A [`FrameDevice`] moves Ethernet frames; its implementor knows no protocol. What a card can do for TCP (finish
//! checksums, cut a long frame into segments) is told in [`Link`] and asked for with [`TcpOffload`], whose fields are
//! those of a `virtio_net_hdr` (virtio 1.2, section 5.1.6.2).

use alloc::rc::Rc;
use alloc::vec;
use core::num::{NonZeroU16, NonZeroUsize};
use core::task::Waker;
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

/// Bytes of an Ethernet header. The check sequence behind a frame is never part of it here.
pub const ETHERNET_HEADER_BYTES: usize = 14;

/// Where in a TCP header its checksum is: `csum_offset` of a `virtio_net_hdr`.
pub const TCP_CHECKSUM_AT_BYTES: u16 = 16;

/// What the card is and can do. Asked for once, when the stack is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The card's Ethernet address.
    pub mac: [u8; 6],
    /// The longest IP packet on the wire, without the Ethernet header: 1500 as a rule.
    pub mtu_bytes: usize,
    /// The card finishes TCP checksums of frames sent with a [`TcpOffload`].
    pub finishes_tcp_checksums: bool,
    /// The card has verified the TCP checksum of every frame that it hands over (or the frame never was on a wire).
    pub verifies_tcp_checksums: bool,
    /// The longest frame, Ethernet header included, that the card cuts into TCP/IPv4 segments itself, if it can.
    /// Used only together with `finishes_tcp_checksums`.
    pub segments_tcp4_bytes: Option<NonZeroUsize>,
}

/// What is left for the card to do with a TCP frame whose checksum field holds the sum of the pseudo header only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOffload {
    /// Where the TCP header starts in the frame: `csum_start`. The sum to fill in covers everything from here on.
    pub tcp_at_bytes: u16,
    /// Bytes of all headers together: `hdr_len`.
    pub header_bytes: u16,
    /// Cut the payload into segments of at most so many bytes: `gso_size`.
    pub segment_bytes: Option<NonZeroU16>,
}

/// A network card. Receiving and sending keep apart: `transmit` is called from within `receive`'s closure.
/// Frames may be lost in both directions, but not changed.
pub trait FrameDevice {
    /// What the card is.
    fn link(&self) -> Link;

    /// A received frame waits.
    fn can_receive(&self) -> bool;

    /// Shows the oldest received frame to `take`, then gives its buffer back to the card. Does nothing if none waits.
    fn receive(&self, take: &mut dyn FnMut(&[u8]));

    /// There is room for a frame to send.
    fn can_transmit(&self) -> bool;

    /// Lets `fill` write a frame of exactly `len_bytes` (whose bytes are unspecified before) and queues it. Does nothing
    /// if there is no room or the frame is longer than the [`Link`] allows.
    fn transmit(&self, len_bytes: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<TcpOffload>);

    /// Tells the card of the frames queued and the buffers given back since the last call: one notification for many.
    fn kick(&self);

    /// Wakes `waker` when a frame has been received, and when there is room again after `can_transmit` said no. Replaces
    /// the waker given before. What happened before the call need not be told again.
    fn register(&self, waker: &Waker);
}

/// smoltcp's view of a [`FrameDevice`].
pub(crate) struct Phy {
    device: Rc<dyn FrameDevice>,
    link: Link,
}

pub(crate) struct RxToken<'a>(&'a dyn FrameDevice);

pub(crate) struct TxToken<'a> {
    device: &'a dyn FrameDevice,
    finishes_tcp_checksums: bool,
    segment_bytes: Option<NonZeroU16>,
}

impl Phy {
    pub(crate) fn new(device: Rc<dyn FrameDevice>) -> Phy {
        let link = device.link();
        Phy { device, link }
    }

    fn tx_token(&self) -> TxToken<'_> {
        let finishes_tcp_checksums = self.link.finishes_tcp_checksums;
        TxToken { device: self.device.as_ref(), finishes_tcp_checksums, segment_bytes: None }
    }
}

impl phy::Device for Phy {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // Every frame may need an answer: without room for one it stays with the card.
        let ready = self.device.can_receive() && self.device.can_transmit();
        ready.then(|| (RxToken(self.device.as_ref()), self.tx_token()))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.device.can_transmit().then(|| self.tx_token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let link = self.link;
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = link.mtu_bytes + ETHERNET_HEADER_BYTES;
        caps.checksum.tcp = match (link.finishes_tcp_checksums, link.verifies_tcp_checksums) {
            (false, false) => Checksum::Both,
            (true, false) => Checksum::Rx,
            (false, true) => Checksum::Tx,
            (true, true) => Checksum::None,
        };
        // smoltcp panics if it is to offload segmentation but not checksums. Beyond 65535 bytes it would write an IP
        // length of 0, which cards do not expect.
        let most = NonZeroUsize::MIN.saturating_add(usize::from(u16::MAX) + ETHERNET_HEADER_BYTES - 1);
        caps.segmentation.tcpv4 = link.segments_tcp4_bytes.filter(|_| link.finishes_tcp_checksums).map(|b| b.min(most));
        caps
    }
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let mut f = Some(f);
        let mut result = None;
        self.0.receive(&mut |frame| result = f.take().map(|f| f(frame)));
        match (result, f) {
            (Some(result), _) => result,
            // smoltcp ignores a frame of no bytes.
            (None, Some(f)) => f(&[]),
            (None, None) => unreachable!("the closure yields a result when it is taken"),
        }
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut f = Some(f);
        let mut result = None;
        self.device.transmit(len, &mut |frame| {
            if let (Some(frame), Some(f)) = (frame.get_mut(..len), f.take()) {
                result = Some(f(frame));
                return if self.finishes_tcp_checksums { offload(frame, self.segment_bytes) } else { None };
            }
            None
        });
        match (result, f) {
            (Some(result), _) => result,
            // The card did not take the frame: it is lost, as frames may be.
            (None, Some(f)) => f(&mut vec![0; len]),
            (None, None) => unreachable!("the closure yields a result when it is taken"),
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_bytes = meta.segmentation_offload_size;
    }
}

/// Puts the sum of the pseudo header into a TCP/IPv4 frame's checksum field and says what the card has to add. Frames of
/// other protocols were finished by smoltcp.
fn offload(frame: &mut [u8], segment_bytes: Option<NonZeroU16>) -> Option<TcpOffload> {
    let ethernet = EthernetFrame::new_checked(&*frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp_at = ETHERNET_HEADER_BYTES + usize::from(ip.header_len());
    let tcp_bytes = ip.total_len().checked_sub(u16::from(ip.header_len()))?;
    let header = tcp_at + usize::from(TcpPacket::new_checked(ip.payload()).ok()?.header_len());
    let (source, destination) = (ip.src_addr().octets(), ip.dst_addr().octets());
    let sum = pseudo_header_sum(source, destination, tcp_bytes);
    let field = tcp_at + usize::from(TCP_CHECKSUM_AT_BYTES);
    frame.get_mut(field..field + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(TcpOffload {
        tcp_at_bytes: u16::try_from(tcp_at).ok()?,
        header_bytes: u16::try_from(header).ok()?,
        segment_bytes,
    })
}

/// The ones' complement sum, not inverted, of RFC 9293 section 3.1's pseudo header.
fn pseudo_header_sum(source: [u8; 4], destination: [u8; 4], tcp_bytes: u16) -> u16 {
    let words = |a: [u8; 4]| u32::from(u16::from_be_bytes([a[0], a[1]])) + u32::from(u16::from_be_bytes([a[2], a[3]]));
    let mut sum = words(source) + words(destination) + u32::from(u8::from(IpProtocol::Tcp)) + u32::from(tcp_bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
