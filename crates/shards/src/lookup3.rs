//! Jenkins' lookup3 hash, which HDF5 uses to check its own metadata.
//!
//! Needed in one place: while HDF5 has a file open, the superblock says "open for writing", and HDF5 refuses to open it
//! again. [`seal_superblock`] makes it what closing would make it.
//! (Bob Jenkins, "lookup3.c", May 2006, public domain; HDF5 File Format Specification 3.0, section II.A.)

/// Bytes of a version 3 superblock (8-byte offsets and lengths) that its checksum covers.
const SUPERBLOCK_CHECKED: usize = 44;
/// Place of the byte that says whether the file is open for writing.
const CONSISTENCY_FLAGS: usize = 11;

/// Clears the consistency flags of the superblock at the start of an HDF5 file image, and renews its checksum.
///
/// Returns false, changing nothing, when the image does not start with a superblock of version 2 or 3 with 8-byte
/// offsets.
pub(crate) fn seal_superblock(image: &mut [u8]) -> bool {
    let known = image.len() >= SUPERBLOCK_CHECKED + 4
        && image.starts_with(b"\x89HDF\r\n\x1a\n")
        && matches!(image[8], 2 | 3)
        && image[9..11] == [8, 8];
    if known {
        image[CONSISTENCY_FLAGS] = 0;
        let checksum = lookup3(&image[..SUPERBLOCK_CHECKED]);
        image[SUPERBLOCK_CHECKED..SUPERBLOCK_CHECKED + 4].copy_from_slice(&checksum.to_le_bytes());
    }
    known
}

/// `hashlittle(bytes, len, 0)` of lookup3.c.
fn lookup3(bytes: &[u8]) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(bytes.len() as u32);
    let mut state = [start; 3];
    // The last block, full or not, is mixed by `finish` instead of `mix`.
    let last = bytes.len().saturating_sub(1) / 12 * 12;
    for block in bytes[..last].chunks(12) {
        add(&mut state, block);
        mix(&mut state);
    }
    if bytes.is_empty() {
        return start;
    }
    add(&mut state, &bytes[last..]);
    finish(&mut state);
    state[2]
}

/// Adds up to 12 bytes, as three little-endian words padded with zeros.
fn add(state: &mut [u32; 3], block: &[u8]) {
    for (word, bytes) in state.iter_mut().zip(block.chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = word.wrapping_add(u32::from_le_bytes(padded));
    }
}

fn mix([a, b, c]: &mut [u32; 3]) {
    for (rotation_a, rotation_b, rotation_c) in [(4, 6, 8), (16, 19, 4)] {
        *a = a.wrapping_sub(*c) ^ c.rotate_left(rotation_a);
        *c = c.wrapping_add(*b);
        *b = b.wrapping_sub(*a) ^ a.rotate_left(rotation_b);
        *a = a.wrapping_add(*c);
        *c = c.wrapping_sub(*b) ^ b.rotate_left(rotation_c);
        *b = b.wrapping_add(*a);
    }
}

fn finish([a, b, c]: &mut [u32; 3]) {
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(14));
    *a = (*a ^ *c).wrapping_sub(c.rotate_left(11));
    *b = (*b ^ *a).wrapping_sub(a.rotate_left(25));
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(16));
    *a = (*a ^ *c).wrapping_sub(c.rotate_left(4));
    *b = (*b ^ *a).wrapping_sub(a.rotate_left(14));
    *c = (*c ^ *b).wrapping_sub(b.rotate_left(24));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `driver5` of lookup3.c.
    #[test]
    fn published_vectors() {
        assert_eq!(lookup3(b""), 0xdead_beef);
        assert_eq!(lookup3(b"Four score and seven years ago"), 0x1777_0551);
    }

    #[test]
    fn only_superblocks_are_sealed() {
        let mut garbage = vec![0; 100];
        assert!(!seal_superblock(&mut garbage));
        assert!(!seal_superblock(&mut garbage[..3]));
        assert_eq!(garbage, vec![0; 100]);
    }
}
