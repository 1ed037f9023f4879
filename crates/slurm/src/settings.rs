//! What one stage asks for: `[slurm]`, then every `[slurm.stages."PATTERN"]` that fits its name.

use equipoise_base::{Error, Result};
use equipoise_config::slurm::{Job, Slurm};

/// The keys of a stage.
///
/// # Errors
/// 78 naming a pattern that is none, or a time that is none.
pub fn of_stage(slurm: &Slurm, stage: &str) -> Result<Job> {
    let mut job = slurm.job.clone();
    for (pattern, over) in slurm.stages.iter() {
        let fits = glob::Pattern::new(pattern)
            .map_err(|error| Error::config(format!("slurm.stages.\"{pattern}\" is no pattern: {error}")))?;
        if fits.matches(stage) {
            overlay(&mut job, over.clone());
        }
    }
    if let Some(time) = &job.time {
        check_time(time, slurm.signal_lead, stage)?;
    }
    Ok(job)
}

/// The last pattern that fits a stage and whose table is accepted: where one of its keys was set. None for `[slurm]` itself.
pub fn pattern_of<'a>(slurm: &'a Slurm, stage: &str, sets: impl Fn(&Job) -> bool) -> Option<&'a str> {
    let fits = |pattern: &str| glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(stage));
    slurm.stages.iter().filter(|(pattern, job)| fits(pattern) && sets(job)).map(|(pattern, _)| pattern).last()
}

fn overlay(job: &mut Job, over: Job) {
    let memory = over.mem.is_some() || over.mem_per_cpu.is_some() || over.mem_per_gpu.is_some();
    if memory {
        (job.mem, job.mem_per_cpu, job.mem_per_gpu) = (None, None, None);
    }
    macro_rules! replace {
        ($($key:ident)*) => { $(if over.$key.is_some() { job.$key = over.$key; })* };
    }
    replace!(account partition qos constraint reservation time nodes ntasks_per_node cpus_per_task);
    replace!(mem mem_per_cpu mem_per_gpu gres gpus gpus_per_node gpus_per_task array array_at_once);
    replace!(extra skip modules setup env container scratch);
}

/// A limit that the stop signal takes up whole would be a requeue storm.
fn check_time(time: &str, lead: u32, stage: &str) -> Result<()> {
    if ["UNLIMITED", "INFINITE"].contains(&time.to_ascii_uppercase().as_str()) {
        return Ok(());
    }
    let Some(limit) = crate::duration::parse(time) else {
        let forms =
            "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]";
        return Err(Error::config(format!(
            "slurm.time of stage {stage}: '{time}' is no time (forms: {forms})"
        )));
    };
    if limit.as_secs() <= u64::from(lead) {
        let message = format!(
            "slurm.time of stage {stage} is {} s, but slurm.signal_lead stops it {lead} s before the end",
            limit.as_secs()
        );
        return Err(Error::config(message).next("--set slurm.signal_lead=SECONDS"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::tests::slurm;

    #[test]
    fn later_patterns_win_and_replace_the_form_of_memory() {
        let slurm = slurm(
            "mem = '4G'\ntime = '2:00:00'\n[stages.'*']\nqos = 'a'\n[stages.'train.*']\nmem_per_cpu = '1G'\n\
             [stages.'train.f*']\nqos = 'b'\nextra = ['-Q']",
        );
        let job = of_stage(&slurm, "train.ce.s0").unwrap();
        assert_eq!((job.mem.as_deref(), job.mem_per_cpu.as_deref()), (None, Some("1G")));
        assert_eq!((job.qos.as_deref(), job.extra), (Some("a"), None));
        let job = of_stage(&slurm, "train.f.s0").unwrap();
        assert_eq!((job.qos.as_deref(), job.extra.unwrap().len()), (Some("b"), 1));
        assert_eq!(of_stage(&slurm, "report").unwrap().mem.as_deref(), Some("4G"));
    }

    #[test]
    fn times_that_cannot_work_are_refused() {
        for (text, expected) in [
            ("time = 'soon'", "'soon' is no time"),
            ("time = '5'", "is 300 s, but slurm.signal_lead stops it 300 s before the end"),
            ("[stages.'a[']\nqos = 'x'", "is no pattern"),
        ] {
            let error = of_stage(&slurm(text), "train").unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
        assert!(of_stage(&slurm("time = 'UNLIMITED'"), "train").is_ok());
    }
}
