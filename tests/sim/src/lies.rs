//! What must hold when a disk has lied: flushes lost, writes lost or misdirected. What was acknowledged may be gone, and
//! the metadata may be of several moments. But nothing panics or hangs; a pool opens, or is refused with an error that says
//! why; metadata that the checker calls sound can be used; and metadata on a disk that did not lie is sound.

use crate::faults;
use crate::http::Manager;
use crate::initiator::Session;
use crate::model::BLOCK;
use crate::quick::QuickDisk;
use crate::recover::{self, BUFS_BYTES, CACHE_BLOCKS, CHECK_BYTES, Remains, Wanted};
use crate::site::{self, Instance, Site};
use crate::world::World;
use appliance::catalog::Catalog;
use platform::Runtime;
use platform::block::Disk;
use thinp::control::Mode;
use thinp::metadata::check::check;
use thinp::records::Records;
use thinp::{Error, OpenError, Pool, PoolOptions};

/// Opens a pool over what a power cut left after a lie, and uses what can be used.
pub fn by_pool(remains: Remains, seed: u64, wanted: Wanted) {
    World::new(seed).run(BUFS_BYTES, async move |runtime| {
        let (meta, data) = (Disk::new(QuickDisk::new(remains.meta)), Disk::new(QuickDisk::new(remains.data)));
        let blank = recover::is_blank(&runtime, &meta).await;
        let sound = blank || is_sound(&runtime, &meta).await;
        assert!(sound || faults::metadata_lied(), "the metadata is not sound, and its disk never lied");
        let options = PoolOptions { cache_blocks: CACHE_BLOCKS, ..PoolOptions::default() };
        let pool = match Pool::open(&runtime, meta.clone(), data, options).await {
            Ok(pool) => pool,
            // A superblock that was never written, beside data.
            Err(OpenError::DataInUse { .. }) if blank => return,
            Err(error) => return assert!(!sound, "sound metadata does not open: {error}"),
        };
        let read = read_all(&runtime, &pool, &wanted).await;
        assert!(!sound || read.is_ok(), "sound metadata cannot be read: {read:?}");
        if pool.status().mode != Mode::Write {
            return;
        }
        if sound {
            recover::use_pool(&runtime, &pool).await.expect("a sound pool can be used");
            pool.close().await.expect("the pool closes");
            recover::expect_sound(&runtime, &meta).await;
        } else {
            // Both may fail, in any way.
            let _ = recover::use_pool(&runtime, &pool).await;
            let _ = pool.close().await;
        }
    });
}

async fn is_sound(runtime: &Runtime, meta: &Disk) -> bool {
    check(runtime, meta, CHECK_BYTES).await.is_ok_and(|report| report.problems.is_empty())
}

/// Reads all devices, where the model wrote to any volume. The records are data: they may make no sense.
async fn read_all(runtime: &Runtime, pool: &Pool, wanted: &Wanted) -> Result<(), Error> {
    if let Ok(Some(records)) = Records::find(pool).await {
        let mut pages = Vec::new();
        for page in 0..records.pages() {
            pages.extend(records.read(page).await);
        }
        let _ = Catalog::decode(&pages, Records::PAGE_CAPACITY_BYTES);
    }
    let blocks = wanted.blocks.values().next().map_or(&[][..], Vec::as_slice);
    for (id, _) in pool.devices().await? {
        // One of them holds the records.
        let thin = match pool.open_thin(id, None).await {
            Err(Error::Reserved(_)) => continue,
            opened => opened?,
        };
        for block in blocks {
            let buf = runtime.bufs.alloc(BLOCK as usize * 512).expect("buffers");
            thin.read(block * BLOCK, buf).await.0?;
        }
    }
    Ok(())
}

/// Starts an appliance over it, asks for everything, and powers it off: it answers, whatever it finds.
pub fn by_appliance(remains: Remains, seed: u64, wanted: Wanted) {
    let world = World::new(seed);
    let inside = world.clone();
    world.run(BUFS_BYTES * 4, async move |runtime| {
        let (meta, data) = (Disk::new(QuickDisk::new(remains.meta)), Disk::new(QuickDisk::new(remains.data)));
        let (site, ended) = Site::start(&runtime, &inside, site::pool(meta, data), CACHE_BLOCKS, Instance::default());
        let ready = site.ready(&runtime).await;
        assert!(ready != Err(String::new()), "an appliance that serves nothing says why");
        let mut manager = Manager::connect(&site.http).expect("the appliance takes connections");
        for path in ["/v1/pool", "/v1/volumes", "/v1/pool/space", "/v1/pool/views", "/v1/pool/check"] {
            let answer = manager.ask("GET", path, None).await.expect("an answer");
            let says = ready.is_err() || answer.is_ok() || !answer.body["error"].is_null();
            assert!(says, "GET {path}: {answer:?}");
        }
        for (name, blocks) in &wanted.blocks {
            let login = Session::login(&site.iscsi, "recovery", 1, name).await;
            let Ok(Ok(mut session)) = login else { continue };
            for block in blocks {
                session.read(block * BLOCK, BLOCK as u32).await.expect("an answer");
            }
            session.logout().await.expect("an answer");
        }
        site.power_off().await;
        ended.await.expect("the appliance ends");
    });
    world.end();
}
