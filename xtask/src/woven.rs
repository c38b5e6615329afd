//! Many mutants in one build: the functions that patches change become [`Choice`]s. Only for copies of the tree.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};

use crate::choice::{self, Choice};

/// Tells a program which mutant it is.
pub const VARIABLE: &str = "GOSSAMER_MUTANT";

/// A crate on which all that mutants change rests.
const BASE: &str = "platform/src/lib.rs";

/// The choice, for the end of [`BASE`].
const CHOICE: &str = r#"
extern crate std as outside;

/// Which mutant this is: 0 for none.
pub fn mutant() -> u32 {
    static NUMBER: outside::sync::OnceLock<u32> = outside::sync::OnceLock::new();
    *NUMBER.get_or_init(|| outside::env::var("GOSSAMER_MUTANT").map_or(0, |number| number.parse().unwrap()))
}
"#;

/// Body of a function that a mutant has in place of the lines of the original file.
struct Other {
    lines: Range<usize>,
    mutant: u32,
    body: String,
}

/// What the mutants do to a tree.
#[derive(Default)]
pub struct Weft {
    files: BTreeMap<String, Vec<Other>>,
}

impl Weft {
    /// Takes a mutant in, as the files that its patch changes: path, text before, text after. False, and nothing is taken, if
    /// it changes more than bodies of functions.
    pub fn take(&mut self, mutant: u32, changed: &[(String, String, String)]) -> bool {
        let others = changed.iter().map(|(_, before, after)| other(mutant, before, after)).collect::<Option<Vec<_>>>();
        let Some(others) = others else { return false };
        for ((path, ..), other) in changed.iter().zip(others) {
            self.files.entry(path.clone()).or_default().push(other);
        }
        true
    }

    /// Writes all of them into the tree.
    pub fn write(mut self, tree: &Path) -> Result<()> {
        for (path, others) in &mut self.files {
            let path = tree.join(path);
            let before = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            fs::write(&path, weave(&before, others))?;
        }
        let base = tree.join(BASE);
        let text = fs::read_to_string(&base).with_context(|| base.display().to_string())?;
        Ok(fs::write(base, text + CHOICE)?)
    }
}

/// The one function that differs.
fn other(mutant: u32, before: &str, after: &str) -> Option<Other> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let alike = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let most = old.len().min(new.len()) - alike;
    let alike_behind = old.iter().rev().zip(new.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let lines = body_around(&old, alike..old.len() - alike_behind)?;
    let end = new.len() - (old.len() - lines.end);
    Some(Other { mutant, body: new[lines.start..end].join("\n"), lines })
}

/// The lines of the outermost body around some lines. The source is as rustfmt has it, which tells where a function ends.
fn body_around(source: &[&str], lines: Range<usize>) -> Option<Range<usize>> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let functions = (0..lines.start).filter(|at| is_function(source[*at]));
    let body = |at: usize| {
        let around = indent(source[at]);
        let inside = |line: &&str| line.is_empty() || indent(line) > around;
        let begin = at + source[at..].iter().position(|line| indent(line) == around && line.ends_with('{'))? + 1;
        let end = begin + source[begin..].iter().take_while(|line| inside(line)).count();
        let hidden = |line: &&str| line.split_once("-> ").is_some_and(|(_, result)| result.contains("impl "));
        let chosen_at_run_time = !source[at..begin].iter().any(|line| hidden(line) || line.contains("const fn "));
        (chosen_at_run_time && begin <= lines.start && lines.end <= end).then_some(begin..end)
    };
    functions.filter_map(body).next()
}

fn is_function(line: &str) -> bool {
    let mut words = line.trim_start().split(' ');
    words.find(|word| !word.starts_with("pub") && !["async", "const"].contains(word)) == Some("fn")
}

fn weave(before: &str, others: &mut [Other]) -> String {
    others.sort_by_key(|other| other.lines.start);
    let mut begins = vec![0];
    begins.extend(before.match_indices('\n').map(|(at, _)| at + 1));
    let choice = |alike: &[Other]| Choice {
        body: begins[alike[0].lines.start] - 1..begins[alike[0].lines.end],
        asked: "::platform::mutant()".into(),
        around: Choice::plain(),
        others: alike.iter().map(|Other { mutant, body, .. }| (*mutant, format!("\n{body}"))).collect(),
    };
    let choices: Vec<Choice> = others.chunk_by(|a, b| a.lines == b.lines).map(choice).collect();
    choice::weave(before, &choices).text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
impl A {
    /// Adds.
    pub(super) async fn add<T>(
        a: u32,
    ) -> u32
    where
        T: Copy,
    {
        let sum = |x| {
            x + 1
        };

        sum(a)
    }

    const fn one() -> u32 {
        1
    }
}

fn two() -> u32 {
    2
}
";

    fn taken(weft: &mut Weft, mutant: u32, from: &str, to: &str) -> bool {
        let after = SOURCE.replacen(from, to, 1);
        assert_ne!(after, SOURCE);
        weft.take(mutant, &[("a.rs".into(), SOURCE.into(), after)])
    }

    #[test]
    fn a_function_is_a_choice_of_its_bodies() {
        let mut weft = Weft::default();
        assert!(taken(&mut weft, 7, "    2\n", "    let three = 3;\n    three\n"));
        assert!(taken(&mut weft, 3, "x + 1", "x"));
        assert!(taken(&mut weft, 4, "        sum(a)\n", ""));
        let woven = weave(SOURCE, weft.files.get_mut("a.rs").unwrap());
        let two = "\
fn two() -> u32 { match ::platform::mutant() {
7 => {
    let three = 3;
    three
}
_ => {
    2

}
}
}
";
        assert!(woven.ends_with(two), "{woven}");
        assert!(woven.contains("    { match ::platform::mutant() {\n3 => {\n        let sum = |x| {\n            x\n"));
        assert!(
            woven.contains("}\n4 => {\n        let sum = |x| {\n            x + 1\n        };\n\n}\n_ => {\n"),
            "{woven}"
        );
    }

    #[test]
    fn what_changes_more_than_bodies_is_not_taken() {
        for (from, to) in [
            ("a: u32", "b: u32"),
            ("        1\n", "        2\n"),
            ("Adds", "Subtracts"),
            ("fn two", "pub fn two"),
            (
                "        sum(a)\n    }\n\n    const fn one() -> u32 {\n        1\n",
                "    }\n\n    const fn one() -> u32 {\n        2\n",
            ),
        ] {
            let mut weft = Weft::default();
            assert!(!taken(&mut weft, 1, from, to), "{from}");
            assert!(weft.files.is_empty());
        }
    }
}
