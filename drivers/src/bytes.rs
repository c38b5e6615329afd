//! Copying, filling and comparing memory: what compiled Rust expects to be linked with.
//!
//! The kernel gives these functions their C names; here they have their own, so that they can be tested on a
//! host whose C library has the others.

use core::arch::global_asm;

global_asm!(include_str!("bytes.s"), options(att_syntax));

unsafe extern "C" {
    /// `memcpy`, and `memmove` where `to` lies below `from`.
    ///
    /// # Safety
    /// As for C's `memcpy`.
    pub fn gossamer_copy(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8;

    /// `memmove`.
    ///
    /// # Safety
    /// As for C's function.
    pub fn gossamer_move(to: *mut u8, from: *const u8, len_bytes: usize) -> *mut u8;

    /// `memset`.
    ///
    /// # Safety
    /// As for C's function.
    pub fn gossamer_set(to: *mut u8, byte: i32, len_bytes: usize) -> *mut u8;

    /// `memcmp` (and so `bcmp`).
    ///
    /// # Safety
    /// As for C's function.
    pub fn gossamer_compare(a: *const u8, b: *const u8, len_bytes: usize) -> i32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::cmp::Ordering;

    const LENGTHS: [usize; 22] =
        [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 63, 64, 65, 100, 127, 128, 129, 255, 300];

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + n / 5) as u8).collect()
    }

    #[test]
    fn moves_of_every_overlap_are_those_of_the_standard_library() {
        for len in LENGTHS {
            for (from, to) in [(0, 400), (400, 0), (50, 51), (51, 50), (50, 114), (114, 50), (60, 67), (67, 60), (9, 9)]
            {
                let mut expected = pattern(800);
                let mut bytes = expected.clone();
                expected.copy_within(from..from + len, to);
                let at = bytes.as_mut_ptr();
                // SAFETY: both ranges lie within the 800 bytes.
                let answer = unsafe { gossamer_move(at.add(to), at.add(from), len) };
                assert_eq!(answer, at.wrapping_add(to));
                assert!(bytes == expected, "{len} bytes from {from} to {to}");
            }
        }
    }

    #[test]
    fn a_copy_changes_its_range_alone() {
        for len in LENGTHS {
            let from = pattern(len);
            let mut to = [0xee; 310];
            // SAFETY: `to` has room for 300 bytes behind the first.
            unsafe { gossamer_copy(to.as_mut_ptr().add(1), from.as_ptr(), len) };
            assert_eq!(to[1..1 + len], from);
            assert!(to[0] == 0xee && to[1 + len..].iter().all(|b| *b == 0xee));
            // SAFETY: as above.
            unsafe { gossamer_set(to.as_mut_ptr().add(1), 0x1a5, len) };
            assert!(to[1..1 + len].iter().all(|b| *b == 0xa5));
            assert!(to[0] == 0xee && to[1 + len..].iter().all(|b| *b == 0xee));
        }
    }

    #[test]
    fn the_first_difference_decides() {
        for len in LENGTHS {
            let a = pattern(len);
            // SAFETY: both have `len` bytes.
            let compare = |b: &[u8]| unsafe { gossamer_compare(a.as_ptr(), b.as_ptr(), len) }.cmp(&0);
            assert_eq!(compare(&a), Ordering::Equal);
            for at in 0..len {
                let mut b = a.clone();
                b[at] = a[at].wrapping_add(128);
                b[at + 1..].iter_mut().for_each(|x| *x = !*x);
                assert_eq!(compare(&b), a.cmp(&b), "{len} bytes, the difference at {at}");
            }
        }
    }
}
