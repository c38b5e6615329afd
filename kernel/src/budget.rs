//! How the machine's memory is shared out (design decision 5). What is left is for everything small.

use netstack::ListenOptions;

/// Less memory than this makes for short connection buffers.
const SMALL_BYTES: u64 = 200 << 20;
const IO_BUFFERS_MAX_BYTES: u64 = 2 << 30;
/// Connections of initiators: what the portal takes (its sessions, discoveries and logins), and some that are closing.
const INITIATORS_MAX: u64 = 192;
const METADATA_BLOCK_BYTES: u64 = 4096;

/// The shares.
pub struct Budget {
    /// For the payload of requests.
    pub io_buffers_bytes: usize,
    /// Metadata blocks kept in memory.
    pub cache_blocks: usize,
    /// Initiators' connections.
    pub iscsi: ListenOptions,
    /// Managers' connections.
    pub http: ListenOptions,
}

impl Budget {
    /// A quarter for requests, a quarter for the metadata cache, at most a sixth for connections.
    pub fn of(heap_bytes: u64) -> Budget {
        let socket_bytes: u64 = if heap_bytes < SMALL_BYTES { 64 << 10 } else { 256 << 10 };
        let connections = (heap_bytes / 6 / (2 * socket_bytes)).min(INITIATORS_MAX);
        Budget {
            io_buffers_bytes: (heap_bytes / 4).min(IO_BUFFERS_MAX_BYTES) as usize,
            cache_blocks: (heap_bytes / 4 / METADATA_BLOCK_BYTES) as usize,
            iscsi: listen_options(connections as usize, socket_bytes as usize),
            http: listen_options(16, 32 << 10),
        }
    }
}

fn listen_options(connections_max: usize, socket_bytes: usize) -> ListenOptions {
    ListenOptions { connections_max, receive_bytes: socket_bytes, send_bytes: socket_bytes, ..ListenOptions::default() }
}
