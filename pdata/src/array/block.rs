//! One array block: a header, then values without gaps (reference 2.4).

use crate::block::{BLOCK_BYTES, Block, BlockKind};
use crate::btree::Value;
use crate::{Error, Result};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A block of an array.
pub static ARRAY: BlockKind = BlockKind { name: "array block", salt: 595846735, number_at: 16, check };

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    csum: U32,
    max_entries: U32,
    nr_entries: U32,
    value_size: U32,
    blocknr: U64,
}

/// Values that fit a block.
pub(super) const fn capacity(value_bytes: usize) -> usize {
    (BLOCK_BYTES - size_of::<Header>()) / value_bytes
}

fn check(block: &Block) -> core::result::Result<(), &'static str> {
    let (header, _) = Header::ref_from_prefix(block).map_err(|_| "it is too short")?;
    let (value_bytes, max_entries) = (header.value_size.get() as usize, header.max_entries.get() as usize);
    if value_bytes == 0 || max_entries == 0 || max_entries != capacity(value_bytes) {
        return Err("its capacity does not fit its value size");
    }
    if header.nr_entries.get() > header.max_entries.get() { Err("it has more values than it can hold") } else { Ok(()) }
}

pub(super) fn damaged(block: u64, what: &'static str) -> Error {
    Error::Damaged { block, kind: ARRAY.name, what }
}

/// A block without values.
pub(super) fn format<T: Value>(block: &mut Block) {
    block.fill(0);
    if let Ok((header, _)) = Header::mut_from_prefix(block) {
        header.max_entries = (capacity(size_of::<T>()) as u32).into();
        header.value_size = (size_of::<T>() as u32).into();
    }
}

/// The values in block `number`.
pub(crate) fn values<T: Value>(block: &Block, number: u64) -> Result<&[T]> {
    let (header, rest) = Header::ref_from_prefix(block).map_err(|_| damaged(number, "it is too short"))?;
    let values = <[T]>::ref_from_prefix_with_elems(rest, header.nr_entries.get() as usize).ok();
    let values = values.filter(|_| header.value_size.get() as usize == size_of::<T>());
    values.map(|(values, _)| values).ok_or(damaged(number, "its values are not of the size of this array's"))
}

/// The values in block `number`, to change.
pub(super) fn values_mut<T: Value>(block: &mut Block, number: u64) -> Result<&mut [T]> {
    let (header, rest) = Header::mut_from_prefix(block).map_err(|_| damaged(number, "it is too short"))?;
    let fits = header.value_size.get() as usize == size_of::<T>();
    let values = <[T]>::mut_from_prefix_with_elems(rest, header.nr_entries.get() as usize).ok().filter(|_| fits);
    values.map(|(values, _)| values).ok_or(damaged(number, "its values are not of the size of this array's"))
}

/// Sets the number of values; those that come in are whatever their bytes were, to be set by the caller.
pub(super) fn set_len(block: &mut Block, number: u64, len: usize) -> Result<()> {
    let (header, _) = Header::mut_from_prefix(block).map_err(|_| damaged(number, "it is too short"))?;
    if len > header.max_entries.get() as usize {
        return Err(damaged(number, "it cannot hold so many values"));
    }
    header.nr_entries = (len as u32).into();
    Ok(())
}
