//! Names a build, so that binaries of different builds never work on one run.

use crate::layers::DEFAULT;
use crate::schema::SCHEMA;

/// The version, and a hash of the schema and the defaults: the front end starts only step binaries that answer the
/// same. `EQUIPOISE_BUILD_ID`, if set when compiling, is taken instead.
pub const BUILD_ID: &str = match option_env!("EQUIPOISE_BUILD_ID") {
    Some(id) => id,
    None => match std::str::from_utf8(&VERSION_AND_HASH) {
        Ok(id) => id,
        Err(_) => env!("CARGO_PKG_VERSION"),
    },
};

const VERSION: &[u8] = env!("CARGO_PKG_VERSION").as_bytes();
const DIGITS: usize = 8;

/// `0.1.0+89abcdef`.
const VERSION_AND_HASH: [u8; VERSION.len() + 1 + DIGITS] = {
    let mut text = [b'+'; VERSION.len() + 1 + DIGITS];
    let mut at = 0;
    while at < VERSION.len() {
        text[at] = VERSION[at];
        at += 1;
    }
    let hash = fnv1a(fnv1a(0x811c_9dc5, SCHEMA.as_bytes()), DEFAULT.as_bytes());
    let mut digit = 0;
    while digit < DIGITS {
        let nibble = hash >> (4 * (DIGITS - 1 - digit)) & 15;
        text[VERSION.len() + 1 + digit] = b"0123456789abcdef"[nibble as usize];
        digit += 1;
    }
    text
};

/// 32-bit FNV-1a, since the hashes of `base` cannot run at compile time.
const fn fnv1a(mut hash: u32, bytes: &[u8]) -> u32 {
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_version_and_hash() {
        assert_eq!(fnv1a(0x811c_9dc5, b"foobar"), 0xbf9c_f968);
        if option_env!("EQUIPOISE_BUILD_ID").is_none() {
            let (version, hash) = BUILD_ID.split_once('+').unwrap();
            assert_eq!(version, env!("CARGO_PKG_VERSION"));
            assert!(hash.len() == DIGITS && u32::from_str_radix(hash, 16).is_ok());
        }
    }
}
