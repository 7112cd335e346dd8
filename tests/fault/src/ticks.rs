//! Schedules of many kinds, whose ticks go on under every fault, and what is there at a check: which ticks have had their tasks.
//!
//! The step of a tick writes into a table in the transaction of its transition, so that a tick is there once if its task was, and notes in the
//! ledger which task it belongs to, so that a tick with two tasks shows even when the first is lost with a server.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use uuid::Uuid;

use crate::scene::PATIENCE;
use crate::scene::Patience;
use crate::scene::Scene;

/// Moments of ticks: seconds since 1970, by the server's clock.
pub type Second = i64;

/// What a schedule does with ticks that come while its last task is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overlap {
    /// Their tasks are enqueued beside it.
    Allow,
    /// They wait.
    Queue,
    /// They get none.
    Skip,
}

/// A schedule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Schedule {
    /// Its name.
    pub name: &'static str,
    /// Its expression.
    pub cron: &'static str,
    /// The seconds between its ticks, which are at multiples of them.
    pub every: Second,
    /// What becomes of ticks that were missed.
    pub missed: &'static str,
    /// What becomes of ticks while the last task is there.
    pub overlap: Overlap,
    /// The longest time between a tick and its task, in seconds.
    pub jitter: u32,
}

/// The one that is paused and resumed.
pub const RESTED: &str = "rested";

/// Every schedule.
pub const SCHEDULES: &[Schedule] = &[
    Schedule { name: "all", cron: "every 1 s", every: 1, missed: "all", overlap: Overlap::Allow, jitter: 0 },
    Schedule {
        name: "cron",
        cron: "*/2 * * * * *",
        every: 2,
        missed: "all",
        overlap: Overlap::Allow,
        jitter: 1,
    },
    Schedule {
        name: "once",
        cron: "* * * * * *",
        every: 1,
        missed: "once",
        overlap: Overlap::Allow,
        jitter: 0,
    },
    Schedule {
        name: "late",
        cron: "every 2 s",
        every: 2,
        missed: "skip",
        overlap: Overlap::Allow,
        jitter: 0,
    },
    Schedule { name: "alone", cron: "every 1 s", every: 1, missed: "all", overlap: Overlap::Skip, jitter: 0 },
    Schedule {
        name: "in-turn",
        cron: "*/3 * * * * *",
        every: 3,
        missed: "all",
        overlap: Overlap::Queue,
        jitter: 0,
    },
    Schedule { name: RESTED, cron: "every 1 s", every: 1, missed: "all", overlap: Overlap::Allow, jitter: 0 },
];

impl Schedule {
    /// The statement that makes it, or leaves it as it is.
    pub fn set(&self) -> String {
        let Self { name, cron, missed, jitter, .. } = self;
        let overlap = match self.overlap {
            Overlap::Allow => "allow",
            Overlap::Queue => "queue",
            Overlap::Skip => "skip",
        };
        format!(
            "SELECT pg_task.set_schedule('{name}', '{cron}', '{{\"Clock\": {{\"Tick\": {{\"schedule\": \"{name}\"}}}}}}', queue => 'ticks',
                missed => '{missed}', missed_limit => 1000, overlap => '{overlap}', jitter => '{jitter} s', tick_field => 'at')"
        )
    }

    /// Whether every tick that is not left out by hand gets its task.
    pub fn leaves_none_out(&self) -> bool {
        self.missed == "all" && self.overlap != Overlap::Skip
    }
}

/// How far schedules were at the last check: the last tick that was dealt with, and what they had counted.
pub type Standing = BTreeMap<&'static str, Count>;

/// What a schedule has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Count {
    /// The last tick that it has dealt with.
    pub last: Second,
    /// Of ticks after this the ledger has everything.
    pub noted: Second,
    /// Tasks that it has enqueued.
    pub fired: i64,
    /// Ticks that got none.
    pub skipped: i64,
}

/// What is known of a schedule at a check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Past {
    /// Which one.
    pub schedule: Schedule,
    /// Where it was at the last check.
    pub from: Count,
    /// Where it is.
    pub to: Count,
    /// Ticks up to there whose tasks are done, with their tasks.
    pub done: Vec<(Second, Uuid)>,
}

/// Makes the schedules and what their steps write into.
///
/// # Errors
/// When the server does not.
pub async fn prepare(scene: &Scene, role: &str) -> anyhow::Result<()> {
    // No constraint: what is written twice is to show.
    scene
        .run("CREATE TABLE ticked (schedule text NOT NULL, at timestamptz NOT NULL, task uuid NOT NULL)")
        .await?;
    scene.run(&format!("GRANT INSERT ON ticked TO {role}")).await?;
    for schedule in SCHEDULES {
        let next = scene.ask(&format!("SELECT extract(epoch FROM ({}))::bigint", schedule.set())).await?;
        let last = next.parse::<Second>().context("a schedule has no tick")? - schedule.every;
        scene.standing().insert(schedule.name, Count { last, ..Count::default() });
    }
    Ok(())
}

/// Waits until the tasks of all ticks up to now are done, and says what there was. What does not come to its end is left to the check.
///
/// # Errors
/// When the server is not there.
pub async fn collect(scene: &Scene) -> anyhow::Result<Vec<Past>> {
    let to = counts(scene).await?;
    let bounds: Vec<String> =
        to.iter().map(|(name, count)| format!("('{name}', to_timestamp({}))", count.last)).collect();
    let bounds = bounds.join(", ");
    let left = format!(
        "SELECT count(*) FROM pg_task.task AS t, (VALUES {bounds}) AS b (schedule, last)
         WHERE t.step #>> '{{Clock,Tick,schedule}}' = b.schedule AND (t.step #>> '{{Clock,Tick,at}}')::timestamptz <= b.last"
    );
    let mut patience = Patience::new(PATIENCE);
    while patience.lasts() && scene.ask(&left).await? != "0" {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let done = scene
        .column(&format!(
            "SELECT format('%s %s %s', t.schedule, extract(epoch FROM t.at)::bigint, t.task) FROM ticked AS t, (VALUES {bounds}) AS b (schedule, last)
             WHERE t.schedule = b.schedule AND t.at <= b.last"
        ))
        .await?;
    let standing = scene.standing().clone();
    let mut pasts = Vec::new();
    for schedule in SCHEDULES {
        let of = |counts: &Standing| counts.get(schedule.name).copied().unwrap_or_default();
        let past = Past { schedule: *schedule, from: of(&standing), to: of(&to), done: Vec::new() };
        pasts.push(past);
    }
    for row in done {
        let [name, at, task] = row.split(' ').collect::<Vec<_>>()[..] else { bail!("no tick: {row}") };
        let past = pasts.iter_mut().find(|past| past.schedule.name == name);
        past.context("a tick of no schedule")?.done.push((at.parse()?, task.parse()?));
    }
    Ok(pasts)
}

/// The next check begins after these. The ledger is empty by now.
///
/// # Errors
/// When the server is not there.
pub async fn settle(scene: &Scene, pasts: &[Past]) -> anyhow::Result<()> {
    let noted = scene.ask("SELECT ceil(extract(epoch FROM clock_timestamp()))::bigint").await?.parse()?;
    for Past { schedule: Schedule { name, .. }, to, .. } in pasts {
        scene
            .run(&format!("DELETE FROM ticked WHERE schedule = '{name}' AND at <= to_timestamp({})", to.last))
            .await?;
        scene.standing().insert(name, Count { noted, ..*to });
    }
    Ok(())
}

/// Where the schedules are at one moment at which no tick waits for its turn.
async fn counts(scene: &Scene) -> anyhow::Result<Standing> {
    let counts = "SELECT format('%s %s %s %s', name, extract(epoch FROM last_at)::bigint, fired, skipped) FROM pg_task.schedule
         WHERE NOT EXISTS (SELECT FROM pg_task.schedule WHERE waiting <> '{}')";
    let mut patience = Patience::new(PATIENCE);
    loop {
        let rows = scene.column(counts).await?;
        let mut standing = Standing::new();
        for row in &rows {
            let [name, last, fired, skipped] = row.split(' ').collect::<Vec<_>>()[..] else {
                bail!("no schedule: {row}")
            };
            let Some(schedule) = SCHEDULES.iter().find(|schedule| schedule.name == name) else { continue };
            // One that has not ticked yet is where it was.
            if let Ok(last) = last.parse() {
                let count = Count { last, noted: 0, fired: fired.parse()?, skipped: skipped.parse()? };
                standing.insert(schedule.name, count);
            }
        }
        if standing.len() == SCHEDULES.len() {
            return Ok(standing);
        }
        if !patience.lasts() {
            bail!("a schedule does not tick, or its ticks wait for ever: {rows:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
