//! Linear algebra of covariance matrices, in float64, sound for singular ones.

use equipoise_base::{ExitCode, Result, ResultExt, ensure};
use tch::{Kind, Tensor};

/// Singular values [min(n, m)] of `matrix` [n, m], largest first.
///
/// # Errors
/// 71 when `matrix` is not finite.
pub fn singular_values(matrix: &Tensor) -> Result<Tensor> {
    let (_, values, _) =
        finite(matrix, "matrix")?.f_svd(true, false).or_exit(ExitCode::NonFinite, "singular values")?;
    Ok(values)
}

/// Sum of the singular values of `matrix` [n, m].
///
/// Large matrices go by the eigenvalues of the smaller Gram matrix, four times as fast, if the round-off of those is
/// harmless: an error e of an eigenvalue is e / (2 sigma) of its root, which is bounded here, not hoped for.
///
/// # Errors
/// 71 when `matrix` is not finite.
pub fn nuclear_norm(matrix: &Tensor) -> Result<f64> {
    /// Below this a decomposition takes milliseconds.
    const LARGE: i64 = 256;
    /// Worst relative error to accept: FID keeps six decimals.
    const ACCEPTED: f64 = 1e-8;
    let (rows, columns) = matrix.size2().unwrap_or((0, 0));
    if rows.min(columns) >= LARGE {
        let matrix = finite(matrix, "matrix")?;
        let product = if rows <= columns { gram(&matrix.tr()) } else { gram(&matrix) };
        let squares = product.f_linalg_eigvalsh("L").or_exit(ExitCode::NonFinite, "eigenvalues")?;
        let roots = squares.clamp_min(0.).sqrt();
        let sum = roots.sum(Kind::Double).double_value(&[]);
        let round_off = 10. * f64::EPSILON * squares.max().double_value(&[]);
        let error = (round_off / (roots * 2.)).sum(Kind::Double).double_value(&[]);
        if error <= ACCEPTED * sum {
            return Ok(sum);
        }
    }
    Ok(singular_values(matrix)?.sum(Kind::Double).double_value(&[]))
}

/// `rows^T rows` [d, d] of `rows` [n, d], exactly symmetric: only one triangle of blocks is computed.
pub fn gram(rows: &Tensor) -> Tensor {
    /// Columns of a block: wide enough for a product at full speed.
    const BLOCK: i64 = 512;
    let dim = rows.size()[1];
    if dim <= BLOCK {
        let product = rows.tr().matmul(rows);
        return (&product + product.tr()) * 0.5;
    }
    let blocks: Vec<Tensor> = rows.split(BLOCK, 1);
    let out = Tensor::zeros([dim, dim], (rows.kind(), rows.device()));
    for (i, left) in blocks.iter().enumerate() {
        for (j, right) in blocks.iter().enumerate().skip(i) {
            let product = left.tr().matmul(right);
            let (row, column) = (i as i64 * BLOCK, j as i64 * BLOCK);
            let place = |out: &Tensor, row, column, block: &Tensor| {
                out.narrow(0, row, block.size()[0]).narrow(1, column, block.size()[1]).copy_(block);
            };
            if i == j {
                place(&out, row, column, &((&product + product.tr()) * 0.5));
            } else {
                place(&out, row, column, &product);
                place(&out, column, row, &product.tr());
            }
        }
    }
    out
}

/// Square root of the symmetric positive semi-definite `matrix` [d, d]: symmetric, negative round-off taken as 0.
///
/// # Errors
/// 71 when `matrix` is not finite.
pub fn sqrt_psd(matrix: &Tensor) -> Result<Tensor> {
    let (values, vectors) = eigen(matrix)?;
    Ok((&vectors * values.clamp_min(0.).sqrt()).matmul(&vectors.tr()))
}

/// A factor F [r, d] of the symmetric positive semi-definite `matrix` [d, d]: `F^T F = matrix`.
///
/// Cholesky when `matrix` is safely definite (r = d); otherwise eigenvectors, without those whose eigenvalue is
/// round-off. Dropping them matters: a zero that is stored as 1e-16 has the root 1e-8.
///
/// # Errors
/// 71 when `matrix` is not finite.
pub fn psd_factor(matrix: &Tensor) -> Result<Tensor> {
    let dim = matrix.size()[0] as f64;
    let (lower, info) = matrix
        .to_kind(Kind::Double)
        .f_linalg_cholesky_ex(false, false)
        .or_exit(ExitCode::NonFinite, "factor")?;
    if info.int64_value(&[]) == 0 {
        let pivots = lower.diagonal(0, 0, 1).square();
        if pivots.min().double_value(&[]) > dim * f64::EPSILON * pivots.max().double_value(&[]) {
            return Ok(lower.tr());
        }
    }
    let (values, vectors) = eigen(matrix)?;
    let noise = dim * f64::EPSILON * values.max().double_value(&[]);
    let kept = values.gt(noise.max(0.)).nonzero().view(-1);
    let roots = values.index_select(0, &kept).sqrt().unsqueeze(1);
    Ok(vectors.tr().index_select(0, &kept) * roots)
}

/// `Tr((S1 S2)^(1/2))` from factors with `F1^T F1 = S1` and `F2^T F2 = S2`: the nuclear norm of `F1 F2^T`.
///
/// No root of a non-symmetric matrix is taken, so nothing goes wrong for singular covariances.
///
/// # Errors
/// 71 when a factor is not finite.
pub fn trace_sqrt_product(first: &Tensor, second: &Tensor) -> Result<f64> {
    nuclear_norm(&first.matmul(&second.tr()))
}

/// Inverse [d, d] and log-determinant of the symmetric positive definite `matrix` [d, d], by Cholesky.
///
/// # Errors
/// 71 when `matrix` is not positive definite; `what` names it.
pub fn inverse_logdet(matrix: &Tensor, what: &str) -> Result<(Tensor, f64)> {
    let (lower, info) = finite(matrix, what)?.linalg_cholesky_ex(false, false);
    ensure!(
        info.int64_value(&[]) == 0,
        NonFinite,
        "{what} is not positive definite: raise the shrinkage eps"
    );
    let logdet = 2. * lower.diagonal(0, 0, 1).log().sum(Kind::Double).double_value(&[]);
    Ok((lower.cholesky_inverse(false), logdet))
}

/// LAPACK either fails on a NaN or returns more of them.
fn finite(matrix: &Tensor, what: &str) -> Result<Tensor> {
    ensure!(matrix.isfinite().all().int64_value(&[]) == 1, NonFinite, "{what}: NaN or infinity");
    Ok(matrix.to_kind(Kind::Double))
}

fn eigen(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let matrix = finite(matrix, "covariance")?;
    // LAPACK reads one triangle; the mean of both halves the asymmetry that summation left.
    let symmetric = (&matrix + matrix.tr()) * 0.5;
    symmetric.f_linalg_eigh("L").or_exit(ExitCode::NonFinite, "eigenvalues")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &Tensor, want: &Tensor, tolerance: f64) {
        let error = (got - want).abs().max().double_value(&[]);
        assert!(error < tolerance, "{error:e}");
    }

    fn diagonal(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).diag(0)
    }

    #[test]
    fn roots_and_factors_of_a_definite_matrix() -> Result<()> {
        let matrix = Tensor::from_slice(&[2.0, 1.0, 1.0, 3.0]).view([2, 2]);
        let root = sqrt_psd(&matrix)?;
        close(&root.matmul(&root), &matrix, 1e-14);
        let factor = psd_factor(&matrix)?;
        close(&factor.tr().matmul(&factor), &matrix, 1e-14);
        let (inverse, logdet) = inverse_logdet(&matrix, "matrix")?;
        close(&inverse.matmul(&matrix), &Tensor::eye(2, (Kind::Double, tch::Device::Cpu)), 1e-14);
        assert!((logdet - 5f64.ln()).abs() < 1e-14);
        Ok(())
    }

    fn normal(rows: i64, columns: i64) -> Tensor {
        let mut random = equipoise_base::rng::Key::new(0, "linalg-test").stream();
        let values: Vec<f64> = (0..rows * columns).map(|_| random.normal()).collect();
        Tensor::from_slice(&values).view([rows, columns])
    }

    #[test]
    fn the_fast_nuclear_norm_is_used_only_where_it_is_sound() -> Result<()> {
        let (tall, thin) = (normal(600, 300), normal(300, 20));
        for matrix in [tall.shallow_clone(), tall.tr(), thin.matmul(&thin.tr()), tall.zeros_like()] {
            let want = singular_values(&matrix)?.sum(Kind::Double).double_value(&[]);
            assert!((nuclear_norm(&matrix)? - want).abs() <= 1e-9 * want);
        }
        Ok(())
    }

    #[test]
    fn a_gram_matrix_in_blocks_is_symmetric_and_right() {
        for dim in [3, 512, 700, 1100] {
            let rows = normal(10, dim);
            let product = gram(&rows);
            close(&product, &rows.tr().matmul(&rows), 1e-12);
            assert!(product.eq_tensor(&product.tr()).all().int64_value(&[]) == 1);
        }
    }

    #[test]
    fn a_singular_matrix_has_a_thin_factor() -> Result<()> {
        let row = Tensor::from_slice(&[1.0, 2.0, 2.0]).view([1, 3]);
        let matrix = row.tr().matmul(&row);
        let factor = psd_factor(&matrix)?;
        assert_eq!(factor.size(), [1, 3]);
        close(&factor.tr().matmul(&factor), &matrix, 1e-13);
        assert_eq!(psd_factor(&diagonal(&[0., 0.]))?.size(), [0, 2]);
        assert_eq!(inverse_logdet(&matrix, "cov").unwrap_err().code(), ExitCode::NonFinite);
        Ok(())
    }

    #[test]
    fn the_trace_of_commuting_matrices_is_closed_form() -> Result<()> {
        let (first, second) = (diagonal(&[4., 9., 0.]), diagonal(&[1., 16., 25.]));
        let trace = trace_sqrt_product(&psd_factor(&first)?, &psd_factor(&second)?)?;
        assert!((trace - (2. + 12.)).abs() < 1e-12);
        let empty = psd_factor(&diagonal(&[0., 0., 0.]))?;
        assert_eq!(trace_sqrt_product(&empty, &psd_factor(&second)?)?, 0.);
        Ok(())
    }

    #[test]
    fn not_a_number_is_an_error() {
        assert!(psd_factor(&diagonal(&[f64::NAN, 1.])).is_err());
        assert!(inverse_logdet(&diagonal(&[f64::NAN, 1.]), "cov").is_err());
    }
}
