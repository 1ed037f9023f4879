//! Closed forms, limits and degenerate input of all losses.

use super::*;
use equipoise_base::{ExitCode, rng::Key};
use tch::Device;

const COUNTS: [u64; 4] = [1000, 50, 7, 1];

fn logits(seed: u64, rows: i64) -> Tensor {
    let mut random = Key::new(seed, "losses-test").stream();
    let values: Vec<f64> = (0..rows * 4).map(|_| 2. * random.normal()).collect();
    Tensor::from_slice(&values).view([rows, 4])
}

fn loss(json: &str) -> Loss {
    Loss::new(&serde_json::from_str(json).unwrap(), &Counts::new(&COUNTS)).unwrap()
}

fn value(json: &str, logits: &Tensor, target: &Tensor) -> f64 {
    loss(json).forward(logits, target, Progress::default()).double_value(&[])
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12 * (1. + b.abs()), "{a} {b}");
}

const ALL: [&str; 15] = [
    r#"{"kind":"ce"}"#,
    r#"{"kind":"label_smoothing","eps":0.1}"#,
    r#"{"kind":"label_smoothing_cm1","eps":0.1}"#,
    r#"{"kind":"focal","gamma":0.5}"#,
    r#"{"kind":"cb_ce","beta":0.999}"#,
    r#"{"kind":"cb_ce_mean","beta":0.999}"#,
    r#"{"kind":"cb_focal","beta":0.999,"gamma":0.5}"#,
    r#"{"kind":"cb_focal_ldamdrw","beta":0.999,"gamma":0.5}"#,
    r#"{"kind":"ldam","max_m":0.5,"s":30.0}"#,
    r#"{"kind":"ldam_drw","max_m":0.5,"s":30.0,"beta":0.9999,"start_epoch":160}"#,
    r#"{"kind":"balanced_softmax","prior":"real"}"#,
    r#"{"kind":"mix_bs_ce","alpha":0.3,"prior":"mixture"}"#,
    r#"{"kind":"logit_adjust","tau":1.0,"prior":"real"}"#,
    r#"{"kind":"lade","alpha":0.1,"lambda":0.1}"#,
    r#"{"kind":"lade_reg","lambda":0.1}"#,
];

#[test]
fn every_loss_is_finite_with_its_gradient_even_when_certain() {
    let target = Tensor::from_slice(&[0i64, 0, 3]);
    for json in ALL {
        for scale in [0., 1., 1e4] {
            for kind in [Kind::Float, Kind::Double] {
                let logits = (logits(1, 3) * scale).to_kind(kind).set_requires_grad(true);
                let value = loss(json).forward(&logits, &target, Progress { epoch: 160, step: 0 });
                assert_eq!((value.size().len(), value.kind()), (0, kind), "{json}");
                value.backward();
                let finite = value.isfinite().logical_and(&logits.grad().isfinite().all());
                assert!(finite.int64_value(&[]) == 1, "{json} at scale {scale} in {kind:?}");
            }
        }
    }
}

#[test]
fn half_precision_logits_count_in_single() {
    let logits = logits(2, 5).to_kind(Kind::BFloat16);
    let target = Tensor::from_slice(&[0i64, 1, 2, 3, 0]);
    let got = loss(ALL[0]).forward(&logits, &target, Progress::default());
    assert_eq!(got.kind(), Kind::Float);
    close(got.double_value(&[]), value(ALL[0], &logits.to_kind(Kind::Float), &target));
}

#[test]
fn configurations_round_trip_and_reject_what_they_do_not_know() {
    for json in ALL {
        let config: LossConfig = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), *json);
        let extra = json.replace('}', r#","extra":1}"#);
        assert!(serde_json::from_str::<LossConfig>(&extra).is_err(), "{extra}");
    }
    assert!(serde_json::from_str::<LossConfig>(r#"{"kind":"focal"}"#).is_err());
    assert!(serde_json::from_str::<LossConfig>(r#"{"kind":"none"}"#).is_err());
}

#[test]
fn limits_are_cross_entropy() {
    let (logits, target) = (logits(3, 8), Tensor::from_slice(&[0i64, 1, 2, 3, 0, 0, 1, 0]));
    let plain = value(ALL[0], &logits, &target);
    for json in [
        r#"{"kind":"focal","gamma":0.0}"#,
        r#"{"kind":"label_smoothing","eps":0.0}"#,
        r#"{"kind":"label_smoothing_cm1","eps":0.0}"#,
        r#"{"kind":"cb_ce","beta":0.0}"#,
        r#"{"kind":"cb_ce_mean","beta":0.0}"#,
        r#"{"kind":"ldam","max_m":0.0,"s":1.0}"#,
        r#"{"kind":"mix_bs_ce","alpha":0.0,"prior":"real"}"#,
        r#"{"kind":"logit_adjust","tau":0.0,"prior":"real"}"#,
    ] {
        close(value(json, &logits, &target), plain);
    }
    let balanced = value(ALL[10], &logits, &target);
    close(value(r#"{"kind":"mix_bs_ce","alpha":1.0,"prior":"real"}"#, &logits, &target), balanced);
    close(
        value(r#"{"kind":"mix_bs_ce","alpha":0.25,"prior":"real"}"#, &logits, &target),
        0.25 * balanced + 0.75 * plain,
    );
    close(value(r#"{"kind":"logit_adjust","tau":1.0,"prior":"real"}"#, &logits, &target), balanced);
}

#[test]
fn closed_forms_at_uniform_logits() {
    let (logits, target) = (Tensor::zeros([1, 4], (Kind::Double, Device::Cpu)), Tensor::from_slice(&[2i64]));
    let ln4 = 4f64.ln();
    close(value(ALL[0], &logits, &target), ln4);
    close(value(r#"{"kind":"label_smoothing_cm1","eps":0.3}"#, &logits, &target), ln4);
    close(value(r#"{"kind":"focal","gamma":2.0}"#, &logits, &target), 0.5625 * ln4);
    close(value(ALL[10], &logits, &target), -(7f64 / 1058.).ln());
}

#[test]
fn weights_are_deferred() {
    let (logits, target) = (logits(4, 6), Tensor::from_slice(&[0i64, 0, 0, 0, 3, 2]));
    let drw = loss(ALL[9]);
    let at = |epoch| drw.forward(&logits, &target, Progress { epoch, step: 0 }).double_value(&[]);
    close(at(159), value(ALL[8], &logits, &target));
    assert!((at(160) - at(159)).abs() > 1e-3);
    close(at(160), at(199));
}

#[test]
fn the_prior_is_the_one_asked_for() -> Result<()> {
    let (logits, target) = (logits(5, 3), Tensor::from_slice(&[0i64, 1, 3]));
    let config: LossConfig =
        serde_json::from_str(r#"{"kind":"balanced_softmax","prior":"mixture"}"#).unwrap();
    let counts = Counts::new(&[9, 3, 2, 0]).with_mixture(&[5., 5., 5., 5.])?;
    let mixture = Loss::new(&config, &counts)?.forward(&logits, &target, Progress::default());
    close(mixture.double_value(&[]), value(ALL[0], &logits, &target));
    let config: LossConfig = serde_json::from_str(ALL[10]).unwrap();
    let error = Loss::new(&config, &counts).unwrap_err();
    assert_eq!(error.code(), ExitCode::BadData);
    assert!(error.message().contains("class 3") && error.message().contains("mixture"), "{error}");
    Ok(())
}

#[test]
fn parameters_out_of_range_are_errors() {
    for json in [
        r#"{"kind":"label_smoothing","eps":1.5}"#,
        r#"{"kind":"focal","gamma":-1.0}"#,
        r#"{"kind":"cb_ce","beta":1.0}"#,
        r#"{"kind":"ldam","max_m":0.5,"s":0.0}"#,
        r#"{"kind":"mix_bs_ce","alpha":2.0,"prior":"real"}"#,
    ] {
        let config: LossConfig = serde_json::from_str(json).unwrap();
        let error = Loss::new(&config, &Counts::new(&COUNTS)).unwrap_err();
        assert_eq!(error.code(), ExitCode::Config, "{json}");
    }
}
