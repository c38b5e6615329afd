//! Command numbering (RFC 7143 section 4.2.2): CmdSN in serial arithmetic, the window, and commands that
//! arrived ahead of their turn.

use alloc::collections::BTreeMap;

/// The command window of a session.
///
/// `MaxCmdSN` is the sum of what was accepted from the start and the free places, so it grows by one when a
/// command is done with and never retreats.
#[derive(Debug)]
pub struct Window<T> {
    expected: u32,
    max: u32,
    /// Arrived before their turn, by CmdSN. `None`: the number is
    /// used up, its command was aborted before it arrived.
    early: BTreeMap<u32, Option<T>>,
}

/// Where a command stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<T> {
    /// It is next: execute it.
    Now(T),
    /// Kept until its turn comes.
    Later,
    /// Outside the window, or a number seen before: to be ignored.
    Ignored,
}

impl<T> Window<T> {
    /// A session whose first command has number `first` and that may have `places` commands outstanding.
    pub fn new(first: u32, places: u32) -> Window<T> {
        Window { expected: first, max: first.wrapping_add(places).wrapping_sub(1), early: BTreeMap::new() }
    }

    /// ExpCmdSN.
    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// MaxCmdSN.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// `number` could still arrive: it lies in the window and has not been seen.
    pub fn awaits(&self, number: u32) -> bool {
        let ahead = number.wrapping_sub(self.expected);
        ahead < self.size() && !self.early.contains_key(&number)
    }

    /// Commands that may be sent now.
    fn size(&self) -> u32 {
        self.max.wrapping_sub(self.expected).wrapping_add(1)
    }

    /// A command with `number` arrived.
    pub fn arrive(&mut self, number: u32, command: T) -> Turn<T> {
        if !self.awaits(number) {
            return Turn::Ignored;
        }
        if number == self.expected {
            self.expected = self.expected.wrapping_add(1);
            return Turn::Now(command);
        }
        self.early.insert(number, Some(command));
        Turn::Later
    }

    /// Uses up a number whose command has not arrived. False if it is not awaited.
    pub fn skip(&mut self, number: u32) -> bool {
        let awaited = self.awaits(number);
        if awaited {
            self.early.insert(number, None);
        }
        awaited
    }

    /// The next command that was kept and whose turn has come.
    pub fn next_in_turn(&mut self) -> Option<T> {
        while let Some(kept) = self.early.remove(&self.expected) {
            self.expected = self.expected.wrapping_add(1);
            match kept {
                Some(command) => return Some(command),
                // A skipped command will have no response: its place is free at once.
                None => self.release(),
            }
        }
        None
    }

    /// The number of the command that others wait for.
    pub fn missing(&self) -> Option<u32> {
        self.early.values().any(Option::is_some).then_some(self.expected)
    }

    /// Gives up the commands that were kept: their turn will not come.
    pub fn give_up(&mut self) -> impl Iterator<Item = T> {
        core::mem::take(&mut self.early).into_values().flatten()
    }

    /// A command of the window is done with.
    pub fn release(&mut self) {
        self.max = self.max.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_moves_only_forward() {
        let mut window = Window::new(u32::MAX, 2);
        assert_eq!((window.expected(), window.max()), (u32::MAX, 0));
        assert_eq!(window.arrive(u32::MAX, 'a'), Turn::Now('a'));
        assert_eq!(window.arrive(u32::MAX, 'a'), Turn::Ignored, "seen before");
        assert_eq!(window.arrive(1, 'c'), Turn::Ignored, "above the window");
        assert_eq!(window.arrive(0, 'b'), Turn::Now('b'));
        assert_eq!((window.expected(), window.max()), (1, 0), "closed");
        assert_eq!(window.arrive(1, 'c'), Turn::Ignored);
        window.release();
        assert_eq!(window.arrive(1, 'c'), Turn::Now('c'));
    }

    #[test]
    fn commands_ahead_of_their_turn_are_kept() {
        let mut window = Window::new(10, 8);
        assert_eq!(window.arrive(12, 'c'), Turn::Later);
        assert_eq!(window.arrive(12, 'x'), Turn::Ignored);
        assert_eq!((window.next_in_turn(), window.missing()), (None, Some(10)));
        assert!(window.skip(11));
        assert!(!window.skip(11) && !window.skip(9) && !window.skip(18));
        assert_eq!(window.arrive(10, 'a'), Turn::Now('a'));
        assert_eq!(window.next_in_turn(), Some('c'));
        assert_eq!((window.expected(), window.max()), (13, 18), "the skipped place is free again");
        assert!(window.skip(14));
        assert_eq!(window.missing(), None, "nothing waits");
    }
}
