//! The same numbers as by brute force, whichever products find them.

use super::balls::counts_by;
use super::cloud::Bounds;
use super::tile::{Band, Tile};
use super::*;
use equipoise_base::rng::Key;
use tch::{Device, IndexOp};

fn normal(seed: u64, rows: i64, dim: i64) -> Tensor {
    let mut values = vec![0f32; (rows * dim) as usize];
    Key::new(seed, "knn-test").stream().fill_normal(&mut values);
    Tensor::from_slice(&values).view([rows, dim])
}

/// All squared distances by differences in float64.
fn brute(x: &Tensor, y: &Tensor) -> Tensor {
    let (x, y) = (x.to_kind(Kind::Double), y.to_kind(Kind::Double));
    (x.unsqueeze(1) - y.unsqueeze(0)).square().sum_dim_intlist(2, false, Kind::Double)
}

fn brute_radii(x: &Tensor, k: i64) -> Tensor {
    brute(x, x).fill_diagonal_(f64::INFINITY, false).topk(k, 1, false, true).0.i((.., k - 1))
}

fn assert_same(got: &Tensor, want: &Tensor) {
    let same = got.eq_tensor(&want.to_kind(got.kind())).all().int64_value(&[]) == 1;
    assert!(same, "{got:?} {want:?}: {}", (got - want).abs().max().double_value(&[]));
}

fn close(got: &Tensor, want: &Tensor) {
    let error = ((got - want).abs() / (want + 1e-300)).max().double_value(&[]);
    assert!(error < 1e-13, "{error:e}");
}

/// Runs a test with every kind of product: none may change a result.
fn with_all(test: impl Fn(Product) -> Result<()>) -> Result<()> {
    [Product::Single, Product::Half].into_iter().try_for_each(test)
}

/// In every kind of product every interval holds the true distance; those of bfloat16 are narrow where distances are as large
/// as norms.
#[test]
fn intervals_hold_the_truth() -> Result<()> {
    let rows = normal(20, 90, 300);
    let spread =
        Tensor::from_slice(&(0..90).map(|at| (at % 7 - 3) as f32).collect::<Vec<_>>()).exp2().unsqueeze(1);
    let close = normal(21, 1, 300) + normal(22, 90, 300) * 1e-3;
    for (narrow, x, y) in [
        (true, &rows, normal(23, 90, 300) * 1.5),
        (false, &(&rows * spread), rows.shallow_clone()),
        (false, &close, &close + 1e-4),
    ] {
        let frame = Frame::of(&[x, &y]);
        with_all(|product| {
            let (left, right) = (Cloud::new(x, &frame, product), Cloud::new(&y, &frame, product));
            let (all, mut tile) = ((0, 90), Tile::default());
            Band::new(product, (&left, all)).times((&right, all), &mut tile);
            let Bounds { lower, width } = &tile.columns;
            let mut widest = 0f64;
            let limit = if product == Product::Half { 0.02 } else { 1e-4 };
            for (i, line) in tile.lines().enumerate() {
                for j in 0..90 {
                    let truth = left.exact(i, &right, j) * frame.scale.powi(2);
                    let low = line.lower(line.products[j], lower[j]);
                    let high = line.upper(low, line.products[j], width[j]);
                    assert!(
                        f64::from(low) <= truth && truth <= f64::from(high),
                        "{product:?}: {truth} in {low}..{high}"
                    );
                    widest = widest.max(f64::from(high - low) / truth);
                }
            }
            assert!(!narrow || widest < limit, "{product:?}: {widest}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn radii_are_those_of_differences_across_blocks() -> Result<()> {
    let points = normal(0, BLOCK + 300, 24);
    with_all(|product| {
        let radii = radii_by(product, &points, &[1, 5])?;
        close(&radii.get(0), &brute_radii(&points, 1));
        close(&radii.get(1), &brute_radii(&points, 5));
        Ok(())
    })
}

#[test]
fn half_precision_rows_are_exact() -> Result<()> {
    let points = normal(9, 100, 16).to_kind(Kind::Half);
    with_all(|product| {
        close(&radii_by(product, &points, &[3])?.get(0), &brute_radii(&points, 3));
        Ok(())
    })
}

#[test]
fn an_offset_or_a_scale_costs_nothing() -> Result<()> {
    for (scale, offset) in [(1., 1e6), (1e-22, 0.), (1e25, 0.)] {
        let points = normal(1, 200, 16).to_kind(Kind::Double) * scale + offset;
        with_all(|product| {
            close(&radii_by(product, &points, &[3])?.get(0), &brute_radii(&points, 3));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn duplicates_have_radius_zero_and_hold_nothing() -> Result<()> {
    let points = normal(2, 4, 8).repeat([30, 1]);
    with_all(|product| {
        let radii = radii_by(product, &points, &[5])?;
        assert_same(&radii, &radii.zeros_like());
        let (balls, _) = counts_by(product, (&points, &radii), (&points, &radii))?;
        assert_eq!(balls.per_centre.sum(Kind::Int64).int64_value(&[]), 0);
        Ok(())
    })
}

#[test]
fn ties_are_not_inside() -> Result<()> {
    // Every ball ends at a point of the other set, which is the same: an exact tie.
    let points = normal(3, 150, 64);
    with_all(|product| {
        let radii = radii_by(product, &points, &[3])?;
        let (balls, _) = counts_by(product, (&points, &radii), (&points, &radii))?;
        assert_same(&balls.per_centre.get(0), &Tensor::full([150], 3, (Kind::Int64, Device::Cpu)));
        Ok(())
    })
}

#[test]
fn an_outlier_does_not_blur_the_rest() -> Result<()> {
    for outlier in [1e5, 1e20] {
        let points = Tensor::cat(&[normal(4, 300, 8), normal(5, 1, 8) * outlier], 0).to_kind(Kind::Double);
        with_all(|product| {
            close(&radii_by(product, &points, &[4])?.get(0), &brute_radii(&points, 4));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn near_equal_distances_fall_back_to_better_products() -> Result<()> {
    // At 1000 independent features all distances agree to a few percent: too narrow for bfloat16.
    let (x, y) = (normal(10, 300, 1000), normal(11, 300, 1000));
    let single = radii_by(Product::Single, &x, &[5])?;
    assert_same(&radii_by(Product::Half, &x, &[5])?, &single);
    let of = |product| counts_by(product, (&x, &single), (&y, &single));
    let ((half, _), (single, _)) = (of(Product::Half)?, of(Product::Single)?);
    assert_same(&half.per_centre, &single.per_centre);
    assert_same(&half.per_point, &single.per_point);
    Ok(())
}

#[test]
fn counts_are_those_of_differences() -> Result<()> {
    let (x, y) = (normal(6, BLOCK + 50, 12), normal(7, 90, 12) * 0.9);
    let (x_radii, y_radii) = (squared_radii(&x, &[5, 2])?, squared_radii(&y, &[5, 2])?);
    let distances = brute(&x, &y);
    with_all(|product| {
        let (of_x, of_y) = counts_by(product, (&x, &x_radii), (&y, &y_radii))?;
        for k in 0..2 {
            let in_x = distances.lt_tensor(&x_radii.get(k).unsqueeze(1));
            let in_y = distances.lt_tensor(&y_radii.get(k));
            assert_same(&of_x.per_centre.get(k), &in_x.sum_dim_intlist(1, false, Kind::Int64));
            assert_same(&of_x.per_point.get(k), &in_x.sum_dim_intlist(0, false, Kind::Int64));
            assert_same(&of_y.per_centre.get(k), &in_y.sum_dim_intlist(0, false, Kind::Int64));
            assert_same(&of_y.per_point.get(k), &in_y.sum_dim_intlist(1, false, Kind::Int64));
        }
        Ok(())
    })
}

#[test]
fn too_few_rows_and_not_a_number_are_errors() {
    assert!(squared_radii(&normal(0, 5, 2), &[5]).is_err());
    assert!(squared_radii(&normal(0, 5, 2), &[0]).is_err());
    assert!(squared_radii(&(normal(0, 5, 2) / 0.), &[1]).is_err());
    let radii = Tensor::zeros([1, 5], (Kind::Double, Device::Cpu));
    assert!(ball_counts(&normal(0, 5, 2), &normal(0, 5, 3), &radii, &radii).is_err());
}
