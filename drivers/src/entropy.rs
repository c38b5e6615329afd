//! Random bits from the processor.

use core::arch::x86_64::{__cpuid, _rdrand64_step};

/// RDRAND may fail for a moment; Intel advises ten attempts.
const ATTEMPTS: usize = 10;

/// 64 bits from RDRAND, if the processor has it and it works.
pub fn rdrand() -> Option<u64> {
    const RDRAND: u32 = 1 << 30;
    if __cpuid(1).ecx & RDRAND == 0 {
        return None;
    }
    let mut value = 0;
    // SAFETY: CPUID says that the instruction is there.
    (0..ATTEMPTS).any(|_| unsafe { step(&mut value) } == 1).then_some(value)
}

#[target_feature(enable = "rdrand")]
fn step(value: &mut u64) -> i32 {
    _rdrand64_step(value)
}
