//! Transforms that move pixels: crop, pad, flip, resize.

use super::canvas::{Canvas, LANES, Window};
use crate::resample::{Filter, Weights};
use crate::resize::{centre, shorter_side};

impl Canvas {
    /// Cuts a window out.
    ///
    /// # Panics
    /// If the window does not lie within the image.
    pub fn crop(&mut self, window: Window) {
        self.pad_crop([0; 4], window);
    }

    /// Adds zeros around the image: left, top, right, bottom.
    pub fn pad(&mut self, margins: [usize; 4]) {
        let [left, top, right, bottom] = margins;
        self.pad_crop(margins, Window::whole(self.height + top + bottom, self.width + left + right));
    }

    /// Pads with zeros (left, top, right, bottom) and cuts a window of the padded image out, in one pass.
    ///
    /// # Panics
    /// If the window does not lie within the padded image.
    pub fn pad_crop(&mut self, [left, top, right, bottom]: [usize; 4], window: Window) {
        let fits = window.top + window.height <= top + self.height + bottom
            && window.left + window.width <= left + self.width + right;
        assert!(fits, "{window:?} of a padded {}x{} image", self.height, self.width);
        self.spare.clear();
        self.spare.resize(self.channels * window.height * window.width, 0.0);
        // Columns of the window that hold image, and where those lie in the image.
        let first = left.saturating_sub(window.left).min(window.width);
        let from = (window.left + first).saturating_sub(left);
        let columns = self.width.saturating_sub(from).min(window.width - first);
        let sources = self.data.chunks_exact(self.height * self.width);
        for (source, target) in sources.zip(self.spare.chunks_exact_mut(window.height * window.width)) {
            for (y, row) in target.chunks_exact_mut(window.width).enumerate() {
                let padded = window.top + y;
                if padded >= top && padded < top + self.height {
                    let start = (padded - top) * self.width + from;
                    row[first..first + columns].copy_from_slice(&source[start..start + columns]);
                }
            }
        }
        self.swap(window.height, window.width);
    }

    /// Cuts the middle out: the cut starts at `round((size - cut) / 2)`, half to even. A smaller image is padded with
    /// zeros first, as torchvision does.
    pub fn center_crop(&mut self, height: usize, width: usize) {
        let (rows, columns) = (height.saturating_sub(self.height), width.saturating_sub(self.width));
        let margins = [columns / 2, rows / 2, columns.div_ceil(2), rows.div_ceil(2)];
        let (top, left) = (centre(self.height + rows, height), centre(self.width + columns, width));
        self.pad_crop(margins, Window { top, left, height, width });
    }

    /// Mirrors left and right.
    pub fn hflip(&mut self) {
        self.data.chunks_exact_mut(self.width).for_each(<[f32]>::reverse);
    }

    /// Resizes so that the shorter side becomes `side`, antialiased.
    pub fn resize_shorter(&mut self, side: usize, filter: Filter) {
        let (height, width) = shorter_side(self.height, self.width, side);
        self.resize(height, width, filter);
    }

    /// Resizes to `height` x `width` (positive), antialiased. Bicubic results are not clamped.
    pub fn resize(&mut self, height: usize, width: usize, filter: Filter) {
        if width != self.width {
            self.resize_rows(width, filter);
        }
        if height != self.height {
            self.resize_columns(height, filter);
        }
    }

    /// Rows are short sums over neighbours, which no vector unit likes: [`LANES`] of them at once, one in each lane.
    fn resize_rows(&mut self, width: usize, filter: Filter) {
        let weights = Weights::new(self.width, width, filter).convert(|weight| weight as f32);
        self.spare.resize(self.channels * self.height * width, 0.0);
        self.lanes.resize(self.width, [0.0; LANES]);
        let sources = self.data.chunks(self.width * LANES);
        for (sources, targets) in sources.zip(self.spare.chunks_mut(width * LANES)) {
            for (lane, row) in sources.chunks_exact(self.width).enumerate() {
                self.lanes.iter_mut().zip(row).for_each(|(column, value)| column[lane] = *value);
            }
            for (x, (span, row)) in weights.iter().enumerate() {
                let mut sums = [0.0; LANES];
                for (values, weight) in self.lanes[span.clone()].iter().zip(row) {
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * weight);
                }
                targets.chunks_exact_mut(width).zip(sums).for_each(|(target, sum)| target[x] = sum);
            }
        }
        self.swap(self.height, width);
    }

    /// Sums stay in registers over a strip of the row.
    fn resize_columns(&mut self, height: usize, filter: Filter) {
        const STRIP: usize = 32;
        let weights = Weights::new(self.height, height, filter).convert(|weight| weight as f32);
        let width = self.width;
        self.spare.resize(self.channels * height * width, 0.0);
        let sources = self.data.chunks_exact(self.height * width);
        for (source, target) in sources.zip(self.spare.chunks_exact_mut(height * width)) {
            for ((span, column), out) in weights.iter().zip(target.chunks_exact_mut(width)) {
                let rows = &source[span.start * width..span.end * width];
                let (strips, rest) = out.as_chunks_mut::<STRIP>();
                for (at, strip) in strips.iter_mut().enumerate() {
                    let mut sums = [0.0; STRIP];
                    for (row, weight) in rows.chunks_exact(width).zip(column) {
                        let values = &row[at * STRIP..(at + 1) * STRIP];
                        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * weight);
                    }
                    *strip = sums;
                }
                rest.fill(0.0);
                for (row, weight) in rows.chunks_exact(width).zip(column) {
                    let values = &row[strips.len() * STRIP..];
                    rest.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * weight);
                }
            }
        }
        self.swap(height, width);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Row by row and value by value.
        #[test]
        fn resizing_is_a_weighted_sum_along_rows_and_then_columns(
            (height, width) in (1usize..40, 1usize..80), (rows, columns) in (1usize..40, 1usize..80), bicubic: bool,
        ) {
            let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
            let data: Vec<f32> = (0..2 * height * width).map(|i| (i * 7919 % 255) as f32 / 255.0).collect();
            let mut canvas = Canvas::new(2, height, width, data.clone());
            canvas.resize(rows, columns, filter);
            let along = |input: usize, output: usize| {
                Weights::new(input, output, filter).convert(|weight| weight as f32)
            };
            let sum = |(span, weights): &(std::ops::Range<usize>, Vec<f32>), value: &dyn Fn(usize) -> f32| {
                span.clone().zip(weights).fold(0.0, |sum, (at, weight)| sum + value(at) * weight)
            };
            for plane in 0..2 {
                let pixel = |y: usize, x: usize| data[(plane * height + y) * width + x];
                for (y, from_rows) in along(height, rows).iter().enumerate() {
                    for (x, from_columns) in along(width, columns).iter().enumerate() {
                        let in_row = |y: usize| match columns == width {
                            true => pixel(y, x),
                            false => sum(from_columns, &|x| pixel(y, x)),
                        };
                        let expected = if rows == height { in_row(y) } else { sum(from_rows, &in_row) };
                        prop_assert_eq!(canvas.planes()[(plane * rows + y) * columns + x], expected);
                    }
                }
            }
        }
    }

    fn canvas(height: usize, width: usize) -> Canvas {
        Canvas::new(1, height, width, (1..=height * width).map(|value| value as f32).collect())
    }

    #[test]
    fn pad_and_crop_in_one_pass_are_pad_then_crop() {
        for (top, left) in [(0, 0), (2, 1), (4, 3), (5, 5), (1, 4)] {
            let window = Window { top, left, height: 3, width: 2 };
            let (mut once, mut twice) = (canvas(3, 2), canvas(3, 2));
            once.pad_crop([3, 3, 2, 2], window);
            twice.pad([3, 3, 2, 2]);
            twice.crop(window);
            assert_eq!(once.planes(), twice.planes(), "{window:?}");
        }
    }

    #[test]
    fn a_small_image_is_padded_before_the_middle_is_cut() {
        let mut small = canvas(1, 2);
        small.center_crop(3, 3);
        assert_eq!(small.planes(), [0., 0., 0., 1., 2., 0., 0., 0., 0.]);
        let mut large = canvas(3, 3);
        large.center_crop(1, 1);
        assert_eq!(large.planes(), [5.]);
    }

    #[test]
    fn flip() {
        let mut canvas = canvas(2, 3);
        canvas.hflip();
        assert_eq!(canvas.planes(), [3., 2., 1., 6., 5., 4.]);
    }
}
