//! Random inputs: the same in every run.

use equipoise_base::rng::Key;
use tch::Tensor;

/// Standard normals of a shape, float32 on the CPU, a function of `purpose`.
pub fn normals(purpose: &str, shape: &[i64]) -> Tensor {
    let mut values = vec![0f32; shape.iter().product::<i64>() as usize];
    Key::new(0, purpose).stream().fill_normal(&mut values);
    Tensor::from_slice(&values).view(shape)
}
