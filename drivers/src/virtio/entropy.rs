//! The entropy device (virtio 1.2, section 5.4).

use super::dma::Shared;
use super::queue::{Queue, Segment};
use super::{VirtioError, negotiate, queue_features, reset};
use virtio_drivers::transport::Transport;

const SEED_BYTES: usize = 32;
/// Looks at the queue until the host is thought to have no entropy.
const PATIENCE: u32 = 1 << 24;

/// Asks the device once for a seed, then lets go of it. The machine waits: for use at boot.
pub fn entropy(mut transport: impl Transport) -> Result<[u8; SEED_BYTES], VirtioError> {
    let features = negotiate(&mut transport, 0)?;
    let mut queue = Queue::new(&mut transport, 0, 1, 1, queue_features(features))?;
    let memory = Shared::new(SEED_BYTES);
    transport.finish_init();
    let segment = Segment { address: memory.address(), len_bytes: SEED_BYTES as u32, device_writes: true };
    // SAFETY: the memory lives until the device is reset below.
    let added = unsafe { queue.add(&[segment]) };
    queue.kick(&mut transport);
    let answered = added.is_ok() && (0..PATIENCE).any(|_| queue.has_used());
    let answer = queue.take();
    if !reset(&mut transport) {
        // The device may write for ever: the memory stays its own.
        core::mem::forget((memory, queue));
        return Err(VirtioError::Silent);
    }
    match answer? {
        // SAFETY: the device has let go of the memory, which holds so many initialised bytes.
        Some(used) if answered && used.len_bytes as usize >= SEED_BYTES => Ok(unsafe { memory.at(0).read() }),
        _ => Err(VirtioError::Silent),
    }
}
