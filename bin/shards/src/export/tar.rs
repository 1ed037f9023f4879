//! The little of the ustar format (POSIX.1-1988) that archives of small files need. Equal content gives equal bytes:
//! no owner and no time is recorded.

/// Everything in an archive fills blocks of this size.
pub const BLOCK: u64 = 512;

/// Two blocks of zeros end an archive.
pub const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];

/// One file: header, content, padding.
///
/// # Panics
/// If the name is longer than 100 bytes or the content than 8 GiB.
pub fn member(name: &str, content: &[u8]) -> Vec<u8> {
    assert!(name.len() <= 100 && content.len() < 1 << 33, "'{name}' does not fit into a tar header");
    let mut block = vec![0u8; BLOCK as usize];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    // The sum is taken with blanks in its own place.
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(BLOCK as usize), 0);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_fill_blocks_and_their_headers_add_up() {
        for (content, blocks) in [(&b""[..], 1), (b"x", 2), (&[7; 512], 2), (&[7; 513], 3)] {
            let member = member("00003-00000017.cls", content);
            assert_eq!(member.len(), blocks * 512);
            assert_eq!(&member[512..512 + content.len()], content);
        }
        let header = member("a", b"0123456789");
        assert_eq!(&header[124..136], b"00000000012\0");
        let mut blank = header[..512].to_vec();
        blank[148..156].fill(b' ');
        let sum: u32 = blank.iter().map(|&byte| u32::from(byte)).sum();
        assert_eq!(&header[148..154], format!("{sum:06o}").as_bytes());
    }
}
