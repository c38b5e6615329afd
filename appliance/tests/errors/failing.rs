//! An appliance on which everything fails, behind the real HTTP interface.

use crate::pipe::duplex;
use embedded_io_async::{Read, Write};
use mgmt::*;
use platform::Runtime;
use platform::net::Stream;
use std::rc::Rc;

const TOKEN: &str = "gsm-AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHH";

/// Status and body of a request to an appliance that fails so.
pub async fn answer_over_http(runtime: &Runtime, error: ControlError) -> (u16, serde_json::Value) {
    let api = Api::new(runtime, Rc::new(Failing(error)), Limits::default());
    let (here, there) = duplex(80);
    let served = runtime.spawner.spawn(async move { api.serve(there).await });
    let (mut reader, mut writer) = here.split();
    let request =
        format!("GET /v1/pool HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n");
    writer.write_all(request.as_bytes()).await.unwrap();
    drop(writer);
    let (mut answer, mut piece) = (Vec::new(), [0; 512]);
    loop {
        match reader.read(&mut piece).await.unwrap() {
            0 => break,
            len => answer.extend(&piece[..len]),
        }
    }
    served.await.expect("the interface serves to the end");
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

struct Failing(ControlError);

impl Failing {
    fn fail<T>(&self) -> Result<T, ControlError> {
        Err(self.0.clone())
    }
}

impl Control for Failing {
    fn health(&self) -> Health {
        Health { state: HealthState::Unavailable, reason: Some(self.0.message.clone()) }
    }

    fn tokens(&self) -> Vec<TokenHash> {
        vec![Token::parse(TOKEN).unwrap().hash()]
    }

    fn sessions(&self) -> usize {
        0
    }

    fn pool(&self) -> Result<PoolInfo, ControlError> {
        self.fail()
    }

    async fn message(&self, _: &str) -> Result<String, ControlError> {
        self.fail()
    }

    async fn adopt(&self) -> Result<(), ControlError> {
        self.fail()
    }

    async fn grow(&self) -> Result<(), ControlError> {
        self.fail()
    }

    async fn event_after(&self, _: u64) -> Result<(), ControlError> {
        self.fail()
    }

    async fn repair(&self, _: Repair) -> Result<RepairReport, ControlError> {
        self.fail()
    }

    async fn start_check(&self) -> Result<CheckState, ControlError> {
        self.fail()
    }

    fn check_state(&self) -> Result<CheckState, ControlError> {
        self.fail()
    }

    async fn space(&self) -> Result<Vec<VolumeSpace>, ControlError> {
        self.fail()
    }

    async fn freed_by(&self, _: &Deletion) -> Result<u64, ControlError> {
        self.fail()
    }

    fn views(&self) -> Result<Views, ControlError> {
        self.fail()
    }

    async fn clear_needs_check(&self) -> Result<CheckReport, ControlError> {
        self.fail()
    }

    async fn reserve_metadata_snapshot(&self) -> Result<u64, ControlError> {
        self.fail()
    }

    async fn release_metadata_snapshot(&self) -> Result<(), ControlError> {
        self.fail()
    }

    fn metadata_export(&self) -> Result<MetadataExport, ControlError> {
        self.fail()
    }

    async fn set_metadata_export(&self, _: Option<Export>) -> Result<MetadataExport, ControlError> {
        self.fail()
    }

    fn discovery_auth(&self) -> Result<DiscoveryAuth, ControlError> {
        self.fail()
    }

    async fn set_discovery_auth(&self, _: Option<Authentication>) -> Result<DiscoveryAuth, ControlError> {
        self.fail()
    }

    async fn volumes(&self, _: Option<&VolumeName>, _: usize) -> Result<Vec<Volume>, ControlError> {
        self.fail()
    }

    async fn delta<E>(&self, _: &DeltaRequest, _: impl AsyncFnMut(&[u8]) -> Result<(), E>) -> Result<(), RunsError<E>> {
        Ok(self.fail()?)
    }

    async fn mappings<E>(
        &self,
        _: &MappingsRequest,
        _: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), RunsError<E>> {
        Ok(self.fail()?)
    }

    async fn volume(&self, _: &VolumeName) -> Result<Volume, ControlError> {
        self.fail()
    }

    async fn create_volume(&self, _: NewVolume) -> Result<Volume, ControlError> {
        self.fail()
    }

    async fn change_volume(&self, _: &VolumeName, _: VolumeChange) -> Result<Volume, ControlError> {
        self.fail()
    }

    async fn delete_volume(&self, _: &VolumeName) -> Result<(), ControlError> {
        self.fail()
    }

    async fn set_export(&self, _: &VolumeName, _: Option<Export>) -> Result<Volume, ControlError> {
        self.fail()
    }

    fn power_off(&self) {}
}

impl Snapshots for Failing {
    async fn create_snapshot(&self, _: &VolumeName, _: NewSnapshot) -> Result<Volume, ControlError> {
        self.fail()
    }

    async fn create_snapshots(&self, _: NewSnapshots) -> Result<Vec<Volume>, ControlError> {
        self.fail()
    }

    async fn roll_back(&self, _: &VolumeName, _: RollBack) -> Result<Volume, ControlError> {
        self.fail()
    }
}

impl Streams for Failing {
    async fn send<E>(&self, _: &SendRequest, _: impl AsyncFnMut(&[u8]) -> Result<(), E>) -> Result<(), RunsError<E>> {
        Ok(self.fail()?)
    }

    async fn receive<E>(
        &self,
        _: &ReceiveRequest,
        _: impl AsyncFnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Volume, ReceiveError<E>> {
        Ok(self.fail()?)
    }

    fn receive_state(&self, _: &VolumeName) -> Result<ReceiveState, ControlError> {
        self.fail()
    }

    async fn forget_receive(&self, _: &VolumeName) -> Result<(), ControlError> {
        self.fail()
    }
}

impl Policies for Failing {
    fn policies(&self) -> Result<PolicyList, ControlError> {
        self.fail()
    }

    async fn set_policy(&self, _: &VolumeName, _: NewPolicy) -> Result<Policy, ControlError> {
        self.fail()
    }

    async fn delete_policy(&self, _: &VolumeName) -> Result<(), ControlError> {
        self.fail()
    }
}
