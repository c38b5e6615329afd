//! Sources in which bodies of functions are choices among themselves and changed copies, by a number that the program is given
//! as it starts: one build serves for many changes. Text is all that this knows of Rust.

use std::ops::Range;

/// A function's body, and what may be in its place.
pub struct Choice {
    /// What is between its braces, in bytes of the source.
    pub body: Range<usize>,
    /// An expression for the number.
    pub asked: String,
    /// What the bodies are put between.
    pub around: [String; 2],
    /// The changed bodies, each with its number.
    pub others: Vec<(u32, String)>,
}

impl Choice {
    /// The bodies as they are.
    pub fn plain() -> [String; 2] {
        ["{", "}"].map(str::to_owned)
    }
}

/// A source with choices in it.
#[derive(Debug, Default)]
pub struct Woven {
    /// Its text.
    pub text: String,
    /// The lines of each changed body, counted from 1, with its number.
    bodies: Vec<(Range<usize>, u32)>,
    /// The lines of each choice with the numbers of all its changed bodies.
    pub choices: Vec<(Range<usize>, Vec<u32>)>,
}

impl Woven {
    /// The change in whose body a line is.
    pub fn change_at(&self, line: usize) -> Option<u32> {
        self.bodies.iter().find(|(lines, _)| lines.contains(&line)).map(|(_, number)| *number)
    }

    /// All changes of the function that a line belongs to.
    pub fn function_at(&self, line: usize) -> &[u32] {
        self.choices.iter().find(|(lines, _)| lines.contains(&line)).map_or(&[], |(_, numbers)| numbers)
    }
}

/// Puts choices, in the order of their places, into a source.
pub fn weave(source: &str, choices: &[Choice]) -> Woven {
    let mut woven = Woven::default();
    let mut done = 0;
    for Choice { body, asked, around: [open, close], others } in choices {
        woven.text.push_str(&source[done..body.start]);
        let first = line(&woven.text);
        woven.text.push_str(&format!(" match {asked} {{\n"));
        for (number, other) in others {
            let begin = line(&woven.text);
            woven.text.push_str(&format!("{number} => {open}{other}\n{close}\n"));
            woven.bodies.push((begin..line(&woven.text), *number));
        }
        woven.text.push_str(&format!("_ => {open}{}\n{close}\n}}\n", &source[body.clone()]));
        let numbers = others.iter().map(|(number, _)| *number).collect();
        woven.choices.push((first..line(&woven.text) + 1, numbers));
        done = body.end;
    }
    woven.text.push_str(&source[done..]);
    woven
}

/// The line that the next character comes to stand in.
fn line(text: &str) -> usize {
    text.matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_a_choice_of_its_bodies() {
        let source = "fn one() {\n    1\n}\nfn two() {\n    2\n}\n";
        let [one, two] = ["\n    1\n", "\n    2\n"].map(|body| {
            let at = source.find(body).unwrap();
            at..at + body.len()
        });
        let others = vec![(7, "\n    3\n".to_owned()), (8, "\n    4\n".to_owned())];
        let first = Choice { body: one, asked: "on(7)".into(), around: Choice::plain(), others };
        let around = ["b({", "})"].map(str::to_owned);
        let second = Choice { body: two, asked: "on(9)".into(), around, others: vec![(9, "5".into())] };
        let woven = weave(source, &[first, second]);
        let expected = "\
fn one() { match on(7) {
7 => {
    3

}
8 => {
    4

}
_ => {
    1

}
}
}
fn two() { match on(9) {
9 => b({5
})
_ => b({
    2

})
}
}
";
        assert_eq!(woven.text, expected);
        assert_eq!([1, 2, 5, 6, 10].map(|line| woven.change_at(line)), [None, Some(7), Some(7), Some(8), None]);
        assert_eq!(woven.function_at(11), [7, 8]);
        assert_eq!(woven.function_at(16), [9]);
        assert_eq!(weave(source, &[]).text, source);
    }
}
