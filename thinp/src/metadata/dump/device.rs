//! The mappings of one device of a view.

use super::text::Text;
use super::{DumpError, Format};
use crate::control::DeviceId;
use crate::metadata::VirtualBlock;
use crate::metadata::trees::Packed;
use crate::metadata::view::View;
use pdata::btree::{Pairs, Shared, Stretch};
use platform::task::yield_now;

impl View {
    /// Dumps one device's mappings at and after `from` as [`dump`](super::dump) does. The sink is not called before the device
    /// is found.
    pub async fn dump_device<E>(
        &self,
        device: DeviceId,
        from: VirtualBlock,
        format: Format,
        sink: impl AsyncFnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), DumpError<E>> {
        let (root, details) = (self.committed.root_of(device).await?, self.committed.details_of(device).await?);
        let mut pairs = Pairs::<Packed>::open(&self.committed.blocks, Some(root), None, from.0, Shared::Skip).await?;
        let mut text = Text::new(format, sink);
        text.begin(&self.committed.superblock).await?;
        text.begin_device(device.get().into(), &details).await?;
        while let Some(stretch) = pairs.next().await? {
            if let Stretch::Own { left, .. } = stretch {
                left.into_iter().for_each(|(key, value)| text.mapping(key.get(), value.block().0, value.time()));
            }
            text.flush_if_full().await?;
            // The disk may have answered at once, and others wait for the processor.
            yield_now().await;
        }
        text.end_device().await?;
        text.end().await
    }
}
