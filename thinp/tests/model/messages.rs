//! Messages: good ones, bad ones, and their errno.

use crate::count;
use crate::driver::{DEVICES, Driver, id};
use crate::world::Origin;
use thinp::control::{Errno, Mode};

impl Driver {
    /// Sends a message that must end as the model says; true if it was carried out. Lack of metadata may refuse what
    /// `takes_metadata`.
    async fn message(&mut self, text: &str, expected: Result<(), Errno>, takes_metadata: bool) -> bool {
        let mut text = text.to_owned();
        match self.dice.below(6) {
            0 => text.make_ascii_uppercase(),
            1 => text = text.replace(' ', "  +0"),
            _ => {}
        }
        let result = self.pool().message(&text).await.map_err(|error| error.errno());
        if self.read_only {
            assert_eq!(result, Err(Errno::EOPNOTSUPP), "{text}");
            count("message refused, read-only");
            return false;
        }
        let refused = matches!(result, Err(Errno::EOPNOTSUPP | Errno::ENOSPC));
        if refused && takes_metadata {
            assert!(self.metadata_is_short(), "{text}: {}", self.pool().status());
            count("message refused, no metadata space");
            return false;
        }
        assert_eq!(result.clone().map(|_| ()), expected, "{text}, in {} mode", self.pool().status().mode);
        if result.is_ok() {
            count(text.to_ascii_lowercase().split(' ').next().unwrap());
        } else {
            count("message that cannot be");
        }
        result.is_ok()
    }

    /// Any of the ids in use, existing or not.
    fn any_id(&self) -> u32 {
        let existing = self.any_device().filter(|device| u64::from(*device) < DEVICES);
        existing.filter(|_| self.dice.chance(3)).unwrap_or(self.dice.below(DEVICES) as u32)
    }

    fn exists(&self, device: u32) -> bool {
        self.model.devices.contains_key(&device)
    }

    pub async fn create(&mut self) {
        let device = self.any_id();
        let expected = if self.exists(device) { Err(Errno::EEXIST) } else { Ok(()) };
        if self.message(&format!("create_thin {device}"), expected, true).await {
            let origin = self.dice.chance(4).then(|| {
                self.model.origins.push(Origin { sectors: self.dice.below(200 * 128) });
                self.model.origins.len() - 1
            });
            self.model.create(device, origin);
            self.discards = 0;
            self.committed();
            self.open_thin(device).await;
        }
    }

    pub async fn snapshot(&mut self) {
        let (device, origin) = (self.any_id(), self.any_id());
        let expected = match (self.exists(device), self.exists(origin)) {
            (true, _) => Err(Errno::EEXIST),
            (false, false) => Err(Errno::ENODATA),
            (false, true) => Ok(()),
        };
        if self.message(&format!("create_snap {device} {origin}"), expected, true).await {
            self.model.snapshot(device, origin);
            self.discards = 0;
            self.committed();
            self.open_thin(device).await;
        }
    }

    pub async fn delete(&mut self) {
        let device = self.any_id();
        let text = format!("delete {device}");
        if !self.exists(device) {
            self.message(&text, Err(Errno::ENODATA), false).await;
            return;
        }
        if self.dice.chance(3) {
            self.message(&text, Err(Errno::EBUSY), false).await;
        }
        self.delete_device(device).await;
    }

    /// Deletes a device that exists.
    pub async fn delete_device(&mut self, device: u32) {
        let text = format!("delete {device}");
        self.thins.remove(&device);
        let short = self.pool().status().mode == Mode::OutOfMetadataSpace;
        // From the reserve, if need be.
        if !self.message(&text, Ok(()), false).await {
            self.open_thin(device).await;
            // Who opens it anew was not promised what is lost.
            self.lost.remove(&device);
            return;
        }
        let (used, mappings) = (self.model.used, self.model.device(device).mappings.len() as u64);
        self.model.delete(device);
        self.committed();
        self.lost.remove(&device);
        if short {
            count("delete from the reserve");
        }
        count(match used - self.model.used {
            0 => "delete of what is shared",
            freed if freed == mappings => "delete of what is not shared",
            _ => "delete of what is partly shared",
        });
        assert!(self.pool().open_thin(id(device), None).await.err().is_some_and(|e| e.errno() == Errno::ENODATA));
    }

    pub async fn set_transaction_id(&mut self) {
        let (current, new) = (self.model.transaction_id, self.dice.below(1 << 20));
        let right = !self.dice.chance(3);
        let given = if right { current } else { current + 1 };
        let expected = if right { Ok(()) } else { Err(Errno::EINVAL) };
        if self.message(&format!("set_transaction_id {given} {new}"), expected, true).await {
            self.model.transaction_id = new;
            self.committed();
        }
    }

    pub async fn reserve(&mut self) {
        let expected = if self.model.held.is_some() { Err(Errno::EBUSY) } else { Ok(()) };
        if self.message("reserve_metadata_snap", expected, true).await {
            self.model.hold();
            self.discards = 0;
            self.made_durable();
        }
    }

    pub async fn release(&mut self) {
        let expected = if self.model.held.is_none() { Err(Errno::EINVAL) } else { Ok(()) };
        if self.message("release_metadata_snap", expected, false).await {
            let used = self.model.used;
            self.model.release();
            self.made_durable();
            let freed = self.model.used < used;
            count(if freed { "release that frees data" } else { "release that frees no data" });
        }
    }

    pub async fn bad_message(&mut self) {
        let texts = [
            "",
            "nonsense",
            "create_thin",
            "create_thin 16777216",
            "create_thin 1 2",
            "create_thin one",
            "create_thin 0x1",
            "create_thin -1",
            "create_snap 1",
            "create_snap 1 2 3",
            "create_snap 1 16777216",
            "delete",
            "delete 1 2",
            "delete 99999999999999999999999",
            "set_transaction_id 1",
            "set_transaction_id 1 2 3",
            "set_transaction_id 0 18446744073709551616",
            "reserve_metadata_snap 1",
            "release_metadata_snap now",
        ];
        let text = texts[self.dice.below(texts.len() as u64) as usize];
        let expected = if self.read_only { Errno::EOPNOTSUPP } else { Errno::EINVAL };
        let result = self.pool().message(text).await;
        self.expect_errno(result, expected).await;
        count("malformed message");
    }
}
