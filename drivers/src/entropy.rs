//! Random bits from the processor.

use core::arch::x86_64::{__cpuid, _rdrand64_step};

/// RDRAND may fail for a moment; Intel advises ten attempts.
const ATTEMPTS: usize = 10;

/// `N` random words from RDRAND, if the processor has it and it works.
pub fn rdrand_words<const N: usize>() -> Option<[u64; N]> {
    const RDRAND: u32 = 1 << 30;
    if __cpuid(1).ecx & RDRAND == 0 {
        return None;
    }
    let mut words = [0; N];
    // SAFETY: CPUID says that the instruction is there.
    words.iter_mut().all(|word| (0..ATTEMPTS).any(|_| unsafe { step(word) } == 1)).then_some(words)
}

#[target_feature(enable = "rdrand")]
fn step(word: &mut u64) -> i32 {
    _rdrand64_step(word)
}
