//! Two at one task: every pair of what can happen to it, in every order of their steps. What comes of it must be what one of the two after the
//! other would have come to, and the task must be handed out again, once, if there is still something to run.
#![expect(
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    reason = "an integration test that reports figures"
)]

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use pg_task_e2e::Database;
use pg_task_e2e::interleave::Actor;
use pg_task_e2e::interleave::Answer;
use pg_task_e2e::interleave::Part;
use pg_task_e2e::interleave::interleave;
use pg_task_e2e::interleave::orders;
use pg_task_e2e::own_server;
use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgConnection;

/// The worker that holds the task where one does.
const HOLDER: &str = "'00000000-0000-0000-0000-0000000000f0'";

/// Workers that ask for it, one for each session.
const OTHERS: [&str; 2] =
    ["'00000000-0000-0000-0000-0000000000f1'", "'00000000-0000-0000-0000-0000000000f2'"];

const ID: &str = "'00000000-0000-0000-0000-0000000000aa'";

/// What can happen to a task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Deed {
    /// A user cancels it.
    Cancel,
    /// Another worker asks for tasks.
    Claim,
    /// Its worker brings: done.
    Done,
    /// Its worker is lost.
    Lose,
    /// Its worker brings the next step, and would keep it.
    Next,
    /// Its worker brings: failed for good.
    Park,
    /// Its worker gives it back.
    Release,
    /// A user resumes it.
    Resume,
    /// Its worker brings: failed, again at once.
    Retry,
    /// A user changes its step.
    Update,
}

/// Where the task stands at first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Start {
    Claimed,
    Parked,
    Ready,
}

/// What a change by a user adds to the fence.
const USER_CHANGE: i64 = 1 << 32;

/// How two sessions end.
const ENDS: [[&str; 2]; 3] = [["COMMIT", "COMMIT"], ["COMMIT", "ROLLBACK"], ["ROLLBACK", "COMMIT"]];

/// The row and who holds it, as far as it matters.
#[derive(Clone, Debug, Eq, PartialEq)]
struct State {
    row: Option<Row>,
    /// The fence under which the first worker holds it.
    held: Option<i64>,
    /// Another worker holds it.
    elsewhere: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Row {
    fence: i64,
    tried: i64,
    parked: bool,
    step: String,
}

impl Deed {
    fn is_result(self) -> bool {
        matches!(self, Self::Done | Self::Next | Self::Park | Self::Release | Self::Retry)
    }

    fn sql(self, side: usize, held: &str) -> String {
        let exchange = |want: u32, more: &str| {
            format!(
                "SELECT event || ' ' || coalesce(fence, 0) FROM pg_task.exchange({HOLDER}, {want}, {held}, {more})"
            )
        };
        match self {
            Self::Cancel => format!("SELECT pg_task.cancel({ID})"),
            Self::Claim => format!(
                "SELECT event || ' ' || coalesce(fence, 0) FROM pg_task.exchange({}, 1)",
                OTHERS[side]
            ),
            Self::Done => exchange(0, "'{0}'"),
            Self::Lose => format!(
                "DO $$ DECLARE since timestamptz := clock_timestamp(); BEGIN
                    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder' AND datname = current_database();
                    WHILE EXISTS (SELECT FROM pg_task.worker_states() WHERE id = {HOLDER})
                        AND clock_timestamp() < since + interval '60 ms' LOOP PERFORM pg_sleep(0.001); END LOOP;
                 END $$"
            ),
            Self::Next => exchange(1, r#"'{1}', ARRAY['{"A": {"Next": 1}}'::jsonb]"#),
            Self::Park => exchange(0, "'{4}', NULL, NULL, '{broken}'"),
            Self::Release => exchange(0, "'{5}'"),
            Self::Resume => format!("SELECT pg_task.resume({ID})"),
            Self::Retry => exchange(0, "'{3}', NULL, '{0}'"),
            Self::Update => format!(
                r#"UPDATE pg_task.task SET step = '{{"A": {{"User": 1}}}}' WHERE id = {ID} RETURNING 'changed'"#
            ),
        }
    }

    /// What may have become of the task after this, if it answered so; nothing if it cannot have answered so.
    fn after(self, state: &State, answer: &[String], claimed_by_other: bool) -> Vec<State> {
        let mut next = state.clone();
        let event = |number: &str| answer.iter().find_map(|row| row.strip_prefix(&format!("{number} ")));
        if self.is_result() {
            let refused = event("2").is_some();
            // The fence decides. Memory may refuse before that, while another worker holds the task, were it in a transaction that is rolled back.
            let goes_on = state.held.is_some_and(|fence| fence > 0);
            let valid = if self == Self::Release {
                !goes_on
            } else {
                state.row.as_ref().is_some_and(|row| row.fence == 0)
            };
            if refused == valid && !(refused && claimed_by_other) {
                return Vec::new();
            }
            if !goes_on {
                next.held = None;
            }
            if let Some(row) = next.row.as_mut().filter(|_| !refused && self != Self::Release) {
                row.fence += 1;
                match self {
                    Self::Done => next.row = None,
                    Self::Next => {
                        (row.tried, row.parked, row.step) = (0, false, "Next".to_owned());
                        next.held = event("1").map(|_| row.fence);
                    }
                    Self::Park => (row.tried, row.parked) = (row.tried + 1, true),
                    _ => (row.tried, row.parked) = (row.tried + 1, false),
                }
            }
            // The call of the next step asks for tasks, too.
            return match event("0") {
                None => vec![next],
                fence => self.given(&next, fence).into_iter().collect(),
            };
        }
        let yes = answer.first().is_some_and(|answer| answer == "t" || answer == "changed");
        match self {
            Self::Claim => match event("0") {
                None => vec![next],
                fence => self.given(&next, fence).into_iter().collect(),
            },
            Self::Lose => {
                let held = next.held.take();
                let mut all = Vec::new();
                if let Some(row) = next.row.as_mut().filter(|row| Some(row.fence) == held && !row.parked) {
                    let unwritten = row.clone();
                    (row.fence, row.tried) = (row.fence + 1, row.tried + 1);
                    // A next step whose commit comes after the loss goes back uncounted.
                    if held > Some(0) {
                        all.push(State { row: Some(unwritten), ..next.clone() });
                    }
                }
                all.push(next);
                all
            }
            Self::Cancel => {
                let row = next.row.take();
                if row.is_some() == yes { vec![next] } else { Vec::new() }
            }
            Self::Resume => {
                let parked = next.row.as_mut().filter(|row| row.parked);
                if parked.is_some() != yes {
                    return Vec::new();
                }
                if let Some(row) = parked {
                    (row.fence, row.tried, row.parked) = (row.fence + USER_CHANGE, 0, false);
                }
                vec![next]
            }
            _ => {
                if next.row.is_some() != yes {
                    return Vec::new();
                }
                // What changes nothing is no change.
                if let Some(row) = next.row.as_mut().filter(|row| row.step != "User") {
                    (row.fence, row.step) = (row.fence + USER_CHANGE, "User".to_owned());
                }
                vec![next]
            }
        }
    }

    /// The task was handed out: it was nobody else's, and the row is the one that was given.
    fn given(self, state: &State, fence: Option<&str>) -> Option<State> {
        let row = state.row.as_ref()?;
        let right = !row.parked
            && state.held.is_none()
            && !state.elsewhere
            && fence.and_then(|fence| fence.parse().ok()) == Some(row.fence);
        let own = self == Self::Next;
        right.then(|| State { elsewhere: !own, held: own.then_some(row.fence), ..state.clone() })
    }
}

struct Stage {
    db: Database,
    observer: PgConnection,
    actors: [Actor; 2],
    holder: Option<PgConnection>,
}

impl Stage {
    async fn set(db: Database) -> Result<Self> {
        let observer = PgConnection::connect(&db.url).await?;
        let actors = [Actor::connect(&db.url).await?, Actor::connect(&db.url).await?];
        Ok(Self { db, observer, actors, holder: None })
    }

    async fn run(&mut self, sql: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.observer)
            .await
            .with_context(|| sql.to_owned())?;
        Ok(())
    }

    /// The first row of a query with one text column.
    async fn ask(&mut self, sql: &str) -> Result<Option<String>> {
        let sql = sql.to_owned();
        sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .fetch_optional(&mut self.observer)
            .await
            .with_context(|| sql)
    }

    /// Asks again and again until there is a row.
    async fn until(&mut self, sql: &str) -> Result<String> {
        for _ in 0..20_000 {
            if let Some(answer) = self.ask(sql).await? {
                return Ok(answer);
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        anyhow::bail!("never: {sql}")
    }

    /// Brings the task to where it stands at first; returns the claim as arguments of `exchange`.
    async fn begin(&mut self, start: Start) -> Result<String> {
        if self.holder.is_none() {
            let url = format!("{}?application_name=holder", self.db.url);
            self.holder = Some(PgConnection::connect(&url).await?);
        }
        let holder = self.holder.as_mut().context("it is there")?;
        sqlx::raw_sql(AssertSqlSafe(format!("SELECT pg_task.register({HOLDER})"))).execute(holder).await?;
        for other in OTHERS {
            self.run(&format!("SELECT pg_task.register({other}, bind => false)")).await?;
        }
        let (tried, error) = if start == Start::Parked { (2, "'broken'") } else { (0, "NULL") };
        self.run(&format!(
            r#"INSERT INTO pg_task.task (id, step, tried, error) VALUES ({ID}, '{{"A": {{"First": 1}}}}', {tried}, {error})"#
        ))
        .await?;
        match start {
            Start::Parked => {}
            Start::Ready => _ = self.until("SELECT 'x' FROM pg_task.scheduler WHERE ready = 1").await?,
            Start::Claimed => {
                let claim = format!(
                    "SELECT format('ARRAY[%L]::uuid[], ARRAY[%s]::bigint[], ARRAY[%s]::bigint[]', id, fence, token)
                     FROM pg_task.exchange({HOLDER}, 1) WHERE event = 0"
                );
                return self.until(&claim).await;
            }
        }
        Ok(format!("ARRAY[{ID}]::uuid[], ARRAY[0]::bigint[], ARRAY[1]::bigint[]"))
    }

    async fn row(&mut self) -> Result<Option<Row>> {
        let row: Option<(i64, i32, bool, String)> = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT fence, tried, error IS NOT NULL, (SELECT * FROM jsonb_object_keys(step->'A')) FROM pg_task.task WHERE id = {ID}"
        )))
        .fetch_optional(&mut self.observer)
        .await?;
        Ok(row.map(|(fence, tried, parked, step)| Row { fence, tried: tried.into(), parked, step }))
    }

    /// One pair in one order. An error says what is wrong.
    async fn play(&mut self, start: Start, deeds: [Deed; 2], ends: [&str; 2], order: &[bool]) -> Result<()> {
        let loses = deeds.contains(&Deed::Lose);
        let held = self.begin(start).await?;
        let steps = |side: usize| {
            let sql = deeds[side].sql(side, &held);
            if deeds[side] == Deed::Lose {
                vec![sql]
            } else {
                vec!["BEGIN".to_owned(), sql, ends[side].to_owned()]
            }
        };
        let [one, two] = &mut self.actors;
        let parts = [Part { actor: one, steps: steps(0) }, Part { actor: two, steps: steps(1) }];
        let answers = interleave(&mut self.observer, parts, order).await?;
        if loses {
            self.holder = None;
            self.until(&format!(
                "SELECT 'x' WHERE NOT EXISTS (SELECT FROM pg_task.worker_states() WHERE id = {HOLDER})"
            ))
            .await?;
        }
        let row = self.row().await?;
        self.explain(start, deeds, ends, &answers, row.as_ref())?;
        self.hand_out_again(row).await
    }

    /// What came of it is what one after the other would have come to.
    fn explain(
        &self,
        start: Start,
        deeds: [Deed; 2],
        ends: [&str; 2],
        answers: &[Vec<Answer>; 2],
        row: Option<&Row>,
    ) -> Result<()> {
        let mut all = vec![Vec::new(), Vec::new()];
        for side in [0, 1] {
            for answer in &answers[side] {
                match answer {
                    Ok(rows) => all[side].extend(rows.iter().cloned()),
                    Err(code) => anyhow::bail!("{:?} failed with {code}", deeds[side]),
                }
            }
        }
        let parked = start == Start::Parked;
        let first = Row { fence: 0, tried: if parked { 2 } else { 0 }, parked, step: "First".to_owned() };
        let first =
            State { row: Some(first), held: (start == Start::Claimed).then_some(0), elsewhere: false };
        let was_given = |side: usize| all[side].iter().any(|row| row.starts_with("0 "));
        let counts = |side: usize| deeds[side] == Deed::Lose || ends[side] == "COMMIT";
        let explained = [[0, 1], [1, 0]].into_iter().any(|sides| {
            let states =
                sides.into_iter().filter(|&side| counts(side)).fold(vec![first.clone()], |states, side| {
                    let after = |state| deeds[side].after(state, &all[side], was_given(1 - side));
                    states.iter().flat_map(after).collect()
                });
            states.iter().any(|state| state.row.as_ref() == row)
        });
        ensure!(explained, "no order of the two explains {all:?} and the row {row:?}");
        Ok(())
    }

    /// At most one worker holds the task. When all have left it is given out if it can run, to one, and never if it cannot.
    async fn hand_out_again(&mut self, row: Option<Row>) -> Result<()> {
        let held = self.ask("SELECT count(*)::text FROM pg_task.claims()").await?;
        ensure!(matches!(held.as_deref(), Some("0" | "1")), "it is held {held:?} times");
        for worker in [HOLDER, OTHERS[0], OTHERS[1]] {
            self.run(&format!("SELECT pg_task.leave({worker})")).await?;
        }
        ensure!(self.ask("SELECT count(*)::text FROM pg_task.claims()").await?.as_deref() == Some("0"));
        self.run(&format!("SELECT pg_task.register({}, bind => false)", OTHERS[0])).await?;
        let claim = format!("SELECT fence::text FROM pg_task.exchange({}, 5) WHERE event = 0", OTHERS[0]);
        match row.filter(|row| !row.parked) {
            Some(row) => {
                let fence = self.until(&claim).await.context("it is not handed out again")?;
                ensure!(fence == row.fence.to_string(), "given with fence {fence}, and the row is {row:?}");
                ensure!(self.ask(&claim).await?.is_none(), "it is given twice");
            }
            None => {
                ensure!(self.ask(&claim).await?.is_none(), "it is given out, and there is nothing to run");
            }
        }
        // An id without a row may be left on the board: it is taken off by the next who asks.
        let [worker, _] = OTHERS;
        self.run(&format!("DELETE FROM pg_task.task; SELECT pg_task.leave({worker}), pg_task.register({worker}, bind => false)")).await?;
        let drained = format!(
            "SELECT 'x' FROM (SELECT count(*) FROM pg_task.exchange({worker}, 5)) AS x, pg_task.scheduler_state() WHERE ready = 0 AND claimed = 0"
        );
        self.until(&drained).await?;
        self.run(&format!("SELECT pg_task.leave({worker})")).await
    }
}

async fn play_all(name: &str, start: Start, deeds: &[Deed]) -> Result<()> {
    let server = own_server(&format!("e2e-interleave-{name}"), &["pg_task.worker_grace = 0"])?;
    let mut stage = Stage::set(Database::create(&server).await?).await?;
    let (mut pairs, mut played) = (0, 0);
    for (index, &first) in deeds.iter().enumerate() {
        for &second in &deeds[index..] {
            if first == Deed::Lose && second == Deed::Lose {
                continue;
            }
            pairs += 1;
            let count = |deed| if deed == Deed::Lose { 1 } else { 3 };
            for ends in ENDS {
                for order in orders(count(first), count(second)) {
                    played += 1;
                    stage.play(start, [first, second], ends, &order).await.with_context(|| {
                        format!("{start:?}, {first:?} and {second:?}, {ends:?}, {order:?}")
                    })?;
                }
            }
        }
    }
    println!("{start:?}: {pairs} pairs, {played} orders");
    Ok(())
}

#[tokio::test]
async fn two_at_a_task_that_a_worker_holds() -> Result<()> {
    use Deed::*;
    play_all("held", Start::Claimed, &[Cancel, Claim, Done, Lose, Next, Park, Release, Resume, Retry, Update])
        .await
}

#[tokio::test]
async fn two_at_a_task_that_is_parked() -> Result<()> {
    use Deed::*;
    play_all("parked", Start::Parked, &[Cancel, Claim, Done, Next, Release, Resume, Update]).await
}

#[tokio::test]
async fn two_at_a_task_that_is_ready() -> Result<()> {
    use Deed::*;
    play_all("ready", Start::Ready, &[Cancel, Claim, Done, Next, Release, Retry, Update]).await
}
