//! Faults of the disk: full where the WAL is, full where the table is. They need a small file system of their own, and so root.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::Account;
use pg_task_cluster::Stop;

use super::Outcome;
use crate::scene::Scene;

const NO_ROOT: &str = "a small file system can only be mounted by root";

/// A small file system in memory; unmounted when the value is dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path, megabytes: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(at)?;
        command(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0700"), "tmpfs"])
                .arg(at),
        )?;
        let small = Self(at);
        if let Some(account) = Account::for_server()? {
            account.own(at)?;
        }
        Ok(small)
    }

    fn fill(&self) -> anyhow::Result<()> {
        // Ends with an error when the file system is full: that is what it is for.
        Command::new("dd")
            .args(["if=/dev/zero", "bs=64k", "status=none"])
            .arg(format!("of={}", self.ballast()))
            .output()?;
        Ok(())
    }

    fn relieve(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.ballast()).context("failed to remove the ballast")
    }

    fn ballast(&self) -> String {
        self.0.join("ballast").display().to_string()
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = command(Command::new("umount").arg("-l").arg(self.0));
    }
}

fn command(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The WAL's file system fills up: the server goes down, and comes back when there is room.
pub(super) async fn wal(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    if Account::for_server()?.is_none() {
        return Ok(Outcome::Skipped(NO_ROOT.to_owned()));
    }
    for excuse in ["No space left on device", "was terminated by signal 6"] {
        scene.excuse(excuse);
    }
    let place = scene.cluster().folder().join("wal");
    let link = scene.cluster().data().join("pg_wal");
    tokio::task::block_in_place(|| scene.cluster().stop(Stop::Fast))?;
    let small = Small::mount(&place, 512)?;
    command(
        Command::new("sh")
            .args(["-c", "cp -a \"$1\"/. \"$2\"/ && rm -rf \"$1\" && ln -s \"$2\" \"$1\"", "sh"])
            .arg(&link)
            .arg(&place),
    )?;
    scene.start_server().await?;
    scene.until_up().await?;
    small.fill()?;
    // A switch to a new segment needs room at once.
    let _ = scene.run("SELECT pg_switch_wal(); SELECT pg_switch_wal()").await;
    let mut waited = 0;
    while scene.ask("SELECT 1").await.is_ok() && waited < 100 {
        let _ = scene.run("SELECT pg_switch_wal()").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        waited += 1;
    }
    tokio::time::sleep(Duration::from_millis(rng.u64(200..2_000))).await;
    small.relieve()?;
    // One that found no room to recover in is still there for a moment, and then gone.
    for _ in 0..10 {
        scene.start_server().await?;
        if scene.until("SELECT true", Duration::from_secs(20)).await.is_ok() {
            break;
        }
    }
    scene.until_up().await?;
    tokio::task::block_in_place(|| scene.cluster().stop(Stop::Fast))?;
    command(Command::new("sh").args(["-c", "rm \"$1\" && mkdir -m 700 \"$1\" && cp -a \"$2\"/. \"$1\"/ && chown --reference=\"$2\" \"$1\"", "sh"]).arg(&link).arg(&place))?;
    drop(small);
    scene.start_server().await?;
    scene.until_up().await?;
    Ok(Outcome::Done(1))
}

/// The table's file system fills up: writes fail, and go on when there is room.
pub(super) async fn tablespace(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    if Account::for_server()?.is_none() {
        return Ok(Outcome::Skipped(NO_ROOT.to_owned()));
    }
    scene.excuse("No space left on device");
    let size: u32 = scene.ask("SELECT pg_total_relation_size('pg_task.task') / 1048576").await?.parse()?;
    let place = scene.cluster().folder().join("small");
    let small = Small::mount(&place, size * 2 + 32)?;
    scene.insist(&format!("CREATE TABLESPACE small LOCATION '{}'", place.display())).await?;
    scene.insist("ALTER TABLE pg_task.task SET TABLESPACE small").await?;
    scene.insist("ALTER INDEX pg_task.task_due SET TABLESPACE small").await?;
    small.fill()?;
    tokio::time::sleep(Duration::from_millis(rng.u64(1_000..4_000))).await;
    small.relieve()?;
    scene.insist("ALTER TABLE pg_task.task SET TABLESPACE pg_default").await?;
    scene.insist("ALTER INDEX pg_task.task_due SET TABLESPACE pg_default").await?;
    // Its files go away with the next checkpoint.
    scene.insist("CHECKPOINT").await?;
    scene.insist("DROP TABLESPACE small").await?;
    Ok(Outcome::Done(1))
}
