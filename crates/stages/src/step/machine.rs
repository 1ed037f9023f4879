//! What this machine does to bits, which all ranks and all attempts of a stage must have in common.

use equipoise_base::{Result, bail};
use equipoise_comm::Comm;
use equipoise_config::Stage;
use equipoise_nn::runtime;
use equipoise_rundir::Process;
use equipoise_rundir::identity::IdentityRecord;
use std::collections::BTreeMap;

/// What must match when a stage is taken up again: its own identity, what this machine does to bits, and `more`.
///
/// # Errors
/// 101 if libtorch cannot be asked.
pub(super) fn record(stage: &Stage, more: BTreeMap<String, String>) -> Result<IdentityRecord> {
    let mut fields = stage.identity_fields();
    fields.extend(more);
    fields.extend(runtime::facts()?.into_iter().map(|(key, value)| (format!("machine.{key}"), value)));
    if stage.params["codec"]["kind"].as_str().is_some_and(|codec| codec != "raw") {
        fields.insert("machine.encoder".into(), equipoise_shards::ENCODER_VERSION.to_string());
    }
    Ok(IdentityRecord::of(fields))
}

/// Refuses ranks that would compute other bits than rank 0, such as on another GPU or CPU; a collective.
///
/// # Errors
/// 78 naming the first such rank, its host and what differs; the same on all ranks.
pub(super) fn require_equal(comm: &dyn Comm, own: &IdentityRecord) -> Result<()> {
    let all = comm.all_gather(&serde_json::to_vec(&(Process::current().host, own)).unwrap_or_default())?;
    let read = |bytes: &Vec<u8>| serde_json::from_slice::<(String, IdentityRecord)>(bytes).ok();
    let Some((first_host, first)) = all.first().and_then(read) else {
        bail!(Bug, "rank 0 sent no identity: do all ranks run the same build?")
    };
    for (rank, bytes) in all.iter().enumerate().skip(1) {
        let Some((host, other)) = read(bytes) else { bail!(Bug, "rank {rank} sent no identity") };
        if other.identity != first.identity {
            let differing = |(name, value): (&String, &String)| {
                let there = other.fields.get(name).filter(|there| *there != value)?;
                Some(format!("{name} is {there}, on rank 0 (host {first_host}) {value}"))
            };
            let differing: Vec<String> = first.fields.iter().filter_map(differing).collect();
            bail!(
                Config,
                "rank {rank} (host {host}) would compute other bits: {}; ask for nodes of one kind",
                differing.join("; ")
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use equipoise_base::ExitCode;
    use equipoise_comm::threads;

    fn record(gpu: &str) -> IdentityRecord {
        let fields = [("machine.cpu", "AVX2"), ("machine.gpu", gpu)];
        IdentityRecord::of(fields.map(|(name, value)| (name.into(), value.into())).into())
    }

    #[test]
    fn another_gpu_is_refused_on_all_ranks_by_name() {
        let gpus = ["NVIDIA H200 sm_90", "NVIDIA H200 sm_90", "NVIDIA A100 sm_80"];
        let outcomes = threads::run(3, |comm| require_equal(&comm, &record(gpus[comm.rank()])));
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert_eq!(error.code(), ExitCode::Config);
            let text = error.message();
            assert!(text.starts_with("rank 2 (host ") && !text.contains("machine.cpu"), "{text}");
            assert!(text.contains("machine.gpu is NVIDIA A100 sm_80, on rank 0"), "{text}");
        }
        let outcomes = threads::run(2, |comm| require_equal(&comm, &record(gpus[comm.rank()])));
        assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()));
    }
}
