//! A server of its own whose clock is set forward and back, while schedules tick and a worker takes what comes: each tick once, no wait for
//! an old time, no more than a rate allows.

use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use pg_task_cluster::Clock;
use pg_task_cluster::Cluster;
use pg_task_cluster::Stop;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::Row;

use super::Outcome;
use crate::check;
use crate::check::Evidence;
use crate::ledger;
use crate::ledger::Entry;
use crate::plan::Bond;
use crate::plan::Kind;
use crate::plan::Plan;
use crate::queues;
use crate::queues::KEY_METER;
use crate::scene::PATIENCE;
use crate::scene::Patience;
use crate::scene::Scene;
use crate::ticks;
use crate::ticks::Overlap;
use crate::ticks::RESTED;
use crate::ticks::SCHEDULES;
use crate::ticks::Schedule;

/// Those whose ticks wait for each other take too long for many that were missed, and one is paused by hand elsewhere.
fn schedules() -> impl Iterator<Item = &'static Schedule> {
    SCHEDULES.iter().filter(|schedule| schedule.overlap != Overlap::Queue && schedule.name != RESTED)
}

/// A server with a clock that can be set.
struct Server {
    cluster: Cluster,
    clock: Clock,
    /// Seconds that its clock is ahead.
    ahead: i64,
    /// Seconds that it has been ahead at most.
    furthest: i64,
}

pub(super) async fn steps(scene: &Scene, rng: &mut fastrand::Rng) -> anyhow::Result<Outcome> {
    let name = format!("{}-clock", scene.name());
    let settings = ["max_connections = 30", "fsync = off"];
    let cluster = tokio::task::block_in_place(|| Cluster::create_empty(&scene.tree, &name, &settings, &[]))?;
    let mut server = Server { clock: Clock::of(&cluster)?, cluster, ahead: 0, furthest: 0 };
    server.start()?;
    server
        .run("CREATE EXTENSION pg_task; CREATE TABLE ticked (schedule text, at timestamptz, task uuid)")
        .await?;
    for settings in queues::lasting() {
        server.run(&settings).await?;
    }
    let mut from = ticks::Standing::new();
    for schedule in schedules() {
        let next = server.ask(&format!("SELECT extract(epoch FROM ({}))::bigint", schedule.set())).await?;
        let last = next - schedule.every;
        from.insert(schedule.name, ticks::Count { last, noted: last, ..ticks::Count::default() });
    }
    let path = scene.folder.join("clock-ledger");
    let worker = scene.crew.lock().await.stray(&server.cluster.url("postgres"), &path)?;
    let count = rng.u32(2..5);
    for _ in 0..count {
        let to = if rng.bool() { server.ahead + rng.i64(1..300) } else { server.ahead - rng.i64(1..200) };
        server.set(to)?;
        if rng.u32(0..3) == 0 {
            server.restart(rng.bool())?;
        }
        work(&server, rng).await?;
    }
    // From here on there are ticks again, also of those that were ahead.
    server.set(server.furthest + 1)?;
    work(&server, rng).await?;
    let pasts = server.pasts(&from).await?;
    let lines =
        ledger::read(&path)?.into_iter().filter(|line| matches!(line.entry, Entry::Ticked(_))).collect();
    drop(worker);
    tokio::task::block_in_place(|| server.cluster.remove())?;
    let violations = check::check(&Evidence { lines, schedules: pasts, ..Evidence::default() });
    let texts: Vec<&str> = violations.iter().map(|violation| &*violation.text).collect();
    ensure!(texts.is_empty(), "by a clock that was set: {}", texts.join("; "));
    Ok(Outcome::Done(count + 1))
}

/// Tasks that are due at once, or soon, are run at once, or soon; of a key no sooner than its rate allows.
async fn work(server: &Server, rng: &mut fastrand::Rng) -> anyhow::Result<()> {
    let step = |plan: Plan| (plan.step(0), plan.options().unwrap_or_default());
    let (noop, _) = step(Plan::new(Kind::Noop, 0));
    let (chain, _) = step(Plan::new(Kind::Later, 3));
    let (metered, options) = step(Plan::new(Kind::Noop, 0).tied(Bond::Metered(1)));
    let many = rng.u32(4..12);
    let began = Instant::now();
    server
        .run(&format!(
            "SELECT pg_task.enqueue('{noop}') FROM generate_series(1, 20); SELECT pg_task.enqueue('{chain}') FROM generate_series(1, 5);
             SELECT pg_task.delay('{noop}', n * interval '20 ms') FROM generate_series(1, 20) AS n;
             SELECT pg_task.enqueue('{metered}', '{}', options => '{options}') FROM generate_series(1, {many})",
            queues::METERED
        ))
        .await?;
    server.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE step ? 'Load')").await?;
    let time = began.elapsed().as_secs_f64();
    let most = f64::from(KEY_METER.burst) + f64::from(KEY_METER.rate) * time;
    ensure!(f64::from(many) <= most, "{many} tasks of a key in {time:.2} s after its clock was set");
    Ok(())
}

impl Server {
    /// Its clock is so many seconds ahead from now on.
    fn set(&mut self, ahead: i64) -> anyhow::Result<()> {
        (self.ahead, self.furthest) = (ahead, self.furthest.max(ahead));
        self.clock.set(ahead)
    }

    fn start(&self) -> anyhow::Result<()> {
        tokio::task::block_in_place(|| self.clock.start(&self.cluster))
    }

    fn restart(&self, crash: bool) -> anyhow::Result<()> {
        let how = if crash { Stop::Immediate } else { Stop::Fast };
        tokio::task::block_in_place(|| self.cluster.stop(how))?;
        self.start()
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        let url = format!("{}?sslmode=disable", self.cluster.url("postgres"));
        let call = PgConnection::connect(&url);
        Ok(tokio::time::timeout(Duration::from_secs(20), call).await.context("no connection")??)
    }

    async fn run(&self, sql: &str) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
        Ok(())
    }

    async fn ask(&self, sql: &str) -> anyhow::Result<i64> {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        Ok(sqlx::query_scalar(sql).fetch_one(&mut self.connect().await?).await?)
    }

    async fn until(&self, sql: &str) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        let mut patience = Patience::new(PATIENCE);
        while patience.lasts() {
            let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()));
            if query.fetch_one(&mut connection).await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("with a clock that is {} s ahead, and was {} s: not in time: {sql}", self.ahead, self.furthest)
    }

    /// What the schedules have done, when all of them have ticked by the clock as it is, and their tasks are done.
    async fn pasts(&self, from: &ticks::Standing) -> anyhow::Result<Vec<ticks::Past>> {
        self.until("SELECT bool_and(last_at > now() - interval '4 s' AND next_at > now() - interval '4 s') FROM pg_task.schedule")
            .await?;
        let mut connection = self.connect().await?;
        let counts = "SELECT name, extract(epoch FROM last_at)::bigint, fired, skipped FROM pg_task.schedule";
        let rows = sqlx::query(counts).fetch_all(&mut connection).await?;
        let mut pasts = Vec::new();
        for row in rows {
            let name: &str = row.try_get(0)?;
            let schedule = schedules().find(|schedule| schedule.name == name).context("no such schedule")?;
            let last = row.try_get(1)?;
            let to = ticks::Count { last, noted: 0, fired: row.try_get(2)?, skipped: row.try_get(3)? };
            let left = format!(
                "SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE step #>> '{{Clock,Tick,schedule}}' = '{name}'
                     AND (step #>> '{{Clock,Tick,at}}')::timestamptz <= to_timestamp({last}))"
            );
            self.until(&left).await?;
            let done = sqlx::query_as(
                "SELECT extract(epoch FROM at)::bigint, task FROM ticked WHERE schedule = $1 AND at <= to_timestamp($2)",
            );
            let done = done.bind(name).bind(last as f64).fetch_all(&mut connection).await?;
            let from = from.get(name).copied().unwrap_or_default();
            pasts.push(ticks::Past { schedule: *schedule, from, to, done });
        }
        Ok(pasts)
    }
}
