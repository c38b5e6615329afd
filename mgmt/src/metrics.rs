//! The state in numbers, in the text format of Prometheus (version 0.0.4).

use crate::api::Api;
use crate::control::{CheckState, Control, PoolInfo, Views, Volume, mode_name};
use crate::handlers::Pages;
use crate::http::Failure;
use crate::http::exchange::{Exchange, Sink};
use alloc::format;
use alloc::string::String;
use platform::net::Stream;
use thinp::control::{DiskBlocks, Mode};

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const MODES: [Mode; 5] = [Mode::Write, Mode::OutOfDataSpace, Mode::OutOfMetadataSpace, Mode::ReadOnly, Mode::Fail];

/// Answers with all metrics. Without a pool those of the pool are absent, and `gossamer_pool_available` is 0.
pub(crate) async fn send<C: Control, S: Stream>(api: &Api<C>, exchange: &mut Exchange<'_, S>) -> Result<(), Failure> {
    let pool = api.control.pool().ok();
    let mut sink = exchange.stream(TEXT).await?;
    sink.write(interface(api, pool.is_some()).as_bytes()).await?;
    if let Some(pool) = pool {
        sink.write(of_pool(&pool).as_bytes()).await?;
        if let Ok(views) = api.control.views() {
            sink.write(of_views(&views).as_bytes()).await?;
        }
        if let Ok(check) = api.control.check_state() {
            sink.write(of_check(&check).as_bytes()).await?;
        }
        let help = "Space that the volume maps, shared or not.";
        of_volumes(api, &mut sink, "gossamer_volume_mapped_bytes", help, |v| Some(v.mapped_bytes)).await?;
        of_volumes(api, &mut sink, "gossamer_volume_size_bytes", "Size of the volume.", |v| v.size_bytes).await?;
        of_volumes(api, &mut sink, "gossamer_volume_in_use", "1 while in use.", |v| Some(v.in_use.into())).await?;
    }
    Ok(sink.finish().await?)
}

fn interface<C: Control>(api: &Api<C>, available: bool) -> String {
    let mut text = String::new();
    gauge(&mut text, "gossamer_pool_available", "1 if the pool is open.", available.into());
    gauge(&mut text, "gossamer_sessions", "Sessions of initiators.", api.control.sessions() as u64);
    gauge(&mut text, "gossamer_http_connections", "HTTP connections.", api.counters.connections.get() as u64);
    text.push_str("# HELP gossamer_http_answers_total Answers, by class of status.\n");
    text.push_str("# TYPE gossamer_http_answers_total counter\n");
    for (class, answers) in api.counters.answers.iter().enumerate().skip(2) {
        text.push_str(&format!("gossamer_http_answers_total{{status=\"{class}xx\"}} {}\n", answers.get()));
    }
    text
}

fn of_pool(pool: &PoolInfo) -> String {
    let (status, mut text) = (&pool.status, String::new());
    let block_bytes = u64::from(status.data_block_sectors) * 512;
    gauge(&mut text, "gossamer_pool_data_block_bytes", "Size of a data block.", block_bytes);
    gauge(&mut text, "gossamer_pool_data_blocks", "Data blocks in all.", status.data_total_blocks);
    gauge(&mut text, "gossamer_pool_data_used_blocks", "Data blocks in use.", status.data_used_blocks);
    gauge(&mut text, "gossamer_pool_metadata_blocks", "Metadata blocks in all.", status.metadata_total_blocks);
    gauge(&mut text, "gossamer_pool_metadata_used_blocks", "Metadata blocks in use.", status.metadata_used_blocks);
    let DiskBlocks { metadata, data } = pool.disk_blocks;
    gauge(&mut text, "gossamer_pool_data_disk_blocks", "Data blocks that the disk has room for.", data);
    gauge(&mut text, "gossamer_pool_metadata_disk_blocks", "Metadata blocks that the disk has room for.", metadata);
    let low = status.metadata_low_water_blocks;
    gauge(&mut text, "gossamer_pool_metadata_low_water_blocks", "Free metadata blocks that are few.", low);
    gauge(&mut text, "gossamer_pool_transaction_id", "Userland transaction id.", status.transaction_id);
    gauge(&mut text, "gossamer_pool_needs_check", "1 if the metadata needs a check.", status.needs_check.into());
    text.push_str("# HELP gossamer_pool_events_total Changes of mode, low water, the end of the wait.\n");
    text.push_str(&format!("# TYPE gossamer_pool_events_total counter\ngossamer_pool_events_total {}\n", pool.events));
    text.push_str("# HELP gossamer_pool_mode 1 for the mode that the pool is in.\n# TYPE gossamer_pool_mode gauge\n");
    for mode in MODES {
        let value = u8::from(mode == status.mode);
        text.push_str(&format!("gossamer_pool_mode{{mode=\"{}\"}} {value}\n", mode_name(mode)));
    }
    text
}

fn of_views(views: &Views) -> String {
    let mut text = String::new();
    gauge(&mut text, "gossamer_pool_views", "Views of the metadata that are open or ending.", views.views.len() as u64);
    let help = "Metadata blocks that only views use.";
    gauge(&mut text, "gossamer_pool_views_held_back_blocks", help, views.held_back_blocks);
    let oldest = views.views.first().map_or(0, |view| view.seconds);
    gauge(&mut text, "gossamer_pool_views_oldest_seconds", "Age of the oldest view; 0 if there is none.", oldest);
    text
}

fn of_check(check: &CheckState) -> String {
    let mut text = String::new();
    let running = check.running.is_some().into();
    gauge(&mut text, "gossamer_pool_check_running", "1 while the metadata is being checked.", running);
    if let Some(report) = check.last.as_ref().and_then(|last| last.report.as_ref()) {
        let problems = report.damage.saturating_add(report.leaks).saturating_add(report.untold);
        let help = "Damage and leaks that the last check found, and what it only counted.";
        gauge(&mut text, "gossamer_pool_check_problems", help, problems);
    }
    text
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"));
}

/// One metric of every volume that has it. All samples of a metric stand together, as the format asks.
async fn of_volumes<C: Control, S: Stream>(
    api: &Api<C>,
    sink: &mut Sink<'_, '_, S>,
    name: &str,
    help: &str,
    value: impl Fn(&Volume) -> Option<u64>,
) -> Result<(), Failure> {
    sink.write(format!("# HELP {name} {help}\n# TYPE {name} gauge\n").as_bytes()).await?;
    let mut pages = Pages::new(&*api.control);
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            return Ok(());
        }
        for volume in &page {
            if let Some(value) = value(volume) {
                sink.write(format!("{name}{{volume=\"{}\"}} {value}\n", volume.name).as_bytes()).await?;
            }
        }
    }
}
