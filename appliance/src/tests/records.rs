//! Records and devices agree, whatever a failed transaction has left on the disk.

use super::{Disks, World, name, run};
use mgmt::*;
use platform::block::Op;
use std::cell::Cell;

/// The next commit fails with its last flush: it is on the disk, and nobody is told so.
fn fail_the_last_flush(world: &World) {
    let (written, failed) = (Cell::new(false), Cell::new(false));
    world.journal.fail(move |disk, op, sector| {
        written.set(written.get() || disk == 0 && matches!(op, Op::Write { .. }) && sector == 0);
        disk == 0 && op == Op::Flush && written.get() && !failed.replace(true)
    });
}

/// Who changes the records must know them: those of the transaction that failed are not overwritten from an older memory.
#[test]
fn records_that_could_not_be_read_again_are_read_before_the_next_change() {
    run(1, Disks::new(400), async |world| {
        world.create("a", 4).await;
        fail_the_last_flush(&world);
        let lost = world.manager.create_snapshot(&name("a"), NewSnapshot { name: name("b"), read_only: true }).await;
        lost.unwrap_err();
        assert_eq!(world.records(), ["a"]);
        world.journal.fail(|disk, op, _| disk == 1 && op == Op::Read);
        world.manager.clear_needs_check().await.unwrap_err();
        let refused = world.manager.delete_volume(&name("a")).await;
        refused.unwrap_err();
        world.journal.fail_no_more();
        world.create("c", 4).await;
        assert_eq!(world.records(), ["a", "b", "c"]);
        world.sound().await;
    });
}
