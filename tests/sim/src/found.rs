//! What the simulator found, played again without dice.

use crate::disk::SimDisk;
use crate::faults::{DATA, META};
use crate::http::Manager;
use crate::image::Image;
use crate::model::BLOCK;
use crate::site::{self, Instance, Site};
use crate::world::World;
use platform::block::Disk;

const BUFS_BYTES: usize = 16 << 20;

/// The names of the volumes after the flush of the metadata disk with this number failed while a volume was made, and
/// needs_check was cleared.
fn volumes_after_a_failed_flush(number: u64) -> Vec<String> {
    let world = World::new(number);
    let inside = world.clone();
    let names = world.run(BUFS_BYTES, async move |runtime| {
        let meta = SimDisk::new(&inside, META, Image::new(300 * 8));
        let data = SimDisk::new(&inside, DATA, Image::new(300 * BLOCK));
        let (site, _ended) = Site::start(
            &runtime,
            &inside,
            site::pool(Disk::new(meta.clone()), Disk::new(data)),
            32,
            Instance::default(),
        );
        site.ready(&runtime).await.expect("a new pool");
        let mut manager = Manager::connect(&site.http).expect("the appliance takes connections");
        meta.set_faults(|faults| faults.failing_flush = Some(number));
        let made = manager.ask("POST", "/v1/volumes", Some(r#"{"name":"v","size_bytes":1048576}"#)).await;
        assert_eq!(made.expect("an answer").status, 500);
        let cleared = manager.ask("POST", "/v1/pool/clear-needs-check", None).await.expect("an answer");
        assert!(cleared.is_ok(), "{cleared:?}");
        let listed = manager.ask("GET", "/v1/volumes", None).await.expect("an answer");
        let volumes = listed.body["volumes"].as_array().expect("a list").clone();
        volumes.iter().map(|volume| volume["name"].as_str().expect("a name").to_owned()).collect()
    });
    world.end();
    names
}

/// Seed 2017: the flush behind the superblock failed, and the volume that had been asked for came back as `thin-5`.
#[test]
fn a_volume_whose_commit_may_have_failed_keeps_its_name() {
    assert_eq!(volumes_after_a_failed_flush(0), Vec::<String>::new(), "its superblock was not written");
    assert_eq!(volumes_after_a_failed_flush(1), ["v"], "its superblock was written");
}
