//! The text of `dmsetup message` (reference 7.2).

use crate::control::DeviceId;
use crate::error::Error;

/// A message, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Makes an empty device.
    CreateThin(DeviceId),
    /// Makes a snapshot.
    CreateSnap {
        /// The new device.
        device: DeviceId,
        /// What it is a snapshot of.
        origin: DeviceId,
    },
    /// Deletes a device.
    Delete(DeviceId),
    /// Changes userland's transaction id.
    SetTransactionId {
        /// What it must be.
        current: u64,
        /// What it becomes.
        new: u64,
    },
    /// Takes a metadata snapshot.
    ReserveMetadataSnap,
    /// Lets it go.
    ReleaseMetadataSnap,
}

impl Message {
    /// Names in any case, numbers in decimal; anything else is -EINVAL.
    pub fn parse(text: &str) -> Result<Message, Error> {
        let mut words = text.split_ascii_whitespace();
        let name = words.next().ok_or(Error::BadMessage("it is empty"))?;
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("create_thin") {
            let [device] = exactly(words)?;
            Ok(Message::CreateThin(id(device)?))
        } else if is("create_snap") {
            let [device, origin] = exactly(words)?;
            Ok(Message::CreateSnap { device: id(device)?, origin: id(origin)? })
        } else if is("delete") {
            let [device] = exactly(words)?;
            Ok(Message::Delete(id(device)?))
        } else if is("set_transaction_id") {
            let [current, new] = exactly(words)?;
            Ok(Message::SetTransactionId { current: number(current)?, new: number(new)? })
        } else if is("reserve_metadata_snap") {
            let [] = exactly(words)?;
            Ok(Message::ReserveMetadataSnap)
        } else if is("release_metadata_snap") {
            let [] = exactly(words)?;
            Ok(Message::ReleaseMetadataSnap)
        } else {
            Err(Error::BadMessage("there is none of this name"))
        }
    }
}

/// The rest of the words, which must be `N`.
fn exactly<'t, const N: usize>(mut words: impl Iterator<Item = &'t str>) -> Result<[&'t str; N], Error> {
    let mut found = [""; N];
    for place in &mut found {
        *place = words.next().ok_or(Error::BadMessage("an argument is missing"))?;
    }
    match words.next() {
        None => Ok(found),
        Some(_) => Err(Error::BadMessage("it has too many arguments")),
    }
}

/// A decimal number; a leading `+` and zeros are accepted.
fn number(word: &str) -> Result<u64, Error> {
    word.parse().map_err(|_| Error::BadMessage("an argument is no decimal number of 64 bits"))
}

fn id(word: &str) -> Result<DeviceId, Error> {
    DeviceId::new(number(word)?).ok_or(Error::BadMessage("a thin id has 24 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Errno;

    fn device(id: u64) -> DeviceId {
        DeviceId::new(id).unwrap()
    }

    #[test]
    fn names_in_any_case_and_numbers_with_plus_and_zeros() {
        assert_eq!(Message::parse("create_thin 7"), Ok(Message::CreateThin(device(7))));
        assert_eq!(Message::parse("  CREATE_Thin +007 "), Ok(Message::CreateThin(device(7))));
        let snap = Message::CreateSnap { device: device(16_777_215), origin: device(0) };
        assert_eq!(Message::parse("create_snap 16777215 0"), Ok(snap));
        let set = Message::SetTransactionId { current: 0, new: u64::MAX };
        assert_eq!(Message::parse("set_transaction_id 0 18446744073709551615"), Ok(set));
        assert_eq!(Message::parse("release_metadata_snap"), Ok(Message::ReleaseMetadataSnap));
    }

    #[test]
    fn anything_else_is_einval() {
        let bad = "|\t|nonsense|create_thin|create_thin 1 2|create_thin 0x10|create_thin -1|create_thin 16777216|\
                   create_thin one|create_thin 99999999999999999999|create_snap 1|create_snap 1 2 3|delete|delete 1 2|\
                   set_transaction_id 1|set_transaction_id 1 18446744073709551616|reserve_metadata_snap 1|\
                   release_metadata_snap x|create_thin +|create_thin ++1|create_thin 1.0";
        for text in bad.split('|') {
            let error = Message::parse(text).unwrap_err();
            assert_eq!(error.errno(), Errno::EINVAL, "{text:?}");
        }
    }
}
