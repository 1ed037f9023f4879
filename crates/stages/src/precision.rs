//! The number formats of a recipe as libtorch knows them.

use equipoise_base::Result;
use equipoise_config::recipe;
use equipoise_nn::{Precision, runtime};
use std::sync::Once;
use tch::Kind;

/// What to compute in on this process's device.
///
/// "auto" follows from facts that the identity of a run holds already: the kind of device and the pinned instruction
/// set. So it means the same on every rank and after every restart.
///
/// # Errors
/// 101 if libtorch cannot say what it runs on.
pub(crate) fn compute(precision: recipe::Precision) -> Result<Precision> {
    Ok(match precision {
        recipe::Precision::Auto => {
            let fast = if runtime::bf16_is_fast()? { Precision::Bf16 } else { Precision::Fp32 };
            static TOLD: Once = Once::new();
            TOLD.call_once(|| equipoise_telemetry::info!("precision: {fast:?}, the faster on this device"));
            fast
        }
        recipe::Precision::Fp32 => Precision::Fp32,
        recipe::Precision::Bf16 => Precision::Bf16,
        recipe::Precision::Fp16 => Precision::Fp16,
    })
}

/// What to keep weights in.
pub(crate) fn stored(precision: recipe::StoredPrecision) -> Kind {
    match precision {
        recipe::StoredPrecision::Fp32 => Kind::Float,
        recipe::StoredPrecision::Bf16 => Kind::BFloat16,
        recipe::StoredPrecision::Fp16 => Kind::Half,
    }
}
