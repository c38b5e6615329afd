//! CDBs in hexadecimal, and what they mean.

use super::*;

fn cdb(hex: &str) -> [u8; 16] {
    let mut cdb = [0; 16];
    for (place, byte) in cdb.iter_mut().zip(hex.split_whitespace()) {
        *place = u8::from_str_radix(byte, 16).unwrap();
    }
    cdb
}

fn decode(hex: &str) -> Result<Command, Sense> {
    Command::decode(&cdb(hex))
}

fn extent(lba: u64, blocks: u64) -> Extent {
    Extent { lba, blocks }
}

#[test]
fn reads_and_writes_of_all_lengths() {
    let table = [
        ("08 1f ff fe 05 00", Command::Read { extent: extent(0x1ffffe, 5), fua: false }),
        ("08 e0 00 01 00 00", Command::Read { extent: extent(1, 256), fua: false }),
        ("0a 00 00 02 01 00", Command::Write { extent: extent(2, 1), fua: false }),
        ("28 18 01 02 03 04 00 00 10 00", Command::Read { extent: extent(0x01020304, 16), fua: true }),
        ("2a 00 ff ff ff ff 00 ff ff 00", Command::Write { extent: extent(0xffff_ffff, 0xffff), fua: false }),
        ("a8 00 00 00 00 01 00 01 00 00", Command::Read { extent: extent(1, 0x10000), fua: false }),
        ("aa 08 00 00 00 01 00 00 00 02", Command::Write { extent: extent(1, 2), fua: true }),
        (
            "88 00 01 02 03 04 05 06 07 08 00 00 00 09",
            Command::Read { extent: extent(0x0102030405060708, 9), fua: false },
        ),
        ("8a 08 00 00 00 00 00 00 00 00 00 00 00 00", Command::Write { extent: extent(0, 0), fua: true }),
        ("2e 02 00 00 00 01 00 00 02 00", Command::WriteAndVerify { extent: extent(1, 2), compare: Compare::Blocks }),
        ("2f 00 00 00 00 01 00 00 02 00", Command::Verify { extent: extent(1, 2), compare: Compare::Nothing }),
        ("af 02 00 00 00 01 00 00 00 02", Command::Verify { extent: extent(1, 2), compare: Compare::Blocks }),
        (
            "8f 06 00 00 00 00 00 00 00 01 00 00 00 02",
            Command::Verify { extent: extent(1, 2), compare: Compare::OneBlock },
        ),
        ("41 08 00 00 00 01 00 00 02 00", Command::WriteSame { extent: extent(1, 2), unmap: true, no_data: false }),
        (
            "93 09 00 00 00 00 00 00 00 01 00 00 00 02",
            Command::WriteSame { extent: extent(1, 2), unmap: true, no_data: true },
        ),
        ("89 08 00 00 00 00 00 00 00 01 00 00 00 03", Command::CompareAndWrite { extent: extent(1, 3), fua: true }),
        ("8b 00 00 00 00 00 00 00 00 01 00 00 00 03", Command::OrWrite { extent: extent(1, 3), fua: false }),
        ("35 00 00 00 00 00 00 00 00 00", Command::SynchronizeCache { extent: extent(0, 0) }),
        ("91 00 00 00 00 00 00 00 00 07 00 00 00 01", Command::SynchronizeCache { extent: extent(7, 1) }),
        ("34 00 00 00 00 09 00 00 01 00", Command::PreFetch { extent: extent(9, 1) }),
        ("42 00 00 00 00 00 00 00 18 00", Command::Unmap { list_bytes: 24 }),
        ("9e 12 00 00 00 00 00 00 00 05 00 00 00 18", Command::GetLbaStatus { lba: 5, allocation: 24 }),
        ("9e 10 00 00 00 00 00 00 00 00 00 00 00 20", Command::ReadCapacity16 { allocation: 32 }),
        ("12 01 b0 00 40 00", Command::Inquiry { page: Some(0xb0), allocation: 64 }),
        ("12 00 00 01 00 00", Command::Inquiry { page: None, allocation: 256 }),
        ("a0 00 02 00 00 00 00 00 10 00", Command::ReportLuns { select: 2, allocation: 4096 }),
    ];
    for (hex, command) in table {
        assert_eq!(decode(hex), Ok(command), "{hex}");
    }
}

#[test]
fn what_is_refused() {
    let table = [
        ("ff", Sense::INVALID_OPCODE),
        ("7f", Sense::INVALID_OPCODE),
        ("9e 1f", Sense::cdb_field(1)),
        ("a3 00", Sense::cdb_field(1)),
        ("28 20", Sense::cdb_field(1)),
        ("8a 80", Sense::cdb_field(1)),
        ("2e 06", Sense::cdb_field(1)),
        ("2f 04", Sense::cdb_field(1)),
        ("93 10", Sense::cdb_field(1)),
        ("42 01", Sense::cdb_field(1)),
        ("12 00 80", Sense::cdb_field(2)),
        ("25 00 00 00 00 01", Sense::cdb_field(2)),
        ("55 00", Sense::cdb_field(1)),
        ("1d 10", Sense::cdb_field(1)),
    ];
    for (hex, sense) in table {
        assert_eq!(decode(hex), Err(sense), "{hex}");
    }
}

#[test]
fn data_that_comes_with_commands() {
    let table = [
        ("2a 00 00 00 00 00 00 00 03 00", DataOut::Stream(1536)),
        ("28 00 00 00 00 00 00 00 03 00", DataOut::None),
        ("2f 00 00 00 00 00 00 00 03 00", DataOut::None),
        ("2f 02 00 00 00 00 00 00 03 00", DataOut::Stream(1536)),
        ("2f 06 00 00 00 00 00 00 03 00", DataOut::Whole(512)),
        ("93 01 00 00 00 00 00 00 00 00 00 00 00 03", DataOut::None),
        ("93 00 00 00 00 00 00 00 00 00 00 00 00 03", DataOut::Whole(512)),
        ("89 00 00 00 00 00 00 00 00 00 00 00 00 ff", DataOut::Whole(2 * 255 * 512)),
        ("42 00 00 00 00 00 00 00 18 00", DataOut::Whole(24)),
        ("8a 00 00 00 00 00 00 00 00 00 ff ff ff ff", DataOut::Stream(0xffff_ffff * 512)),
    ];
    for (hex, data) in table {
        assert_eq!(decode(hex).unwrap().data_out(512), data, "{hex}");
    }
    let longest = decode("89 00 00 00 00 00 00 00 00 00 00 00 00 ff").unwrap();
    assert_eq!(longest.data_out(4096), DataOut::None, "more than is taken at once is refused, not received");
    for (hex, list_bytes) in [("5f 06 00 00 00", 64 << 10), ("83 00 00 00 00 00 00 00 00 00", 16 + 8192)] {
        let of = |bytes: u32| {
            let [a, b, c, d] = bytes.to_be_bytes();
            decode(&alloc::format!("{hex} {a:02x} {b:02x} {c:02x} {d:02x}")).unwrap().data_out(512)
        };
        assert_eq!((of(list_bytes), of(list_bytes + 1)), (DataOut::Whole(list_bytes), DataOut::None), "{hex}");
    }
}

proptest::proptest! {
    #[test]
    fn any_cdb_is_decoded_or_refused(cdb in proptest::array::uniform16(0u8..)) {
        if let Ok(command) = Command::decode(&cdb) {
            command.data_out(4096).bytes();
        }
    }
}
