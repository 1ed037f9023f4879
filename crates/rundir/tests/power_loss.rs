//! F3: cut the power before every call of every function that writes, keep any subset of what was not synced, and
//! find the state before or the state after. And the proof of the proof: without any one sync, this fails.

#![allow(clippy::unwrap_used, clippy::expect_used)] // In the helpers; the tests themselves may.

mod common;

use common::{Case, cases};
use equipoise_base::clock::FakeClock;
use equipoise_base::rng::Key;
use equipoise_rundir::Stage;
use equipoise_rundir::fault::{FaultFs, Survivors};
use equipoise_rundir::lease::LeaseRequest;
use equipoise_testkit::figure;
use std::collections::BTreeSet;

/// Random subsets per call, besides all and nothing.
const SUBSETS: u64 = 24;

fn states(case: &Case, fs: &FaultFs, call: usize) -> BTreeSet<String> {
    let subsets = (0..SUBSETS).map(|n| Survivors::Subset(Key::new(n, "power loss").index(call as u64)));
    let survivors = [Survivors::All, Survivors::None].into_iter().chain(subsets);
    survivors.map(|survivors| (case.signature)(&fs.recover(survivors))).collect()
}

/// Number of calls cut, or what was found that must not be.
fn check(case: &Case, ignored_sync: Option<usize>) -> Result<usize, String> {
    let (fs, act) = case.start();
    let before = states(case, &fs, 0);
    let first_call = fs.calls().len();
    act(&fs).map_err(|error| error.to_string())?;
    let calls = fs.calls().len() - first_call;
    let after = (case.signature)(&fs.recover(Survivors::All));
    for call in 0..=calls {
        let (fs, act) = case.start();
        let first_call = fs.calls().len();
        fs.ignore_sync(ignored_sync.map_or(usize::MAX, |sync| fs.syncs() + sync));
        fs.power_off_at(first_call + call);
        let acknowledged = act(&fs).is_ok();
        for state in states(case, &fs, call) {
            if state != after && (acknowledged || !before.contains(&state)) {
                let at = fs.calls().get(first_call + call).cloned();
                return Err(format!(
                    "before {at:?}, acknowledged {acknowledged}: {state}, not {before:?} or {after}"
                ));
            }
        }
    }
    Ok(calls + 1)
}

#[test]
fn a_power_loss_anywhere_leaves_the_state_before_or_the_state_after() {
    let mut points = 0;
    for case in cases() {
        points += check(&case, None).unwrap_or_else(|found| panic!("{}: {found}", case.name));
    }
    assert!(points > 150, "only {points} points: the cases have lost their calls");
    figure("F3", "power cuts", format!("{points} points x {} subsets", SUBSETS + 2));
}

#[test]
fn without_any_one_sync_it_does_not() {
    let (mut unproved, mut noticed) = (Vec::new(), 0);
    for case in cases() {
        let (fs, act) = case.start();
        let first = fs.syncs();
        act(&fs).unwrap();
        for sync in 0..fs.syncs() - first {
            let excused = case.proved_elsewhere.iter().find(|(index, _)| *index == sync);
            match (check(&case, Some(sync)), excused) {
                (Err(_), None) => noticed += 1,
                (Ok(_), Some((_, by))) => assert!(cases().iter().any(|case| case.name == *by), "{by}"),
                (Ok(_), None) => unproved.push(format!("{}: nothing needs sync {sync}", case.name)),
                (Err(_), Some(_)) => unproved.push(format!("{}: sync {sync} is proved here", case.name)),
            }
        }
    }
    assert!(unproved.is_empty(), "{unproved:#?}");
    assert!(noticed > 20, "only {noticed} syncs were left out");
    figure("F3", "left-out syncs noticed", format!("{noticed} of {noticed}"));
}

/// Opening a stage is several commits, so states between are legal; what counts is that it always opens again, with
/// an attempt that was not used before.
#[test]
fn a_stage_opens_again_after_a_power_loss_anywhere_in_its_opening() {
    let open = |fs: &FaultFs| {
        let clock = FakeClock::default();
        let process = common::elsewhere("n1");
        let request = LeaseRequest { process, background: false, ..LeaseRequest::new("", &clock) };
        let stage = Stage::open(common::shared(fs), common::stage(), &common::identity(), request)?;
        let attempt = stage.attempt();
        std::mem::forget(stage); // Killed: it never releases.
        Ok::<u64, equipoise_base::Error>(attempt)
    };
    let count = FaultFs::new();
    open(&count).unwrap();
    for call in 0..=count.calls().len() {
        let fs = FaultFs::new();
        fs.power_off_at(call);
        let used = open(&fs).unwrap_or(0);
        for subset in 0..SUBSETS {
            let found = fs.recover(Survivors::Subset(Key::new(subset, "stage").index(call as u64)));
            let attempt = open(&found).unwrap_or_else(|error| panic!("cut before call {call}: {error}"));
            assert!(attempt > used);
        }
    }
}
