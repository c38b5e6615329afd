//! Integers in CBOR whose length does not depend on them: what the appliance writes down by itself fits where it did before.

use minicbor::encode::{Encoder, Error, Write};

/// The head of an unsigned integer of eight bytes. Shorter ones are read as well.
const U64_HEAD: u8 = 0x1b;

pub(crate) fn encode<C, W: Write>(value: &u64, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), Error<W::Error>> {
    let writer = encoder.writer_mut();
    writer.write_all(&[U64_HEAD]).and_then(|()| writer.write_all(&value.to_be_bytes())).map_err(Error::write)
}

#[cfg(test)]
mod tests {
    use crate::catalog::Activation;

    /// As records have it that are older than this.
    #[test]
    fn a_short_integer_is_read_and_no_long_one_needs_more_room() {
        let mut old = [&[0x83, 0x07, 0x50][..], &[0xaa; 16], &[0xf5]].concat();
        let activation: Activation = minicbor::decode(&old).unwrap();
        assert_eq!(activation, Activation { epoch: 7, instance: [0xaa; 16], open: true });
        old.splice(1..2, [0x1b, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(minicbor::to_vec(activation).unwrap(), old);
        let last = Activation { epoch: u64::MAX, ..activation };
        let written = minicbor::to_vec(last).unwrap();
        assert_eq!((written.len(), minicbor::decode(&written).unwrap()), (old.len(), last));
    }
}
