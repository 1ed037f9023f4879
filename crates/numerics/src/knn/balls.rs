//! How many points lie in the balls around others.

use super::cloud::{Cloud, Product};
use super::frame::{Frame, Range, blocks};
use super::single_or_double;
use super::tile::{Band, Tile};
use crate::check;
use equipoise_base::{Result, ensure};
use tch::{Device, Kind, Tensor};

/// Columns that are compared at once.
const LANES: usize = 16;

/// How many points the balls around a set hold, and how many balls hold each point.
#[derive(Debug)]
pub struct BallCounts {
    /// Points of the other set inside each ball: [K, number of centres] int64.
    pub per_centre: Tensor,
    /// Balls that hold each point of the other set: [K, number of points] int64.
    pub per_point: Tensor,
}

/// Counts for open balls around `x` [n, d] with squared radii `x_radii` [K, n] and around `y` [m, d] with
/// `y_radii` [K, m], each over the other set: distance strictly below the radius.
///
/// # Errors
/// 65 unless both sets are finite and of the same dimension, and the radii fit them.
pub fn ball_counts(
    x: &Tensor,
    y: &Tensor,
    x_radii: &Tensor,
    y_radii: &Tensor,
) -> Result<(BallCounts, BallCounts)> {
    counts_by(Product::fastest(x), (x, x_radii), (y, y_radii))
}

pub(super) fn counts_by(
    mut product: Product,
    (x, x_radii): (&Tensor, &Tensor),
    (y, y_radii): (&Tensor, &Tensor),
) -> Result<(BallCounts, BallCounts)> {
    let ((n, dim), (m, other)) = (check::features("first set", x)?, check::features("second set", y)?);
    ensure!(dim == other, BadData, "the first set has {dim} features per row, the second {other}");
    for (radii, rows) in [(x_radii, n), (y_radii, m)] {
        let size = radii.size();
        ensure!(size.len() == 2 && size[1] == rows, BadData, "radii of shape {size:?} for {rows} rows");
    }
    let device = x.device();
    let (x, y) = (single_or_double(x), single_or_double(y));
    let frame = Frame::of(&[&x, &y]);
    let (x, y) = (Cloud::new(&x, &frame, product), Cloud::new(&y, &frame, product));
    // Balls around rows of a tile, and around its columns.
    let mut balls: Vec<Balls> = (0..x_radii.size()[0])
        .map(|k| Balls::new(Around::Rows, &x_radii.get(k), m))
        .chain((0..y_radii.size()[0]).map(|k| Balls::new(Around::Columns, &y_radii.get(k), n)))
        .collect();
    let mut tile = Tile::default();
    for i in blocks(n) {
        let mut band = Band::new(product, (&x, i));
        for j in blocks(m) {
            band.times((&y, j), &mut tile);
            let mut found = Found::all(&tile, &balls, &frame, i, j);
            // So many pairs in full cost more than the product in float32; the next block will be no better.
            let open = found.iter().map(|found| found.open.len()).sum::<usize>();
            if product == Product::Half && open as i64 > i.1 * j.1 / 256 {
                product = Product::Single;
                band = Band::new(product, (&x, i));
                band.times((&y, j), &mut tile);
                found = Found::all(&tile, &balls, &frame, i, j);
            }
            for (balls, found) in balls.iter_mut().zip(found) {
                balls.add(found, (&x, i), (&y, j));
            }
        }
    }
    let of_y = balls.split_off(x_radii.size()[0] as usize);
    Ok((Balls::counts(balls, (n, m), device), Balls::counts(of_y, (m, n), device)))
}

/// Which side of a tile the centres are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Around {
    Rows,
    Columns,
}

/// One set of balls, and what was counted so far.
struct Balls {
    around: Around,
    /// Squared radii of the centres.
    radii: Vec<f64>,
    per_centre: Vec<i64>,
    per_point: Vec<i64>,
}

/// What a tile says about one set of balls.
struct Found {
    /// Pairs surely inside, of each row and of each column.
    rows: Vec<u32>,
    columns: Vec<u32>,
    /// Pairs (row, column) whose interval holds the radius.
    open: Vec<(u32, u32)>,
}

impl Balls {
    fn new(around: Around, radii: &Tensor, points: i64) -> Self {
        let mut values = vec![0f64; radii.numel()];
        let count = values.len();
        radii.to_device(Device::Cpu).to_kind(Kind::Double).copy_data(&mut values, count);
        let radii = values;
        Self { around, per_centre: vec![0; radii.len()], per_point: vec![0; points as usize], radii }
    }

    /// Squared radii in the frame of the centres that a tile has.
    fn limits(&self, frame: &Frame, rows: Range, columns: Range) -> Vec<f32> {
        let (start, length) = if self.around == Around::Rows { rows } else { columns };
        let factor = frame.scale.powi(2);
        self.radii[start as usize..][..length as usize]
            .iter()
            .map(|radius| (radius * factor) as f32)
            .collect()
    }

    /// Takes up what was found, and settles the open pairs by differences.
    fn add(&mut self, mut found: Found, (x, i): (&Cloud, Range), (y, j): (&Cloud, Range)) {
        for &(row, column) in &found.open {
            let (left, right) = (i.0 as usize + row as usize, j.0 as usize + column as usize);
            let centre = if self.around == Around::Rows { left } else { right };
            if x.exact(left, y, right) < self.radii[centre] {
                found.rows[row as usize] += 1;
                found.columns[column as usize] += 1;
            }
        }
        let (of_rows, of_columns) = match self.around {
            Around::Rows => (&mut self.per_centre, &mut self.per_point),
            Around::Columns => (&mut self.per_point, &mut self.per_centre),
        };
        let add = |all: &mut [i64], (start, _): Range, counts: &[u32]| {
            all[start as usize..].iter_mut().zip(counts).for_each(|(all, count)| *all += i64::from(*count));
        };
        add(of_rows, i, &found.rows);
        add(of_columns, j, &found.columns);
    }

    fn counts(all: Vec<Self>, (centres, points): (i64, i64), device: Device) -> BallCounts {
        let table = |side: fn(&Self) -> &[i64], columns| {
            let values: Vec<i64> = all.iter().flat_map(side).copied().collect();
            Tensor::from_slice(&values).view([all.len() as i64, columns]).to_device(device)
        };
        BallCounts {
            per_centre: table(|balls| &balls.per_centre, centres),
            per_point: table(|balls| &balls.per_point, points),
        }
    }
}

impl Found {
    /// For every set of balls.
    fn all(tile: &Tile, balls: &[Balls], frame: &Frame, i: Range, j: Range) -> Vec<Self> {
        let of = |balls: &Balls| {
            let limits = balls.limits(frame, i, j);
            match balls.around {
                Around::Rows => Self::among(tile, &limits, &vec![f32::NEG_INFINITY; j.1 as usize]),
                Around::Columns => Self::among(tile, &vec![f32::NEG_INFINITY; i.1 as usize], &limits),
            }
        };
        balls.iter().map(of).collect()
    }

    /// Compares every pair of a tile with the larger of the limits of its row and its column: of one of them each has none.
    fn among(tile: &Tile, of_rows: &[f32], of_columns: &[f32]) -> Self {
        let (lower, width) = (&tile.columns.lower, &tile.columns.width);
        let mut found = Self { rows: Vec::new(), columns: vec![0; lower.len()], open: Vec::new() };
        for (row, (line, &own)) in tile.lines().zip(of_rows).enumerate() {
            // Whether a pair may be inside, and whether it surely is.
            let answer = |product: f32, lower: f32, width: f32, limit: f32| {
                let (low, limit) = (line.lower(product, lower), own.max(limit));
                (low < limit, line.upper(low, product, width) < limit)
            };
            let mut inside_row = 0;
            for start in (0..lower.len()).step_by(LANES) {
                let lanes = start..(start + LANES).min(lower.len());
                let (products, counts) = (&line.products[lanes.clone()], &mut found.columns[lanes.clone()]);
                let (lower, width) = (&lower[lanes.clone()], &width[lanes.clone()]);
                let limits = &of_columns[lanes];
                let mut open = false;
                for (lane, count) in counts.iter_mut().enumerate() {
                    let (may, surely) = answer(products[lane], lower[lane], width[lane], limits[lane]);
                    *count += u32::from(surely);
                    inside_row += u32::from(surely);
                    open |= may != surely;
                }
                if open {
                    let undecided = (0..products.len()).filter(|&lane| {
                        let (may, surely) = answer(products[lane], lower[lane], width[lane], limits[lane]);
                        may != surely
                    });
                    found.open.extend(undecided.map(|lane| (row as u32, (start + lane) as u32)));
                }
            }
            found.rows.push(inside_row);
        }
        found
    }
}
