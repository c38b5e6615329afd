//! Asymmetric logical unit access (SPC-4 section 5.15): one group of all target ports, which are all equally good.

use alloc::vec::Vec;

/// The target port group.
pub const TARGET_PORT_GROUP: u16 = 1;

/// Active/optimized, the only state that is supported (AO_SUP).
const ACTIVE_OPTIMIZED: u8 = 0;
const AO_SUP: u8 = 0x01;

/// The answer to REPORT TARGET PORT GROUPS, with the extended header if that is asked for.
pub fn report(target_ports: &[u16], extended: bool) -> Vec<u8> {
    // No implicit transition takes any time.
    let mut data = if extended { alloc::vec![0x10, 0, 0, 0] } else { Vec::new() };
    let [high, low] = TARGET_PORT_GROUP.to_be_bytes();
    data.extend([ACTIVE_OPTIMIZED, AO_SUP, high, low, 0, 0, 0, target_ports.len() as u8]);
    for port in target_ports {
        let [high, low] = port.to_be_bytes();
        data.extend([0, 0, high, low]);
    }
    [&(data.len() as u32).to_be_bytes(), &data[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_are_in_one_group() {
        assert_eq!(report(&[1], false), [0, 0, 0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        let two = report(&[1, 2], true);
        assert_eq!(two[..8], [0, 0, 0, 20, 0x10, 0, 0, 0]);
        assert_eq!(two[8..], [0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
}
