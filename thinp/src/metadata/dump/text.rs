//! The words and signs of each format.

use super::super::Details;
use super::super::superblock::Superblock;
use super::{DumpError, Format};
use crate::metadata::text::Output;

/// Consecutive virtual blocks on consecutive data blocks, of the same time.
#[derive(Clone, Copy)]
struct Range {
    virtual_begin: u64,
    data_begin: u64,
    blocks: u64,
    time: u32,
}

/// Writes a dump in one of the formats.
pub struct Text<S> {
    format: Format,
    out: Output<S>,
    /// Whose mappings are written.
    device: u64,
    /// Mappings that may go on.
    range: Option<Range>,
}

impl<S> Text<S> {
    pub fn new(format: Format, sink: S) -> Text<S> {
        Text { format, out: Output::new(sink), device: 0, range: None }
    }

    /// One more mapping of the device or definition, in ascending order.
    pub fn mapping(&mut self, virtual_block: u64, data_block: u64, time: u32) {
        if let Some(range) = &mut self.range {
            let next = (range.virtual_begin.checked_add(range.blocks), range.data_begin.checked_add(range.blocks));
            if next == (Some(virtual_block), Some(data_block)) && range.time == time {
                range.blocks = range.blocks.saturating_add(1);
                return;
            }
        }
        self.end_range();
        self.range = Some(Range { virtual_begin: virtual_block, data_begin: data_block, blocks: 1, time });
    }

    fn end_range(&mut self) {
        let Some(Range { virtual_begin, data_begin, blocks, time }) = self.range.take() else { return };
        let time = time.into();
        let last = |begin: u64| begin.saturating_add(blocks.saturating_sub(1));
        match (self.format, blocks) {
            (Format::Json, _) => self.out.put_numbers(
                ["{\"device\":", ",\"begin\":", ",\"length\":", ",\"data_begin\":", ",\"time\":"],
                [self.device, virtual_begin, blocks, data_begin, time],
                "}\n",
            ),
            (Format::HumanReadable, _) => self.out.put_numbers(
                ["    (", "..", ") -> (", "..", "), "],
                [virtual_begin, last(virtual_begin), data_begin, last(data_begin), time],
                "\n",
            ),
            (_, 1) => self.out.put_numbers(
                ["    <single_mapping origin_block=\"", "\" data_block=\"", "\" time=\""],
                [virtual_begin, data_begin, time],
                "\"/>\n",
            ),
            _ => self.out.put_numbers(
                ["    <range_mapping origin_begin=\"", "\" data_begin=\"", "\" length=\"", "\" time=\""],
                [virtual_begin, data_begin, blocks, time],
                "\"/>\n",
            ),
        }
    }
}

impl<E, S: AsyncFnMut(&[u8]) -> Result<(), E>> Text<S> {
    /// Calls the sink if there is enough for it.
    pub async fn flush_if_full(&mut self) -> Result<(), DumpError<E>> {
        self.out.flush_if_full().await
    }

    pub async fn begin(&mut self, superblock: &Superblock) -> Result<(), DumpError<E>> {
        let (time, flags) = (superblock.time.get().into(), u64::from(superblock.needs_check()));
        let (transaction, version) = (superblock.transaction_id.get(), superblock.version().into());
        let sectors = superblock.data_block_sectors.get().into();
        let data_blocks = superblock.data_space_map.root.nr_blocks.get();
        let rest = [version, sectors, data_blocks];
        if self.format == Format::Json {
            return Ok(());
        }
        if self.format == Format::HumanReadable {
            let numbers = [time, transaction, flags, version, sectors, data_blocks];
            self.out.put_numbers(["begin superblock: \"\", ", ", ", ", ", ", ", ", ", ", "], numbers, "\n");
            return Ok(());
        }
        self.out.put_numbers(["<superblock uuid=\"\" time=\"", "\" transaction=\""], [time, transaction], "\"");
        if self.format == Format::Xml09 || flags != 0 {
            self.out.put_numbers([" flags=\""], [flags], "\"");
        }
        self.out.put_numbers([" version=\"", "\" data_block_size=\"", "\" nr_data_blocks=\""], rest, "\">\n");
        Ok(())
    }

    pub async fn end(&mut self) -> Result<(), DumpError<E>> {
        self.out.put(match self.format {
            Format::Xml => "</superblock>",
            Format::Xml09 => "</superblock>\n",
            Format::HumanReadable => "end superblock\n",
            Format::Json => "",
        });
        self.out.flush().await
    }

    pub async fn begin_device(&mut self, id: u64, details: &Details) -> Result<(), DumpError<E>> {
        self.device = id;
        if self.format == Format::Json {
            return Ok(());
        }
        let words = match self.format {
            Format::HumanReadable => {
                ["device: ", "\nmapped_blocks: ", "\ntransaction: ", "\ncreation time: ", "\nsnap time: "]
            }
            _ => [
                "  <device dev_id=\"",
                "\" mapped_blocks=\"",
                "\" transaction=\"",
                "\" creation_time=\"",
                "\" snap_time=\"",
            ],
        };
        let end = if self.format == Format::HumanReadable { "\n" } else { "\">\n" };
        let (creation_time, snap_time) = (details.creation_time.into(), details.snapshotted_time.into());
        let numbers = [id, details.mapped_blocks, details.transaction_id, creation_time, snap_time];
        self.out.put_numbers(words, numbers, end);
        self.flush_if_full().await
    }

    pub async fn end_device(&mut self) -> Result<(), DumpError<E>> {
        self.end_range();
        self.out.put(match self.format {
            Format::Xml | Format::Xml09 => "  </device>\n",
            Format::HumanReadable => "\n",
            Format::Json => "",
        });
        self.flush_if_full().await
    }

    pub async fn begin_definition(&mut self, name: u64) -> Result<(), DumpError<E>> {
        self.out.put_numbers(["  <def name=\""], [name], "\">\n");
        self.flush_if_full().await
    }

    pub async fn end_definition(&mut self) -> Result<(), DumpError<E>> {
        self.end_range();
        self.out.put("  </def>\n");
        self.flush_if_full().await
    }

    /// Refers to a definition.
    pub async fn reference(&mut self, name: u64) -> Result<(), DumpError<E>> {
        self.end_range();
        self.out.put_numbers(["    <ref name=\""], [name], "\"/>\n");
        self.flush_if_full().await
    }
}
