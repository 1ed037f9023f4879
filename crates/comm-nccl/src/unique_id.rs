//! The id of a group, sealed with the nonce of the attempt it was made for.

use crate::library::{Library, RAW_ID_BYTES, RawId};
use equipoise_base::{Result, bail, ensure};

const NONCE_BYTES: usize = size_of::<u64>();

/// What all ranks of a group have to know.
#[derive(Clone, Copy)]
pub struct UniqueId {
    raw: RawId,
    nonce: u64,
}

impl UniqueId {
    /// Length of [`UniqueId::to_bytes`].
    pub const BYTES: usize = NONCE_BYTES + RAW_ID_BYTES;

    /// A new id, on one rank only. `nonce` is the attempt's: all ranks know it without being told by this id.
    ///
    /// # Errors
    /// Configuration: NCCL cannot be loaded. I/O: NCCL finds no network interface.
    pub fn new(nonce: u64) -> Result<Self> {
        let library = Library::get()?;
        let mut raw = RawId([0; RAW_ID_BYTES]);
        // SAFETY: the pointer is valid for the call.
        library.check("ncclGetUniqueId", unsafe { (library.get_unique_id)(&mut raw) })?;
        Ok(Self { raw, nonce })
    }

    /// For the broadcast: the nonce as 8 bytes, little-endian, then NCCL's 128.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.nonce.to_le_bytes()[..], &self.raw.0].concat()
    }

    /// The id that another rank made in this attempt.
    ///
    /// # Errors
    /// Configuration: it was made in another attempt. Bug: wrong length.
    pub fn from_bytes(bytes: &[u8], nonce: u64) -> Result<Self> {
        ensure!(
            bytes.len() == Self::BYTES,
            Bug,
            "NCCL id of {} bytes, expected {}",
            bytes.len(),
            Self::BYTES
        );
        let (sealed, raw) = bytes.split_at(NONCE_BYTES);
        let sealed = sealed.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte));
        if sealed != nonce {
            bail!(Config, "stale NCCL id: made in attempt {sealed:016x}, this is attempt {nonce:016x}");
        }
        let mut id = RawId([0; RAW_ID_BYTES]);
        id.0.copy_from_slice(raw);
        Ok(Self { raw: id, nonce })
    }

    pub(crate) fn raw(&self) -> RawId {
        self.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::ExitCode;

    #[test]
    fn the_nonce_decides() {
        let id = UniqueId { raw: RawId([7; RAW_ID_BYTES]), nonce: 0x0102_0304_0506_0708 };
        let bytes = id.to_bytes();
        assert_eq!(UniqueId::from_bytes(&bytes, id.nonce).unwrap_or(id).to_bytes(), bytes);
        let code = |outcome: Result<UniqueId>| outcome.err().map(|error| error.code());
        assert_eq!(code(UniqueId::from_bytes(&bytes, id.nonce)), None);
        assert_eq!(code(UniqueId::from_bytes(&bytes, 1)), Some(ExitCode::Config));
        assert_eq!(code(UniqueId::from_bytes(&bytes[1..], id.nonce)), Some(ExitCode::Bug));
    }
}
