//! The part of a path behind its `?`.

use crate::error::ControlError;
use crate::names::VolumeName;
use alloc::format;

/// The parts of a query, each of which may be there once.
pub(crate) struct Query<'q>(&'q str);

impl<'q> Query<'q> {
    /// The query, if it has no other parts than the `known` ones.
    pub(crate) fn parse(query: Option<&'q str>, known: &[&str]) -> Result<Query<'q>, ControlError> {
        let query = Query(query.unwrap_or_default());
        for (n, (name, _)) in query.parts().enumerate() {
            let again = query.parts().take(n).any(|(before, _)| before == name);
            if again || !known.contains(&name) {
                let message = format!("{} part of the query", if again { "twice the same" } else { "an unknown" });
                return Err(ControlError::invalid(message, format!("this path takes {}, each once", known.join(", "))));
            }
        }
        Ok(query)
    }

    /// A volume's name.
    pub(crate) fn volume(&self, name: &str) -> Result<Option<VolumeName>, ControlError> {
        let parse = |value: &str| {
            let hint = format!("it is a volume's name: {name}=NAME");
            VolumeName::parse(value)
                .map_err(|error| ControlError::invalid(format!("{name} in the query: {error}"), hint))
        };
        self.get(name).map(parse).transpose()
    }

    fn parts(&self) -> impl Iterator<Item = (&'q str, &'q str)> + use<'q> {
        let parts = self.0.split('&').filter(|part| !part.is_empty());
        parts.map(|part| part.split_once('=').unwrap_or((part, "")))
    }

    /// The value of a part.
    pub(crate) fn get(&self, name: &str) -> Option<&'q str> {
        self.parts().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// One of a few words; the first if there is none.
    pub(crate) fn word<T: Copy>(&self, name: &str, words: &[(&str, T)], default: T) -> Result<T, ControlError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let found = words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let all = words.iter().map(|(word, _)| *word).collect::<alloc::vec::Vec<_>>().join(" or ");
            ControlError::invalid(format!("{name} in the query is another word"), format!("it is {all}"))
        })
    }

    /// Whether it is wanted.
    pub(crate) fn yes(&self, name: &str, default: bool) -> Result<bool, ControlError> {
        self.word(name, &[("yes", true), ("no", false)], default)
    }

    /// The virtual block to begin with.
    pub(crate) fn first_block(&self) -> Result<u64, ControlError> {
        let number = |value: &str| value.parse().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
        match self.get("from") {
            None => Ok(0),
            Some(value) => number(value).ok_or_else(|| {
                ControlError::invalid("from in the query is no block", "it is the number of a virtual block, from 0 on")
            }),
        }
    }
}
