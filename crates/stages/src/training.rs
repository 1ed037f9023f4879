//! The training loop: data-parallel by micro-batches, the same weights on any allowed number of ranks, resumable at
//! any step (DESIGN "Elastic training").

use crate::step::Step;
use equipoise_base::{Error, ExitCode, Result, ensure, trace};
use equipoise_comm::agree::{Verdict, agree};
use equipoise_data::{BatchBuilder, Loader, MicroBatch, Request};
use equipoise_nn::layers::BatchNorm2d;
use equipoise_nn::reduce::Ownership;
use equipoise_nn::statistics::RunningStatistics;
use equipoise_nn::{
    Ema, EmaConfig, FlatParams, GradientTree, Optimizer, OptimizerConfig, OverlappedTree, Params, Schedule,
    ScheduleConfig, Transport, runtime, weights,
};
use equipoise_rundir::{CheckpointWriter, Snapshot, failpoint};
use equipoise_telemetry::Progress;
use equipoise_workplan::TrainingOrder;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Micro-batches that the loader prepares ahead of the model.
const PREFETCH: usize = 4;

/// What is trained: parameters, and the loss of a micro-batch.
pub trait Objective {
    /// All parameters and buffers.
    fn params(&self) -> &Params;

    /// Batch normalisations, in a fixed order.
    fn batch_norms(&self) -> Vec<&BatchNorm2d>;

    /// How well the weights do as they are, the same number on all ranks; asked for only with
    /// [`TrainingConfig::validate_every`].
    ///
    /// # Errors
    /// 75 on all ranks once one was asked to stop.
    fn score(&self, step: &Step) -> Result<f64>;

    /// Mean loss of a micro-batch, a scalar.
    ///
    /// # Errors
    /// Those of the precision scope.
    fn loss(&self, micro: &MicroBatch) -> Result<Tensor>;
}

/// Length and optimizer of a training.
#[derive(Clone, Debug)]
pub struct TrainingConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Optimizer.
    pub optimizer: OptimizerConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// Average of the weights, if there is one; it is what is committed.
    pub ema: Option<EmaConfig>,
    /// Steps between looks at [`Objective::score`]: the weights that had the best one are then committed, instead of
    /// the last ones.
    pub validate_every: Option<u64>,
    /// Steps between rows of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps whose loss or gradient is not finite that are left out, over all attempts; one more ends the training.
    pub skip_non_finite: u64,
    /// Kind of the floating tensors of the committed weights.
    pub stored: Kind,
}

/// How a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done and the weights are committed.
    Done,
    /// A stop was asked for; a checkpoint of the current step is committed.
    Stopped,
    /// This task of an array job has nothing left to do, others are still at work.
    Part,
}

/// Trains to the end or to a stop, from the newest valid checkpoint. The result is `model.safetensors` in the stage's
/// folder: the averaged weights where there is averaging, the best ones where there is validation.
///
/// # Errors
/// 71 when the loss or gradient of more steps than may be left out is not finite (no weight has changed by it), 78 when the
/// ranks cannot share the micro-batches, 74 when a checkpoint cannot be written.
pub fn train(
    step: &Step,
    objective: &dyn Objective,
    config: &TrainingConfig,
    order: TrainingOrder,
    builder: BatchBuilder,
) -> Result<Ended> {
    let mut state = State::new(step, objective, config, order.micro_batches() as usize)?;
    let ended = state.run(order, builder)?;
    state.transport.close()?;
    let operators = runtime::nondeterministic_operators()?;
    if !operators.is_empty() {
        equipoise_telemetry::warn!(
            "the same training may end with other last bits: no deterministic implementation of {}",
            operators.join(", ")
        );
    }
    Ok(ended)
}

/// This rank's micro-batches, step after step.
struct Requests {
    order: TrainingOrder,
    micros: std::ops::Range<u64>,
    step: u64,
    at: u64,
    end: u64,
}

impl Iterator for Requests {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if self.micros.is_empty() || self.step == self.end {
            return None;
        }
        let (step, micro) = (self.step, self.micros.start + self.at);
        self.at += 1;
        if self.micros.start + self.at == self.micros.end {
            (self.at, self.step) = (0, self.step + 1);
        }
        Some(Request { step, micro, samples: self.order.micro_batch(step, micro) })
    }
}

struct State<'a> {
    step: &'a Step,
    objective: &'a dyn Objective,
    config: &'a TrainingConfig,
    flat: FlatParams,
    optimizer: Box<dyn Optimizer>,
    schedule: Schedule,
    ema: Option<Ema>,
    tree: GradientTree,
    /// Where sums travel during backward: the same bits, sooner.
    overlapped: Option<OverlappedTree>,
    transport: Box<dyn Transport + 'a>,
    running: RunningStatistics<'a>,
    /// What this rank's micro-batches of the step noted for the running statistics.
    noted: Vec<Tensor>,
    /// Only the root writes: all ranks hold the same state.
    writer: Option<CheckpointWriter>,
    /// What the writer's last snapshot failed with, to be agreed on at the next step boundary.
    failed: Option<Error>,
    /// Losses since the last row of metrics, summed over this rank's micro-batches.
    window: (f64, u64),
    /// Steps that were left out so far.
    skipped: u64,
    /// What validation has seen.
    validated: Validated,
    /// The step of the newest checkpoint. It is not written again: its score may not have been known then.
    saved: Option<u64>,
    worked: Worked,
}

/// Scores so far, and the weights that had the best one.
#[derive(Default)]
struct Validated {
    /// Step and score, in order.
    scores: Vec<(u64, f64)>,
    best: Vec<(String, Tensor)>,
}

impl Validated {
    /// The step to keep: the first of those with the highest score.
    fn kept(&self) -> Option<(u64, f64)> {
        self.scores.iter().copied().reduce(|best, next| if next.1 > best.1 { next } else { best })
    }

    /// For the manifest of a checkpoint: by their bits, since reading decimals back may change the last one.
    fn to_json(&self) -> Value {
        json!(self.scores.iter().map(|(step, score)| (step, score.to_bits())).collect::<Vec<_>>())
    }

    /// Scores as [`Validated::to_json`] has written them; none of a checkpoint without them.
    fn scores_of(json: &Value) -> Vec<(u64, f64)> {
        let scores: Vec<(u64, u64)> = serde_json::from_value(json.clone()).unwrap_or_default();
        scores.into_iter().map(|(step, bits)| (step, f64::from_bits(bits))).collect()
    }

    /// Takes up the score of a step, and a copy of its weights if it is the best.
    fn add(&mut self, step: u64, score: f64, params: &Params) {
        self.scores.push((step, score));
        if self.kept() == Some((step, score)) {
            self.best =
                params.all().into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect();
        }
    }
}

/// Steps whose time is not on record yet.
struct Worked {
    /// The first of them.
    from: u64,
    /// When it began.
    begun: Instant,
    /// When the last one was over: a step that is given up does not count.
    over: Instant,
}

impl Worked {
    fn since(from: u64) -> Self {
        let now = Instant::now();
        Self { from, begun: now, over: now }
    }
}

impl<'a> State<'a> {
    fn new(
        step: &'a Step,
        objective: &'a dyn Objective,
        config: &'a TrainingConfig,
        micro_batches: usize,
    ) -> Result<Self> {
        let flat = FlatParams::new(objective.params())?;
        let ownership = Ownership::new(micro_batches, step.world())?;
        Ok(Self {
            overlapped: step.overlapped_tree(&flat, &ownership)?,
            optimizer: config.optimizer.build(&flat)?,
            schedule: Schedule::new(config.schedule.clone(), 1, config.steps)?,
            ema: config.ema.map(|ema| Ema::new(ema, &flat)).transpose()?,
            tree: GradientTree::new(ownership, step.rank()),
            transport: step.gradient_transport()?,
            writer: step.checkpoint_writer()?,
            running: RunningStatistics::new(objective.batch_norms()),
            noted: Vec::new(),
            failed: None,
            window: (0., 0),
            skipped: 0,
            validated: Validated::default(),
            saved: None,
            worked: Worked::since(0),
            step,
            objective,
            config,
            flat,
        })
    }

    /// From the newest checkpoint to the end or to a stop.
    fn run(&mut self, order: TrainingOrder, builder: BatchBuilder) -> Result<Ended> {
        let (step, steps) = (self.step, self.config.steps);
        let first = self.restore()?;
        if first == steps {
            if !self.validate(steps)? {
                return Ok(Ended::Stopped);
            }
            self.commit_weights()?;
            return Ok(Ended::Done);
        }
        let owned = self.tree.owned();
        let micros = owned.start as u64..owned.end as u64;
        let mut samples = order.clone();
        let requests = Requests { order, micros, step: first, at: 0, end: steps };
        let mut loader = Loader::start(builder, requests, PREFETCH)?;
        let mut progress = Progress::new(&step.stage.name, "steps", first, steps, step.is_root());
        self.worked = Worked::since(first);
        for now in first..steps {
            if !self.validate(now)? {
                return Ok(Ended::Stopped);
            }
            let _span = trace::numbered("step", now);
            let losses = self.accumulate(now, &mut loader)?;
            let gradient = {
                let _span = trace::span("reduce");
                match &mut self.overlapped {
                    Some(tree) => tree.finish(&self.flat)?,
                    None => self.tree.finish(&*self.transport, self.flat.values())?,
                }
            };
            let (losses, finite) = read_back(&losses, &gradient);
            self.transport.check()?;
            match self.verdict(finite)? {
                Verdict::Io => return Err(self.write_failure()),
                Verdict::NonFinite => {
                    self.name_images(now, &losses, &mut samples);
                    self.skip(now, &losses)?;
                }
                Verdict::Go => {
                    self.apply(now, &gradient)?;
                    self.window.0 += losses.iter().sum::<f64>();
                    self.window.1 += losses.len() as u64;
                }
                // The gradient of this step is given up: the checkpoint is of the step before it.
                _ => {
                    self.checkpoint(now)?;
                    self.settle()?;
                    return Ok(Ended::Stopped);
                }
            }
            self.step.count_made(u64::from(self.step.is_root()));
            self.step.passed("steps", 1);
            self.log(now)?;
            progress.set(now + 1);
            step.report_progress("steps", &progress, false)?;
            self.worked.over = Instant::now();
            if (now + 1).is_multiple_of(step.recipe().checkpoint.every_steps) && now + 1 < steps {
                self.checkpoint(now + 1)?;
            }
        }
        step.report_progress("steps", &progress, true)?;
        if !self.validate(steps)? {
            return Ok(Ended::Stopped);
        }
        self.checkpoint(steps)?;
        self.settle()?;
        self.commit_weights()?;
        Ok(Ended::Done)
    }

    /// Takes up the newest checkpoint that the root finds valid; all ranks take the same one.
    fn restore(&mut self) -> Result<u64> {
        let Some(mut found) = self.step.newest_checkpoint()? else { return Ok(0) };
        let source = found.path.display().to_string();
        let (first, user) = (found.manifest.step, found.manifest.user.clone());
        let mut read = |file: &str| -> Result<Vec<(String, Tensor)>> {
            weights::from_bytes(&found.path.join(file).display().to_string(), found.take(file)?)
        };
        self.objective.params().load(&source, &read("model.safetensors")?)?;
        self.optimizer.load(&self.flat, &source, &read("optimizer.safetensors")?)?;
        if let Some(ema) = &mut self.ema {
            ema.load(&self.flat, &source, &read("ema.safetensors")?)?;
        }
        self.skipped = user["skipped"].as_u64().unwrap_or(0);
        self.validated.scores = Validated::scores_of(&user["scores"]);
        if !self.validated.scores.is_empty() {
            self.validated.best = read("best.safetensors")?;
        }
        self.saved = Some(first);
        equipoise_telemetry::info!("resumed at step {first} of {}", self.config.steps);
        Ok(first)
    }

    /// Looks at the score after `now` steps, if it is due and was not looked at; whether to go on. Asked to stop meanwhile,
    /// it leaves a checkpoint, and the next attempt looks again.
    fn validate(&mut self, now: u64) -> Result<bool> {
        let Some(every) = self.config.validate_every else { return Ok(true) };
        let seen = self.validated.scores.last().is_some_and(|(step, _)| *step >= now);
        if now == 0 || seen || !(now.is_multiple_of(every) || now == self.config.steps) {
            return Ok(true);
        }
        let _span = trace::numbered("validation", now);
        match self.objective.score(self.step) {
            Ok(score) => {
                self.validated.add(now, score, self.objective.params());
                equipoise_telemetry::info!("step {now}: {:.2} % on the validation split", 100. * score);
                Ok(true)
            }
            Err(error) if error.code() == ExitCode::Requeue => {
                self.checkpoint(now)?;
                self.settle()?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Forward and backward over this rank's micro-batches; their losses, still on the device.
    fn accumulate(&mut self, now: u64, loader: &mut Loader) -> Result<Vec<Tensor>> {
        let (owned, all) = (self.tree.owned(), self.tree.ownership().micro_batches());
        self.noted.clear();
        let mut losses = Vec::with_capacity(owned.len());
        for micro in owned {
            let batch = {
                let _span = trace::span("data wait");
                let ended = || Error::new(ExitCode::Bug, "the loader ended before the training");
                loader.next().ok_or_else(ended)??
            };
            let mut loss = {
                let _span = trace::numbered("forward", micro as u64);
                self.objective.loss(&batch)?
            };
            if failpoint::poisoned("loss", &|| format!("step {now},")) {
                loss *= f64::NAN;
            }
            self.noted.extend(self.running.take()?);
            let _span = trace::numbered("backward", micro as u64);
            let scaled = &loss / all as f64;
            match &mut self.overlapped {
                Some(tree) => tree.backward(&self.flat, micro, &scaled)?,
                None => self.tree.push(micro, self.flat.gradient(&scaled)),
            }
            losses.push(loss.detach());
        }
        Ok(losses)
    }

    /// Logs which images are in this rank's micro-batches whose loss is not finite: one of them may be the cause.
    fn name_images(&self, now: u64, losses: &[f64], order: &mut TrainingOrder) {
        for (micro, loss) in self.tree.owned().zip(losses).filter(|(_, loss)| !loss.is_finite()) {
            let samples = order.micro_batch(now, micro as u64);
            let images: Vec<String> =
                samples.iter().map(|sample| format!("{}/{}", sample.set, sample.index)).collect();
            equipoise_telemetry::error!(
                "step {now}, micro-batch {micro}: loss {loss} over the images (set/index) {}",
                images.join(" ")
            );
        }
    }

    /// Leaves out a step that is not finite, as a gradient scaler does: the same step on all ranks, since they agreed on it.
    fn skip(&mut self, now: u64, losses: &[f64]) -> Result<()> {
        let (rank, allowed) = (self.step.rank(), self.config.skip_non_finite);
        ensure!(
            self.skipped < allowed,
            NonFinite,
            "step {now}: the loss or the gradient is not finite (losses of rank {rank}: {losses:?}; {} such steps were left \
             out before); lower optimizer.lr, use precision = \"fp32\" or raise skip_non_finite",
            self.skipped
        );
        self.skipped += 1;
        if self.step.is_root() {
            equipoise_telemetry::warn!(
                "step {now} is left out: its loss or gradient is not finite (number {} of {allowed} that may be)",
                self.skipped
            );
        }
        Ok(())
    }

    fn verdict(&mut self, finite: bool) -> Result<Verdict> {
        self.failed = self.writer.as_mut().and_then(|writer| writer.poll().err());
        if let Some(writer) = self.writer.as_ref().filter(|writer| !writer.longest_save().is_zero()) {
            self.step.measured_commit(writer.longest_save());
        }
        let own = match (finite, &self.failed) {
            (_, Some(_)) => Verdict::Io,
            (false, _) => Verdict::NonFinite,
            _ => self.step.stop_verdict(),
        };
        Ok(agree(self.step.comm(), own)?.verdict)
    }

    /// Why the step ends with 74: what the writer said. The other ranks wait for the root, whose message counts, to end
    /// them.
    fn write_failure(&mut self) -> Error {
        if let Some(error) = self.failed.take() {
            return error;
        }
        let ended = self.step.comm().barrier();
        ended.err().unwrap_or_else(|| Error::new(ExitCode::Io, "rank 0 could not write a checkpoint"))
    }

    fn apply(&mut self, now: u64, gradient: &Tensor) -> Result<()> {
        let _span = trace::span("optimizer");
        let lr = self.config.optimizer.lr() * self.schedule.factor(now);
        self.optimizer.step(&self.flat, gradient, lr)?;
        self.running.fold(&*self.transport, self.tree.ownership(), &self.noted)?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.flat);
        }
        Ok(())
    }

    /// A row of `metrics.jsonl` every `log_every` steps: mean loss since the last one, over all ranks and without steps
    /// that were left out.
    fn log(&mut self, now: u64) -> Result<()> {
        if !(now + 1).is_multiple_of(self.config.log_every) && now + 1 != self.config.steps {
            return Ok(());
        }
        let (sum, count) = std::mem::take(&mut self.window);
        let own = [sum.to_le_bytes(), count.to_le_bytes()].concat();
        let (mut total, mut images) = (0., 0);
        for bytes in self.step.comm().all_gather(&own)? {
            let word =
                |at: usize| bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).unwrap_or([0; 8]);
            total += f64::from_le_bytes(word(0));
            images += u64::from_le_bytes(word(8));
        }
        let lr = self.config.optimizer.lr() * self.schedule.factor(now);
        let loss = (images > 0).then(|| total / images as f64);
        let mut row = json!({ "step": now + 1, "loss": loss, "lr": lr });
        if self.skipped > 0 {
            row["skipped"] = self.skipped.into();
        }
        self.step.metrics_row(&row)
    }

    /// Hands the state after `step` steps to the writer's thread, once; training goes on meanwhile.
    fn checkpoint(&mut self, step: u64) -> Result<()> {
        let Some(writer) = self.writer.as_mut().filter(|_| self.saved != Some(step)) else { return Ok(()) };
        self.saved = Some(step);
        let _span = trace::numbered("checkpoint handed over", step);
        let bytes = |tensors: &[(String, Tensor)]| weights::to_bytes(tensors, &BTreeMap::new());
        let mut files = BTreeMap::from([
            ("model.safetensors".to_string(), bytes(&self.objective.params().all())?),
            ("optimizer.safetensors".to_string(), bytes(&self.optimizer.state(&self.flat))?),
        ]);
        if let Some(ema) = &self.ema {
            files.insert("ema.safetensors".into(), bytes(&ema.state(&self.flat))?);
        }
        if !self.validated.best.is_empty() {
            files.insert("best.safetensors".into(), bytes(&self.validated.best)?);
        }
        writer.submit(Snapshot {
            step,
            world: self.step.world(),
            identity: self.step.identity().clone(),
            files,
            user: json!({ "skipped": self.skipped, "scores": self.validated.to_json() }),
        })?;
        let Worked { from, begun, over } = std::mem::replace(&mut self.worked, Worked::since(step));
        if from < step {
            self.step.note_common_work("steps", from..step, over.duration_since(begun));
        }
        Ok(())
    }

    /// Waits until the last checkpoint is on disk, on all ranks.
    fn settle(&mut self) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.wait()?;
        }
        self.step.comm().barrier()
    }

    /// `model.safetensors`: the weights that other stages use.
    fn commit_weights(&mut self) -> Result<()> {
        ensure!(self.config.steps > 0, Config, "steps must be at least 1");
        if self.step.is_root() {
            let stored = |(name, tensor): (String, Tensor)| match tensor.is_floating_point() {
                true => (name, tensor.to_kind(self.config.stored)),
                false => (name, tensor),
            };
            let save = || {
                let tensors = match self.validated.best.is_empty() {
                    true => self.objective.params().all(),
                    false => self
                        .validated
                        .best
                        .iter()
                        .map(|(name, it)| (name.clone(), it.shallow_clone()))
                        .collect(),
                };
                let tensors: Vec<_> = tensors.into_iter().map(stored).collect();
                weights::to_bytes(&tensors, &BTreeMap::new())
            };
            let bytes = match &self.ema {
                Some(ema) => ema.scope(&self.flat, save)?,
                None => save()?,
            };
            if let Some((kept, score)) = self.validated.kept() {
                let seen = json!({ "step": kept, "accuracy": score, "seen": self.validated.scores });
                self.step.commit_json(&self.step.dir().join("validation.json"), &seen)?;
            }
            self.step.commit(&self.step.dir().join("model.safetensors"), &bytes)?;
        }
        self.step.comm().barrier()
    }
}

/// The losses on the host, and whether they and the gradient are finite: the one moment of a step in which the host
/// waits for the device.
fn read_back(losses: &[Tensor], gradient: &Tensor) -> (Vec<f64>, bool) {
    // The largest magnitude is finite where a sum of squares would overflow.
    let largest = gradient.abs().max().to_kind(Kind::Double);
    let mut values: Vec<Tensor> = losses.iter().map(|loss| loss.to_kind(Kind::Double).reshape([])).collect();
    values.push(largest);
    let mut read = vec![0f64; values.len()];
    let count = read.len();
    Tensor::stack(&values, 0).copy_data(&mut read, count);
    let finite = read.iter().all(|value| value.is_finite());
    read.truncate(losses.len());
    (read, finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Were they to change on the way, the step that is kept could depend on kills.
    #[test]
    fn scores_come_back_bit_for_bit() {
        let scores: Vec<(u64, f64)> = (1..2000).map(|n| (n, n as f64 / 7919.)).collect();
        let validated = Validated { scores: scores.clone(), ..Validated::default() };
        let text = validated.to_json().to_string();
        let read = Validated::scores_of(&serde_json::from_str(&text).unwrap());
        assert!(read.iter().zip(&scores).all(|(read, score)| read.1.to_bits() == score.1.to_bits()));
        assert_eq!((read.len(), Validated::scores_of(&Value::Null).len()), (scores.len(), 0));
        assert_eq!(
            Validated { scores: vec![(1, 0.5), (2, 0.75), (3, 0.75)], ..validated }.kept(),
            Some((2, 0.75))
        );
    }
}
