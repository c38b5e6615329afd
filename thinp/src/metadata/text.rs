//! Text made of words and numbers, handed on piece by piece.

use super::dump::DumpError;
use alloc::vec::Vec;

/// What is collected before the sink is called.
const PIECE_BYTES: usize = 64 << 10;

/// What was not handed to the sink yet, and the sink.
pub(super) struct Output<S> {
    sink: S,
    out: Vec<u8>,
}

impl<S> Output<S> {
    pub fn new(sink: S) -> Output<S> {
        Output { sink, out: Vec::with_capacity(2 * PIECE_BYTES) }
    }

    pub fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Words, each followed by a number, and what comes last.
    pub fn put_numbers<const N: usize>(&mut self, words: [&str; N], numbers: [u64; N], end: &str) {
        for (word, number) in words.into_iter().zip(numbers) {
            self.put(word);
            self.put_number(number);
        }
        self.put(end);
    }

    fn put_number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut len = 0;
        for place in digits.iter_mut().rev() {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
            len += 1;
            if number == 0 {
                break;
            }
        }
        self.out.extend_from_slice(digits.get(digits.len() - len..).unwrap_or_default());
    }
}

impl<E, S: AsyncFnMut(&[u8]) -> Result<(), E>> Output<S> {
    /// Calls the sink if there is enough for it.
    pub async fn flush_if_full(&mut self) -> Result<(), DumpError<E>> {
        if self.out.len() < PIECE_BYTES { Ok(()) } else { self.flush().await }
    }

    /// Calls the sink with what there is.
    pub async fn flush(&mut self) -> Result<(), DumpError<E>> {
        (self.sink)(&self.out).await.map_err(DumpError::Sink)?;
        self.out.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use platform::task::block_on_ready;

    #[test]
    fn the_sink_is_called_for_every_64_kib() {
        let mut pieces = Vec::new();
        let mut output = Output::new(async |piece: &[u8]| {
            pieces.push(piece.len());
            Ok::<(), ()>(())
        });
        block_on_ready(async {
            for len in [0xFFFF, 1, 7] {
                output.put(&"x".repeat(len));
                output.flush_if_full().await.unwrap();
            }
            output.flush().await.unwrap();
        });
        assert_eq!(pieces, [0x1_0000, 7]);
    }
}
