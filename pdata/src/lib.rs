//! The persistent-data library: copy-on-write btrees and reference counts in 4 KiB blocks, on the disk format of Linux's
//! `dm-persistent-data`. It knows no thin pool: any target can keep its metadata with it.
//!
//! From below:
//! - [`checksum`], [`block`]: a block and the kinds of block.
//! - [`block_manager`]: blocks behind a bounded write-back cache, checked when read, sealed when written.
//! - [`pins`]: what readers of former commits keep from being used again.
//! - [`transaction_manager`]: the open transaction. Nothing that is committed is ever overwritten: a block is *shadowed*
//!   before it is changed.
//! - [`space_map`]: how often each block is pointed to; of another disk, and of the metadata itself.
//! - [`btree`]: trees of 64-bit keys, whose values may themselves be counted, or be roots of other trees; one entry at a
//!   time, in bulk, and by a cursor that reads ahead.
//! - [`array`], [`bitset`]: values by index, in a btree of blocks.
//! - [`check`]: recounts everything on a disk.
//!
//! Two targets show that it is enough: the thin pool, and in `tests/library/cache_target` the metadata of Linux's cache
//! target, which the Linux tools read and make.
//!
//! A target puts the roots of its trees and space maps into a superblock. To commit it closes its maps, writes out, flushes,
//! writes the superblock alone, flushes again. A crash at any point finds the superblock of before or after, and everything
//! that it leads to.
//!
//! What only looks is a plain call that stops at a block which is not cached ([`Stop`]); what may have to read a block is
//! `async`. Of one transaction, one change runs at a time; that is for the target to see to. A change that failed half-way
//! leaves the open transaction in disorder, and what is committed as it was: the target drops the [`TransactionManager`]
//! and opens another.
//!
//! Sections named "reference" are those of the project's description of dm-thin's format and behaviour.
//!
//! ```
//! use pdata::{TransactionManager, block_manager::BlockManager, btree::{BTree, Plain}};
//! use platform::{block::Disk, buf::BufPool, mem::MemDisk, task::block_on_ready};
//! use zerocopy::little_endian::U64;
//!
//! const TREE: BTree<Plain<U64>> = BTree::plain();
//!
//! let disk = Disk::new(MemDisk::new(8 * 1024));
//! let blocks = || BlockManager::new(disk.clone(), BufPool::new(1 << 20), 64);
//! block_on_ready(async {
//!     let tm = TransactionManager::create(blocks(), 1024).await?;
//!     let mut root = TREE.create(&tm).await?;
//!     for key in 0..1000 {
//!         (root, _) = TREE.insert(&tm, root, key, U64::new(key * key)).await?;
//!     }
//!     let map = tm.close().await?;
//!     tm.blocks().write_out().await?;
//!     // Here `root` and `map` would go into a superblock.
//!     let tm = TransactionManager::open(blocks(), &map).await?;
//!     let value = tm.blocks().look(|blocks| TREE.try_lookup(blocks, root, 31)).await?;
//!     assert_eq!(value, Some(U64::new(961)));
//!     Ok::<(), pdata::Error>(())
//! })
//! .unwrap();
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod array;
pub mod bitset;
pub mod block;
pub mod block_manager;
pub mod btree;
pub mod check;
pub mod checksum;
mod error;
pub mod pins;
pub mod space_map;
pub mod transaction_manager;

pub use block_manager::Stop;
pub use error::{Error, Result};
pub use transaction_manager::TransactionManager;
