//! The sinusoidal code of a time step or a noise level.

use tch::{Device, Kind, Tensor};

/// `t` [N] of any kind to [cos(t e_i), sin(t e_i)] [N, 2 half] float32, e_i = exp(-ln(10000) i / half).
///
/// Float32 whatever the network's kind, and in this order of operations, as in guided-diffusion and diffusers
/// (`flip_sin_to_cos`, `freq_shift` 0): another order changes the last bit of e_i and, times t, the fifth digit here.
pub fn sinusoid(t: &Tensor, half: i64) -> Tensor {
    let angle = t.to_kind(Kind::Float).unsqueeze(-1) * frequencies(half, t.device());
    Tensor::cat(&[angle.cos(), angle.sin()], -1)
}

fn frequencies(half: i64, device: Device) -> Tensor {
    ((Tensor::arange(half, (Kind::Float, device)) * -10_000f64.ln()) / half as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_come_first() {
        let code = sinusoid(&Tensor::from_slice(&[0i64, 2]), 2);
        assert_eq!(code.size(), [2, 4]);
        assert_eq!(Vec::<f32>::try_from(&code.get(0)).unwrap(), [1., 1., 0., 0.]);
        let slow = 2. * 10_000f64.powf(-0.5);
        for (i, want) in [2f64.cos(), slow.cos(), 2f64.sin(), slow.sin()].into_iter().enumerate() {
            assert!((code.double_value(&[1, i as i64]) - want).abs() < 1e-6);
        }
    }
}
