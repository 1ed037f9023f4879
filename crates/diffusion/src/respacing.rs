//! Which of a chain's time steps a respaced chain keeps (`space_timesteps` of improved-diffusion).

use equipoise_base::{Result, ensure};

/// Time steps kept of `total`, ascending: `"250"` spreads 250 evenly, `"10,15,20"` gives that many to each third,
/// `"ddim25"` takes the smallest integer stride that gives 25.
///
/// # Errors
/// 78 if the text is neither, or asks for more steps than there are.
pub fn respace(total: i64, respacing: &str) -> Result<Vec<i64>> {
    if let Some(count) = respacing.strip_prefix("ddim") {
        return strided(total, respacing, count);
    }
    let counts: Option<Vec<i64>> = respacing.split(',').map(|part| part.trim().parse().ok()).collect();
    let counts = counts.unwrap_or_default();
    ensure!(
        !counts.is_empty() && counts.iter().all(|&count| count >= 1),
        Config,
        "respacing = '{respacing}': want step counts such as '250' or '10,15,20', or 'ddim25'"
    );
    let sections = counts.len() as i64;
    let (base, extra) = (total / sections, total % sections);
    let mut kept = Vec::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = base + i64::from((section as i64) < extra);
        ensure!(
            count <= size,
            Config,
            "respacing = '{respacing}': a section of {size} time steps cannot be divided into {count}"
        );
        let stride = if count == 1 { 1. } else { (size - 1) as f64 / (count - 1) as f64 };
        // Summed, not multiplied, and rounded to even, so that ties fall as in Python.
        let mut position = 0f64;
        for _ in 0..count {
            kept.push(start + position.round_ties_even() as i64);
            position += stride;
        }
        start += size;
    }
    kept.dedup();
    Ok(kept)
}

fn strided(total: i64, respacing: &str, count: &str) -> Result<Vec<i64>> {
    let count: i64 = count.parse().unwrap_or(0);
    let stride = (1..total.max(2)).find(|stride| (total + stride - 1) / stride == count);
    ensure!(
        stride.is_some() && count >= 1,
        Config,
        "respacing = '{respacing}': no integer stride keeps exactly that many of {total} time steps"
    );
    Ok((0..total).step_by(stride.unwrap_or(1) as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values printed by guided-diffusion.
    #[test]
    fn steps_are_those_of_guided_diffusion() {
        assert_eq!(respace(10, "5").unwrap(), [0, 2, 4, 7, 9]);
        assert_eq!(respace(300, "2,3,1").unwrap(), [0, 99, 100, 150, 199, 200]);
        assert_eq!(respace(10, "ddim5").unwrap(), [0, 2, 4, 6, 8]);
        assert_eq!(respace(4, "4").unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn nonsense_is_a_configuration_error() {
        for text in ["", "0", "x", "11", "3,9", "ddim7", "ddim0", "ddim", "-1"] {
            assert_eq!(respace(10, text).unwrap_err().code(), equipoise_base::ExitCode::Config, "{text}");
        }
    }
}
