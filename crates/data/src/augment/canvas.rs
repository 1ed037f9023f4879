//! An image in the course of augmentation.

use crate::ImageRef;

/// Float planes (CHW), with a second buffer for the transforms that cannot work in place.
///
/// One canvas per thread, used again and again: after the first few images nothing is allocated.
#[derive(Clone, Debug, Default)]
pub struct Canvas {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
    pub(super) spare: Vec<f32>,
    /// Columns of [`LANES`] rows.
    pub(super) lanes: Vec<[f32; LANES]>,
}

/// Rows that are resized at once.
pub(super) const LANES: usize = 16;

/// A rectangle within an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// Columns, at least 1.
    pub width: usize,
}

impl Window {
    /// All of an image.
    pub fn whole(height: usize, width: usize) -> Self {
        Self { top: 0, left: 0, height, width }
    }
}

impl Canvas {
    /// A canvas with these planes.
    ///
    /// # Panics
    /// If `data` is not `channels * height * width` values.
    pub fn new(channels: usize, height: usize, width: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), channels * height * width, "planes of {channels}x{height}x{width}");
        Self { channels, height, width, data, ..Self::default() }
    }

    /// Number of planes.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The planes, `[channels, height, width]`.
    pub fn planes(&self) -> &[f32] {
        &self.data
    }

    /// Loads a part of an image as values in [0, 1]. Gray becomes three equal planes and RGB becomes luma where
    /// `channels` asks for it.
    ///
    /// # Panics
    /// If the window does not lie within the image.
    pub fn load(&mut self, image: ImageRef<'_>, channels: usize, window: Window) {
        (self.channels, self.height, self.width) = (channels, window.height, window.width);
        let plane = window.height * window.width;
        // Every value is written below.
        self.data.resize(channels * plane, 0.0);
        let row = image.width * image.channels;
        for y in 0..window.height {
            let start = (window.top + y) * row + window.left * image.channels;
            let source = &image.pixels[start..start + window.width * image.channels];
            let at = y * window.width;
            match (image.channels, channels) {
                (3, 3) => {
                    let (red, rest) = self.data.split_at_mut(plane);
                    let (green, blue) = rest.split_at_mut(plane);
                    let outputs = red[at..].iter_mut().zip(&mut green[at..]).zip(&mut blue[at..]);
                    for (rgb, ((r, g), b)) in source.chunks_exact(3).zip(outputs) {
                        (*r, *g, *b) = (unit(rgb[0]), unit(rgb[1]), unit(rgb[2]));
                    }
                }
                (3, _) => {
                    for (rgb, out) in source.chunks_exact(3).zip(&mut self.data[at..]) {
                        *out = unit(crate::image::luma(rgb[0], rgb[1], rgb[2]));
                    }
                }
                _ => {
                    for target in self.data.chunks_exact_mut(plane) {
                        for (&gray, out) in source.iter().zip(&mut target[at..]) {
                            *out = unit(gray);
                        }
                    }
                }
            }
        }
    }

    /// Shifts and scales each plane: `(x - mean) / std`. One value serves all planes.
    pub fn normalize(&mut self, mean: &[f32], std: &[f32]) {
        let plane = self.height * self.width;
        for (channel, values) in self.data.chunks_exact_mut(plane).enumerate() {
            let (mean, std) = (mean[channel.min(mean.len() - 1)], std[channel.min(std.len() - 1)]);
            values.iter_mut().for_each(|value| *value = (*value - mean) / std);
        }
    }

    /// Sets a rectangle to 0 in all planes.
    pub fn erase(&mut self, window: Window) {
        for plane in self.data.chunks_exact_mut(self.height * self.width) {
            for row in plane.chunks_exact_mut(self.width).skip(window.top).take(window.height) {
                row[window.left..window.left + window.width].fill(0.0);
            }
        }
    }

    /// Makes the spare buffer the image: `[channels, height, width]` for the current channels.
    pub(super) fn swap(&mut self, height: usize, width: usize) {
        (self.height, self.width) = (height, width);
        std::mem::swap(&mut self.data, &mut self.spare);
    }
}

/// A byte as torchvision's `to_dtype(float32, scale=True)` makes it.
fn unit(byte: u8) -> f32 {
    f32::from(byte) / 255.0
}
