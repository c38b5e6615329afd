//! What is logged of a change's course: long random tests count from it how often they met which.

use crate::harness::*;
use log::{LevelFilter, Log, Metadata, Record};
use pdata::Error;
use pdata::space_map::ENTRIES_PER_BITMAP;
use platform::task::block_on_ready;
use std::cell::RefCell;

thread_local! {
    /// What was said since it was last taken, if anybody listens.
    static SAID: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

struct Listener;

impl Log for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        SAID.with_borrow_mut(|said| said.iter_mut().for_each(|said| said.push(record.args().to_string())));
    }

    fn flush(&self) {}
}

static LISTENER: Listener = Listener;

/// What was said since the last call on this thread.
fn said() -> Vec<String> {
    // Whoever comes second finds it there.
    let _ = log::set_logger(&LISTENER);
    log::set_max_level(LevelFilter::Trace);
    SAID.replace(Some(Vec::new())).unwrap_or_default()
}

#[test]
fn counts_that_rise_above_2_and_fall_again_are_told_once() {
    block_on_ready(async {
        let store = Store::new(200, 100, 16).await;
        said();
        for expected in [&[][..], &[], &["overflow count inserted"; 2], &[], &[]] {
            store.data.inc(&store.tm, 5..7).await.unwrap();
            assert_eq!(said(), expected);
        }
        for expected in [&[][..], &[], &["overflow count removed"; 2], &[], &[]] {
            store.data.dec(&store.tm, 5..7, &mut |_| ()).await.unwrap();
            assert_eq!(said(), expected);
        }
    });
}

#[test]
fn a_search_tells_that_it_goes_on_only_if_there_is_more_to_search() {
    block_on_ready(async {
        let full = 2 * ENTRIES_PER_BITMAP;
        let store = Store::new(200, full + 10, 16).await;
        store.data.inc(&store.tm, 0..full).await.unwrap();
        said();
        assert_eq!(store.data.find_free(&store.tm, |_| false).await, Ok(full));
        assert_eq!(said(), ["allocation went on to the next bitmap"; 2]);
        let store = Store::new(200, 10, 16).await;
        store.data.inc(&store.tm, 0..10).await.unwrap();
        said();
        assert_eq!(store.data.find_free(&store.tm, |_| false).await, Err(Error::NoSpace));
        assert_eq!(said(), [""; 0]);
    });
}

#[test]
fn what_becomes_of_a_node_is_told() {
    block_on_ready(async {
        let store = Store::new(200, 100, 64).await;
        let mut root = store.tree.create(&store.tm).await.unwrap();
        said();
        for (keys, expected) in [(0..15, &[][..]), (15..16, &["leaf split, a root"]), (16..20, &[])] {
            for key in keys {
                root = store.tree.insert(&store.tm, root, key, Long::new(key)).await.unwrap().0;
            }
            assert_eq!(said(), expected);
        }
    });
}
