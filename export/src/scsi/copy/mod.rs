//! EXTENDED COPY (LID1): a unit copies from unit to unit (SPC-4 section 6.4; reference section 22).
//!
//! Whole blocks of the pool are shared and no data moves; what is not aligned, or lies elsewhere, is read and written in
//! chunks. Either unit is used on the initiator's behalf: what it may not do itself, by its rights and the reservations,
//! is not done for it; and what aborts its commands at either unit ends the copy.

pub mod limits;
mod list;
pub mod results;

use self::list::{Amount, CopyList, Cscd, Place, Segment, THIS_UNIT};
use super::block::CHUNK_BYTES;
use super::cdb::Access;
use super::exec::{parameter_list, writable};
use super::lu::{Lu, Nexus};
use super::sense::Sense;
use super::tasks::{self, Attribute};
use super::{CHECK_CONDITION, Failure, Status, Transfer};
use crate::unit::{LogicalUnit, UnitError};
use alloc::rc::Rc;
use core::cell::Cell;
use core::future::{pending, ready};
use core::ops::Range;
use core::pin::pin;
use futures_util::future::{Either, LocalBoxFuture, select};
use platform::block::Bufs;
use platform::buf::Buf;

/// The units that an initiator may use besides the one it is logged in to.
pub trait Neighbours<U> {
    /// The unit with this NAA designator, if the initiator may use it.
    fn find<'a>(&'a self, naa: &'a [u8; 16]) -> LocalBoxFuture<'a, Option<Rc<Lu<U>>>>;
}

/// Why a segment was not copied.
enum Trouble {
    /// With this sense data, to which the segment's number is added.
    Segment(Sense),
    /// The copy source failed.
    Source(Failure),
    /// The copy destination failed.
    Target(Failure),
}

type Outcome<T> = Result<T, Trouble>;

/// Runs an EXTENDED COPY that came in over `nexus`.
pub async fn extended_copy<U: LogicalUnit, T: Transfer>(
    lu: &Rc<Lu<U>>,
    nexus: &Rc<Nexus>,
    neighbours: &dyn Neighbours<U>,
    transfer: &mut T,
) -> Result<(), Failure> {
    let parameters = parameter_list(transfer).await?;
    if parameters.is_empty() {
        return Ok(());
    }
    let list = CopyList::parse(&parameters)?;
    // A copy may take long.
    drop(parameters);
    let results = &nexus.copies;
    if list.id.is_some_and(|id| !results.begin(id)) {
        return Err(Sense::OPERATION_IN_PROGRESS.into());
    }
    let copier =
        Copier { lu, nexus, neighbours, transfer: &*transfer, cscds: &list.cscds, has_written: Cell::new(false) };
    let mut result = Ok(());
    for (number, segment) in (0u64..).zip(&list.segments) {
        match copier.copy(segment).await {
            Ok(bytes) => {
                list.id.iter().for_each(|id| results.segment_done(*id, bytes));
            }
            Err(trouble) => {
                result = Err(trouble.told(number, copier.has_written.get()));
                break;
            }
        }
    }
    list.id.iter().for_each(|id| results.end(*id, &result));
    result
}

impl Trouble {
    /// The answer to the command, which has written something or not.
    fn told(self, segment: u64, has_written: bool) -> Failure {
        let (failure, is_target) = match self {
            Trouble::Segment(sense) => return sense.with_information(segment).into(),
            Trouble::Source(failure) => (failure, false),
            Trouble::Target(failure) => (failure, true),
        };
        let (status, sense) = match failure {
            // Nobody waits for it.
            Failure::Aborted => return failure,
            // Nothing is wrong with the copy, and nothing has changed that it reads: it is to be sent again.
            Failure::Status(Status::Busy) if !has_written => return failure,
            Failure::Status(status) => (status as u8, None),
            Failure::Check(sense) => (CHECK_CONDITION, Some(sense)),
        };
        // No unit failed where the list asks for blocks that it does not have.
        let outside = sense == Some(Sense::LBA_OUT_OF_RANGE);
        let aborted = if outside { Sense::COPY_ABORTED } else { Sense::COPY_DEVICE_FAILURE };
        aborted.with_information(segment).with_cause(is_target, status, sense).into()
    }
}

struct Copier<'a, U, T> {
    lu: &'a Rc<Lu<U>>,
    nexus: &'a Rc<Nexus>,
    neighbours: &'a dyn Neighbours<U>,
    transfer: &'a T,
    cscds: &'a [Cscd],
    /// From then on the copy is not what it was if it is sent again: it may read what it has written.
    has_written: Cell<bool>,
}

/// A unit that a segment reads or writes.
struct Party<U> {
    lu: Rc<Lu<U>>,
    /// The copy's place among the tasks of a unit that it did not come in at.
    visit: Option<tasks::Place>,
}

/// Bytes of a unit.
struct End<U> {
    lu: Rc<Lu<U>>,
    visit: Option<tasks::Place>,
    bytes: Range<u64>,
}

impl<U: LogicalUnit, T: Transfer> Copier<'_, U, T> {
    /// Copies a segment; returns how many bytes.
    async fn copy(&self, segment: &Segment) -> Outcome<u64> {
        let source = self.unit(segment.source.cscd).await?;
        let target = self.unit(segment.target.cscd).await?;
        let block_bytes = |party: &Party<U>| u64::from(party.lu.unit.attributes().block_bytes);
        let len_bytes = match segment.amount {
            Amount::SourceBlocks(blocks) => u64::from(blocks) * block_bytes(&source),
            Amount::TargetBlocks(blocks) => u64::from(blocks) * block_bytes(&target),
            Amount::Bytes(bytes) => u64::from(bytes),
        };
        let counts_bytes = matches!(segment.amount, Amount::Bytes(_));
        for party in [&source, &target] {
            if !counts_bytes && !len_bytes.is_multiple_of(block_bytes(party).max(1)) {
                return Err(Trouble::Segment(Sense::INEXACT_SEGMENT));
            }
        }
        self.permitted(&source.lu, Access::Read).map_err(Trouble::Source)?;
        self.permitted(&target.lu, Access::Write).map_err(Trouble::Target)?;
        writable(&target.lu).map_err(|sense| Trouble::Target(sense.into()))?;
        let source = source.range(&segment.source, len_bytes).map_err(|sense| Trouble::Source(sense.into()))?;
        let target = target.range(&segment.target, len_bytes).map_err(|sense| Trouble::Target(sense.into()))?;
        self.copy_range(&source, &target).await?;
        Ok(len_bytes)
    }

    /// The unit of a descriptor. Who forbids its use from now on, or preempts it, finds the copy there.
    async fn unit(&self, index: u16) -> Outcome<Party<U>> {
        let own = || Party { lu: self.lu.clone(), visit: None };
        if index == THIS_UNIT {
            return Ok(own());
        }
        let unreachable = Trouble::Segment(Sense::COPY_TARGET_NOT_REACHABLE);
        let Some(cscd) = self.cscds.get(usize::from(index)) else { return Err(unreachable) };
        if !cscd.is_disk {
            return Err(Trouble::Segment(Sense::COPY_TARGET_TYPE));
        }
        let Some(naa) = cscd.naa else { return Err(unreachable) };
        let party = match self.lu.unit.identity().naa == naa {
            true => own(),
            false => self.visit(self.neighbours.find(&naa).await.ok_or(unreachable)?),
        };
        let fits = cscd.block_bytes == 0 || cscd.block_bytes == party.lu.unit.attributes().block_bytes;
        if fits { Ok(party) } else { Err(Trouble::Segment(Sense::INVALID_FIELD_IN_PARAMETERS)) }
    }

    fn visit(&self, lu: Rc<Lu<U>>) -> Party<U> {
        let visit = lu.tasks.enter(self.nexus, Attribute::Aside, Rc::default());
        Party { lu, visit: Some(visit) }
    }

    /// The reservations of a unit let the initiator do this.
    fn permitted(&self, lu: &Lu<U>, access: Access) -> Result<(), Failure> {
        let closed = lu.is_closed_to(self.nexus, access);
        if closed { Err(Failure::Status(Status::ReservationConflict)) } else { Ok(()) }
    }

    /// Does what may take long, unless the copy is aborted meanwhile, or what it does to one of the units.
    async fn unless_ended<O>(
        &self,
        source: &End<U>,
        target: &End<U>,
        work: impl Future<Output = Result<O, Failure>>,
    ) -> Outcome<O> {
        let (at_source, at_target) = (pin!(source.ended()), pin!(target.ended()));
        match select(select(at_source, at_target), pin!(work)).await {
            Either::Left((Either::Left((failure, _)), _)) => Err(Trouble::Source(failure)),
            Either::Left((Either::Right((failure, _)), _)) => Err(Trouble::Target(failure)),
            Either::Right((done, _)) => done.map_err(Trouble::Source),
        }
    }

    /// Copies as if everything was read before anything is written.
    async fn copy_range(&self, source: &End<U>, target: &End<U>) -> Outcome<()> {
        let (from, to) = (&source.bytes, &target.bytes);
        if Rc::ptr_eq(&source.lu, &target.lu) {
            // No unit maps a block twice. What overlaps is moved from its end if it goes up.
            let stays = from.start == to.start;
            return if stays {
                Ok(())
            } else {
                self.move_data(source, target, to.clone(), to.start > from.start).await
            };
        }
        let whole = whole_blocks(source, target);
        if whole.is_empty() || !self.share(source, target, &whole).await? {
            return self.move_data(source, target, to.clone(), false).await;
        }
        self.move_data(source, target, to.start..whole.start, false).await?;
        self.move_data(source, target, whole.end..to.end, false).await
    }

    /// Shares whole blocks of the target with the source, another unit. False if they cannot be shared.
    async fn share(&self, source: &End<U>, target: &End<U>, bytes: &Range<u64>) -> Outcome<bool> {
        self.unless_ended(source, target, self.transfer.unless_aborted(ready(()))).await?;
        let theirs = source.at(target, bytes);
        let (from, lu) = (&source.lu, &target.lu);
        // In one order, so that two who copy both ways do not wait for each other.
        let _locks = match from.unit.identity().naa < lu.unit.identity().naa {
            true => [from.locks.shared(theirs.clone()).await, lu.locks.shared(bytes.clone()).await],
            false => [lu.locks.shared(bytes.clone()).await, from.locks.shared(theirs.clone()).await],
        };
        let len_bytes = bytes.end - bytes.start;
        let shared = lu.unit.share(bytes.start, &from.unit, theirs.start, len_bytes).await;
        let shared = shared.map_err(|error| target.failed_write(error))?;
        self.has_written.set(self.has_written.get() || shared);
        Ok(shared)
    }

    /// Reads and writes bytes of the target in chunks, from the end if what is read would be overwritten before.
    async fn move_data(&self, source: &End<U>, target: &End<U>, bytes: Range<u64>, backwards: bool) -> Outcome<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let most = u64::from(CHUNK_BYTES) - 2 * EDGE_BYTES_MAX;
            let piece = match backwards {
                true => left.end.saturating_sub(most).max(left.start)..left.end,
                false => left.start..left.start.saturating_add(most).min(left.end),
            };
            self.move_piece(source, target, &piece).await?;
            match backwards {
                true => left.end = piece.start,
                false => left.start = piece.end,
            }
        }
        Ok(())
    }

    async fn move_piece(&self, source: &End<U>, target: &End<U>, piece: &Range<u64>) -> Outcome<()> {
        let theirs = source.at(target, piece);
        let (whole, mine) = (source.rounded(&theirs), target.rounded(piece));
        let memory = self.transfer.buffer((whole.end - whole.start) as usize);
        let chunk = self.unless_ended(source, target, memory).await?;
        let read = {
            let _lock = source.lu.locks.shared(whole.clone()).await;
            source.lu.unit.read(whole.start, chunk.buf).await
        };
        let mut data = read.1;
        read.0.map_err(|error| source.failed_read(error))?;
        data.truncate((theirs.end - whole.start) as usize);
        let data = data.split_off((theirs.start - whole.start) as usize);
        if mine == *piece {
            let _lock = target.lu.locks.shared(mine.clone()).await;
            return self.write(target, mine.start, data).await;
        }
        // Parts of blocks: the rest of them stays as it is.
        let around = self.transfer.spare((mine.end - mine.start) as usize).map_err(Trouble::Target)?;
        let _lock = target.lu.locks.exclusive(mine.clone()).await;
        let (result, mut buf) = target.lu.unit.read(mine.start, around.buf).await;
        result.map_err(|error| target.failed_write(error))?;
        let at = (piece.start - mine.start) as usize;
        if let Some(place) = buf.get_mut(at..at.saturating_add(data.len())) {
            place.copy_from_slice(&data);
        }
        self.write(target, mine.start, buf).await
    }

    async fn write(&self, target: &End<U>, offset_bytes: u64, buf: Buf) -> Outcome<()> {
        // Some of it may be written even if it fails.
        self.has_written.set(true);
        let written = target.lu.unit.write(offset_bytes, Bufs::from_iter([buf]), false).await;
        written.map_err(|error| target.failed_write(error))
    }
}

/// More than what rounding to whole blocks adds to a piece at either end.
const EDGE_BYTES_MAX: u64 = 4096;

impl<U: LogicalUnit> Party<U> {
    /// The bytes that a segment reads or writes.
    fn range(self, place: &Place, len_bytes: u64) -> Result<End<U>, Sense> {
        let attributes = self.lu.unit.attributes();
        let start = place.lba.checked_mul(u64::from(attributes.block_bytes));
        let start = start.and_then(|start| start.checked_add(u64::from(place.offset_bytes)));
        let end = start.and_then(|start| start.checked_add(len_bytes)).filter(|end| *end <= attributes.size_bytes());
        let (start, end) = start.zip(end).ok_or(Sense::LBA_OUT_OF_RANGE)?;
        Ok(End { lu: self.lu, visit: self.visit, bytes: start..end })
    }
}

impl<U: LogicalUnit> End<U> {
    /// Resolves when what the copy does to the unit is aborted there.
    async fn ended(&self) -> Failure {
        match &self.visit {
            Some(visit) => visit.aborted().await,
            None => pending().await,
        }
        Failure::Status(Status::TaskAborted)
    }

    /// Where the bytes of the target come from, if this is the source.
    fn at(&self, target: &End<U>, bytes: &Range<u64>) -> Range<u64> {
        let start = self.bytes.start + (bytes.start - target.bytes.start);
        start..start + (bytes.end - bytes.start)
    }

    /// The whole logical blocks around some bytes.
    fn rounded(&self, bytes: &Range<u64>) -> Range<u64> {
        let block_bytes = u64::from(self.lu.unit.attributes().block_bytes).max(1);
        bytes.start - bytes.start % block_bytes..bytes.end.next_multiple_of(block_bytes)
    }

    fn failed_read(&self, error: UnitError) -> Trouble {
        Trouble::Source(Failure::of_unit(error, false, self.lu.unit.attributes().block_bytes))
    }

    fn failed_write(&self, error: UnitError) -> Trouble {
        Trouble::Target(Failure::of_unit(error, true, self.lu.unit.attributes().block_bytes))
    }
}

/// The bytes of the target that are whole blocks of the pool there and where they come from; empty if there are none.
fn whole_blocks<U: LogicalUnit>(source: &End<U>, target: &End<U>) -> Range<u64> {
    let attributes = target.lu.unit.attributes();
    let pool_block = u64::from(attributes.unmap_granularity_blocks) * u64::from(attributes.block_bytes);
    let (from, to) = (&source.bytes, &target.bytes);
    if pool_block == 0 || from.start % pool_block != to.start % pool_block {
        return 0..0;
    }
    let start = to.start.checked_next_multiple_of(pool_block).unwrap_or(to.end);
    let end = to.end - to.end % pool_block;
    if start < end { start..end } else { 0..0 }
}
