//! The words and signs of each format.

use super::super::dump::DumpError;
use super::super::superblock::Superblock;
use super::super::text::Output;
use super::{Format, Found, Run};
use crate::control::DeviceId;

/// Writes a delta in one of the formats.
pub struct Text<S> {
    format: Format,
    out: Output<S>,
    /// The element that the last run was put in, in the verbose form.
    element: Option<&'static str>,
}

impl<S> Text<S> {
    pub fn new(format: Format, sink: S) -> Text<S> {
        Text { format, out: Output::new(sink), element: None }
    }

    pub fn begin(&mut self, superblock: &Superblock, left: DeviceId, right: DeviceId) {
        if self.format == Format::Json {
            return;
        }
        let (time, transaction) = (superblock.time.get().into(), superblock.transaction_id.get());
        self.out.put_numbers(["<superblock uuid=\"\" time=\"", "\" transaction=\""], [time, transaction], "\"");
        if superblock.needs_check() {
            self.out.put(" flags=\"1\"");
        }
        let sectors = superblock.data_block_sectors.get().into();
        let data_blocks = superblock.data_space_map.root.nr_blocks.get();
        self.out.put_numbers([" data_block_size=\"", "\" nr_data_blocks=\""], [sectors, data_blocks], "\">\n");
        let devices = [left.get().into(), right.get().into()];
        self.out.put_numbers(["  <diff left=\"", "\" right=\""], devices, "\">\n");
    }

    fn put_run(&mut self, run: &Run) {
        let (name, data, other) = match run.found {
            Found::Same(data) => ("same", data.0, None),
            Found::Different { left, right } => ("different", left.0, Some(right.0)),
            Found::LeftOnly(data) => ("left_only", data.0, None),
            Found::RightOnly(data) => ("right_only", data.0, None),
        };
        let (begin, blocks) = (run.begin.0, run.blocks);
        let out = &mut self.out;
        match (self.format, other) {
            (Format::Xml, _) => {
                out.put("    <");
                out.put(name);
                out.put_numbers([" begin=\"", "\" length=\""], [begin, blocks], "\"/>\n");
            }
            (Format::XmlVerbose, other) => {
                self.put_element(Some(name));
                self.out.put_numbers(["      <range begin=\""], [begin], "\"");
                match other {
                    None => self.out.put_numbers([" data_begin=\""], [data], "\""),
                    Some(other) => {
                        self.out.put_numbers([" left_data_begin=\"", "\" right_data_begin=\""], [data, other], "\"");
                    }
                }
                self.out.put_numbers([" length=\""], [blocks], "\"/>\n");
            }
            (Format::Json, other) => {
                out.put("{\"kind\":\"");
                out.put(name);
                out.put_numbers(["\",\"begin\":", ",\"length\":"], [begin, blocks], "");
                match other {
                    None => out.put_numbers([",\"data_begin\":"], [data], "}\n"),
                    Some(other) => {
                        out.put_numbers([",\"left_data_begin\":", ",\"right_data_begin\":"], [data, other], "}\n");
                    }
                }
            }
        }
    }

    /// Goes on in this element, in the verbose form.
    fn put_element(&mut self, next: Option<&'static str>) {
        if self.element == next {
            return;
        }
        for (name, begin) in [(self.element, "    </"), (next, "    <")] {
            let Some(name) = name else { continue };
            self.out.put(begin);
            self.out.put(name);
            self.out.put(">\n");
        }
        self.element = next;
    }
}

impl<E, S: AsyncFnMut(&[u8]) -> Result<(), E>> Text<S> {
    pub async fn run(&mut self, run: &Run) -> Result<(), DumpError<E>> {
        self.put_run(run);
        self.out.flush_if_full().await
    }

    pub async fn end(&mut self) -> Result<(), DumpError<E>> {
        self.put_element(None);
        if self.format != Format::Json {
            self.out.put("  </diff>\n</superblock>");
        }
        self.out.flush().await
    }
}
