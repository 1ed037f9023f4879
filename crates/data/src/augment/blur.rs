//! Gaussian blur.

use super::canvas::Canvas;

impl Canvas {
    /// Blurs with a Gaussian cut off after `kernel` positions (odd) along each axis, borders mirrored without
    /// repeating the edge.
    pub fn gaussian_blur(&mut self, kernel: [usize; 2], sigma: [f64; 2]) {
        let [columns, rows] = [gaussian(kernel[0], sigma[0]), gaussian(kernel[1], sigma[1])];
        self.blur_rows(&columns);
        self.blur_columns(&rows);
    }

    fn blur_rows(&mut self, kernel: &[f32]) {
        let (width, half) = (self.width, kernel.len() / 2);
        self.spare.clear();
        let mut padded = vec![0.0; width + 2 * half];
        for source in self.data.chunks_exact(width) {
            for (x, value) in padded.iter_mut().enumerate() {
                *value = source[mirror(x as isize - half as isize, width)];
            }
            let blurred = padded.windows(kernel.len());
            self.spare
                .extend(blurred.map(|window| window.iter().zip(kernel).map(|(v, k)| v * k).sum::<f32>()));
        }
        self.swap(self.height, width);
    }

    fn blur_columns(&mut self, kernel: &[f32]) {
        let (height, width, half) = (self.height, self.width, kernel.len() / 2);
        self.spare.clear();
        self.spare.resize(self.data.len(), 0.0);
        let planes = self.data.chunks_exact(height * width).zip(self.spare.chunks_exact_mut(height * width));
        for (source, target) in planes {
            for (y, out) in target.chunks_exact_mut(width).enumerate() {
                for (offset, &weight) in kernel.iter().enumerate() {
                    let from = mirror((y + offset) as isize - half as isize, height) * width;
                    out.iter_mut().zip(&source[from..from + width]).for_each(|(sum, v)| *sum += v * weight);
                }
            }
        }
        self.swap(height, width);
    }
}

/// `exp(-(k / sigma)^2 / 2)` for k around 0, normalized.
fn gaussian(kernel: usize, sigma: f64) -> Vec<f32> {
    let half = (kernel as f64 - 1.0) / 2.0;
    let weights: Vec<f64> =
        (0..kernel).map(|k| libm::exp(-0.5 * ((k as f64 - half) / sigma).powi(2))).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| (weight / sum) as f32).collect()
}

/// Folds a position beyond an edge back, as often as it takes: `.. 2 1 | 0 1 2 .. n-1 | n-2 ..`
fn mirror(position: isize, size: usize) -> usize {
    if size == 1 {
        return 0;
    }
    let period = 2 * (size as isize - 1);
    let folded = position.rem_euclid(period);
    folded.min(period - folded) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_does_not_repeat_the_edge() {
        assert_eq!([-2, -1, 0, 2, 3, 4, 7].map(|position| mirror(position, 3)), [2, 1, 0, 2, 1, 0, 1]);
        assert_eq!(mirror(-5, 1), 0);
    }

    #[test]
    fn a_constant_stays() {
        let mut canvas = Canvas::new(1, 2, 3, vec![0.5; 6]);
        canvas.gaussian_blur([9, 9], [2.0, 2.0]);
        assert!(canvas.planes().iter().all(|value| (value - 0.5).abs() < 1e-6));
    }
}
