//! Reading XML piece by piece: as much of XML as a dump uses (reference 8.1).
//!
//! Elements with attributes, comments and declarations; no text, no entities, no nesting beyond what the caller keeps track
//! of. Memory is bounded by the longest tag that is believed.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;

/// The longest tag or comment that is believed, in bytes.
const TAG_BYTES_MAX: usize = 64 << 10;

/// Most attributes of an element.
const ATTRIBUTES_MAX: usize = 32;

/// Why a dump cannot be read: the line and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The line, counted from 1.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

/// Why there is no next tag.
#[derive(Debug)]
pub enum ReadError<E> {
    /// The source failed.
    Source(E),
    /// It is no XML.
    Wrong(Wrong),
}

impl<E> From<Wrong> for ReadError<E> {
    fn from(wrong: Wrong) -> ReadError<E> {
        ReadError::Wrong(wrong)
    }
}

/// The tags of a document, read from a source that appends a piece of it at each call, and nothing at its end.
pub struct Reader<S> {
    source: S,
    buffer: Vec<u8>,
    /// What of the buffer was consumed.
    at: usize,
    line: u64,
    ended: bool,
}

/// What kind of tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `<name …>`
    Open,
    /// `<name …/>`
    Empty,
    /// `</name>`
    Close,
}

/// One tag.
pub struct Tag<'a> {
    /// Where it stands.
    pub line: u64,
    /// Opening or closing.
    pub kind: Kind,
    /// Its name.
    pub name: &'a str,
    /// Name and value of each attribute; taken out as they are understood.
    attributes: Vec<(&'a str, &'a str)>,
}

impl<E, S: AsyncFnMut(&mut Vec<u8>) -> Result<(), E>> Reader<S> {
    /// Starts at the first line.
    pub fn new(source: S) -> Reader<S> {
        Reader { source, buffer: Vec::new(), at: 0, line: 1, ended: false }
    }

    /// The line that comes next.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The next tag; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Tag<'_>>, ReadError<E>> {
        loop {
            if !self.skip_space().await? {
                return Ok(None);
            }
            if self.rest().first() != Some(&b'<') {
                return Err(self.wrong("text where a tag should begin").into());
            }
            let (begin, end): (&[u8], &[u8]) = match self.prefix(4).await? {
                b"<!--" => (b"<!--", b"-->"),
                [b'<', b'?', ..] => (b"<?", b"?>"),
                [b'<', b'!', ..] => return Err(self.wrong("a document type, which no dump has").into()),
                _ => break,
            };
            let len =
                self.find(|bytes| find(bytes.get(begin.len()..)?, end).map(|at| begin.len() + at + end.len())).await?;
            self.consume(len);
        }
        let len = self.find(end_of_tag).await?;
        let line = self.line;
        let range = self.at..self.at.saturating_add(len);
        self.consume(len);
        self.tag(range, line).map(Some).map_err(ReadError::Wrong)
    }

    fn tag(&self, range: Range<usize>, line: u64) -> Result<Tag<'_>, Wrong> {
        let wrong = |what: &str| Wrong { line, what: what.to_string() };
        let text = core::str::from_utf8(self.buffer.get(range).unwrap_or_default()).map_err(|_| wrong("not UTF-8"))?;
        let inside = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).ok_or_else(|| wrong("no tag"))?;
        let (kind, inside) = match (inside.strip_prefix('/'), inside.strip_suffix('/')) {
            (Some(name), _) => (Kind::Close, name),
            (None, Some(rest)) => (Kind::Empty, rest),
            (None, None) => (Kind::Open, inside),
        };
        let name_end = inside.find(|c: char| c.is_ascii_whitespace()).unwrap_or(inside.len());
        let (name, mut rest) = inside.split_at(name_end);
        if name.is_empty() {
            return Err(wrong("a tag has no name"));
        }
        let mut attributes: Vec<(&str, &str)> = Vec::new();
        loop {
            rest = rest.trim_ascii_start();
            if rest.is_empty() {
                break;
            }
            let attribute = attribute(rest).ok_or_else(|| wrong("an attribute is not of the form name=\"value\""))?;
            if attributes.iter().any(|(name, _)| *name == attribute.0) {
                return Err(wrong(&format!("attribute {:?} of <{name}> comes twice", attribute.0)));
            }
            if attributes.len() >= ATTRIBUTES_MAX || kind == Kind::Close {
                return Err(wrong(&format!("<{name}> has too many attributes")));
            }
            attributes.push((attribute.0, attribute.1));
            rest = attribute.2;
        }
        Ok(Tag { line, kind, name, attributes })
    }

    fn wrong(&self, what: &str) -> Wrong {
        Wrong { line: self.line, what: what.to_string() }
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    fn consume(&mut self, len: usize) {
        let lines = self.rest().iter().take(len).filter(|byte| **byte == b'\n').count();
        self.line = self.line.saturating_add(lines as u64);
        self.at = self.at.saturating_add(len);
    }

    /// Reads more; false at the end.
    async fn fill(&mut self) -> Result<bool, ReadError<E>> {
        if self.ended {
            return Ok(false);
        }
        self.buffer.drain(..self.at.min(self.buffer.len()));
        self.at = 0;
        let before = self.buffer.len();
        (self.source)(&mut self.buffer).await.map_err(ReadError::Source)?;
        self.ended = self.buffer.len() == before;
        Ok(!self.ended)
    }

    /// False if nothing but white space is left.
    async fn skip_space(&mut self) -> Result<bool, ReadError<E>> {
        loop {
            let space = self.rest().iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.consume(space);
            if !self.rest().is_empty() {
                return Ok(true);
            }
            if !self.fill().await? {
                return Ok(false);
            }
        }
    }

    /// The next bytes, fewer only at the end.
    async fn prefix(&mut self, len: usize) -> Result<&[u8], ReadError<E>> {
        while self.rest().len() < len && self.fill().await? {}
        let rest = self.rest();
        Ok(rest.get(..len).unwrap_or(rest))
    }

    /// How long what begins here is, by `len_of`, once enough of it was read.
    async fn find(&mut self, len_of: impl Fn(&[u8]) -> Option<usize>) -> Result<usize, ReadError<E>> {
        loop {
            let found = len_of(self.rest());
            match found {
                Some(len) => return Ok(len),
                None if self.rest().len() > TAG_BYTES_MAX => return Err(self.wrong("a tag is too long").into()),
                None if self.fill().await? => {}
                None => return Err(self.wrong("the dump ends within a tag").into()),
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Behind the `>` that ends the tag, which is none within quotes.
fn end_of_tag(bytes: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, &byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at.saturating_add(1)),
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), _) if open == byte => quote = None,
            _ => {}
        }
    }
    None
}

/// Name and value of the first attribute, and what follows it.
fn attribute(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once('=')?;
    let (name, rest) = (name.trim_ascii_end(), rest.trim_ascii_start());
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (value, rest) = rest.get(1..)?.split_once(quote)?;
    let named = !name.is_empty() && !name.contains(|c: char| c.is_ascii_whitespace() || "\"'<>/".contains(c));
    let separate = rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_whitespace());
    (named && separate && !value.contains('<')).then_some((name, value, rest))
}

impl<'a> Tag<'a> {
    /// Something is wrong with it.
    pub fn wrong(&self, what: String) -> Wrong {
        Wrong { line: self.line, what }
    }

    /// Takes the value of an attribute.
    pub fn optional(&mut self, name: &str) -> Option<&'a str> {
        let found = self.attributes.iter().position(|(attribute, _)| *attribute == name)?;
        Some(self.attributes.swap_remove(found).1)
    }

    /// Takes the value of an attribute that must be there.
    pub fn text(&mut self, name: &str) -> Result<&'a str, Wrong> {
        let value = self.optional(name);
        value.ok_or_else(|| self.wrong(format!("<{}> lacks attribute {name:?}", self.name)))
    }

    /// Takes a number that must be there and fit `T`.
    pub fn number<T: core::str::FromStr>(&mut self, name: &str) -> Result<T, Wrong> {
        let value = self.text(name)?;
        // Rust would take a sign.
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value.parse().ok().filter(|_| digits);
        number.ok_or_else(|| self.wrong(format!("{name}={value:?} of <{}> is no number that fits", self.name)))
    }

    /// All attributes were taken.
    pub fn done(self) -> Result<(), Wrong> {
        match self.attributes.first() {
            Some((name, _)) => Err(self.wrong(format!("<{}> has an unknown attribute {name:?}", self.name))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use platform::task::block_on_ready;

    /// All tags, the document given in pieces of `piece` bytes.
    fn tags(text: &str, piece: usize) -> Result<Vec<String>, Wrong> {
        let mut pieces = text.as_bytes().chunks(piece);
        let source = async |out: &mut Vec<u8>| {
            out.extend_from_slice(pieces.next().unwrap_or_default());
            Ok::<(), ()>(())
        };
        let mut reader = Reader::new(source);
        let mut tags = vec![];
        loop {
            match block_on_ready(reader.next()) {
                Ok(Some(tag)) => tags.push(format!("{} {:?} {} {:?}", tag.line, tag.kind, tag.name, tag.attributes)),
                Ok(None) => return Ok(tags),
                Err(ReadError::Wrong(wrong)) => return Err(wrong),
                Err(ReadError::Source(())) => unreachable!(),
            }
        }
    }

    #[test]
    fn tags_are_the_same_however_they_arrive() {
        let text = "<?xml version='1.0'?>\n<a b=\"1>2\"\n  c = '\"' >\n<!-- <x> -- -->\n<d/></a >\n";
        for piece in 1..text.len() {
            let found = tags(text, piece).unwrap();
            assert_eq!(found, ["2 Open a [(\"b\", \"1>2\"), (\"c\", \"\\\"\")]", "5 Empty d []", "5 Close a []"]);
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let cases = [
            ("<a>\n\ntext</a>", 3, "text where a tag should begin"),
            ("<a>\n<b c=1/>", 2, "not of the form"),
            ("<b c=\"1\"d=\"2\"/>", 1, "not of the form"),
            ("<b c=\"1\"\n c=\"2\"/>", 1, "\"c\" of <b> comes twice"),
            ("\n\n<a b=\"", 3, "ends within a tag"),
            ("<!-- ", 1, "ends within a tag"),
            ("<!DOCTYPE a>", 1, "a document type"),
            ("< a>", 1, "no name"),
            ("</a b=\"1\">", 1, "too many attributes"),
            ("<b =\"1\"/>", 1, "not of the form"),
            ("<b c d=\"1\"/>", 1, "not of the form"),
            ("<b c<d=\"1\"/>", 1, "not of the form"),
            ("<b c/d=\"1\"/>", 1, "not of the form"),
        ];
        for (text, line, what) in cases {
            let wrong = tags(text, 3).unwrap_err();
            assert!(wrong.line == line && wrong.what.contains(what), "{text}: {wrong:?}");
        }
        let long = format!("<a b=\"{}\"/>", "x".repeat(2 * TAG_BYTES_MAX));
        assert_eq!(tags(&long, 1000).unwrap_err().what, "a tag is too long");
        // The longest, of which the end comes last.
        let longest = format!("<a b=\"{}\"/>", "x".repeat(TAG_BYTES_MAX - 8));
        assert_eq!((longest.len(), tags(&longest, TAG_BYTES_MAX).unwrap().len()), (TAG_BYTES_MAX + 1, 1));
    }
}
