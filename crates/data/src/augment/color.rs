//! Transforms of colour, on values in [0, 1]. Gray images pass saturation, hue and grayscale unchanged.

use super::canvas::Canvas;

/// Weights of ITU-R 601, to the four digits of torchvision.
const GRAY: [f32; 3] = [0.2989, 0.587, 0.114];

impl Canvas {
    /// `clamp(f x)`.
    pub fn brightness(&mut self, factor: f32) {
        self.data.iter_mut().for_each(|value| *value = (factor * *value).clamp(0.0, 1.0));
    }

    /// `clamp(f x + (1 - f) mean(gray))`, one mean per image.
    pub fn contrast(&mut self, factor: f32) {
        let plane = self.height * self.width;
        let sum: f64 = match self.rgb() {
            Some([red, green, blue]) => {
                let pixels = red.iter().zip(green.iter()).zip(blue.iter());
                pixels.map(|((&r, &g), &b)| f64::from(gray(r, g, b))).sum()
            }
            None => self.data.iter().map(|&value| f64::from(value)).sum(),
        };
        let offset = (1.0 - factor) * (sum / plane as f64) as f32;
        self.data.iter_mut().for_each(|value| *value = (factor * *value + offset).clamp(0.0, 1.0));
    }

    /// `clamp(f x + (1 - f) gray)`.
    pub fn saturation(&mut self, factor: f32) {
        self.each_pixel(|[r, g, b]| {
            let offset = (1.0 - factor) * gray(r, g, b);
            [r, g, b].map(|value| (factor * value + offset).clamp(0.0, 1.0))
        });
    }

    /// Turns the hue by `shift` of a full circle, in [-0.5, 0.5].
    pub fn hue(&mut self, shift: f32) {
        self.each_pixel(|pixel| {
            let [h, s, v] = to_hsv(pixel);
            to_rgb([(h + shift).rem_euclid(1.0), s, v])
        });
    }

    /// Three equal planes.
    pub fn grayscale(&mut self) {
        self.each_pixel(|[r, g, b]| [gray(r, g, b); 3]);
    }

    /// The three planes of an RGB image.
    fn rgb(&mut self) -> Option<[&mut [f32]; 3]> {
        if self.channels != 3 {
            return None;
        }
        let plane = self.height * self.width;
        let (red, rest) = self.data.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        Some([red, green, blue])
    }

    fn each_pixel(&mut self, change: impl Fn([f32; 3]) -> [f32; 3]) {
        let Some([red, green, blue]) = self.rgb() else { return };
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            [*r, *g, *b] = change([*r, *g, *b]);
        }
    }
}

fn gray(r: f32, g: f32, b: f32) -> f32 {
    GRAY[0] * r + GRAY[1] * g + GRAY[2] * b
}

/// Hue, saturation and value, each in [0, 1], in torchvision's order of operations.
fn to_hsv([r, g, b]: [f32; 3]) -> [f32; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let range = max - min;
    if range == 0.0 {
        return [0.0, 0.0, max];
    }
    let [rc, gc, bc] = [r, g, b].map(|value| (max - value) / range);
    let sector = if max == r {
        bc - gc
    } else if max == g {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    [(sector / 6.0 + 1.0).fract(), range / max, max]
}

fn to_rgb([h, s, v]: [f32; 3]) -> [f32; 3] {
    let sector = (h * 6.0).floor();
    let f = h * 6.0 - sector;
    let p = (v * (1.0 - s)).clamp(0.0, 1.0);
    let q = (v * (1.0 - s * f)).clamp(0.0, 1.0);
    let t = (v * (1.0 - s * (1.0 - f))).clamp(0.0, 1.0);
    match sector as u32 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_circle_turns_red_into_green() {
        let mut canvas = Canvas::new(3, 1, 1, vec![1.0, 0.0, 0.0]);
        canvas.hue(1.0 / 3.0);
        let expected = [0.0, 1.0, 0.0];
        assert!(canvas.planes().iter().zip(expected).all(|(got, want)| (got - want).abs() < 1e-6));
    }

    #[test]
    fn gray_images_keep_what_is_colour() {
        let mut canvas = Canvas::new(1, 1, 2, vec![0.2, 0.6]);
        canvas.saturation(2.0);
        canvas.hue(0.3);
        canvas.grayscale();
        assert_eq!(canvas.planes(), [0.2, 0.6]);
        canvas.contrast(0.0);
        assert!(canvas.planes().iter().all(|value| (value - 0.4).abs() < 1e-6));
    }
}
