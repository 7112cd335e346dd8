//! The dispatcher: owns everything the worker knows and decides what is asked for and brought, and when.
//!
//! Natural batching: while calls are under way, results gather; the next call brings them all. No timer is involved, so that a lone
//! result leaves at once and a thousand leave together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tracing::info;
use tracing::warn;
use uuid::Uuid;

use super::Settings;
use super::backoff;
use super::control::Control;
use super::executor::CANCEL_GRACE;
use super::executor::Claim;
use super::executor::Executor;
use super::executor::Finished;
use super::executor::Outcome;
use super::executor::Source;
use super::executor::Start;
use super::lane::Answer;
use super::lane::Call;
use super::lane::Lane;
use super::packed;
use super::packed::Item;
use super::session;
use super::session::Command;
use super::session::Held;
use super::session::Report;
use super::session::Session;
use crate::Context;
use crate::Error;
use crate::Result;
use crate::Step;
use crate::context::Shared;
use crate::error;
use crate::progress::Bell;
use crate::source_chain;

/// How long the server waits for a locked row before it refuses the results of a call (`lock_timeout` of its functions).
const LOCK_TIME: Duration = Duration::from_secs(2);

/// Calls that can be under way at a time: the results of one are worked on while the next is on its way.
const LANES: usize = 2;

/// Results that one call brings at most; the server's time for a call stays in the milliseconds.
const MAX_BATCH: usize = 2_000;

/// So few results, or none, are not worth a call of their own beside one that began just now: they go with the next.
const FEW: usize = 64;

/// How long a call counts as just begun.
const JUST_NOW: Duration = Duration::from_millis(2);

/// Beside a call that takes longer than this nothing waits: it may hang.
const GATHERING: Duration = Duration::from_millis(20);

/// A result whose row someone keeps locked is brought again after this time.
const DEFERRED: Duration = Duration::from_millis(500);

/// After the session is back, calls that are still under way on old connections are given this time to end.
const CUT_AFTER: Duration = Duration::from_secs(2);

/// What steps say of how far they are is brought at most so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// After the server has refused it, an extension that is older than this program or a role without the right, it is tried again as late as this.
const PROGRESS_REST: Duration = Duration::from_secs(300);

/// What happens.
pub(super) enum Event<T> {
    /// A call has ended.
    Answer(Answer<T>),
    /// A task was cancelled that the worker runs under this token.
    Cancelled { id: Uuid, token: i64 },
    /// Calls that are still under way since the session came back are to be given up.
    CutLanes,
    /// A result that was deferred may be brought again.
    Deferred(Uuid),
    /// The server was heard of.
    Heard,
    /// A lane may be used again after a failure.
    LaneRested(usize),
    /// The session has signed off.
    Left,
    /// The session listens: the worker can be registered.
    Listening,
    /// The server has called.
    Notified,
    /// What steps have said of how far they are was brought; whether the server takes such.
    Progress(bool),
    /// The worker is registered, under this number; these tasks are not its own any more.
    Registered { refused: Vec<Uuid>, registration: i64 },
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
    cut: watch::Sender<u64>,
    registration: i64,
    idle_lanes: Vec<usize>,
    lane_failures: u32,
    standing: Standing,
    ever_registered: bool,
    running: FxHashMap<Uuid, Running>,
    /// Tokens of tasks that were cancelled and are not here: on their way, maybe, with the answer to a call that was under way then, on one of
    /// these lanes (a bit for each).
    cancelled: FxHashMap<i64, u8>,
    results: VecDeque<Finished<T>>,
    /// Results of calls that were refused, maybe for one of them: each is brought by a call that does nothing else.
    alone: VecDeque<Finished<T>>,
    /// The lane that carries such a call; one at a time, so that the other lane is free of them.
    alone_on: Option<usize>,
    /// Whether the last call was such a one: then it is the turn of the others, which may have only one lane.
    alone_was_last: bool,
    /// Results that could not be written: to be brought again.
    deferred: FxHashMap<Uuid, Finished<T>>,
    asked: usize,
    work_expected: bool,
    /// When the last call began, of those that bring what there is.
    called_at: Instant,
    stopping: bool,
    last_heard: Instant,
    failed: Option<Error>,
    troubled: bool,
    bell: Arc<Bell>,
    /// When what steps say of how far they are may be brought; none while it is.
    progress_at: Option<Instant>,
}

impl<T: Step<T, Context> + 'static> Dispatcher<T> {
    /// Starts the parts.
    pub(super) fn start(shared: Arc<Shared>, settings: Settings) -> Self {
        let (worker, bell) = (shared.worker, shared.bell.clone());
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
        let (cut, cut_lanes) = watch::channel(0);
        // A call waits for nothing that takes long; the lease ends what a broken connection holds up. However short that is, the server must
        // have the time to say that the row of a result is locked: a call that is given up before is made again as it was.
        let patience = (settings.lease / 2).max(LOCK_TIME * 2);
        let lanes = (0..LANES)
            .map(|number| {
                let (calls, receiver) = mpsc::channel(1);
                let lane = Lane {
                    number,
                    worker,
                    db: db.clone(),
                    pooled: settings.polling.is_some(),
                    patience,
                    cut: cut_lanes.clone(),
                };
                tokio::spawn(lane.serve(receiver, sender.clone()));
                calls
            })
            .collect();
        Self {
            settings,
            executor: Executor::new(shared),
            events,
            sender,
            session,
            lanes,
            cut,
            registration: 0,
            idle_lanes: (0..LANES).rev().collect(),
            lane_failures: 0,
            standing: Standing::Away,
            ever_registered: false,
            running: FxHashMap::default(),
            cancelled: FxHashMap::default(),
            results: VecDeque::new(),
            alone: VecDeque::new(),
            alone_on: None,
            alone_was_last: false,
            deferred: FxHashMap::default(),
            asked: 0,
            work_expected: false,
            called_at: Instant::now(),
            stopping: false,
            last_heard: Instant::now(),
            failed: None,
            troubled: false,
            bell,
            progress_at: Some(Instant::now()),
        }
    }

    /// Runs until the worker has stopped.
    pub(super) async fn run(mut self) -> Result<()> {
        let cancellation = self.settings.cancellation.clone();
        let mut lease_check = tokio::time::interval(self.settings.lease / 4);
        loop {
            let (progress, call) = (self.progress_due(), self.call_at());
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
                () = self.bell.rung() => {}
                () = until(progress), if progress.is_some() => {}
                () = until(call), if call.is_some() => {}
                () = cancellation.cancelled(), if !self.stopping => self.stop(),
                _ = lease_check.tick() => self.check_lease(),
            }
            self.take_finished();
            self.advance();
            self.bring_progress();
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
            Event::Cancelled { id, token } => self.cancel(id, token),
            Event::CutLanes => {
                if self.standing == Standing::Listening {
                    self.cut.send_modify(|number| *number += 1);
                }
            }
            Event::Deferred(id) => self.alone.extend(self.deferred.remove(&id)),
            Event::Heard => self.last_heard = Instant::now(),
            Event::LaneRested(lane) => self.idle_lanes.push(lane),
            Event::Left => return true,
            Event::Listening => self.listening(),
            Event::Notified => self.notified(),
            Event::Progress(taken) => self.progress_brought(taken),
            Event::Registered { refused, registration } => self.registered(&refused, registration),
            Event::SessionLost(error) => self.session_lost(error),
            Event::Stop => self.stop(),
            Event::Unregistered => self.unregistered(),
            Event::Wake => self.work_expected = true,
        }
        false
    }

    /// There is work, or a task that runs was cancelled: without room for work, or when the worker is stopping, no call would tell.
    fn notified(&mut self) {
        self.work_expected = true;
        if self.want() == 0 && self.standing == Standing::Registered {
            let _ = self.session.send(Command::Beat);
        }
    }

    /// Does what there is to do: register, call, or sign off.
    fn advance(&mut self) {
        let calls_under_way = self.asked > 0 || self.idle_lanes.len() < LANES;
        if self.standing == Standing::Listening && !calls_under_way {
            let results = self.results.iter().chain(&self.alone).chain(self.deferred.values());
            let results = results.map(|result| held(&result.claim));
            let running = self.running.iter().map(|(id, running)| Held {
                id: *id,
                fence: running.fence,
                token: running.token,
            });
            let _ = self.session.send(Command::Register(results.chain(running).collect()));
            self.standing = Standing::Registering;
        }
        while self.call() {}
        let idle = self.running.is_empty()
            && self.results.is_empty()
            && self.alone.is_empty()
            && self.deferred.is_empty()
            && self.idle_lanes.len() == LANES;
        if self.stopping && idle && self.standing != Standing::Registering {
            let _ = self.session.send(Command::Leave);
        }
    }

    /// Fetches what the executor has finished. A result of a claim that was given up meanwhile is of no use to anyone.
    fn take_finished(&mut self) {
        for result in self.executor.take_finished() {
            let Claim { id, token, .. } = result.claim;
            if self.running.get(&id).is_some_and(|running| running.token == token) {
                self.running.remove(&id);
                match result.outcome {
                    // The next step went back to the queue with the commit.
                    Outcome::Committed(due) => self.work_expected |= due,
                    // One that was dropped is given back: until then the server takes it for one that runs.
                    _ => self.results.push_back(result),
                }
            }
        }
    }

    /// When to bring what steps have said of how far they are, if they have.
    fn progress_due(&self) -> Option<Instant> {
        let said = self.bell.has_progress() && self.standing == Standing::Registered;
        self.progress_at.filter(|_| said)
    }

    /// Brings what steps have said of how far they are, if it is time.
    fn bring_progress(&mut self) {
        if self.progress_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.bell.take_progress();
        let new = self.running.iter().filter_map(|(&id, running)| {
            let (value, text) = running.control.take_progress()?;
            Some(Report { id, token: running.token, value, text })
        });
        let reports: Vec<Report> = new.collect();
        if !reports.is_empty() {
            self.progress_at = None;
            let _ = self.session.send(Command::Progress(reports));
        }
    }

    fn progress_brought(&mut self, taken: bool) {
        self.progress_at = Some(Instant::now() + if taken { PROGRESS_EVERY } else { PROGRESS_REST });
        if !taken {
            self.say_again();
        }
    }

    /// The server does not know how far the steps are.
    fn say_again(&self) {
        let said = self.running.values().filter(|running| running.control.say_again()).count();
        if said > 0 {
            self.bell.note_progress();
        }
    }

    /// The session listens. Calls that are under way must end before the worker says what it holds; a connection
    /// that is half open would keep one for ever.
    fn listening(&mut self) {
        self.standing = Standing::Listening;
        let sender = self.sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CUT_AFTER).await;
            let _ = sender.send(Event::CutLanes);
        });
    }

    /// How many tasks to ask for.
    fn want(&self) -> usize {
        if self.stopping || (self.results.is_empty() && !self.work_expected) {
            return 0;
        }
        self.settings.concurrency.saturating_sub(self.running.len() + self.asked)
    }

    /// When a call is to be made; none as long as nothing else happens.
    fn call_at(&self) -> Option<Instant> {
        if self.standing != Standing::Registered || self.idle_lanes.is_empty() {
            return None;
        }
        if self.alone_on.is_none() && !self.alone.is_empty() {
            return Some(self.called_at);
        }
        self.ordinary_at()
    }

    /// When a call is to be made that brings what there is.
    fn ordinary_at(&self) -> Option<Instant> {
        let beside = self.idle_lanes.len() + usize::from(self.alone_on.is_some()) < LANES;
        worth_from(self.results.len(), self.want(), self.running.len(), beside, self.called_at)
    }

    /// Makes a call if it is time.
    fn call(&mut self) -> bool {
        let now = Instant::now();
        if self.call_at().is_none_or(|due| due > now) {
            return false;
        }
        let others_turn = self.alone_was_last && self.ordinary_at().is_some_and(|due| due <= now);
        let Some(lane) = self.idle_lanes.pop() else { return false };
        let alone = if self.alone_on.is_none() && !others_turn { self.alone.pop_front() } else { None };
        self.alone_was_last = alone.is_some();
        let (want, results) = match alone {
            Some(result) => {
                self.alone_on = Some(lane);
                // Whatever the call is refused for is about this result then.
                (0, vec![result])
            }
            None => {
                self.called_at = now;
                let want = self.want();
                (want, self.results.drain(..self.results.len().min(MAX_BATCH)).collect())
            }
        };
        self.asked += want;
        if want > 0 {
            self.work_expected = false;
        }
        let call = Call { registration: self.registration, want, results };
        // The channel has room for one call and the lane is idle.
        let sent = self.lanes[lane].try_send(call);
        debug_assert!(sent.is_ok(), "an idle lane takes a call");
        true
    }

    fn answer(&mut self, answer: Answer<T>) {
        let Answer { lane, call, answer } = answer;
        self.asked -= call.want;
        let alone = self.alone_on.take_if(|on| *on == lane).is_some();
        match answer {
            Ok(answer) => {
                self.idle_lanes.push(lane);
                self.lane_failures = 0;
                self.last_heard = Instant::now();
                if std::mem::take(&mut self.troubled) {
                    info!("the worker is in touch with the server again");
                }
                self.take_answer(call, answer);
            }
            Err(error) => self.call_failed(lane, alone, call, error),
        }
        self.cancelled.retain(|_, lanes| {
            *lanes &= !(1 << lane);
            *lanes != 0
        });
    }

    fn take_answer(&mut self, call: Call<T>, answer: Bytes) {
        let Call { want, results, .. } = call;
        let mut next: FxHashMap<Uuid, (Claim, Source<T>)> = results
            .into_iter()
            .filter_map(|result| match result.outcome {
                Outcome::Next(json, step) => {
                    Some((result.claim.id, (result.claim, Source::Memory(step, json))))
                }
                _ => None,
            })
            .collect();
        let mut starts = Vec::with_capacity(want.min(answer.len() / 50));
        for item in packed::items(answer) {
            match item {
                Ok(Item::Task(task)) => starts.push(start(task)),
                Ok(Item::GoesOn { id, fence, token }) => {
                    starts.extend(next.remove(&id).map(|(claim, source)| Start {
                        claim: Claim { fence, token, ..claim },
                        tried: 0,
                        source,
                        control: Arc::default(),
                    }));
                }
                Ok(Item::Refused { id }) => {
                    warn!(
                        "[{id}] the result was refused: the task was changed, cancelled or given to another worker"
                    );
                }
                Ok(Item::Cancelled { id, token }) => self.cancel(id, token),
                Ok(Item::Stop) => self.stop(),
                Ok(Item::Unregistered) => self.unregistered(),
                Ok(Item::Work) => self.work_expected = true,
                Err(error) => warn!("{error}"),
            }
        }
        // As many as wanted: there may be more.
        self.work_expected |= want > 0 && starts.len() >= want;
        // What came with the request to stop, or was cancelled on its way, is given back: nothing was begun, nothing is lost.
        let (stopping, cancelled) = (self.stopping, &self.cancelled);
        let is_given_back = |start: &mut Start<T>| stopping || cancelled.contains_key(&start.claim.token);
        let release = |start: Start<T>| Finished { claim: start.claim, outcome: Outcome::Release };
        self.results.extend(starts.extract_if(.., is_given_back).map(release));
        for start in &starts {
            let Claim { id, fence, token, .. } = start.claim;
            self.running.insert(id, Running { fence, token, control: start.control.clone() });
        }
        self.executor.start(starts);
    }

    fn unregistered(&mut self) {
        if self.standing == Standing::Registered {
            self.listening();
        }
    }

    fn call_failed(&mut self, lane: usize, alone: bool, call: Call<T>, error: sqlx::Error) {
        let Call { want, mut results, .. } = call;
        self.work_expected |= want > 0;
        if error::is_about_a_result(&error) && !results.is_empty() {
            self.idle_lanes.push(lane);
            match results.pop_if(|_| alone) {
                Some(result) => self.not_written(result, &error),
                // One of them, or what was asked for: brought alone, the others get through.
                None => self.alone.extend(results),
            }
            return;
        }
        if !std::mem::replace(&mut self.troubled, true) {
            warn!("a call failed and will be made again: {}", source_chain::text(&error));
        }
        let queue = if alone { &mut self.alone } else { &mut self.results };
        results.into_iter().rev().for_each(|result| queue.push_front(result));
        // It is not known what the server did with the call: registering again settles it.
        self.unregistered();
        let (sender, rest) = (self.sender.clone(), backoff(self.lane_failures));
        self.lane_failures += 1;
        tokio::spawn(async move {
            tokio::time::sleep(rest).await;
            let _ = sender.send(Event::LaneRested(lane));
        });
    }

    /// What becomes of a result that was brought alone and refused.
    fn not_written(&mut self, mut result: Finished<T>, error: &sqlx::Error) {
        let id = result.claim.id;
        if error::is_data(error) && !matches!(result.outcome, Outcome::NotWritten(_)) {
            warn!("[{id}] the result was refused and parks the task: {error}");
            result.outcome = Outcome::NotWritten(source_chain::text(error));
            self.alone.push_front(result);
        } else {
            warn!("[{id}] the result could not be written and will be brought again: {error}");
            self.defer(result);
        }
    }

    /// Keeps a result for a while.
    fn defer(&mut self, result: Finished<T>) {
        let (sender, id) = (self.sender.clone(), result.claim.id);
        self.deferred.insert(id, result);
        tokio::spawn(async move {
            tokio::time::sleep(DEFERRED).await;
            let _ = sender.send(Event::Deferred(id));
        });
    }

    fn registered(&mut self, refused: &[Uuid], registration: i64) {
        self.standing = Standing::Registered;
        self.registration = registration;
        self.last_heard = Instant::now();
        self.progress_at = Some(self.last_heard);
        self.say_again();
        // Whatever came while nobody listened.
        self.work_expected = true;
        if !std::mem::replace(&mut self.ever_registered, true) {
            info!("the worker is registered");
        }
        for id in refused {
            warn!("[{id}] the task is no longer this worker's");
            self.results.retain(|result| result.claim.id != *id);
            self.alone.retain(|result| result.claim.id != *id);
            self.deferred.remove(id);
            // What it ends in is not brought, nor is it said again that this worker holds the task: the one that was given it may be lost before it
            // has written anything, and the row is then as this step found it.
            if let Some(running) = self.running.remove(id) {
                running.control.refuse();
                drop_after_grace(running.control);
            }
        }
    }

    fn session_lost(&mut self, error: sqlx::Error) {
        self.standing = Standing::Away;
        if !self.ever_registered && session::is_final(&error) {
            self.failed = Some(session::refusal(error));
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

    /// Asks a step to end, or does not begin it when it comes.
    fn cancel(&mut self, id: Uuid, token: i64) {
        let Some(running) = self.running.get(&id).filter(|running| running.token == token) else {
            let busy = (0..LANES).filter(|lane| !self.idle_lanes.contains(lane));
            let lanes = busy.fold(0, |lanes, lane| lanes | 1 << lane);
            if lanes != 0 {
                self.cancelled.insert(token, lanes);
            }
            return;
        };
        info!("[{id}] cancelled");
        running.control.cancel();
        drop_after_grace(running.control.clone());
    }

    fn stop(&mut self) {
        if !std::mem::replace(&mut self.stopping, true) {
            info!("stopping: {} steps are still running", self.running.len());
        }
    }

    /// Drops what the server has certainly given to others: it was not heard of for a whole lease.
    fn check_lease(&mut self) {
        if self.last_heard.elapsed() < self.settings.lease
            || (self.running.is_empty() && self.results.is_empty() && self.alone.is_empty())
        {
            return;
        }
        warn!("not in touch with the server for the whole lease: dropping {} steps", self.running.len());
        for (_, running) in self.running.drain() {
            running.control.refuse();
            running.control.drop_step();
        }
        self.results.clear();
        self.alone.clear();
    }
}

/// From when on a call is worth making that brings so many results and asks for so many tasks while so many steps run; none when there is nothing to
/// call for. `beside` says that another call is under way, `called_at` when the last one began.
fn worth_from(
    results: usize,
    want: usize,
    running: usize,
    beside: bool,
    called_at: Instant,
) -> Option<Instant> {
    let wait = if results == 0 && want == 0 {
        return None;
    } else if !beside {
        Duration::ZERO
    } else if results < running / 2 {
        // It pays to wait until a good part of what runs has ended.
        GATHERING
    } else if results < FEW {
        JUST_NOW
    } else {
        Duration::ZERO
    };
    Some(called_at + wait)
}

/// A step that was asked to end has a while to do so.
fn drop_after_grace(control: Arc<Control>) {
    tokio::spawn(async move {
        tokio::time::sleep(CANCEL_GRACE).await;
        control.drop_step();
    });
}

/// Waits for a moment.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn held(claim: &Claim) -> Held {
    Held { id: claim.id, fence: claim.fence, token: claim.token }
}

fn start<T>(task: packed::Task) -> Start<T> {
    let packed::Task { id, fence, token, tried, due, queue, step, options } = task;
    let claim = Claim { id, fence, token, due, queue, options };
    Start { claim, tried, source: Source::Json(step), control: Arc::default() }
}

#[cfg(test)]
mod tests;
