//! One decoded image.

/// Decoded pixels: unsigned bytes, rows of interleaved channels (HWC), 1 channel (gray) or 3 (RGB).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 or 3.
    pub channels: usize,
    /// `height * width * channels` bytes.
    pub pixels: Vec<u8>,
}

/// An image that lies in someone else's memory.
#[derive(Clone, Copy, Debug)]
pub struct ImageRef<'a> {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 or 3.
    pub channels: usize,
    /// `height * width * channels` bytes.
    pub pixels: &'a [u8],
}

impl Image {
    /// The image, borrowed.
    pub fn view(&self) -> ImageRef<'_> {
        ImageRef { height: self.height, width: self.width, channels: self.channels, pixels: &self.pixels }
    }
}

impl ImageRef<'_> {
    /// The same image with `channels` channels (1 or 3): gray repeats, RGB becomes luma.
    pub fn to_channels(self, channels: usize) -> Image {
        let pixels = match (self.channels, channels) {
            (1, 3) => self.pixels.iter().flat_map(|&gray| [gray; 3]).collect(),
            (3, 1) => self.pixels.chunks_exact(3).map(|rgb| luma(rgb[0], rgb[1], rgb[2])).collect(),
            _ => self.pixels.to_vec(),
        };
        Image { height: self.height, width: self.width, channels, pixels }
    }
}

/// PIL's `convert("L")`: ITU-R 601 in 16-bit fixed point, rounded.
pub(crate) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels() {
        let rgb = Image { height: 1, width: 2, channels: 3, pixels: vec![255, 0, 0, 10, 20, 30] };
        // PIL: Image.new("RGB", (2, 1)) with these pixels, convert("L").
        assert_eq!(rgb.view().to_channels(1).pixels, [76, 18]);
        let gray = Image { height: 1, width: 2, channels: 1, pixels: vec![7, 9] };
        assert_eq!(gray.view().to_channels(3).pixels, [7, 7, 7, 9, 9, 9]);
        assert_eq!(gray.view().to_channels(1), gray);
    }
}
