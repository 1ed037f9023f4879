//! The pixels of a file: samples of one shape, or encoded images of any size.

use crate::codec::{self, Codec, Image};
use crate::h5::{Reader, Writer};
use equipoise_base::hash::xxh3;
use equipoise_base::{Result, bail, ensure};
use std::borrow::Cow;
use std::ops::Range;

/// A sequence of images as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    codec: Codec,
    /// [height, width, channels] of every image; with an encoding, of the images before encoding.
    shape: Option<[usize; 3]>,
    bytes: Vec<u8>,
    /// Image i is `bytes[offsets[i]..offsets[i + 1]]`.
    offsets: Vec<u64>,
}

impl Images {
    /// No images yet. `shape` is [height, width, channels]; without it sizes may differ.
    ///
    /// # Errors
    /// Raw samples need a shape, and a shape needs positive sides and 1 or 3 channels.
    pub fn new(codec: Codec, shape: Option<[usize; 3]>) -> Result<Self> {
        ensure!(shape.is_some() || !codec.is_raw(), BadData, "codec \"raw\" needs images of one shape");
        if let Some([height, width, channels]) = shape {
            ensure!(
                height > 0 && width > 0 && matches!(channels, 1 | 3),
                BadData,
                "images cannot have the shape {height} x {width} x {channels}"
            );
        }
        Ok(Self { codec, shape, bytes: Vec::new(), offsets: vec![0] })
    }

    /// How they are stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// [height, width, channels], if all share it.
    pub fn shape(&self) -> Option<[usize; 3]> {
        self.shape
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The samples of all images, decoded: [n, height, width, channels].
    ///
    /// # Errors
    /// Images of different sizes, or encoded bytes that cannot be decoded.
    pub fn samples(&self) -> Result<Cow<'_, [u8]>> {
        let Some(shape) = self.shape else {
            bail!(BadData, "images of different sizes cannot become one tensor");
        };
        if self.codec.is_raw() {
            return Ok(Cow::Borrowed(&self.bytes));
        }
        let mut samples = Vec::with_capacity(self.len() * shape.iter().product::<usize>());
        for i in 0..self.len() {
            samples.extend_from_slice(&self.decode(i)?.pixels);
        }
        Ok(Cow::Owned(samples))
    }

    /// Stored bytes of image `i`.
    ///
    /// # Panics
    /// If `i` is out of range.
    pub fn stored(&self, i: usize) -> &[u8] {
        &self.bytes[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }

    /// Image `i`, decoded.
    ///
    /// # Errors
    /// Encoded bytes that cannot be decoded, or an image of another shape than promised.
    ///
    /// # Panics
    /// If `i` is out of range.
    pub fn decode(&self, i: usize) -> Result<Image> {
        let image = match (self.codec, self.shape) {
            (Codec::Raw, Some([height, width, channels])) => {
                Image::new(height, width, channels, self.stored(i).to_vec())?
            }
            _ => codec::decode(self.stored(i))?,
        };
        let fits = self.shape.is_none_or(|shape| shape == image.shape());
        ensure!(fits, BadData, "an image has the shape {:?} instead of {:?}", image.shape(), self.shape);
        Ok(image)
    }

    /// Appends the stored form of an image: samples if raw, else the encoded bytes.
    ///
    /// # Errors
    /// Raw samples of another length than the shape's; an empty encoded image.
    pub fn push_stored(&mut self, stored: &[u8]) -> Result<()> {
        match self.shape.filter(|_| self.codec.is_raw()) {
            Some(shape) => {
                let samples: usize = shape.iter().product();
                ensure!(
                    stored.len() == samples,
                    BadData,
                    "an image has {} samples instead of {samples}",
                    stored.len()
                );
            }
            None => ensure!(!stored.is_empty(), BadData, "an encoded image is empty"),
        }
        self.bytes.extend_from_slice(stored);
        self.offsets.push(self.bytes.len() as u64);
        Ok(())
    }

    /// Appends images of the same codec and shape.
    pub(crate) fn extend(&mut self, other: &Images) -> Result<()> {
        let same = self.codec == other.codec && self.shape == other.shape;
        ensure!(same, BadData, "images of different codecs or shapes cannot be joined");
        let base = self.bytes.len() as u64;
        self.bytes.extend_from_slice(&other.bytes);
        self.offsets.extend(other.offsets[1..].iter().map(|offset| base + offset));
        Ok(())
    }

    /// xxh3-64 of each image as stored.
    pub fn hashes(&self) -> Vec<u64> {
        (0..self.len()).map(|i| xxh3(self.stored(i))).collect()
    }

    /// Bytes that [`Images::write`] will add to a file.
    pub(crate) fn size_hint(&self) -> usize {
        self.bytes.len() + 8 * self.offsets.len()
    }

    /// Writes `codec`, `height`, `width`, `channels` (0 where sizes differ) and the pixels. `by_row` asks for chunks
    /// of one image.
    pub(crate) fn write(&self, writer: &Writer, by_row: bool) -> Result<()> {
        writer.text("codec", &self.codec.to_string())?;
        let [height, width, channels] = self.shape.unwrap_or([0; 3]);
        for (name, value) in [("height", height), ("width", width), ("channels", channels)] {
            writer.attr(name, value as u32)?;
        }
        if !self.codec.is_raw() {
            writer.column("encoded", &[self.bytes.len()], &self.bytes)?;
            return writer.column("offsets", &[self.offsets.len()], &self.offsets);
        }
        let shape = [self.len(), height, width, channels];
        match by_row {
            true => writer.column_by_row("images", &shape, &self.bytes),
            false => writer.column("images", &shape, &self.bytes),
        }
    }
}

/// What a file says about its images.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub codec: Codec,
    pub shape: Option<[usize; 3]>,
}

impl Layout {
    /// Reads and checks the attributes and the columns of `n` images, without reading pixels.
    pub fn read(reader: &Reader, n: usize) -> Result<Self> {
        let codec: Codec = reader
            .text("codec")?
            .parse()
            .map_err(|error: equipoise_base::Error| error.context(reader.name()))?;
        let mut shape = [0usize; 3];
        for (side, name) in shape.iter_mut().zip(["height", "width", "channels"]) {
            *side = reader.attr::<u32>(name)? as usize;
        }
        let shape = Some(shape).filter(|shape| *shape != [0; 3]);
        // The constructor knows which combinations are possible.
        Images::new(codec, shape).map_err(|error| error.context(reader.name()))?;
        match (codec, shape) {
            (Codec::Raw, Some([height, width, channels])) => {
                reader.ensure_shape::<u8>("images", &[n, height, width, channels])?;
            }
            _ => {
                reader.ensure_shape::<u64>("offsets", &[n + 1])?;
                let bytes = reader.shape::<u8>("encoded")?;
                reader.ensure(bytes.len() == 1, "column \"encoded\" is not one-dimensional")?;
            }
        }
        Ok(Self { codec, shape })
    }

    /// Reads the pixels of some of `n` rows with their checksums, which are verified; `name` says how to call the image
    /// of a row.
    pub fn verified(
        &self,
        reader: &Reader,
        rows: Range<usize>,
        n: usize,
        name: impl Fn(usize) -> String,
    ) -> Result<(Images, Vec<u64>)> {
        let inside = rows.start <= rows.end && rows.end <= n;
        reader.ensure(inside, &format!("has {n} rows, not {rows:?}"))?;
        let images = self.rows(reader, rows.clone())?;
        let hashes = reader.rows::<u64>("xxh3", rows.clone())?;
        for (row, (stored, hash)) in rows.zip(hashes.iter().zip(images.hashes())) {
            reader.ensure(*stored == hash, &format!("{} is damaged (checksum)", name(row)))?;
        }
        Ok((images, hashes))
    }

    /// Reads the pixels of some rows.
    fn rows(&self, reader: &Reader, rows: Range<usize>) -> Result<Images> {
        let mut images = Images::new(self.codec, self.shape)?;
        if let (Codec::Raw, Some(shape)) = (self.codec, self.shape) {
            let samples: u64 = shape.iter().product::<usize>() as u64;
            images.offsets = (0..=rows.len() as u64).map(|i| i * samples).collect();
            images.bytes = reader.rows("images", rows)?;
            return Ok(images);
        }
        let offsets: Vec<u64> = reader.rows("offsets", rows.start..rows.end + 1)?;
        let total = reader.shape::<u8>("encoded")?[0] as u64;
        let ordered = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        reader.ensure(ordered && last <= total, "column \"offsets\" does not rise within \"encoded\"")?;
        images.bytes = reader.rows("encoded", first as usize..last as usize)?;
        images.offsets = offsets.iter().map(|offset| offset - first).collect();
        Ok(images)
    }

    /// Checks that encoded images fill their column, from the first byte to the last.
    pub fn ensure_filled(&self, reader: &Reader, n: usize) -> Result<()> {
        if self.codec.is_raw() {
            return Ok(());
        }
        let total = reader.shape::<u8>("encoded")?[0] as u64;
        let ends = (reader.rows::<u64>("offsets", 0..1)?, reader.rows::<u64>("offsets", n..n + 1)?);
        reader.ensure(ends == (vec![0], vec![total]), "column \"offsets\" does not span \"encoded\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_the_same_from_every_lossless_codec() {
        let images: Vec<Image> = (0..3u8)
            .map(|i| Image::new(2, 3, 1, (0..6).map(|j| i * 40 + j * 7).collect()).unwrap())
            .collect();
        let stored = |codec: Codec| {
            let mut all = Images::new(codec, Some([2, 3, 1])).unwrap();
            images.iter().for_each(|image| all.push_stored(&codec.encode(image).unwrap()).unwrap());
            all
        };
        let raw: Vec<u8> = images.iter().flat_map(|image| image.pixels.clone()).collect();
        for codec in [Codec::Raw, Codec::Png] {
            assert_eq!(stored(codec).samples().unwrap(), raw, "{codec}");
        }
        assert_eq!(stored(Codec::Jpeg(90)).samples().unwrap().len(), raw.len());
        assert!(Images::new(Codec::Png, None).unwrap().samples().is_err());
    }
}
