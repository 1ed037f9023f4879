//! Checks of input that comes from files.

use equipoise_base::{Result, ensure};
use tch::{Kind, Tensor};

/// Rows and columns of `rows`, which `name` is to call in errors.
///
/// # Errors
/// 65 unless it is a matrix of finite numbers.
pub fn features(name: &str, rows: &Tensor) -> Result<(i64, i64)> {
    let size = rows.size();
    ensure!(size.len() == 2, BadData, "{name}: expected features [n, d], got a tensor of shape {size:?}");
    ensure!(is_finite(rows), BadData, "{name}: NaN or infinity among the features");
    Ok((size[0], size[1]))
}

/// Whether there is neither NaN nor infinity: in one pass, since the extremes of a set with NaN are NaN.
fn is_finite(values: &Tensor) -> bool {
    if values.numel() == 0 {
        return true;
    }
    let (least, greatest) = values.aminmax(None, false);
    least.double_value(&[]).is_finite() && greatest.double_value(&[]).is_finite()
}

/// `labels` as numbers, each below `classes`, one for each of `rows` rows.
///
/// # Errors
/// 65 naming the first label that is not.
pub fn labels(name: &str, labels: &Tensor, rows: i64, classes: usize) -> Result<Vec<usize>> {
    let size = labels.size();
    ensure!(size == [rows], BadData, "{name}: expected {rows} labels, got a tensor of shape {size:?}");
    let mut out = Vec::with_capacity(rows as usize);
    for (row, label) in to_i64(labels).into_iter().enumerate() {
        let valid = usize::try_from(label).ok().filter(|&label| label < classes);
        let Some(label) = valid else {
            equipoise_base::bail!(BadData, "{name}: label {label} of row {row} is not in 0..{classes}")
        };
        out.push(label);
    }
    Ok(out)
}

/// All values, row-major, on the host.
pub fn to_i64(tensor: &Tensor) -> Vec<i64> {
    let flat = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Int64).contiguous().view(-1);
    let mut out = vec![0; flat.numel()];
    flat.copy_data(&mut out, flat.numel());
    out
}

/// All values, row-major, on the host.
pub fn to_f64(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double).contiguous().view(-1);
    let mut out = vec![0.; flat.numel()];
    flat.copy_data(&mut out, flat.numel());
    out
}
