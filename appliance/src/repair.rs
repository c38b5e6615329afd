//! Repairing the metadata: from the disk `meta`, which is only read, onto the disk `meta-new`.

use crate::service::{Service, ServiceError};
use crate::startup::disk;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use mgmt::{Repair, RepairReport};
use platform::Runtime;
use platform::block::Disk;
use thinp::control::Mode;
use thinp::metadata::repair::{Options, must_be_blank, repair};
use thinp::metadata::restore::Overrides;

/// The serial of the disk that a repair writes.
const NEW_DISK: &str = "meta-new";

/// What follows a repair.
const NEXT: &str = "power off; attach the disk meta-new as meta, and keep the old one; start again";

/// What a repair works with.
pub(crate) struct Workshop {
    /// All disks by their serials.
    pub disks: Vec<(String, Disk)>,
    pub memory_bytes: usize,
    pub console: Rc<dyn Fn(&str)>,
}

impl Workshop {
    /// Rebuilds what can be found. Refused while a pool is served that may change its metadata.
    pub async fn repair(
        &self,
        runtime: &Runtime,
        service: &Service,
        wanted: Repair,
    ) -> Result<RepairReport, ServiceError> {
        let _alone = service.changes().await;
        if let Some(mode) = service.pool().map(|pool| pool.status().mode)
            && mode < Mode::ReadOnly
        {
            return Err(ServiceError::NothingToRepair(mode));
        }
        let old = disk(&self.disks, "meta").map_err(ServiceError::NoDisk)?;
        let new = disk(&self.disks, NEW_DISK).map_err(ServiceError::NoDisk)?;
        if !wanted.force {
            must_be_blank(runtime, &new).await?;
        }
        let Repair { transaction_id, data_block_sectors, data_blocks, last_commit, .. } = wanted;
        let overrides = Overrides { transaction_id, data_block_sectors, data_blocks };
        let options = Options { overrides, last_commit };
        let report = repair(runtime, &old, &new, self.memory_bytes, &options).await?;
        let text = report.to_string();
        text.lines().for_each(|line| log::warn!("repair: {line}"));
        (self.console)(&format!("gossamer: repaired onto {NEW_DISK}: {NEXT}"));
        Ok(RepairReport {
            devices: report.restored.devices,
            mappings: report.restored.mappings,
            mappings_lost: report.mappings_lost(),
            damaged_devices: (report.damaged.len() as u64).saturating_add(report.untold),
            report: text.lines().map(ToString::to_string).collect(),
            next: NEXT.to_string(),
        })
    }
}
