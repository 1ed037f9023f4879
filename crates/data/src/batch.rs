//! Batches of normalized float planes, built in native threads.

use crate::augment::{AugmentConfig, Canvas};
use crate::set::ImageSource;
use equipoise_base::{ExitCode, Result, ResultExt, bail, ensure};
use equipoise_workplan::Sample;
use rayon::prelude::*;
use std::sync::Arc;
use tch::Tensor;

/// Shape of one image of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// 1 (gray) or 3 (RGB).
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Shape {
    /// Values of one image.
    pub fn len(self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Turns samples into batches. The result does not depend on the number of threads.
pub struct BatchBuilder {
    sets: Vec<Arc<dyn ImageSource>>,
    augment: AugmentConfig,
    shape: Shape,
    pool: rayon::ThreadPool,
    place: fn(Tensor) -> Result<Tensor>,
}

impl BatchBuilder {
    /// A builder over sets numbered as in [`Sample::set`], with its own `threads` threads.
    ///
    /// # Errors
    /// 78 when the shape or a transform does not fit, 74 when threads cannot be started.
    pub fn new(
        sets: Vec<Arc<dyn ImageSource>>,
        augment: AugmentConfig,
        shape: Shape,
        threads: usize,
    ) -> Result<Self> {
        let fits = matches!(shape.channels, 1 | 3) && !shape.is_empty();
        ensure!(fits, Config, "batches of shape {shape:?}: channels must be 1 or 3, sides positive");
        augment.check(shape.channels)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|thread| format!("data-{thread}"))
            .build()
            .or_exit(ExitCode::Io, "cannot start data threads")?;
        Ok(Self { sets, augment, shape, pool, place: Ok })
    }

    /// The same builder, whose images go through `place` as they are built, into page-locked memory for example.
    #[must_use]
    pub fn placed_by(self, place: fn(Tensor) -> Result<Tensor>) -> Self {
        Self { place, ..self }
    }

    /// Shape of one image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Fills `out` with `[samples, channels, height, width]`.
    ///
    /// # Errors
    /// 65 when a sample does not exist or has another size after augmentation; 74 and 65 as its set says.
    pub fn fill(&self, samples: &[Sample], out: &mut Vec<f32>) -> Result<()> {
        // Every value is written below, or the whole batch is an error.
        out.resize(samples.len() * self.shape.len(), 0.0);
        self.pool.install(|| {
            out.par_chunks_exact_mut(self.shape.len())
                .zip(samples)
                .try_for_each_init(Canvas::default, |canvas, (planes, sample)| {
                    self.build(sample, canvas, planes)
                })
        })
    }

    /// A batch as tensors on the CPU: float images `[n, c, h, w]` and int64 labels `[n]`. `buffer` is scratch space.
    ///
    /// # Errors
    /// As [`BatchBuilder::fill`], and those of placing the images.
    pub fn tensors(&self, samples: &[Sample], buffer: &mut Vec<f32>) -> Result<(Tensor, Tensor)> {
        self.fill(samples, buffer)?;
        let Shape { channels, height, width } = self.shape;
        let size = [samples.len(), channels, height, width].map(|length| length as i64);
        let labels: Vec<i64> = samples.iter().map(|sample| sample.label.into()).collect();
        Ok(((self.place)(Tensor::from_slice(buffer).view(size))?, Tensor::from_slice(&labels)))
    }

    fn build(&self, sample: &Sample, canvas: &mut Canvas, planes: &mut [f32]) -> Result<()> {
        let Some(set) = self.sets.get(sample.set as usize) else {
            bail!(BadData, "image set {} of {} does not exist", sample.set, self.sets.len());
        };
        set.with_image(sample.index as usize, &mut |image| {
            self.augment.apply(image, self.shape.channels, sample.key, canvas);
        })?;
        let (height, width) = (canvas.height(), canvas.width());
        if (height, width) != (self.shape.height, self.shape.width) {
            bail!(
                BadData,
                "image {} of set {} is {height} x {width} after augmentation, the batch needs {} x {}: \
                 add a resize or crop to augment",
                sample.index,
                sample.set,
                self.shape.height,
                self.shape.width
            );
        }
        planes.copy_from_slice(canvas.planes());
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ImageSet;

    pub(crate) fn builder(images: usize, threads: usize) -> BatchBuilder {
        let pixels = (0..images * 6 * 5 * 3).map(|i| (i * 37 % 251) as u8).collect();
        let set = ImageSet::new(6, 5, 3, pixels, (0..images as u32).collect()).unwrap();
        let augment = serde_json::from_str(
            r#"[{"op": "crop", "padding": 2, "size": 4}, {"op": "hflip"}, {"op": "normalize", "mean": [0.5], "std": [0.5]}]"#,
        );
        let shape = Shape { channels: 3, height: 4, width: 4 };
        BatchBuilder::new(vec![Arc::new(set)], augment.unwrap(), shape, threads).unwrap()
    }

    pub(crate) fn samples(indices: std::ops::Range<u64>) -> Vec<Sample> {
        indices.map(|index| Sample { set: 0, index, label: index as u32, key: index * 77 }).collect()
    }

    #[test]
    fn threads_and_neighbours_do_not_matter() {
        let (mut one, mut three, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        builder(20, 1).fill(&samples(0..20), &mut one).unwrap();
        builder(20, 3).fill(&samples(0..20), &mut three).unwrap();
        assert_eq!(one, three);
        builder(20, 2).fill(&samples(7..8), &mut alone).unwrap();
        assert_eq!(alone, one[7 * 48..8 * 48]);
    }

    #[test]
    fn tensors_have_shape_and_labels() {
        let (images, labels) = builder(3, 1).tensors(&samples(0..3), &mut Vec::new()).unwrap();
        assert_eq!(images.size(), [3, 3, 4, 4]);
        assert_eq!(Vec::<i64>::try_from(labels).unwrap(), [0, 1, 2]);
        assert!(images.abs().max().double_value(&[]) <= 1.0);
    }

    #[test]
    fn misfits_are_errors() {
        let builder = builder(3, 1);
        assert!(builder.fill(&samples(2..4), &mut Vec::new()).is_err());
        let other_set = [Sample { set: 1, ..samples(0..1)[0] }];
        assert!(builder.fill(&other_set, &mut Vec::new()).is_err());
        let set = ImageSet::new(6, 5, 3, vec![0; 90], vec![0]).unwrap();
        let shape = Shape { channels: 3, height: 4, width: 4 };
        let plain = BatchBuilder::new(vec![Arc::new(set)], AugmentConfig::default(), shape, 1).unwrap();
        let error = plain.fill(&samples(0..1), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("6 x 5 after augmentation"), "{error}");
    }
}
