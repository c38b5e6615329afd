//! All changes of a file in one source, in which each changed function is a [`Choice`]. The places of the changes are
//! cargo-mutants' own.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::choice::{self, Choice, Woven};

/// One of cargo-mutants' changes.
#[derive(Debug, Clone)]
pub struct Change {
    /// Counts up from 1 over all changes.
    pub number: u32,
    /// `FILE: CHANGE`, without the place in the file, which other changes to the file move. Those of a file that are named alike are
    /// told apart by ` (2)`, ` (3)` and so on.
    pub name: String,
    /// `FILE:LINE:COLUMN: CHANGE`, as cargo-mutants says it.
    pub place: String,
    /// Below the top of the tree.
    pub file: String,
    /// What is replaced, in bytes of the file.
    at: Range<usize>,
    /// The nearest function around it with its attributes, in bytes of the file; a constant has none.
    function: Option<Range<usize>>,
    replacement: String,
}

impl Change {
    /// Which function it is in.
    pub fn function(&self) -> (&str, Option<usize>) {
        (&self.file, self.function.as_ref().map(|function| function.start))
    }
}

/// Reads what `cargo mutants --list --json` says; `source` gives a file's text.
pub fn changes(json: &str, mut source: impl FnMut(&str) -> Result<String>) -> Result<Vec<Change>> {
    let listed: Vec<Value> = serde_json::from_str(json)?;
    let (mut texts, mut alike) = (BTreeMap::new(), BTreeMap::new());
    let mut changes = Vec::new();
    for (number, entry) in (1..).zip(&listed) {
        let text = |key: &str| entry[key].as_str().with_context(|| format!("no {key} in {entry}"));
        let (file, place) = (text("file")?, text("name")?);
        if !texts.contains_key(file) {
            texts.insert(file.to_owned(), source(file)?);
        }
        let bytes = |span: &Value| bytes(&texts[file], span).with_context(|| format!("{place}: not at {span}"));
        let (_, change) = place.split_once(": ").with_context(|| place.to_owned())?;
        let name = format!("{file}: {change}");
        let count = alike.entry(name.clone()).or_insert(0);
        *count += 1;
        changes.push(Change {
            number,
            name: if *count > 1 { format!("{name} ({count})") } else { name },
            place: place.to_owned(),
            file: file.to_owned(),
            at: bytes(&entry["span"])?,
            function: entry["function"].get("span").map(bytes).transpose()?,
            replacement: text("replacement")?.to_owned(),
        });
    }
    Ok(changes)
}

/// Lines and columns count characters from 1; the end is not included.
fn bytes(source: &str, span: &Value) -> Option<Range<usize>> {
    let offset = |place: &Value| {
        let line = source.split_inclusive('\n').nth(place["line"].as_u64()?.checked_sub(1)? as usize)?;
        let column = place["column"].as_u64()?.checked_sub(1)? as usize;
        let inside = line.char_indices().nth(column).map_or(line.len(), |(at, _)| at);
        Some(line.as_ptr() as usize - source.as_ptr() as usize + inside)
    };
    Some(offset(&span["start"])?..offset(&span["end"])?)
}

/// Weaves changes of one file into its source. `switch` is the path of the module that tells which change is on, given the
/// number of the function's first. The changes of constants are left out and returned: one build can hold only one of them.
pub fn weave(source: &str, changes: &[&Change], switch: &str) -> (Woven, Vec<u32>) {
    let (mut apart, mut choices) = (Vec::new(), Vec::new());
    for (function, inside) in by_function(changes, &mut apart) {
        let Some(Body { at: body, hidden }) = body(source, &function) else {
            apart.extend(inside.iter().map(|change| change.number));
            continue;
        };
        let other = |change: &&Change| {
            let (before, after) = (&source[body.start..change.at.start], &source[change.at.end..body.end]);
            (change.number, format!("{before}{} {after}", change.replacement))
        };
        let around = if hidden { [format!("{switch}::boxed({{"), "})".to_owned()] } else { Choice::plain() };
        let asked = format!("{switch}::on({})", inside[0].number);
        choices.push(Choice { asked, around, others: inside.iter().map(other).collect(), body });
    }
    (choice::weave(source, &choices), apart)
}

/// The changes of each function; those of a function within another are the outer one's.
fn by_function<'a>(changes: &[&'a Change], constants: &mut Vec<u32>) -> Vec<(Range<usize>, Vec<&'a Change>)> {
    let mut sorted = Vec::new();
    for change in changes {
        match &change.function {
            Some(function) => sorted.push((function.clone(), *change)),
            None => constants.push(change.number),
        }
    }
    sorted.sort_by_key(|(function, change)| (function.start, usize::MAX - function.end, change.number));
    let mut functions: Vec<(Range<usize>, Vec<&Change>)> = Vec::new();
    for (function, change) in sorted {
        match functions.last_mut() {
            Some((outer, inside)) if function.start < outer.end => inside.push(change),
            _ => functions.push((function, vec![change])),
        }
    }
    functions
}

/// What is between the braces of a function.
struct Body {
    at: Range<usize>,
    /// The function returns an iterator whose type only its body tells.
    hidden: bool,
}

/// The body of a function, if it has one.
fn body(source: &str, function: &Range<usize>) -> Option<Body> {
    let (mut depth, mut result, mut hidden, mut at) = (0, false, false, function.start);
    loop {
        let rest = &source[at..function.end];
        let next = rest.chars().next()?;
        let mut length = next.len_utf8();
        match next {
            '/' if rest.starts_with("//") => length = rest.find('\n')?,
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '-' if depth == 0 && rest.starts_with("->") => result = true,
            'i' if result && rest.starts_with("impl Iterator") => hidden = true,
            '{' if depth == 0 => return Some(Body { at: at + 1..function.end - 1, hidden }),
            _ => {}
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
const SIZE: u32 = 1 + 1;

/// Größer {
#[inline]
fn pick(a: (u32, u32)) -> bool {
    a.0 > a.1 // ü
}

const fn known() -> u32 {
    1 + 1
}

fn hidden(f: impl Fn() -> u32) -> impl Iterator<Item = u32> {
    0..f() + 1
}

fn outer() {
    fn inner() -> u32 {
        2 * 2
    }
    inner();
}
";

    fn entry(name: &str, lines: [usize; 4], function: Option<[usize; 4]>, replacement: &str) -> String {
        let span = |[line, column, end_line, end_column]: [usize; 4]| {
            format!(
                r#"{{"start":{{"line":{line},"column":{column}}},"end":{{"line":{end_line},"column":{end_column}}}}}"#
            )
        };
        let function = function.map_or("null".into(), |lines| format!(r#"{{"span":{}}}"#, span(lines)));
        format!(
            r#"{{"name":"a.rs:{}:{}: {name}","file":"a.rs","span":{},"function":{function},"replacement":"{replacement}"}}"#,
            lines[0],
            lines[1],
            span(lines)
        )
    }

    fn listed() -> Vec<Change> {
        let pick = Some([3, 1, 7, 2]);
        let entries = [
            entry("replace + with -", [1, 21, 1, 22], None, "-"),
            entry("replace pick with true", [6, 5, 6, 14], pick, "true"),
            entry("replace > with <", [6, 9, 6, 10], pick, "<"),
            entry("replace + with -", [10, 7, 10, 8], Some([9, 1, 11, 2]), "-"),
            entry("replace + with *", [14, 12, 14, 13], Some([13, 1, 15, 2]), "*"),
            entry("replace inner with 1", [19, 9, 19, 14], Some([18, 5, 20, 6]), "1"),
            entry("replace outer with ()", [18, 5, 21, 13], Some([17, 1, 22, 2]), "()"),
        ];
        changes(&format!("[{}]", entries.join(",")), |_| Ok(SOURCE.into())).unwrap()
    }

    #[test]
    fn changes_are_told_apart_wherever_they_move() {
        let changes = listed();
        assert_eq!(changes[0].name, "a.rs: replace + with -");
        assert_eq!(changes[3].name, "a.rs: replace + with - (2)");
        assert_eq!((changes[3].number, changes[3].place.as_str()), (4, "a.rs:10:7: replace + with -"));
        assert_eq!(&SOURCE[changes[2].at.clone()], ">");
        assert!(SOURCE[changes[2].function.clone().unwrap()].ends_with("// ü\n}"));
        assert!(changes_of("[{}]").is_err());
        assert!(changes_of(&format!("[{}]", entry("x", [99, 1, 99, 2], None, ""))).is_err());
    }

    fn changes_of(json: &str) -> Result<Vec<Change>> {
        changes(json, |_| Ok(SOURCE.into()))
    }

    #[test]
    fn a_function_is_a_choice_of_its_bodies() {
        let changes = listed();
        let (woven, apart) = weave(SOURCE, &changes.iter().collect::<Vec<_>>(), "switch");
        assert_eq!(apart, [1], "a constant");
        let text = "\
fn pick(a: (u32, u32)) -> bool { match switch::on(2) {
2 => {
    true  // ü

}
3 => {
    a.0 < a.1 // ü

}
_ => {
    a.0 > a.1 // ü

}
}
}
";
        assert!(woven.text.contains(&text.replace("a.0 < a.1", "a.0 <  a.1")), "{}", woven.text);
        assert!(
            woven.text.contains("match switch::on(7) {\n7 => {\n    () \n\n}\n6 => {\n    fn inner"),
            "{}",
            woven.text
        );
        assert!(woven.text.contains("        1 \n    }\n    inner();"), "{}", woven.text);
        assert!(
            woven.text.contains("5 => switch::boxed({\n    0..f() *  1\n\n})\n_ => switch::boxed({\n"),
            "{}",
            woven.text
        );
        assert_eq!(weave(SOURCE, &[], "switch").0.text, SOURCE);
    }
}
