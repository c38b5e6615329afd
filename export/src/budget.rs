//! How much payload the export may hold in memory, and how connections share it.
//!
//! A connection may hold as much as is left free (a dynamic threshold): one alone may take half of the budget,
//! and however many stall with all that they can get, something is left for the next. Data that an initiator
//! sends unasked is the exception: it may take all that is free, since nothing that already holds memory ever
//! waits for more before it writes.

use alloc::rc::Rc;
use core::cell::Cell;
use platform::buf::{ALIGN_BYTES, Buf, BufPool, NoBuffers};
use platform::sync::Notify;

/// The bytes of all connections.
pub struct Budget {
    bufs: BufPool,
    free_bytes: Cell<usize>,
    freed: Notify,
}

/// One connection's part in the budget.
pub struct Account {
    budget: Rc<Budget>,
    held_bytes: Cell<usize>,
}

/// A buffer and the claim to its memory.
pub struct Chunk {
    /// The memory.
    pub buf: Buf,
    /// Its claim, given back on drop.
    pub claim: Claim,
}

/// Bytes of the budget that are spoken for.
pub struct Claim {
    account: Rc<Account>,
    bytes: usize,
}

impl Budget {
    /// `bytes` of `bufs` are for the export.
    pub fn new(bufs: BufPool, bytes: usize) -> Rc<Budget> {
        Rc::new(Budget { bufs, free_bytes: Cell::new(bytes), freed: Notify::new() })
    }
}

impl Account {
    /// A connection that holds nothing.
    pub fn new(budget: Rc<Budget>) -> Rc<Account> {
        Rc::new(Account { budget, held_bytes: Cell::new(0) })
    }

    /// Memory for data that is asked for: waits for its turn and its share.
    pub async fn chunk(self: &Rc<Account>, len_bytes: usize) -> Result<Chunk, NoBuffers> {
        let claim =
            self.wait(len_bytes, |held, free, bytes| held + bytes <= free || (held == 0 && bytes <= free)).await;
        Ok(Chunk { buf: self.budget.bufs.wait(len_bytes).await?, claim })
    }

    /// As [`Account::chunk`], without waiting.
    pub fn try_chunk(self: &Rc<Account>, len_bytes: usize) -> Option<Chunk> {
        let fits = self.held_bytes.get() + rounded(len_bytes) <= self.budget.free_bytes.get();
        if fits { self.spare(len_bytes).ok() } else { None }
    }

    /// Any memory that is free now: for work that holds some already, and so must not wait for more.
    pub fn spare(self: &Rc<Account>, len_bytes: usize) -> Result<Chunk, NoBuffers> {
        let bytes = rounded(len_bytes);
        if bytes > self.budget.free_bytes.get() {
            return Err(NoBuffers { len_bytes });
        }
        Ok(Chunk { buf: self.budget.bufs.alloc(len_bytes)?, claim: self.take(bytes) })
    }

    /// Memory for data that arrives unasked: waits only if all of the budget is used.
    pub async fn chunk_unasked(self: &Rc<Account>, len_bytes: usize) -> Result<Chunk, NoBuffers> {
        let claim = self.wait(len_bytes, |_, free, bytes| bytes <= free).await;
        Ok(Chunk { buf: self.budget.bufs.wait(len_bytes).await?, claim })
    }

    async fn wait(self: &Rc<Account>, len_bytes: usize, may: impl Fn(usize, usize, usize) -> bool) -> Claim {
        let bytes = rounded(len_bytes);
        loop {
            let freed = self.budget.freed.notified();
            if may(self.held_bytes.get(), self.budget.free_bytes.get(), bytes) {
                return self.take(bytes);
            }
            freed.await;
        }
    }

    fn take(self: &Rc<Account>, bytes: usize) -> Claim {
        self.budget.free_bytes.set(self.budget.free_bytes.get() - bytes);
        self.held_bytes.set(self.held_bytes.get() + bytes);
        Claim { account: self.clone(), bytes }
    }
}

/// What a buffer of this length takes from its pool.
fn rounded(len_bytes: usize) -> usize {
    len_bytes.max(ALIGN_BYTES).next_power_of_two()
}

impl Drop for Claim {
    fn drop(&mut self) {
        let account = &self.account;
        account.held_bytes.set(account.held_bytes.get() - self.bytes);
        account.budget.free_bytes.set(account.budget.free_bytes.get() + self.bytes);
        account.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn greedy_connections_leave_something_for_the_next() {
        let budget = Budget::new(BufPool::new(2 << 20), 1 << 20);
        let mut held: Vec<Chunk> = Vec::new();
        let accounts: Vec<_> = (0..7).map(|_| Account::new(budget.clone())).collect();
        for account in &accounts {
            let mut got = 0;
            while let Some(chunk) = account.try_chunk(4096) {
                held.push(chunk);
                got += 4096;
            }
            assert!(got >= 4096, "each gets a share");
        }
        let mut used = accounts.iter().map(|a| a.held_bytes.get());
        assert_eq!(used.next(), Some(512 << 10), "one alone may take half");
        held.clear();
        assert_eq!(budget.free_bytes.get(), 1 << 20);
    }
}
