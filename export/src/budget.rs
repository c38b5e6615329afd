//! How much payload the export may hold in memory, and how connections share it.
//!
//! A connection has two accounts, each of which may hold as much as is left free (a dynamic threshold): one alone may
//! take half of the budget, and however many stall with all that they can get, something is left for the next.
//!
//! From one it takes memory for data that is asked for. That is done for commands whose turn has come, and these wait for
//! memory only while they hold none, so what is held there comes back. What comes unasked may be of commands that wait for
//! their turn, behind one that needs memory itself: it is counted apart, and leaves some for that one. It may be twice as
//! much, for who waits with that receives nothing else.

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

/// A part of the budget that a connection has.
pub struct Account {
    budget: Rc<Budget>,
    held_bytes: Cell<usize>,
    /// It leaves so much free at least.
    leaves_bytes: usize,
    /// Who waits may get so many times what is left free.
    patient_share: usize,
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
    /// For data that is asked for.
    pub fn new(budget: Rc<Budget>) -> Rc<Account> {
        Account::empty(budget, 0, 1)
    }

    /// For data that comes unasked: it leaves so much for what is asked for.
    pub fn unasked(budget: Rc<Budget>, leaves_bytes: usize) -> Rc<Account> {
        Account::empty(budget, leaves_bytes, 2)
    }

    fn empty(budget: Rc<Budget>, leaves_bytes: usize, patient_share: usize) -> Rc<Account> {
        Rc::new(Account { budget, held_bytes: Cell::new(0), leaves_bytes, patient_share })
    }

    /// Memory, as soon as it may be had.
    pub async fn chunk(self: &Rc<Account>, len_bytes: usize) -> Result<Chunk, NoBuffers> {
        let claim = self.wait(rounded(len_bytes)).await;
        Ok(Chunk { buf: self.budget.bufs.wait(len_bytes).await?, claim })
    }

    /// Memory, if it may be had now and is no more than what is left free.
    pub fn try_chunk(self: &Rc<Account>, len_bytes: usize) -> Option<Chunk> {
        if self.may_take(rounded(len_bytes), 1) { self.spare(len_bytes).ok() } else { None }
    }

    /// Any memory that is free now: for work that holds some already, and so must not wait for more.
    pub fn spare(self: &Rc<Account>, len_bytes: usize) -> Result<Chunk, NoBuffers> {
        let bytes = rounded(len_bytes);
        if bytes > self.budget.free_bytes.get() {
            return Err(NoBuffers { len_bytes });
        }
        Ok(Chunk { buf: self.budget.bufs.alloc(len_bytes)?, claim: self.take(bytes) })
    }

    async fn wait(self: &Rc<Account>, bytes: usize) -> Claim {
        loop {
            let freed = self.budget.freed.notified();
            if self.may_take(bytes, self.patient_share) {
                return self.take(bytes);
            }
            freed.await;
        }
    }

    /// An account that holds nothing may take what is free, any other up to its share.
    fn may_take(&self, bytes: usize, share: usize) -> bool {
        let (held, free) = (self.held_bytes.get(), self.budget.free_bytes.get());
        bytes + self.leaves_bytes <= free && (held == 0 || held + bytes <= share * free)
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

    #[test]
    fn what_comes_unasked_is_nothing_to_what_is_asked_for() {
        let budget = Budget::new(BufPool::new(2 << 20), 1 << 20);
        let asked = Account::new(budget.clone());
        let unasked: Vec<_> = (0..3).map(|_| Account::unasked(budget.clone(), 64 << 10)).collect();
        let mut held: Vec<Claim> = Vec::new();
        for account in &unasked {
            while account.may_take(4096, account.patient_share) {
                held.push(account.take(4096));
            }
        }
        let used: Vec<_> = unasked.iter().map(|account| account.held_bytes.get() >> 10).collect();
        assert_eq!(used, [684, 228, 48], "two thirds of what there is, but for what is left to others");
        assert!(unasked.iter().all(|account| account.try_chunk(4096).is_none()));
        assert!(asked.try_chunk(64 << 10).is_some());
    }
}
