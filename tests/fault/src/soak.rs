//! A soak: the load without faults, while the configuration is reloaded all the time. What each process uses must stay where it is after it
//! has warmed up: its own memory and its file descriptors.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use tokio::task::JoinSet;

use crate::campaign;
use crate::campaign::Summary;
use crate::load;
use crate::scene::PATIENCE;
use crate::scene::Patience;
use crate::scene::Scene;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// What everything by chance comes from.
    pub seed: u64,
    /// How long.
    pub time: Duration,
    /// The mean time between two pieces of work of one producer.
    pub pace: Duration,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    /// Its own memory in MiB, without what it shares.
    memory: f64,
    /// Its open files.
    files: f64,
}

/// What each process used at one moment, by its name; of sessions, which come and go, the mean.
type Sample = BTreeMap<String, Usage>;

/// Samples in a soak: enough for means, whatever its length.
const SAMPLES: u32 = 120;

/// Between two checks of the ledger, which hold the load up for a moment.
const CHECK_EVERY: u32 = 20;

/// Reloads a second.
const RELOADS: u32 = 2;

/// What is longer between two reloads is time in which all processes stood still, and no part of the soak.
const LONGEST_STEP: Duration = Duration::from_secs(3);

/// Growth that is no leak: of memory in MiB, and of descriptors. And a share of what there was.
const SLACK: Usage = Usage { memory: 2.0, files: 2.0 };
const SLACK_SHARE: f64 = 0.05;

/// Lines of the server's log for each reload: what is said of the settings that changed, and of checkpoints.
const LINES_PER_RELOAD: u64 = 4;

const WORKERS: usize = 4;
const PRODUCERS: u64 = 3;

/// Runs a soak and prints what each process used.
///
/// # Errors
/// When something grew, a promise was broken, or a process did not live through it.
pub async fn run(order: Order) -> anyhow::Result<()> {
    println!("soak: {:.0} minutes, seed {}", order.time.as_secs_f64() / 60.0, order.seed);
    let scene = Arc::new(Scene::set("soak", WORKERS).await?);
    println!("   the server's log: {}", scene.cluster().log().display());
    let mut work = JoinSet::new();
    for producer in 0..PRODUCERS {
        work.spawn(load::produce(scene.clone(), order.seed.wrapping_add(producer), order.pace));
    }
    work.spawn(load::meddle(scene.clone(), order.seed));
    work.spawn(campaign::note_stalls(scene.clone()));
    let (mut samples, mut reloads, mut log_read) = (Vec::new(), 0_u32, vec![0]);
    let mut summary = Summary::default();
    let began = Instant::now();
    let mut awake = Duration::ZERO;
    for number in 1..=SAMPLES {
        while awake < order.time * number / SAMPLES {
            let step = Instant::now();
            // On a machine with other work a call may take too long: then there is one reload less.
            reloads += u32::from(reload(&scene, reloads).await.is_ok());
            tokio::time::sleep(Duration::from_secs(1) / RELOADS).await;
            awake += step.elapsed().min(LONGEST_STEP);
        }
        samples.push(sample_in_time(&scene).await?);
        if number.is_multiple_of(CHECK_EVERY) {
            campaign::examine(&scene, number, order.seed, &mut log_read, &mut summary).await?;
        }
    }
    work.shutdown().await;
    let lines = std::fs::read_to_string(scene.cluster().log())?.lines().count() as u64;
    println!("\n{:<24} {:>22} {:>18}", "process", "memory, MiB", "files");
    let mut complaints = Vec::new();
    for (name, before, after) in compare(&samples)? {
        let verdict = if grew(before, after) { "  GREW" } else { "" };
        println!(
            "{name:<24} {:>10.1} → {:>9.1} {:>8.1} → {:>7.1}{verdict}",
            before.memory, after.memory, before.files, after.files
        );
        complaints.extend(grew(before, after).then(|| format!("{name} uses more than it did")));
    }
    println!(
        "\n{reloads} reloads, {} tasks, {} runs of steps, {lines} lines in the server's log, {:.0} s",
        summary.tasks,
        summary.runs,
        began.elapsed().as_secs_f64()
    );
    if lines > LINES_PER_RELOAD * u64::from(reloads) + 1_000 {
        complaints.push(format!("{lines} lines in the log for {reloads} reloads"));
    }
    if complaints.is_empty() {
        println!("soak: ok");
        return Ok(());
    }
    bail!("{}", complaints.join("; "))
}

/// A setting changes with every other reload.
async fn reload(scene: &Scene, number: u32) -> anyhow::Result<()> {
    if number.is_multiple_of(2) {
        let millis = 1_000 + number % 4 * 250;
        scene.run(&format!("ALTER SYSTEM SET pg_task.write_behind_after = '{millis}ms'")).await?;
    }
    scene.run("SELECT pg_reload_conf()").await
}

/// A sample, after some tries if the server is slow to answer.
async fn sample_in_time(scene: &Scene) -> anyhow::Result<Sample> {
    let mut patience = Patience::new(PATIENCE);
    loop {
        match sample(scene).await {
            Ok(sample) => return Ok(sample),
            Err(error) if !patience.lasts() => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn sample(scene: &Scene) -> anyhow::Result<Sample> {
    let mut sample = Sample::new();
    for (index, member) in scene.crew.lock().await.members.iter().enumerate() {
        let pid = member.pid().context("a worker has no process")?;
        sample.insert(format!("worker {index}"), usage(pid).with_context(|| format!("worker {index}"))?);
    }
    let server = scene.cluster().postmaster_pid().context("the server does not run")?;
    sample.insert("postmaster".to_owned(), usage(server)?);
    // Another process under the name of the last one would hide a leak.
    for (name, kind) in [("launcher", "pg_task launcher"), ("scheduler", "pg_task scheduler")] {
        let pid =
            scene.ask(&format!("SELECT pid FROM pg_stat_activity WHERE backend_type = '{kind}'")).await?;
        sample.insert(format!("{name} {pid}"), usage(pid.parse().with_context(|| format!("no {name}"))?)?);
    }
    let sessions = scene
        .column("SELECT pid FROM pg_stat_activity WHERE usename = 'fault_worker' AND backend_type = 'client backend'")
        .await?;
    // A session may end between the question and the look.
    let used: Vec<Usage> = sessions.iter().filter_map(|pid| usage(pid.parse().ok()?).ok()).collect();
    let mean = |of: fn(&Usage) -> f64| used.iter().map(of).sum::<f64>() / used.len().max(1) as f64;
    sample.insert(
        "workers' sessions, mean".to_owned(),
        Usage { memory: mean(|one| one.memory), files: mean(|one| one.files) },
    );
    Ok(sample)
}

/// What a process uses, from `/proc`.
fn usage(pid: u32) -> anyhow::Result<Usage> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(folder.join("status"))?;
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kilobytes: f64 = own.trim().trim_end_matches(" kB").parse()?;
    let files = std::fs::read_dir(folder.join("fd"))?.count();
    Ok(Usage { memory: kilobytes / 1024.0, files: files as f64 })
}

/// The means of each process in the second quarter, when it has warmed up, and in the last.
fn compare(samples: &[Sample]) -> anyhow::Result<Vec<(String, Usage, Usage)>> {
    let quarter = samples.len() / 4;
    let mean = |samples: &[Sample], name: &str| {
        let of: Vec<Usage> = samples.iter().filter_map(|sample| sample.get(name).copied()).collect();
        if of.len() < samples.len() {
            bail!("{name} did not live through the soak");
        }
        let sum = |part: fn(&Usage) -> f64| of.iter().map(part).sum::<f64>() / of.len().max(1) as f64;
        Ok(Usage { memory: sum(|one| one.memory), files: sum(|one| one.files) })
    };
    let names: std::collections::BTreeSet<&String> = samples.iter().flat_map(BTreeMap::keys).collect();
    names
        .into_iter()
        .map(|name| {
            let before = mean(&samples[quarter..2 * quarter], name)?;
            let after = mean(&samples[samples.len() - quarter..], name)?;
            Ok((name.clone(), before, after))
        })
        .collect()
}

fn grew(before: Usage, after: Usage) -> bool {
    let more = |before: f64, after: f64, slack: f64| after > before + slack.max(before * SLACK_SHARE);
    more(before.memory, after.memory, SLACK.memory) || more(before.files, after.files, SLACK.files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(of: impl Fn(f64) -> Usage) -> Vec<Sample> {
        (0..40).map(|n| Sample::from([("p".to_owned(), of(f64::from(n)))])).collect()
    }

    fn verdict(samples: &[Sample]) -> anyhow::Result<bool> {
        Ok(compare(samples)?.into_iter().any(|(_, before, after)| grew(before, after)))
    }

    #[test]
    fn what_warms_up_and_then_stays_is_flat_and_what_grows_on_is_not() -> anyhow::Result<()> {
        assert!(!verdict(&soak(|n| Usage { memory: 20.0 + n.min(9.0), files: 30.0 + n % 2.0 }))?);
        assert!(verdict(&soak(|n| Usage { memory: 20.0 + n * 0.2, files: 30.0 }))?);
        assert!(verdict(&soak(|n| Usage { memory: 20.0, files: 30.0 + n * 0.2 }))?);
        Ok(())
    }

    #[test]
    fn a_process_that_was_replaced_did_not_live_through_it() {
        let mut samples = soak(|_| Usage::default());
        samples[30] = Sample::from([("q".to_owned(), Usage::default())]);
        assert!(compare(&samples).is_err());
    }

    #[test]
    fn the_usage_of_this_process_is_read() -> anyhow::Result<()> {
        let usage = usage(std::process::id())?;
        assert!(usage.memory > 0.1 && usage.files > 2.0, "{usage:?}");
        Ok(())
    }
}
