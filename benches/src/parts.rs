//! Where the time of sampling goes: networks, decoder and classifier, each timed when it is called forward. What is
//! left of a round is the solver and all gradients.

use equipoise_diffusion::criterion::Guide;
use equipoise_diffusion::decoder::Decoder;
use equipoise_diffusion::guidance::Denoiser;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;
use tch::Tensor;

/// Seconds and calls of each part. On a CPU an operator has ended when its call returns.
#[derive(Debug, Default)]
pub struct Parts(RefCell<BTreeMap<&'static str, (f64, u64)>>);

impl Parts {
    fn time<T>(&self, part: &'static str, body: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = body();
        let mut parts = self.0.borrow_mut();
        let entry = parts.entry(part).or_default();
        *entry = (entry.0 + start.elapsed().as_secs_f64(), entry.1 + 1);
        result
    }

    /// Milliseconds and calls of each part since the last time.
    pub fn take(&self) -> Value {
        let parts = std::mem::take(&mut *self.0.borrow_mut());
        let show = |(part, (seconds, calls)): (&str, (f64, u64))| {
            (part.to_string(), json!({ "ms": 1e3 * seconds, "calls": calls }))
        };
        Value::Object(parts.into_iter().map(show).collect())
    }

    /// The same thing, timed under a name.
    pub fn timed<'a, T: ?Sized>(&'a self, part: &'static str, inner: &'a T) -> Timed<'a, T> {
        Timed { parts: self, part, inner }
    }
}

/// See [`Parts::timed`].
#[derive(Debug)]
pub struct Timed<'a, T: ?Sized> {
    parts: &'a Parts,
    part: &'static str,
    inner: &'a T,
}

impl Denoiser for Timed<'_, dyn Denoiser + '_> {
    fn denoise(&self, x: &Tensor, t: i64) -> Tensor {
        self.parts.time(self.part, || self.inner.denoise(x, t))
    }

    fn conditional(&self, x: &Tensor, t: i64) -> Tensor {
        self.parts.time(self.part, || self.inner.conditional(x, t))
    }
}

impl Decoder for Timed<'_, dyn Decoder + '_> {
    fn segments(&self) -> usize {
        self.inner.segments()
    }

    fn segment(&self, index: usize, x: &Tensor) -> Tensor {
        self.parts.time(self.part, || self.inner.segment(index, x))
    }
}

impl Guide for Timed<'_, dyn Guide + '_> {
    fn logits(&self, x: &Tensor) -> Tensor {
        self.parts.time(self.part, || self.inner.logits(x))
    }

    fn features(&self, x: &Tensor) -> Tensor {
        self.parts.time(self.part, || self.inner.features(x))
    }
}
