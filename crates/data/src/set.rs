//! Sets of images: in memory, or whatever else can hand out an image by index.

use crate::image::ImageRef;
use equipoise_base::{Result, bail, ensure};

/// Images by index, read from several threads at once.
pub trait ImageSource: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of an image.
    fn label(&self, index: usize) -> u32;

    /// Hands an image to `with`; a source that decodes may keep the pixels in a buffer of its own meanwhile.
    ///
    /// # Errors
    /// When the image cannot be read or decoded, naming it.
    fn with_image(&self, index: usize, with: &mut dyn FnMut(ImageRef<'_>)) -> Result<()>;
}

/// Images of one size in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSet {
    /// Rows of each image.
    pub height: usize,
    /// Columns of each image.
    pub width: usize,
    /// 1 (gray) or 3 (RGB).
    pub channels: usize,
    /// `[n, height, width, channels]`.
    pub pixels: Vec<u8>,
    /// `[n]`, each below the number of classes.
    pub labels: Vec<u32>,
}

impl ImageSet {
    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// 65 when they do not.
    pub fn new(
        height: usize,
        width: usize,
        channels: usize,
        pixels: Vec<u8>,
        labels: Vec<u32>,
    ) -> Result<Self> {
        ensure!(
            channels == 1 || channels == 3,
            BadData,
            "images have {channels} channels; 1 or 3 are supported"
        );
        let (has, images) = (pixels.len(), labels.len());
        if height == 0 || width == 0 || has != images * height * width * channels {
            bail!(BadData, "{has} bytes of pixels are not {images} images of {height}x{width}x{channels}");
        }
        Ok(Self { height, width, channels, pixels, labels })
    }

    /// Bytes of one image.
    pub fn image_bytes(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// An image by index.
    ///
    /// # Panics
    /// If it is out of range.
    pub fn image(&self, index: usize) -> ImageRef<'_> {
        let size = self.image_bytes();
        let pixels = &self.pixels[index * size..(index + 1) * size];
        ImageRef { height: self.height, width: self.width, channels: self.channels, pixels }
    }

    /// The images at `indices`, in that order.
    ///
    /// # Panics
    /// If one is out of range.
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_bytes());
        for &index in indices {
            pixels.extend_from_slice(self.image(index).pixels);
        }
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        Self { pixels, labels, ..*self }
    }

    /// Appends another set.
    ///
    /// # Errors
    /// 65 when the images differ in size or channels.
    pub fn append(&mut self, other: Self) -> Result<()> {
        if self.labels.is_empty() {
            *self = other;
            return Ok(());
        }
        let shape = |set: &Self| [set.height, set.width, set.channels];
        let (ours, theirs) = (shape(self), shape(&other));
        ensure!(ours == theirs, BadData, "images of shape {theirs:?} cannot join images of shape {ours:?}");
        self.pixels.extend_from_slice(&other.pixels);
        self.labels.extend_from_slice(&other.labels);
        Ok(())
    }
}

impl ImageSource for ImageSet {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    fn with_image(&self, index: usize, with: &mut dyn FnMut(ImageRef<'_>)) -> Result<()> {
        let images = self.labels.len();
        ensure!(index < images, BadData, "image {index} of a set of {images} does not exist");
        with(self.image(index));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_and_append() {
        let mut set = ImageSet::new(1, 2, 1, vec![1, 2, 3, 4, 5, 6], vec![0, 1, 2]).unwrap();
        let part = set.select(&[2, 0]);
        assert_eq!((&part.pixels[..], &part.labels[..]), (&[5, 6, 1, 2][..], &[2, 0][..]));
        set.append(part).unwrap();
        assert_eq!(set.labels, [0, 1, 2, 2, 0]);
        assert!(set.append(ImageSet::new(2, 1, 1, vec![1, 2], vec![0]).unwrap()).is_err());
        assert!(set.with_image(5, &mut |_| ()).is_err());
    }

    #[test]
    fn parts_must_fit() {
        assert!(ImageSet::new(1, 2, 1, vec![1, 2, 3], vec![0]).is_err());
        assert!(ImageSet::new(1, 1, 2, vec![1, 2], vec![0]).is_err());
        assert!(ImageSet::new(0, 1, 1, vec![], vec![0]).is_err());
    }
}
