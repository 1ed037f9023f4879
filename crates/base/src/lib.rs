//! Ids, errors, exit codes, clock, hashing and identity-keyed random numbers.
//!
//! Everything above depends on this crate, so it depends on nothing native and does no I/O.

pub mod clock;
mod error;
mod exit;
pub mod hash;
pub mod id;
pub mod rng;
pub mod trace;

pub use error::{Error, Result, ResultExt};
pub use exit::ExitCode;
pub use hash::Identity;
pub use id::{ClassId, ImageId};

/// Fails with an [`Error`] of the named [`ExitCode`]: `bail!(BadData, "{path}: no images")`.
#[macro_export]
macro_rules! bail {
    ($code:ident, $($message:tt)*) => {
        return Err($crate::Error::new($crate::ExitCode::$code, format!($($message)*)).into())
    };
}

/// [`bail!`] unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $code:ident, $($message:tt)*) => {
        if !$condition {
            $crate::bail!($code, $($message)*);
        }
    };
}
