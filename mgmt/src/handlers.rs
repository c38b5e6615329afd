//! The endpoints: each reads its body, makes one call of [`Control`] and answers.

use crate::access::{Authentication, Export};
use crate::api::Api;
use crate::control::{
    Control, Deletion, NewPolicy, NewSnapshot, NewSnapshots, NewVolume, PoolView, Repair, RollBack, Volume,
    VolumeChange, Wait,
};
use crate::error::{Code, ControlError};
use crate::http::Failure;
use crate::http::answer::{JSON, bare_json, json};
use crate::http::exchange::Exchange;
use crate::http::wire::Lost;
use crate::metrics;
use crate::names::VolumeName;
use crate::routes::Endpoint;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use platform::net::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// Volumes that are asked for at a time while a list is sent.
const VOLUMES_AT_ONCE: usize = 256;

/// A body in JSON.
trait Body: DeserializeOwned {
    /// What one looks like, for whoever sent another.
    const EXAMPLE: &str;
}

impl Body for NewVolume {
    const EXAMPLE: &str = r#"{"name":"v1","size_bytes":1073741824}"#;
}

impl Body for NewSnapshot {
    const EXAMPLE: &str = r#"{"name":"s1","read_only":true}"#;
}

impl Body for NewSnapshots {
    const EXAMPLE: &str = r#"{"snapshots":[{"volume":"v1","name":"s1"},{"volume":"v2","name":"s2"}],"read_only":true}"#;
}

impl Body for NewPolicy {
    const EXAMPLE: &str = r#"{"volumes":["v1","v2"],"every_minutes":15,"keep":8,"hourly":24,"daily":7,"weekly":4}"#;
}

impl Body for RollBack {
    const EXAMPLE: &str = r#"{"to":"s1"}, or {"to":"s1","force":true}"#;
}

impl Body for VolumeChange {
    const EXAMPLE: &str = r#"{"size_bytes":2147483648} or {"read_only":true}"#;
}

impl Body for Deletion {
    const EXAMPLE: &str = r#"{"volumes":["v1","v1-before"]}"#;
}

impl Body for Wait {
    const EXAMPLE: &str = r#"{"after":7}, the `events` of GET /v1/pool"#;
}

impl Body for Repair {
    const EXAMPLE: &str = r#"{}, or what is to be taken: {"data_block_sectors":128,"force":true}"#;
}

impl Body for Export {
    const EXAMPLE: &str = r#"{"initiators":["iqn.1993-08.org.debian:01:abc"]} or {"initiators":"all"}; add "addresses":["192.0.2.0/24"], "chap":{"user":…,"secret":…}, "mutual":{"user":…,"secret":…} as need be"#;
}

impl Body for Authentication {
    const EXAMPLE: &str = r#"{"chap":{"user":…,"secret":…}}; add "mutual":{"user":…,"secret":…} as need be"#;
}

/// What an endpoint answers.
enum Reply {
    /// 200 and this.
    Json(Vec<u8>),
    /// 201, this, and where it is found.
    Created(Vec<u8>, Option<String>),
    /// 202 and this: it goes on by itself.
    Accepted(Vec<u8>),
    /// 204.
    Empty,
    /// The endpoint has answered by itself.
    Sent,
}

impl Reply {
    fn json(value: &impl Serialize) -> Result<Reply, ControlError> {
        json(value).map(Reply::Json)
    }

    fn volume(volume: &Volume) -> Result<Reply, ControlError> {
        Ok(Reply::Created(json(volume)?, Some(format!("/v1/volumes/{}", volume.name))))
    }

    async fn send<S: Stream>(self, exchange: &mut Exchange<'_, S>) -> Result<(), Lost> {
        let json_type = ("Content-Type", JSON);
        match self {
            Reply::Json(body) => exchange.reply(200, &[json_type], &body).await,
            Reply::Created(body, None) => exchange.reply(201, &[json_type], &body).await,
            Reply::Created(body, Some(place)) => exchange.reply(201, &[json_type, ("Location", &place)], &body).await,
            Reply::Accepted(body) => exchange.reply(202, &[json_type], &body).await,
            Reply::Empty => exchange.reply(204, &[], &[]).await,
            Reply::Sent => Ok(()),
        }
    }
}

impl<C: Control> Api<C> {
    /// Serves one request that has a right to be served.
    pub(crate) async fn call<S: Stream>(
        &self,
        endpoint: Endpoint,
        exchange: &mut Exchange<'_, S>,
    ) -> Result<(), Failure> {
        let control = &self.control;
        let reply = match endpoint {
            Endpoint::Health => Reply::json(&control.health())?,
            Endpoint::Metrics => metrics::send(self, exchange).await.map(|()| Reply::Sent)?,
            Endpoint::ShowPool => self.show_pool()?,
            Endpoint::Message => {
                let answer = control.message(&read_message(exchange).await?).await?;
                Reply::json(&json!({ "errno": 0, "answer": answer }))?
            }
            Endpoint::Adopt => {
                control.adopt().await?;
                self.show_pool()?
            }
            Endpoint::Grow => {
                control.grow().await?;
                self.show_pool()?
            }
            Endpoint::WaitForEvent => {
                let Wait { after } = read_json(exchange).await?;
                self.wait_for_event(after).await?;
                self.show_pool()?
            }
            Endpoint::ShowCheck => Reply::json(&control.check_state()?)?,
            Endpoint::StartCheck => Reply::Accepted(json(&control.start_check().await?)?),
            Endpoint::ShowSpace => Reply::json(&json!({ "volumes": control.space().await? }))?,
            Endpoint::AskSpace => {
                let freed_bytes = control.freed_by(&read_json(exchange).await?).await?;
                Reply::json(&json!({ "freed_bytes": freed_bytes }))?
            }
            Endpoint::ShowViews => Reply::json(&control.views()?)?,
            Endpoint::ClearNeedsCheck => Reply::json(&control.clear_needs_check().await?)?,
            Endpoint::Repair => Reply::json(&control.repair(read_json(exchange).await?).await?)?,
            Endpoint::ShowMetadataSnapshot => Reply::json(&root(control.pool()?.status.held_root))?,
            Endpoint::ReserveMetadataSnapshot => {
                Reply::Created(json(&root(Some(control.reserve_metadata_snapshot().await?)))?, None)
            }
            Endpoint::ReleaseMetadataSnapshot => control.release_metadata_snapshot().await.map(|()| Reply::Empty)?,
            Endpoint::ShowMetadataExport => Reply::json(&control.metadata_export()?)?,
            Endpoint::SetMetadataExport => {
                let rule = read_json(exchange).await?;
                Reply::json(&control.set_metadata_export(Some(rule)).await?)?
            }
            Endpoint::EndMetadataExport => control.set_metadata_export(None).await.map(|_| Reply::Empty)?,
            Endpoint::ShowDiscoveryAuth => Reply::json(&control.discovery_auth()?)?,
            Endpoint::SetDiscoveryAuth => {
                let wanted = read_json(exchange).await?;
                Reply::json(&control.set_discovery_auth(Some(wanted)).await?)?
            }
            Endpoint::EndDiscoveryAuth => control.set_discovery_auth(None).await.map(|_| Reply::Empty)?,
            Endpoint::ListVolumes => self.list_volumes(exchange).await.map(|()| Reply::Sent)?,
            Endpoint::CreateVolume => Reply::volume(&control.create_volume(read_json(exchange).await?).await?)?,
            Endpoint::ShowVolume(name) => Reply::json(&control.volume(&name).await?)?,
            Endpoint::ChangeVolume(name) => {
                Reply::json(&control.change_volume(&name, read_json(exchange).await?).await?)?
            }
            Endpoint::DeleteVolume(name) => control.delete_volume(&name).await.map(|()| Reply::Empty)?,
            Endpoint::CreateSnapshot(origin) => {
                Reply::volume(&control.create_snapshot(&origin, read_json(exchange).await?).await?)?
            }
            Endpoint::CreateSnapshots => {
                let volumes = control.create_snapshots(read_json(exchange).await?).await?;
                Reply::Created(json(&json!({ "volumes": volumes }))?, None)
            }
            Endpoint::RollBack(name) => Reply::json(&control.roll_back(&name, read_json(exchange).await?).await?)?,
            Endpoint::ShowDelta(left) => self.send_delta(left, exchange).await.map(|()| Reply::Sent)?,
            Endpoint::ShowMappings(name) => self.send_mappings(name, exchange).await.map(|()| Reply::Sent)?,
            Endpoint::SendStream(name) => self.send_stream(name, exchange).await.map(|()| Reply::Sent)?,
            Endpoint::ReceiveStream(name) => Reply::json(&self.receive_stream(name, exchange).await?)?,
            Endpoint::ShowReceive(name) => Reply::json(&control.receive_state(&name)?)?,
            Endpoint::ForgetReceive(name) => control.forget_receive(&name).await.map(|()| Reply::Empty)?,
            Endpoint::SetExport(name) => {
                let rule = read_json(exchange).await?;
                Reply::json(&control.set_export(&name, Some(rule)).await?)?
            }
            Endpoint::EndExport(name) => control.set_export(&name, None).await.map(|_| Reply::Empty)?,
            Endpoint::ShowPolicies => Reply::json(&control.policies()?)?,
            Endpoint::SetPolicy(name) => Reply::json(&control.set_policy(&name, read_json(exchange).await?).await?)?,
            Endpoint::DeletePolicy(name) => control.delete_policy(&name).await.map(|()| Reply::Empty)?,
            Endpoint::PowerOff => self.power_off(exchange).await.map(|()| Reply::Sent)?,
        };
        Ok(reply.send(exchange).await?)
    }

    fn show_pool(&self) -> Result<Reply, ControlError> {
        let view = PoolView { info: self.control.pool()?, health: self.control.health() };
        Reply::json(&view)
    }

    /// Powers off whether or not the peer waited for the answer.
    async fn power_off<S: Stream>(&self, exchange: &mut Exchange<'_, S>) -> Result<(), Lost> {
        exchange.close_after();
        let sent = exchange.reply(202, &[("Content-Type", JSON)], b"{\"status\":\"powering off\"}\n").await;
        self.control.power_off();
        sent
    }

    /// Sends the list while it is made, so that its length costs no memory.
    async fn list_volumes<S: Stream>(&self, exchange: &mut Exchange<'_, S>) -> Result<(), Failure> {
        let mut pages = Pages::new(&*self.control);
        let mut page = pages.next().await?;
        let mut sink = exchange.stream(JSON).await?;
        sink.write(b"{\"volumes\":[").await?;
        let mut separator = "\n";
        while !page.is_empty() {
            for volume in &page {
                sink.write(separator.as_bytes()).await?;
                sink.write(&bare_json(volume)?).await?;
                separator = ",\n";
            }
            page = pages.next().await?;
        }
        sink.write(b"\n]}\n").await?;
        Ok(sink.finish().await?)
    }
}

/// The volumes by name, a page at a time.
pub(crate) struct Pages<'c, C> {
    control: &'c C,
    after: Option<VolumeName>,
}

impl<'c, C: Control> Pages<'c, C> {
    pub(crate) fn new(control: &'c C) -> Pages<'c, C> {
        Pages { control, after: None }
    }

    /// The next volumes; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Vec<Volume>, ControlError> {
        let page = self.control.volumes(self.after.as_ref(), VOLUMES_AT_ONCE).await?;
        if let Some(last) = page.last() {
            self.after = Some(last.name.clone());
        }
        Ok(page)
    }
}

/// The metadata snapshot's root, if there is one.
fn root(block: Option<u64>) -> Value {
    json!({ "root": block })
}

/// Reads a body of JSON.
async fn read_json<T: Body, S: Stream>(exchange: &mut Exchange<'_, S>) -> Result<T, Failure> {
    expect_type(exchange, JSON)?;
    // It may hold a secret.
    let body = Zeroizing::new(exchange.read_whole().await?);
    let value = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body is not what this path takes: {error}");
        ControlError::invalid(message, format!("send {}", T::EXAMPLE))
    })?;
    Ok(value)
}

/// Reads the text of a pool message: one line.
async fn read_message<S: Stream>(exchange: &mut Exchange<'_, S>) -> Result<String, Failure> {
    expect_type(exchange, "text/plain")?;
    let body = exchange.read_whole().await?;
    let text = core::str::from_utf8(&body).unwrap_or_default().trim();
    if text.is_empty() || text.contains(|c: char| c.is_control() && c != '\t') {
        let hint = "send the words after `dmsetup message POOL 0`, such as `create_thin 7`";
        return Err(ControlError::invalid("a message is one line of text", hint).into());
    }
    Ok(text.to_string())
}

fn expect_type<S: Stream>(exchange: &Exchange<'_, S>, media_type: &str) -> Result<(), ControlError> {
    if exchange.head().content_type.as_deref() == Some(media_type) {
        return Ok(());
    }
    let hint = format!("send the header `Content-Type: {media_type}`");
    Err(ControlError::new(Code::UnsupportedMediaType, format!("the body must be {media_type}"), hint))
}
