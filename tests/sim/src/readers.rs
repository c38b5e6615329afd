//! Readers beside everything else: they check the metadata, ask who holds views and what space is whose, and read the
//! metadata snapshot over its export, slowly.

use crate::faults;
use crate::image::{Image, Sector};
use crate::initiator::{Broken, Outcome, Session};
use crate::judge;
use crate::life::Life;
use crate::manager::Worker;
use crate::model::{BLOCK, Volume};
use platform::block::SECTOR_BYTES;
use platform::time::Duration;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The metadata's target.
const METADATA_TARGET: &str = "pool:metadata";

/// Sectors of a metadata block.
const META_BLOCK: u64 = 8;

/// Where the superblock has the number of the block of the metadata snapshot.
const HELD_ROOT_AT: usize = 56;

/// Who may hold a view.
const HOLDERS: [&str; 4] = ["check", "space accounting", "a stream", "erasing a device"];

/// Of so many copies of the metadata snapshot `thin_check` is shown one.
const THIN_CHECK_ONE_IN: u64 = 8;

/// Reads until the life is over.
pub async fn work(life: Rc<Life>) {
    let mut worker = Worker::new(life.clone());
    while life.goes_on().await {
        match life.world.below(10) {
            0..3 => worker.check().await,
            3..5 => worker.views().await,
            5..8 => worker.space().await,
            8 => worker.freed().await,
            _ => worker.copy_snapshot().await,
        }
        let micros = life.world.below(10_000);
        life.runtime.timers.sleep(Duration::from_micros(micros)).await;
    }
}

/// Waits for the check under way, and judges it.
pub async fn finish(life: &Rc<Life>) {
    let mut worker = Worker::new(life.clone());
    loop {
        let answer = worker.ask("GET", "/v1/pool/check", None).await;
        worker.judge_check(&answer.body);
        if answer.body["running"].is_null() {
            return;
        }
        life.runtime.timers.sleep(Duration::from_millis(10)).await;
    }
}

impl Worker {
    async fn check(&mut self) {
        let answer = self.ask("POST", "/v1/pool/check", None).await;
        self.expect_reason("a check", &answer);
        self.judge_check(&answer.body);
    }

    /// Nothing is wrong with the metadata unless a disk broke it.
    fn judge_check(&self, state: &Value) {
        let last = &state["last"];
        if last.is_null() || self.life.shape.faults.disks() {
            return;
        }
        match last["error"].as_str() {
            None => assert!(last["report"]["clean"] == true, "a check while serving: {last}"),
            // Its view was ended, for the pool needed its blocks.
            Some(error) => {
                assert!(error.contains("former state") || self.life.troubled.get(), "a check fails: {error}")
            }
        }
    }

    async fn views(&mut self) {
        let answer = self.ask("GET", "/v1/pool/views", None).await;
        self.expect_reason("a list of views", &answer);
        let Some(views) = answer.body["views"].as_array() else { return };
        let number = |name: &str| answer.body[name].as_u64().expect("a number");
        assert!(views.len() as u64 <= number("views_max"), "too many views: {views:?}");
        let known = |view: &Value| HOLDERS.iter().any(|holder| view["holder"] == *holder);
        assert!(views.iter().all(known), "views of nobody: {views:?}");
        let held_back = |view: &Value| view["held_back_blocks"].as_u64().expect("a number");
        let by_views: u64 = views.iter().map(held_back).sum();
        assert!(number("held_back_blocks") <= by_views, "blocks are held back for nobody: {}", answer.body);
        let is_ending = |view: &Value| (view["state"] == "ending", !view["ending_seconds"].is_null());
        assert!(views.iter().map(is_ending).all(|(state, since)| state == since), "{}", answer.body);
        let quarter = self.life.meta.size_sectors() / META_BLOCK / 4;
        assert!(number("held_back_blocks") <= quarter, "views hold back more than a quarter: {}", answer.body);
    }

    /// What is written and flushed is mapped; what was never written is not.
    async fn space(&mut self) {
        let sure = |life: &Life| -> BTreeMap<String, BTreeSet<u64>> {
            let model = life.model.borrow();
            model.volumes.keys().map(|name| (name.clone(), model.surely_mapped(name))).collect()
        };
        let begun = self.life.model.borrow_mut().now();
        let before = sure(&self.life);
        let answer = self.ask("GET", "/v1/pool/space", None).await;
        self.expect_reason("space accounting", &answer);
        let after = sure(&self.life);
        let model = self.life.model.borrow();
        for volume in answer.body["volumes"].as_array().into_iter().flatten().filter(|_| !faults::lied()) {
            let name = volume["name"].as_str().expect("a name");
            let [mapped, exclusive, shared] = ["mapped", "exclusive", "shared"].map(|what| {
                volume[format!("{what}_bytes")].as_u64().expect("a number") / (BLOCK * SECTOR_BYTES as u64)
            });
            assert_eq!(mapped, exclusive + shared, "space of {name}: {volume}");
            assert!(model.was_there_since(name, begun), "space of {name}, which is not there");
            let (Some(before), Some(after)) = (before.get(name), after.get(name)) else { continue };
            let volume = &model.volumes[name];
            if volume.is_exchanged_since(begun) || volume.is_zeroed_since(begun) || volume.is_made_since(begun) {
                continue;
            }
            let (least, most) = (before.intersection(after).count() as u64, model.most_mapped(name));
            assert!((least..=most).contains(&mapped), "{name} maps {mapped} blocks, not {least} to {most}");
        }
    }

    async fn freed(&mut self) {
        let Some(one) = self.any_volume(|volume| volume.is_settled()) else { return };
        let other = self.any_volume(|volume| volume.is_settled()).expect("there is one");
        let begun = self.life.model.borrow_mut().now();
        let body = format!(r#"{{"volumes":["{one}","{other}"]}}"#);
        let answer = self.ask("POST", "/v1/pool/space", Some(&body)).await;
        // A volume may be deleted meanwhile.
        assert!(matches!(answer.status, 200 | 404) || self.life.troubled.get(), "{body}: {answer:?}");
        let model = self.life.model.borrow();
        let still = |volume: &Volume| !volume.is_exchanged_since(begun);
        let there = [&one, &other].iter().all(|name| model.volumes.get(*name).is_some_and(still));
        let Some(freed) = answer.body["freed_bytes"].as_u64().filter(|_| there && !faults::lied()) else { return };
        let most = (model.most_mapped(&one) + model.most_mapped(&other)) * BLOCK * SECTOR_BYTES as u64;
        assert!(freed <= most, "deleting {body} would free {freed} bytes, at most {most} are there");
    }

    /// Copies the metadata disk as a host does that runs the tools on the metadata snapshot, and looks at the copy.
    async fn copy_snapshot(&mut self) {
        if self.life.model.borrow().held.known() != Some(&true) || self.life.reading.replace(true) {
            return;
        }
        let answer = self.ask("PUT", "/v1/pool/metadata-export", Some(r#"{"initiators":"all"}"#)).await;
        self.expect_reason("the export of the metadata", &answer);
        if answer.is_ok() {
            let copied = self.life.patiently(self.copy()).await;
            // A login that waits for a disk is ended after a while.
            let copied = copied.and_then(|copied| match copied {
                Err(Broken) if self.life.shape.faults.disks() => None,
                copied => copied.expect("nobody troubles this connection"),
            });
            assert!(copied.is_some() || self.life.troubled.get(), "the metadata cannot be copied");
            if let Some(copy) = copied.filter(|_| !self.life.shape.faults.disks()) {
                judge::accepts_snapshot(&copy, self.life.world.once_in(THIN_CHECK_ONE_IN));
            }
        }
        self.life.reading.set(false);
    }

    /// `None` if it is refused, fails, or holds no metadata snapshot.
    async fn copy(&self) -> Result<Option<Image>, Broken> {
        let life = &self.life;
        let login = Session::login(&life.site.iscsi, "reader", 99, METADATA_TARGET).await?;
        let Ok(mut session) = login else { return Ok(None) };
        let mut copy = Image::new(life.meta.size_sectors());
        let mut at = 0;
        while at < copy.size_sectors() {
            let sectors = (META_BLOCK * (1 + life.world.below(32))).min(copy.size_sectors() - at);
            let Outcome::Good(bytes) = session.read(at, sectors as u32).await? else { return Ok(None) };
            for (sector, bytes) in (at..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
                let bytes: &Sector = bytes.first_chunk().expect("a whole sector");
                copy.write(sector, bytes);
            }
            at += sectors;
            let micros = life.world.below(2000);
            life.runtime.timers.sleep(Duration::from_micros(micros)).await;
        }
        session.logout().await?;
        let mut first = [0; SECTOR_BYTES];
        copy.read(0, &mut first);
        let held = first[HELD_ROOT_AT..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Ok(Some(copy).filter(|_| held != Some(0)))
    }
}
