//! The dispatcher: owns everything the worker knows and decides what is asked for and brought, and when.
//!
//! Natural batching: while calls are under way, results gather; the next call brings them all. No timer is involved, so that a lone
//! result leaves at once and a thousand leave together.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use chrono::DateTime;
use chrono::Utc;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio::sync::mpsc;
use tracing::debug;
use tracing::info;
use tracing::warn;
use uuid::Uuid;

use super::Settings;
use super::backoff;
use super::executor::Control;
use super::executor::Executor;
use super::executor::Finished;
use super::executor::Outcome;
use super::executor::Source;
use super::executor::Start;
use super::lane;
use super::lane::Answer;
use super::lane::Call;
use super::session;
use super::session::Command;
use super::session::Held;
use super::session::Session;
use crate::Context;
use crate::Error;
use crate::Result;
use crate::Step;
use crate::context::Shared;
use crate::error;
use crate::source_chain;

/// Calls that can be under way at a time: the results of one are worked on while the next is on its way.
const LANES: usize = 2;

/// Results that one call brings at most; the server's time for a call stays in the milliseconds.
const MAX_BATCH: usize = 2_000;

/// A cancelled step has so long to notice before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// What happens.
pub(super) enum Event<T> {
    /// A call has ended.
    Answer(Answer<T>),
    /// A task that the worker runs was cancelled.
    Cancelled(Uuid),
    /// A step was dropped.
    Dropped(Uuid, i64),
    /// Steps have ended.
    Finished(Vec<Finished<T>>),
    /// The server was heard of.
    Heard,
    /// A lane may be used again after a failure.
    LaneRested(usize),
    /// The session has signed off.
    Left,
    /// The session listens: the worker can be registered.
    Listening,
    /// The worker is registered; these tasks are not its own any more.
    Registered { refused: Vec<Uuid> },
    /// The session's connection is gone; it is making a new one.
    SessionLost(sqlx::Error),
    /// The worker is to stop.
    Stop,
    /// The server does not know the worker.
    Unregistered,
    /// There is work.
    Wake,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// There is no connection to register over.
    Away,
    /// There is; calls under way must end first, so that it is known what is held.
    Listening,
    /// The registration is under way.
    Registering,
    /// Known to the server.
    Registered,
}

/// A step that the worker holds and whose result it has not got yet.
struct Running {
    fence: i64,
    token: i64,
    control: Arc<Control>,
}

pub(super) struct Dispatcher<T> {
    settings: Settings,
    executor: Executor<T>,
    events: mpsc::UnboundedReceiver<Event<T>>,
    sender: mpsc::UnboundedSender<Event<T>>,
    session: mpsc::UnboundedSender<Command>,
    lanes: Vec<mpsc::Sender<Call<T>>>,
    idle_lanes: Vec<usize>,
    lane_failures: u32,
    standing: Standing,
    ever_registered: bool,
    running: HashMap<Uuid, Running>,
    results: VecDeque<Finished<T>>,
    /// Results that calls under way are bringing.
    in_flight: Vec<Held>,
    asked: usize,
    work_expected: bool,
    stopping: bool,
    /// After a call was refused for its data: bring results one by one, to find the one.
    one_by_one: usize,
    last_heard: Instant,
    failed: Option<Error>,
    troubled: bool,
}

impl<T: Step<T, Context> + 'static> Dispatcher<T> {
    /// Starts the parts.
    pub(super) fn start(worker: Uuid, shared: Arc<Shared>, settings: Settings) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let (session, commands) = mpsc::unbounded_channel();
        let mut steps = Vec::new();
        T::steps("", &mut steps);
        let db = shared.db.clone();
        let session_part = Session {
            worker,
            db: db.clone(),
            settings: settings.clone(),
            steps,
            commands,
            events: sender.clone(),
        };
        tokio::spawn(session_part.serve());
        let lanes = (0..LANES)
            .map(|lane| {
                let (calls, receiver) = mpsc::channel(1);
                tokio::spawn(lane::serve(lane, worker, db.clone(), receiver, sender.clone()));
                calls
            })
            .collect();
        Self {
            settings,
            executor: Executor { shared, events: sender.clone() },
            events,
            sender,
            session,
            lanes,
            idle_lanes: (0..LANES).rev().collect(),
            lane_failures: 0,
            standing: Standing::Away,
            ever_registered: false,
            running: HashMap::new(),
            results: VecDeque::new(),
            in_flight: Vec::new(),
            asked: 0,
            work_expected: false,
            stopping: false,
            one_by_one: 0,
            last_heard: Instant::now(),
            failed: None,
            troubled: false,
        }
    }

    /// Runs until the worker has stopped.
    pub(super) async fn run(mut self) -> Result<()> {
        let cancellation = self.settings.cancellation.clone();
        let mut lease_check = tokio::time::interval(self.settings.lease / 4);
        loop {
            tokio::select! {
                event = self.events.recv() => {
                    let Some(event) = event else { break };
                    if self.handle(event) {
                        break;
                    }
                    // What has gathered meanwhile is one batch.
                    let mut left = false;
                    while let Ok(event) = self.events.try_recv() {
                        left |= self.handle(event);
                    }
                    if left {
                        break;
                    }
                }
                () = cancellation.cancelled(), if !self.stopping => self.stop(),
                _ = lease_check.tick() => self.check_lease(),
            }
            self.advance();
        }
        match self.failed {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes note of what happened. True when the worker has signed off.
    fn handle(&mut self, event: Event<T>) -> bool {
        match event {
            Event::Answer(answer) => self.answer(answer),
            Event::Cancelled(id) => self.cancel(id),
            Event::Dropped(id, token) => {
                self.running.remove(&id);
                debug!("[{id}] attempt {token} was dropped");
            }
            Event::Finished(finished) => {
                for result in finished {
                    // A result of a claim that was given up meanwhile is of no use to anyone.
                    if self.running.get(&result.id).is_some_and(|running| running.token == result.token) {
                        self.running.remove(&result.id);
                        self.results.push_back(result);
                    }
                }
            }
            Event::Heard => self.last_heard = Instant::now(),
            Event::LaneRested(lane) => self.idle_lanes.push(lane),
            Event::Left => return true,
            Event::Listening => self.standing = Standing::Listening,
            Event::Registered { refused } => self.registered(&refused),
            Event::SessionLost(error) => self.session_lost(error),
            Event::Stop => self.stop(),
            Event::Unregistered => {
                if self.standing == Standing::Registered {
                    self.standing = Standing::Listening;
                }
            }
            Event::Wake => self.work_expected = true,
        }
        false
    }

    /// Does what there is to do: register, call, or sign off.
    fn advance(&mut self) {
        let calls_under_way = !self.in_flight.is_empty() || self.asked > 0 || self.idle_lanes.len() < LANES;
        if self.standing == Standing::Listening && !calls_under_way {
            let results = self.results.iter().map(|result| held(result.id, result.fence, result.token));
            let running = self.running.iter().map(|(id, running)| held(*id, running.fence, running.token));
            let _ = self.session.send(Command::Register(results.chain(running).collect()));
            self.standing = Standing::Registering;
        }
        while self.standing == Standing::Registered && self.call() {}
        let idle = self.running.is_empty() && self.results.is_empty() && !calls_under_way;
        if self.stopping && idle && self.standing != Standing::Registering {
            let _ = self.session.send(Command::Leave);
        }
    }

    /// Makes a call if there is a reason to and a lane to make it on.
    fn call(&mut self) -> bool {
        let free = if self.stopping {
            0
        } else {
            self.settings.concurrency.saturating_sub(self.running.len() + self.asked)
        };
        let want = if self.work_expected || !self.results.is_empty() { free } else { 0 };
        if self.results.is_empty() && want == 0 {
            return false;
        }
        // While a call is under way it pays to wait until a good part of what runs has ended.
        let other_busy = self.idle_lanes.len() < LANES;
        if other_busy && self.results.len() < self.running.len() / 2 {
            return false;
        }
        let Some(lane) = self.idle_lanes.pop() else { return false };
        let batch = if self.one_by_one > 0 { 1 } else { MAX_BATCH };
        let count = self.results.len().min(batch);
        self.one_by_one = self.one_by_one.saturating_sub(count);
        let results: Vec<_> = self.results.drain(..count).collect();
        self.in_flight.extend(results.iter().map(|result| held(result.id, result.fence, result.token)));
        self.asked += want;
        if want > 0 {
            self.work_expected = false;
        }
        // The channel has room for one call and the lane is idle.
        let sent = self.lanes[lane].try_send(Call { want, results });
        debug_assert!(sent.is_ok(), "an idle lane takes a call");
        true
    }

    fn answer(&mut self, answer: Answer<T>) {
        let Answer { lane, want, results, rows } = answer;
        self.asked -= want;
        self.in_flight
            .retain(|held| !results.iter().any(|result| result.id == held.id && result.token == held.token));
        match rows {
            Ok(rows) => {
                self.idle_lanes.push(lane);
                self.lane_failures = 0;
                self.last_heard = Instant::now();
                if std::mem::take(&mut self.troubled) {
                    info!("the worker is in touch with the server again");
                }
                self.take_rows(want, results, rows);
            }
            Err(error) => self.call_failed(lane, want, results, error),
        }
    }

    fn take_rows(&mut self, want: usize, results: Vec<Finished<T>>, rows: Vec<PgRow>) {
        let mut next: HashMap<Uuid, T> = results
            .into_iter()
            .filter_map(|result| match result.outcome {
                Outcome::Next(_, step) => Some((result.id, step)),
                _ => None,
            })
            .collect();
        let mut starts = Vec::with_capacity(rows.len());
        for row in rows {
            let Ok(event) = row.try_get::<i16, _>(0) else { continue };
            match event {
                0 => starts.extend(start(row, Source::Row)),
                1 => {
                    let step = row.try_get(1).ok().and_then(|id: Uuid| next.remove(&id));
                    starts.extend(step.and_then(|step| start(row, |_| Source::Memory(step))));
                }
                2 => {
                    let id: Option<Uuid> = row.try_get(1).ok();
                    warn!(
                        "[{}] the result was refused: the task was changed, cancelled or given to another worker",
                        id.unwrap_or_default()
                    );
                }
                3 => {
                    if let Ok(id) = row.try_get(1) {
                        self.cancel(id);
                    }
                }
                4 => self.stop(),
                5 => {
                    if self.standing == Standing::Registered {
                        self.standing = Standing::Listening;
                    }
                }
                _ => debug!("an event of a later protocol: {event}"),
            }
        }
        // As many as wanted: there may be more.
        self.work_expected |= want > 0 && starts.len() >= want;
        if self.stopping {
            // They came with the request to stop: nothing was begun, nothing is lost.
            self.results.extend(starts.into_iter().map(|start| Finished {
                id: start.id,
                fence: start.fence,
                token: start.token,
                outcome: Outcome::Release,
            }));
            return;
        }
        for start in &starts {
            let running = Running { fence: start.fence, token: start.token, control: start.control.clone() };
            self.running.insert(start.id, running);
        }
        self.executor.start(starts);
    }

    fn call_failed(&mut self, lane: usize, want: usize, mut results: Vec<Finished<T>>, error: sqlx::Error) {
        self.work_expected |= want > 0;
        if error::is_data(&error) && !results.is_empty() {
            self.idle_lanes.push(lane);
            if let [result] = &mut results[..] {
                warn!("[{}] the result was refused and parks the task: {error}", result.id);
                result.outcome = Outcome::Park(source_chain::text(&error));
            } else {
                self.one_by_one = results.len();
            }
            results.into_iter().rev().for_each(|result| self.results.push_front(result));
            return;
        }
        if !std::mem::replace(&mut self.troubled, true) {
            warn!("a call failed and will be made again: {}", source_chain::text(&error));
        }
        results.into_iter().rev().for_each(|result| self.results.push_front(result));
        // It is not known what the server did with the call: registering again settles it.
        if self.standing == Standing::Registered {
            self.standing = Standing::Listening;
        }
        let (sender, rest) = (self.sender.clone(), backoff(self.lane_failures));
        self.lane_failures += 1;
        tokio::spawn(async move {
            tokio::time::sleep(rest).await;
            let _ = sender.send(Event::LaneRested(lane));
        });
    }

    fn registered(&mut self, refused: &[Uuid]) {
        self.standing = Standing::Registered;
        self.last_heard = Instant::now();
        // Whatever came while nobody listened.
        self.work_expected = true;
        if !std::mem::replace(&mut self.ever_registered, true) {
            info!("the worker is registered");
        }
        for id in refused {
            warn!("[{id}] the task is no longer this worker's");
            self.results.retain(|result| result.id != *id);
            self.cancel(*id);
        }
    }

    fn session_lost(&mut self, error: sqlx::Error) {
        self.standing = Standing::Away;
        if !self.ever_registered && session::is_final(&error) {
            self.failed = Some(Error::Db(error, "register the worker".to_owned()));
            self.stopping = true;
            let _ = self.session.send(Command::Leave);
            return;
        }
        if !std::mem::replace(&mut self.troubled, true) {
            warn!(
                "the worker has lost its connection and is making a new one: {}",
                source_chain::text(&error)
            );
        }
    }

    fn cancel(&mut self, id: Uuid) {
        let Some(running) = self.running.get(&id) else { return };
        info!("[{id}] cancelled");
        let control = running.control.clone();
        control.cancellation.cancel();
        tokio::spawn(async move {
            tokio::time::sleep(CANCEL_GRACE).await;
            control.drop.notify_one();
        });
    }

    fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopping, true) {
            info!("stopping: {} steps are still running", self.running.len());
        }
    }

    /// Drops what the server has certainly given to others: it was not heard of for a whole lease.
    fn check_lease(&mut self) {
        if self.last_heard.elapsed() < self.settings.lease
            || (self.running.is_empty() && self.results.is_empty())
        {
            return;
        }
        warn!("not in touch with the server for the whole lease: dropping {} steps", self.running.len());
        for (_, running) in self.running.drain() {
            running.control.cancellation.cancel();
            running.control.drop.notify_one();
        }
        self.results.clear();
    }
}

fn held(id: Uuid, fence: i64, token: i64) -> Held {
    Held { id, fence, token }
}

fn start<T>(row: PgRow, source: impl FnOnce(PgRow) -> Source<T>) -> Option<Start<T>> {
    Some(Start {
        id: row.try_get(1).ok()?,
        fence: row.try_get(2).ok()?,
        token: row.try_get(3).ok()?,
        tried: row.try_get(4).ok()?,
        due_at: row.try_get::<Option<DateTime<Utc>>, _>(5).ok()?.unwrap_or_default(),
        control: Arc::default(),
        source: source(row),
    })
}
