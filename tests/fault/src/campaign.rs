//! A campaign: rounds of faults under the load, a check after every few of them, and the summary.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::check;
use crate::check::Evidence;
use crate::check::Outcome as Ended;
use crate::check::Past;
use crate::check::Row;
use crate::check::Violation;
use crate::fault::Fault;
use crate::fault::Outcome;
use crate::fault::Size;
use crate::govern;
use crate::govern::Duty;
use crate::ledger;
use crate::load;
use crate::measure;
use crate::operate;
use crate::plan::Kind;
use crate::plan::Plan;
use crate::proxy::Mode;
use crate::scene::PATIENCE;
use crate::scene::Patience;
use crate::scene::Scene;
use crate::server_log;
use crate::ticks;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Names the server and the folder.
    pub name: String,
    /// What everything by chance comes from.
    pub seed: u64,
    /// How many rounds.
    pub rounds: u32,
    /// No round begins after so long.
    pub time: Option<Duration>,
    /// No round begins after so many faults.
    pub enough: Option<u32>,
    /// The faults to choose from.
    pub faults: Vec<Fault>,
    /// Rounds between two checks.
    pub check_every: u32,
    /// The mean time between two pieces of work of one producer.
    pub pace: Duration,
    /// Whether to measure P10 at the end.
    pub measure: bool,
}

/// How long the load may take to come to its end after the last fault. A task that was locked in writing waits a minute for its worker
/// after a restart of the server.
const DRAIN: Duration = Duration::from_secs(400);

/// How long nothing may move meanwhile.
const STANDSTILL: Duration = Duration::from_secs(200);

/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(100);

/// A fault that takes longer than this is worth a line.
const SLOW: Duration = Duration::from_secs(25);

/// A machine on which this program gets no time for so long is one on which workers lose their leases: a fault like others.
const STALL: Duration = Duration::from_secs(1);

const WORKERS: usize = 4;
const PRODUCERS: u64 = 3;

/// What a run came to.
#[derive(Default)]
pub(crate) struct Summary {
    done: BTreeMap<Fault, u32>,
    skipped: BTreeMap<Fault, String>,
    pub(crate) tasks: usize,
    pub(crate) runs: usize,
    checks: u32,
}

/// Runs a campaign and prints its summary.
///
/// # Errors
/// When a promise was broken, or the scene could not be played.
pub async fn run(order: Order) -> anyhow::Result<()> {
    println!(
        "fault: seed {}, at most {} rounds; repeat with --seed {}",
        order.seed, order.rounds, order.seed
    );
    let began = Instant::now();
    let scene = Arc::new(Scene::set(&order.name, WORKERS).await?);
    println!("   the server's log: {}", scene.cluster().log().display());
    println!("   the workers' log and the ledger: {}", scene.folder.display());
    let mut summary = Summary::default();
    let mut load = JoinSet::new();
    for producer in 0..PRODUCERS {
        load.spawn(load::produce(scene.clone(), order.seed.wrapping_add(producer), order.pace));
    }
    load.spawn(load::meddle(scene.clone(), order.seed));
    load.spawn(operate::operate(scene.clone(), order.seed));
    for duty in Duty::ALL {
        load.spawn(govern::govern(scene.clone(), order.seed, duty));
    }
    load.spawn(note_stalls(scene.clone()));
    let mut round = 0;
    let played = play_all(&scene, &order, began, &mut round, &mut summary).await;
    load.shutdown().await;
    if played.is_ok() && order.measure {
        measure::print(&scene).await?;
    }
    summary.print(round, began, played.is_ok());
    played
}

/// Notes for the check when the machine stood still.
pub(crate) async fn note_stalls(scene: Arc<Scene>) {
    loop {
        let (from, began) = (ledger::now(), Instant::now());
        tokio::time::sleep(LOOK).await;
        if began.elapsed() > LOOK + STALL
            && let (Ok(from), Ok(to)) = (from, ledger::now())
        {
            scene.note_fault("the machine stood still".to_owned(), from, to);
        }
    }
}

async fn play_all(
    scene: &Arc<Scene>,
    order: &Order,
    began: Instant,
    round: &mut u32,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let mut log_read = vec![0];
    let mut last = order.rounds == 0;
    while !last {
        *round += 1;
        play(scene, order, *round, summary).await?;
        last = *round >= order.rounds
            || order.time.is_some_and(|time| began.elapsed() >= time)
            || order.enough.is_some_and(|enough| summary.faults() >= enough);
        if last || round.is_multiple_of(order.check_every) {
            examine(scene, *round, order.seed, &mut log_read, summary).await?;
        }
    }
    Ok(())
}

/// One round: at most one large fault, and small ones beside it.
async fn play(scene: &Arc<Scene>, order: &Order, round: u32, summary: &mut Summary) -> anyhow::Result<()> {
    let mut rng = fastrand::Rng::with_seed(order.seed ^ u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let of_size =
        |size| order.faults.iter().copied().filter(move |fault| fault.size() == size).collect::<Vec<_>>();
    let (large, small) = (of_size(Size::Large), of_size(Size::Small));
    let mut chosen: Vec<Fault> =
        (0..rng.usize(2..6)).filter_map(|_| rng.choice(small.iter().copied())).collect();
    chosen.extend(rng.choice(large.iter().copied()));
    let names: Vec<&str> = chosen.iter().map(|fault| fault.name()).collect();
    println!("round {round} ({}): {}", ledger::now()?, names.join("; "));
    let mut faults = JoinSet::new();
    for fault in chosen {
        let (scene, mut rng) = (scene.clone(), rng.fork());
        faults.spawn(async move {
            tokio::time::sleep(Duration::from_millis(rng.u64(0..1_500))).await;
            let began = Instant::now();
            let outcome = fault.inject(&scene, &mut rng).await;
            if began.elapsed() > SLOW {
                println!("   {} took {:.0} s", fault.name(), began.elapsed().as_secs_f64());
            }
            (fault, outcome)
        });
    }
    while let Some(done) = faults.join_next().await {
        let (fault, outcome) = done?;
        match outcome.with_context(|| format!("round {round}: {}", fault.name()))? {
            Outcome::Done(count) => *summary.done.entry(fault).or_default() += count,
            Outcome::Skipped(reason) => _ = summary.skipped.insert(fault, reason),
        }
    }
    heal(scene).await
}

/// Everything is there again.
async fn heal(scene: &Scene) -> anyhow::Result<()> {
    {
        let mut crew = scene.crew.lock().await;
        crew.revive()?;
        for member in &crew.members {
            member.proxy.set(Mode::Open);
        }
        if !crew.deserters.is_empty() {
            bail!("{}; see their log", crew.deserters.join("; "));
        }
    }
    scene.producers.set(Mode::Open);
    scene.start_server().await?;
    scene.until_up().await
}

/// Lets the load come to its end and holds the ledger against what is left.
pub(crate) async fn examine(
    scene: &Scene,
    round: u32,
    seed: u64,
    log_read: &mut Vec<usize>,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let _pause = scene.gate.write().await;
    drain(scene).await?;
    let mut evidence = evidence(scene).await?;
    let mut violations = check::check(&evidence);
    let order_of_hand_out = hand_out_order(scene, seed).await?;
    let mut log = log_complaints(scene, log_read)?;
    summary.tasks +=
        evidence.lines.iter().filter(|line| matches!(line.entry, ledger::Entry::Intended(_))).count();
    summary.runs +=
        evidence.lines.iter().filter(|line| matches!(line.entry, ledger::Entry::Began(_))).count();
    summary.checks += 1;
    if violations.is_empty() && order_of_hand_out.is_none() && log.is_empty() {
        println!(
            "check after round {round} and {} faults: {} lines, nothing lost, nothing doubled ({:.0} s)",
            summary.faults(),
            evidence.lines.len(),
            began.elapsed().as_secs_f64()
        );
        println!("   {}", evidence.tally());
        // The next check begins from nothing. Nothing runs now that could still write.
        scene.run("DELETE FROM pg_task.task WHERE NOT step ? 'Clock'; DELETE FROM pg_task.unique_key; TRUNCATE effect, exact, twin, wish, pg_task.history").await?;
        std::fs::File::create(&scene.ledger_path)?;
        ticks::settle(scene, &evidence.schedules).await?;
        evidence.lines.clear();
        return Ok(());
    }
    for violation in violations.iter().take(10) {
        println!("\nVIOLATION {}", evidence.account(violation));
    }
    if violations.len() > 10 {
        println!("… and {} more", violations.len() - 10);
    }
    if let Some(text) = order_of_hand_out {
        println!("\nVIOLATION {text}");
        violations.push(Violation { key: 0, text });
    }
    log.iter_mut().for_each(|line| println!("\nUNEXPECTED in the server's log: {line}"));
    bail!(
        "{} violations and {} unexpected lines after round {round}; repeat with --seed {}",
        violations.len(),
        log.len(),
        seed
    )
}

/// Waits until every task that is due has come to its end; what does not is left to the check.
async fn drain(scene: &Scene) -> anyhow::Result<()> {
    heal(scene).await?;
    let left = "SELECT count(*) FROM pg_task.task WHERE NOT step->'Load' ? 'Future'";
    let (mut last, mut patience) = (String::new(), Patience::new(DRAIN));
    let mut standstill = Patience::new(STANDSTILL);
    while patience.lasts() && standstill.lasts() {
        load::end_prepared(scene, "true").await?;
        load::resume_parked(scene).await?;
        let now = scene.ask(left).await?;
        if now == "0" && scene.ask("SELECT count(*) FROM pg_task.running").await? == "0" {
            return Ok(());
        }
        if now != last {
            (last, standstill) = (now, Patience::new(STANDSTILL));
        }
        tokio::time::sleep(LOOK).await;
    }
    println!("   {last} tasks did not come to their end");
    println!("   scheduler: {}", scene.ask("SELECT s::text FROM pg_task.scheduler AS s").await?);
    for worker in scene.column("SELECT w::text FROM pg_task.workers AS w").await? {
        println!("   worker: {worker}");
    }
    Ok(())
}

async fn evidence(scene: &Scene) -> anyhow::Result<Evidence> {
    let rows = scene
        .column("SELECT (jsonb_path_query_first(step, '$.*.*.key'))::text || ' ' || t::text FROM pg_task.task AS t")
        .await?;
    let rows = rows.iter().filter_map(|row| {
        let (key, text) = row.split_once(' ')?;
        Some(Row { key: key.parse().ok()?, text: text.to_owned() })
    });
    let effects = scene.column("SELECT key || ' ' || token FROM effect").await?;
    let effects = effects.iter().filter_map(|row| {
        let (key, token) = row.split_once(' ')?;
        Some((key.parse().ok()?, token.parse().ok()?))
    });
    let exact = scene.column("SELECT key || ' ' || seq || ' ' || token FROM exact").await?;
    let exact = exact.iter().filter_map(|row| {
        let [key, seq, token] = row.split(' ').collect::<Vec<_>>()[..] else { return None };
        Some((key.parse().ok()?, (seq.parse().ok()?, token.parse().ok()?)))
    });
    let written = scene.column("SELECT key || ' ' || id FROM twin").await?;
    let mut twins: HashMap<u64, Vec<Uuid>> = HashMap::new();
    for row in written {
        let (key, id) = row.split_once(' ').context("no twin")?;
        twins.entry(key.parse()?).or_default().push(id.parse()?);
    }
    let history = scene
        .column(
            "SELECT p.key || ' ' || p.seq || ' ' || h.attempts || ' ' || h.outcome || ' ' || h.id || ' ' || coalesce(p.mark, 0)
             FROM pg_task.history AS h, jsonb_each(h.step -> 'Load') AS s (name, payload), jsonb_to_record(s.payload) AS p (key bigint, seq int, mark bigint)
             WHERE h.step ? 'Load'",
        )
        .await?;
    let past = history.iter().map(|row| {
        let [key, seq, attempts, outcome, id, mark] = row.split(' ').collect::<Vec<_>>()[..] else {
            bail!("no past: {row}")
        };
        let outcome = match outcome {
            "cancelled" => Ended::Cancelled,
            "done" => Ended::Done,
            other => bail!("no outcome: {other}"),
        };
        Ok((
            key.parse()?,
            Past {
                outcome,
                seq: seq.parse()?,
                attempts: attempts.parse()?,
                id: id.parse()?,
                mark: mark.parse()?,
            },
        ))
    });
    let mut history: HashMap<u64, Vec<Past>> = HashMap::new();
    for row in past {
        let (key, past) = row?;
        history.entry(key).or_default().push(past);
    }
    let mut exactly: HashMap<u64, Vec<(u32, i64)>> = HashMap::new();
    exact.for_each(|(key, row)| exactly.entry(key).or_default().push(row));
    Ok(Evidence {
        exactly,
        twins,
        wishes: scene
            .column("SELECT DISTINCT key FROM wish")
            .await?
            .iter()
            .map(|key| key.parse())
            .collect::<Result<_, _>>()?,
        history,
        schedules: ticks::collect(scene).await?,
        rows: rows.collect(),
        effects: effects.collect(),
        lines: ledger::read(&scene.ledger_path)?,
        faults: scene.faults(),
        lost_limit: scene.ask("SHOW pg_task.lost_limit").await?.parse()?,
    })
}

/// Tasks of many priorities that are all ready before the first is handed out: the tokens tell the order. Returns what is wrong with it.
async fn hand_out_order(scene: &Scene, seed: u64) -> anyhow::Result<Option<String>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let plan = Plan::new(Kind::Noop, 0);
    scene.run("ALTER SYSTEM SET pg_task.enabled = off").await?;
    scene.run("SELECT pg_reload_conf()").await?;
    scene.until("SELECT NOT current_setting('pg_task.enabled')::bool", PATIENCE).await?;
    let mut expected: Vec<(i32, i32, u64)> = Vec::new();
    let mut script = String::new();
    for _ in 0..200 {
        let key = scene.next_key.fetch_add(1, Relaxed);
        let (priority, age) = (rng.i32(-3..4), rng.i32(0..1_000));
        expected.push((priority, -age, key));
        script += &format!(
            "INSERT INTO pg_task.task (queue, priority, wakeup_at, step) VALUES ('order', {priority}, now() - {age} * interval '1 s', '{}'); ",
            plan.step(key)
        );
    }
    scene.run(&format!("BEGIN; {script} COMMIT")).await?;
    scene
        .until("SELECT coalesce(sum(ready), 0) = 200 FROM pg_task.lanes() WHERE queue = 'order'", PATIENCE)
        .await?;
    scene.run("ALTER SYSTEM RESET pg_task.enabled").await?;
    scene.run("SELECT pg_reload_conf()").await?;
    scene.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'order')", PATIENCE).await?;
    let mut tokens: Vec<(i64, u64)> = ledger::read(&scene.ledger_path)?
        .iter()
        .filter_map(|line| match line.entry {
            ledger::Entry::Began(run) if expected.iter().any(|task| task.2 == line.key) => {
                Some((run.token, line.key))
            }
            _ => None,
        })
        .collect();
    tokens.sort_unstable();
    expected.sort_unstable_by_key(|task| (task.0, task.1));
    let keys: BTreeMap<u64, (i32, i32)> = expected.iter().map(|task| (task.2, (task.0, task.1))).collect();
    let got: Vec<(i32, i32)> = tokens.iter().filter_map(|(_, key)| keys.get(key).copied()).collect();
    let wanted: Vec<(i32, i32)> = expected.iter().map(|task| (task.0, task.1)).collect();
    Ok((got != wanted).then(|| format!("tasks were not handed out by priority and due time: {got:?}")))
}

fn log_complaints(scene: &Scene, read: &mut Vec<usize>) -> anyhow::Result<Vec<String>> {
    let logs = scene.logs.lock().expect("no holder of the lock panics").clone();
    read.resize(logs.len(), 0);
    let mut all = Vec::new();
    for (path, from) in logs.iter().zip(read) {
        // A server that was promoted away took its log along.
        if !path.exists() {
            continue;
        }
        let (found, to) = server_log::complaints(path, *from, &scene.excuses())?;
        *from = to;
        all.extend(found);
    }
    let workers = std::fs::read_to_string(scene.folder.join("workers.log")).unwrap_or_default();
    all.extend(
        workers.lines().filter(|line| line.contains("panicked")).map(|line| format!("(a worker) {line}")),
    );
    Ok(all)
}

impl Summary {
    /// Faults that were done.
    fn faults(&self) -> u32 {
        self.done.values().sum()
    }

    fn print(&self, rounds: u32, began: Instant, well: bool) {
        println!("\n{:<44} times", "fault");
        for fault in Fault::ALL {
            if let Some(count) = self.done.get(fault) {
                println!("{:<44} {count}", fault.name());
            }
            if let Some(reason) = self.skipped.get(fault) {
                println!("{:<44} skipped: {reason}", fault.name());
            }
        }
        println!(
            "\n{} faults in {rounds} rounds, {} tasks, {} runs of steps, {} checks, {:.0} s{}",
            self.faults(),
            self.tasks,
            self.runs,
            self.checks,
            began.elapsed().as_secs_f64(),
            if well { ": nothing lost, nothing doubled" } else { "" }
        );
    }
}
