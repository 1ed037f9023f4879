//! Agreement of two labellings: of predictions with labels, or of clusters with classes (seed paper 001).

use equipoise_base::{Result, ensure};
use std::collections::BTreeMap;

/// Multi-class Matthews correlation (Gorodkin's R_K), as scikit-learn; 0 when either side is constant.
///
/// # Errors
/// 65 when the numbers differ.
pub fn mcc(predictions: &[i64], labels: &[i64]) -> Result<f64> {
    let table = Table::of(predictions, labels)?;
    let n = table.total;
    let agree: f64 = table.cells.iter().filter(|((a, b), _)| a == b).map(|(_, count)| count).sum();
    let expected: f64 =
        table.left.iter().map(|(value, count)| count * table.right.get(value).copied().unwrap_or(0.)).sum();
    let spread =
        |margin: &BTreeMap<i64, f64>| n * n - margin.values().map(|count| count * count).sum::<f64>();
    let norm = spread(&table.left) * spread(&table.right);
    Ok(if norm > 0. { (agree * n - expected) / norm.sqrt() } else { 0. })
}

/// Normalised mutual information with the arithmetic mean of the entropies, as scikit-learn: 1 when both sides are
/// constant (or empty), 0 when one is.
///
/// # Errors
/// 65 when the numbers differ.
pub fn nmi(left: &[i64], right: &[i64]) -> Result<f64> {
    let table = Table::of(left, right)?;
    if table.left.len() <= 1 && table.right.len() <= 1 {
        return Ok(1.);
    }
    let n = table.total;
    let term = |((a, b), count): (&(i64, i64), &f64)| {
        count / n * (n * count / (table.left[a] * table.right[b])).ln()
    };
    let information: f64 = table.cells.iter().map(term).sum();
    let entropy = |margin: &BTreeMap<i64, f64>| -margin.values().map(|c| c / n * (c / n).ln()).sum::<f64>();
    let normalizer = (entropy(&table.left) + entropy(&table.right)) / 2.;
    // Independent labellings leave round-off of either sign.
    Ok(if information > 0. { (information / normalizer).min(1.) } else { 0. })
}

/// Contingency table; a BTreeMap, so that sums have one order.
struct Table {
    cells: BTreeMap<(i64, i64), f64>,
    left: BTreeMap<i64, f64>,
    right: BTreeMap<i64, f64>,
    total: f64,
}

impl Table {
    fn of(left: &[i64], right: &[i64]) -> Result<Self> {
        let (have, want) = (left.len(), right.len());
        ensure!(have == want, BadData, "{have} labels cannot be compared with {want}");
        let mut this = Self {
            cells: BTreeMap::new(),
            left: BTreeMap::new(),
            right: BTreeMap::new(),
            total: have as f64,
        };
        for (&a, &b) in left.iter().zip(right) {
            *this.cells.entry((a, b)).or_default() += 1.;
            *this.left.entry(a).or_default() += 1.;
            *this.right.entry(b).or_default() += 1.;
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfect_reversed_and_renamed() -> Result<()> {
        let labels = [0, 0, 1, 1];
        assert!((mcc(&labels, &labels)? - 1.).abs() < 1e-15);
        assert!((mcc(&[1, 1, 0, 0], &labels)? + 1.).abs() < 1e-15);
        assert!((nmi(&[7, 7, 3, 3], &labels)? - 1.).abs() < 1e-15);
        Ok(())
    }

    #[test]
    fn two_by_two_is_the_phi_coefficient() -> Result<()> {
        // 3 true positives, 1 false negative, 2 false positives, 4 true negatives.
        let predictions = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];
        let labels = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
        let want = (3. * 4. - 2. * 1.) / f64::sqrt(5. * 4. * 6. * 5.);
        assert!((mcc(&predictions, &labels)? - want).abs() < 1e-15);
        Ok(())
    }

    #[test]
    fn constant_independent_and_empty() -> Result<()> {
        assert_eq!((mcc(&[0, 0, 0], &[0, 1, 2])?, nmi(&[0, 0, 0], &[0, 1, 2])?), (0., 0.));
        assert_eq!((mcc(&[0, 0], &[1, 1])?, nmi(&[0, 0], &[1, 1])?), (0., 1.));
        assert!(nmi(&[0, 0, 1, 1], &[0, 1, 0, 1])?.abs() < 1e-15);
        assert_eq!((mcc(&[], &[])?, nmi(&[], &[])?), (0., 1.));
        assert!(mcc(&[0], &[]).is_err());
        Ok(())
    }
}
