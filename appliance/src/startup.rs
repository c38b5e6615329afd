//! From disks to a pool that is served: opening, records, the first token.

use crate::catalog::{ApplianceRecord, Catalog, Edit};
use crate::owner;
use crate::service::{Served, Service, ServiceError, derived};
use crate::settings::TokenSource;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use mgmt::Token;
use platform::Runtime;
use platform::block::Disk;
use thinp::records::Records;
use thinp::{Format, OpenError, Pool, PoolOptions};

/// Opens the pool on the disks `meta` and `data`. The error is for people: it says which disk, and what to do.
pub(crate) async fn open(
    runtime: &Runtime,
    disks: &[(String, Disk)],
    service: &Rc<Service>,
    cache_blocks: usize,
    console: &dyn Fn(&str),
) -> Result<Served, String> {
    let (meta, data) = (disk(disks, "meta")?, disk(disks, "data")?);
    let settings = &service.settings;
    let options = PoolOptions {
        format: if settings.format { Format::Force } else { Format::IfBlank },
        data_block_sectors: settings.data_block_sectors,
        low_water_blocks: settings.low_water_blocks,
        cache_blocks,
        ..PoolOptions::default()
    };
    let pool = Pool::open(runtime, meta.clone(), data, options).await.map_err(|error| reason(&error))?;
    let ((records, catalog), trouble) = match load(&pool).await {
        Ok(loaded) => (loaded, None),
        // The volumes are sound: they can be exported again, though their names are lost for now.
        Err(error @ (ServiceError::Catalog(_) | ServiceError::Pool(thinp::Error::DamagedRecords { .. }))) => {
            log::error!("the appliance's records cannot be used: {error}");
            let lost = format!("names and exports are not known: {error}");
            ((None, Catalog::new(Records::PAGE_CAPACITY_BYTES)), Some(lost))
        }
        Err(error) => return Err(error.to_string()),
    };
    let (records, catalog) = (RefCell::new(records), Rc::new(RefCell::new(catalog)));
    let served = Served { pool, records, catalog, stale: Cell::new(false), metadata_disk: meta, trouble };
    if served.is_changeable() {
        owner::must_be_ours(service, served.catalog().appliance()).map_err(|error| error.to_string())?;
    }
    owner::unless_full(settle(service, &served, console).await).map_err(|error| error.to_string())?;
    Ok(served)
}

/// Why there is no pool, and whether a repair may help.
fn reason(error: &OpenError) -> String {
    let may_help = match error {
        OpenError::Metadata(error) => error.is_damage(),
        OpenError::DataInUse { .. } => true,
        _ => false,
    };
    let way = "; or attach a blank disk with the serial meta-new and POST /v1/pool/repair";
    format!("{error}{}", if may_help { way } else { "" })
}

/// Makes the reserved device in a pool that was made elsewhere; what was decided in memory is kept.
pub(crate) async fn adopt(service: &Service, served: &Served) -> Result<(), ServiceError> {
    let records = Records::create(&served.pool).await?;
    served.records.replace(Some(records));
    let own = served.catalog().appliance().clone();
    let appliance = ApplianceRecord { activation: Some(owner::activation(service, &own)), ..own };
    let volumes: Vec<Edit> = served.catalog().volumes().cloned().map(Edit::Put).collect();
    let edits = core::iter::once(Edit::Appliance(appliance)).chain(volumes).collect();
    served.change(&[], edits).await
}

/// The disk with a serial.
pub(crate) fn disk(disks: &[(String, Disk)], serial: &str) -> Result<Disk, String> {
    let mut found = disks.iter().filter(|(name, _)| name == serial).map(|(_, disk)| disk);
    match (found.next(), found.next()) {
        (Some(disk), None) => Ok(disk.clone()),
        (None, _) => Err(format!("there is no disk with the serial `{serial}`: attach one")),
        (Some(_), Some(_)) => Err(format!("there are two disks with the serial `{serial}`: detach one")),
    }
}

/// The records of the pool. A pool made just now gets its reserved device; one made elsewhere is left alone.
async fn load(pool: &Pool) -> Result<(Option<Records>, Catalog), ServiceError> {
    let records = match Records::find(pool).await? {
        None if pool.formatted() => Some(Records::create(pool).await?),
        found => found,
    };
    let mut pages = Vec::new();
    if let Some(records) = &records {
        for page in 0..records.pages() {
            pages.push(records.read(page).await?);
        }
    }
    Ok((records, Catalog::decode(&pages, Records::PAGE_CAPACITY_BYTES)?))
}

/// Reads the records again after a transaction failed: it may have been on the disk already, all of it, so that devices
/// are there or gone with their records and this memory knows nothing of it.
pub(crate) async fn reload(served: &Served) -> Result<(), ServiceError> {
    if served.adopted() {
        let (records, catalog) = load(&served.pool).await?;
        served.records.replace(records);
        served.catalog.replace(catalog);
    }
    served.stale.set(false);
    Ok(())
}

/// Identity, token, and the agreement of records and devices.
async fn settle(service: &Service, served: &Served, console: &dyn Fn(&str)) -> Result<(), ServiceError> {
    let kept = served.catalog().appliance().clone();
    let mut record = kept.clone();
    if record.identity == [0; 16] {
        // Without records the identity must follow from what does not change, for initiators know disks by it.
        let unkept = || derived(&[0; 16], "a pool without records");
        let fresh = || if served.adopted() { service.new_identity() } else { unkept() };
        record.identity = service.given_identity.unwrap_or_else(fresh);
    }
    let mut made = None;
    if service.tokens.borrow().is_empty() && record.token_hashes.is_empty() {
        match service.settings.token {
            TokenSource::Generate => {
                let token = service.new_token();
                record.token_hashes.push(token.hash().0.into());
                made = Some(token);
            }
            TokenSource::Given => log::error!("token=given, but no token was given: nobody can manage this appliance"),
        }
    }
    let changeable = served.is_changeable();
    if changeable && served.adopted() {
        record.activation = Some(owner::activation(service, &record));
    }
    if record != kept && (changeable || !served.adopted()) {
        served.change(&[], [Edit::Appliance(record)].into()).await?;
    }
    // Shown only now: a token that was printed works after a crash, too.
    if let Some(token) = made {
        show(&token, console);
    }
    if changeable || !served.adopted() { served.reconcile().await } else { Ok(()) }
}

/// Without a pool nobody knows the hashes of its tokens: one is made that holds until the restart.
pub(crate) fn lend_token(service: &Service, console: &dyn Fn(&str)) {
    let generate = matches!(service.settings.token, TokenSource::Generate);
    if generate && service.tokens.borrow().is_empty() {
        let token = service.new_token();
        service.tokens.borrow_mut().push(token.hash());
        show(&token, console);
    }
}

fn show(token: &Token, console: &dyn Fn(&str)) {
    console(&format!("gossamer: token {}", token.reveal()));
}
