//! Contact sheets: rows of images with a label each, as one PNG.

use crate::codec::{Image, encode_png};
use crate::font;
use equipoise_base::{Result, ensure};

/// Most samples of a sheet: larger ones help nobody and fill memory.
const MAX_SAMPLES: usize = 1 << 28;

/// Brightness of the background.
const PAPER: u8 = 255;

/// Brightness of the labels.
const INK: u8 = 0;

/// One row of a sheet.
#[derive(Clone, Copy, Debug)]
pub struct SheetRow<'a> {
    /// Text on the left, empty for none. Characters outside ASCII are drawn as boxes.
    pub label: &'a str,
    /// Images from left to right.
    pub images: &'a [Image],
}

/// How a sheet is drawn.
#[derive(Clone, Copy, Debug)]
pub struct SheetStyle {
    /// Every pixel becomes a square of this many.
    pub scale: usize,
    /// Pixels around each image.
    pub gutter: usize,
}

impl Default for SheetStyle {
    fn default() -> Self {
        Self { scale: 1, gutter: 2 }
    }
}

/// Draws rows of images and encodes the sheet as PNG, gray if all images are gray, else RGB.
///
/// Cells have the size of the largest image; smaller ones sit in the middle of theirs.
///
/// # Errors
/// No images, a scale of 0, or a sheet of more than 2^28 samples.
pub fn contact_sheet(rows: &[SheetRow<'_>], style: SheetStyle) -> Result<Vec<u8>> {
    draw(rows, style).and_then(|sheet| encode_png(&sheet))
}

/// The sheet before it is encoded.
fn draw(rows: &[SheetRow<'_>], style: SheetStyle) -> Result<Image> {
    let images = || rows.iter().flat_map(|row| row.images);
    ensure!(images().next().is_some(), BadData, "a contact sheet needs at least one image");
    ensure!(style.scale > 0, BadData, "a contact sheet cannot have the scale 0");
    let (scale, gutter) = (style.scale, style.gutter);
    let cell_height = images().map(|image| image.height).max().unwrap_or(0) * scale;
    let cell_width = images().map(|image| image.width).max().unwrap_or(0) * scale;
    let columns = rows.iter().map(|row| row.images.len()).max().unwrap_or(0);
    let text_scale = if cell_height >= 3 * font::HEIGHT { 2 } else { 1 };
    let longest = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let margin = if longest == 0 { 0 } else { longest * font::ADVANCE * text_scale + gutter };
    let row_height = cell_height.max(font::HEIGHT * text_scale) + gutter;
    let (height, width) =
        (gutter + rows.len() * row_height, margin + gutter + columns * (cell_width + gutter));
    let channels = if images().all(|image| image.channels == 1) { 1 } else { 3 };
    let samples = height.checked_mul(width).and_then(|area| area.checked_mul(channels));
    ensure!(
        samples.is_some_and(|samples| samples <= MAX_SAMPLES),
        BadData,
        "a contact sheet of {height} x {width} pixels is too large: use fewer images or a smaller scale"
    );
    let mut sheet = Image::new(height, width, channels, vec![PAPER; height * width * channels])?;
    for (r, row) in rows.iter().enumerate() {
        let top = gutter + r * row_height;
        let text_top = top + (row_height - gutter).saturating_sub(font::HEIGHT * text_scale) / 2;
        write_label(&mut sheet, row.label, text_top, gutter, text_scale);
        for (c, image) in row.images.iter().enumerate() {
            let left = margin + gutter + c * (cell_width + gutter);
            let middle = [(cell_height - image.height * scale) / 2, (cell_width - image.width * scale) / 2];
            paste(&mut sheet, image, top + middle[0], left + middle[1], scale);
        }
    }
    Ok(sheet)
}

/// Copies an image, enlarged, to a place where it fits.
fn paste(sheet: &mut Image, image: &Image, top: usize, left: usize, scale: usize) {
    let channels = sheet.channels;
    for y in 0..image.height * scale {
        let line = ((top + y) * sheet.width + left) * channels;
        let source_line = y / scale * image.width;
        for x in 0..image.width * scale {
            let source = (source_line + x / scale) * image.channels;
            for channel in 0..channels {
                sheet.pixels[line + x * channels + channel] = image.pixels[source + channel % image.channels];
            }
        }
    }
}

/// Draws text, clipped at the edges.
fn write_label(sheet: &mut Image, label: &str, top: usize, left: usize, scale: usize) {
    for (position, character) in label.chars().enumerate() {
        for (column, bits) in font::glyph(character).into_iter().enumerate() {
            for row in (0..font::HEIGHT).filter(|row| bits >> row & 1 == 1) {
                let (y, x) = (top + row * scale, left + (position * font::ADVANCE + column) * scale);
                fill_square(sheet, y, x, scale);
            }
        }
    }
}

fn fill_square(sheet: &mut Image, top: usize, left: usize, side: usize) {
    for y in top..(top + side).min(sheet.height) {
        let line = y * sheet.width;
        let (first, last) = (left.min(sheet.width), (left + side).min(sheet.width));
        sheet.pixels[(line + first) * sheet.channels..(line + last) * sheet.channels].fill(INK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn flat(height: usize, width: usize, channels: usize, value: u8) -> Image {
        Image::new(height, width, channels, vec![value; height * width * channels]).unwrap()
    }

    #[test]
    fn images_lie_on_the_grid_enlarged() {
        let images = [flat(2, 3, 1, 10), flat(2, 3, 1, 20)];
        let rows = [SheetRow { label: "", images: &images }, SheetRow { label: "", images: &images[1..] }];
        let sheet = draw(&rows, SheetStyle { scale: 4, gutter: 1 }).unwrap();
        assert_eq!(sheet.shape(), [1 + 2 * 9, 1 + 2 * 13, 1]);
        let at = |y: usize, x: usize| sheet.pixels[y * sheet.width + x];
        assert_eq!(
            [at(0, 0), at(1, 1), at(8, 12), at(1, 13), at(1, 14), at(10, 1)],
            [255, 10, 10, 255, 20, 20]
        );
        assert_eq!(at(10, 14), 255, "a short row leaves paper");
    }

    #[test]
    fn one_color_image_makes_the_sheet_rgb() {
        let images = [flat(8, 8, 1, 7), Image::new(1, 1, 3, vec![1, 2, 3]).unwrap()];
        let png = contact_sheet(&[SheetRow { label: "a", images: &images }], SheetStyle::default()).unwrap();
        let sheet = codec::decode(&png).unwrap();
        assert_eq!(sheet.channels, 3);
        assert!(sheet.pixels.chunks(3).any(|pixel| pixel == [7, 7, 7]));
        assert!(sheet.pixels.chunks(3).any(|pixel| pixel == [1, 2, 3]));
    }

    #[test]
    fn labels_are_drawn_left_of_the_images() {
        let images = [flat(8, 8, 1, 100)];
        let sheet = draw(&[SheetRow { label: "IL", images: &images }], SheetStyle::default()).unwrap();
        let ink = sheet.pixels.iter().filter(|&&sample| sample == INK).count();
        // I: a bar of 7 with two serifs of 2; L: 7 and a foot of 4.
        assert_eq!(ink, 11 + 11);
        assert_eq!(sheet.width, 2 * font::ADVANCE + 2 + 2 + 8 + 2);
    }

    #[test]
    fn impossible_sheets_are_errors() {
        let images = [flat(8, 8, 1, 100)];
        let row = SheetRow { label: "", images: &images };
        assert!(contact_sheet(&[], SheetStyle::default()).is_err());
        assert!(contact_sheet(&[SheetRow { label: "empty", images: &[] }], SheetStyle::default()).is_err());
        assert!(contact_sheet(&[row], SheetStyle { scale: 0, gutter: 0 }).is_err());
        assert!(contact_sheet(&[row], SheetStyle { scale: 100_000, gutter: 0 }).is_err());
    }
}
