//! The login phase, of a target that wants nothing or a secret that nobody here knows, and the texts of the full-feature
//! phase. Each request is answered within bounds, and nobody gets in without the secret.
#![no_main]

use export::iscsi::chap::Challenges;
use export::iscsi::login::{Login, Step, Terms};
use export::iscsi::params::{Offer, Params};
use export::iscsi::pdu::{Bhs, LoginRequest};
use export::iscsi::text::{TEXT_BYTES_MAX, pairs};
use export::iscsi::text_phase::{self, Exchange, Listed};
use fuzz::image::Bytes;
use fuzz::{iscsi, within_budget};
use platform::random::Seeded;
use std::rc::Rc;

/// Requests of one execution.
const REQUESTS_MAX: usize = 16;

libfuzzer_sys::fuzz_target!(|data: &[u8]| within_budget(|| {
    let mut bytes = Bytes::new(data);
    match bytes.byte() {
        kind @ 0..=199 => log_in(kind & 1 != 0, &mut bytes),
        _ => exchange(&mut bytes),
    }
}));

fn log_in(is_guarded: bool, bytes: &mut Bytes<'_>) {
    let mut login = Login::new(Terms {
        offer: Offer {
            segment_bytes: 262_144,
            max_burst_bytes: 262_144,
            first_burst_bytes: 65_536,
            max_outstanding_r2t: 4,
        },
        portal_group: 1,
        window: 32,
        former: Box::new(|request, _, _| Ok((request.tsih.get() != 0).then(Params::default))),
        wanted: Box::new(move |_, _| is_guarded.then(iscsi::secret)),
        challenges: Challenges::new(Rc::new(Seeded::from_u64(1))),
        may_try: Box::new(|| true),
        failed: Box::new(|| ()),
    });
    for _ in 0..REQUESTS_MAX {
        let request = request(bytes);
        let text = text(bytes);
        match login.step(&request, text.as_bytes()) {
            Step::Send(response, reply) => {
                assert_eq!(response.status(), 0);
                assert!(pairs(&reply).all(|pair| pair.is_ok()), "a reply that is no text");
            }
            Step::Finish(agreed, ..) => {
                assert!(!is_guarded, "in without the secret: {agreed:?}");
                let params = &agreed.params;
                assert!((512..1 << 24).contains(&params.initiator_segment_bytes), "{params:?}");
                assert!((512..=262_144).contains(&params.max_burst_bytes), "{params:?}");
                assert!((512..=params.max_burst_bytes).contains(&params.first_burst_bytes), "{params:?}");
                assert!((1..=4).contains(&params.max_outstanding_r2t), "{params:?}");
                return;
            }
            Step::Refuse(response) => return assert!(response.status() != 0),
        }
    }
}

/// A request of one login; now and then a field is another.
fn request(bytes: &mut Bytes<'_>) -> LoginRequest {
    let mut header = [0; 48];
    header[0] = 0x43;
    header[1] = bytes.byte();
    if let at @ 128.. = bytes.byte() {
        header[usize::from(at) % 48] = bytes.byte();
    }
    *LoginRequest::of(&Bhs::from_bytes(header))
}

fn text(bytes: &mut Bytes<'_>) -> String {
    (0..bytes.byte() % 12).map(|_| iscsi::word(bytes)).collect()
}

/// Text requests, whose answers are asked for in parts.
fn exchange(bytes: &mut Bytes<'_>) {
    let mut exchange = Exchange::default();
    let targets = |name: &str| {
        let listed = |n: usize| Listed { name: format!("iqn.t{n}"), addresses: vec!["[::1]:3260,1".into(); 3] };
        (!name.is_empty()).then(|| (0..20).map(listed).collect())
    };
    for tag in 0..REQUESTS_MAX as u32 {
        let flags = bytes.byte();
        let known = (flags & 1 != 0).then_some(tag.wrapping_sub(1));
        let step = exchange.request(known, flags & 2 != 0, text(bytes).as_bytes());
        match step {
            text_phase::Step::Refuse => continue,
            text_phase::Step::Go => {}
            text_phase::Step::Answer(text) => {
                assert!(text.len() <= TEXT_BYTES_MAX);
                if let Ok((answer, _)) = text_phase::answer(&text, targets) {
                    exchange.answer(answer);
                }
            }
        }
        let most = 512 + usize::from(bytes.byte());
        let part = exchange.next(flags & 4 != 0, most, tag);
        assert!(part.text.len() <= most && !(part.last && part.continues));
    }
}
