//! The dispatcher without a server: the tests take its calls and answer them.

use std::borrow::Cow;
use std::fmt;

use sqlx::error::DatabaseError;
use sqlx::error::ErrorKind;

use super::*;
use crate::StepResult;

/// Never ends.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct Hang;

impl Step<Test, Context> for Hang {
    async fn step(self, _cx: &Context) -> StepResult<Test> {
        std::future::pending().await
    }
}

crate::task!(Test { Hang });
crate::scheduler!(Tasks { Test });

/// What the server says, by its code.
#[derive(Debug)]
struct Refusal(&'static str);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refusal {}

impl DatabaseError for Refusal {
    fn message(&self) -> &str {
        self.0
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some(self.0.into())
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

/// A worker for ten steps at a time that is registered, and the other ends of its lanes.
struct Fixture {
    dispatcher: Dispatcher<Tasks>,
    lanes: Vec<mpsc::Receiver<Call<Tasks>>>,
}

impl Fixture {
    fn new() -> Self {
        let db = sqlx::PgPool::connect_lazy("postgres://nowhere/").expect("it is a URL");
        let settings = Settings {
            concurrency: 10,
            lease: Duration::from_secs(60),
            heartbeat: Duration::from_secs(20),
            queues: None,
            weights: None,
            name: None,
            polling: None,
            cancellation: tokio_util::sync::CancellationToken::new(),
        };
        let (worker, bell) = (Uuid::from_u128(99), Arc::default());
        let shared = Shared { db, worker, pooled: false, state: None, layers: Vec::new(), bell };
        let mut dispatcher = Dispatcher::start(Arc::new(shared), settings);
        let (senders, lanes) = (0..LANES).map(|_| mpsc::channel(1)).unzip();
        dispatcher.lanes = senders;
        dispatcher.standing = Standing::Registered;
        Self { dispatcher, lanes }
    }

    /// Steps have ended.
    fn end(&mut self, ids: impl IntoIterator<Item = u128>) {
        self.dispatcher.results.extend(
            ids.into_iter()
                .map(|id| Finished { claim: claim(Uuid::from_u128(id)), outcome: Outcome::Done(None) }),
        );
    }

    /// The calls that are made now: on which lane each.
    fn calls(&mut self) -> Vec<(usize, Call<Tasks>)> {
        self.dispatcher.take_finished();
        self.dispatcher.advance();
        let lanes = self.lanes.iter_mut().enumerate();
        lanes.filter_map(|(lane, calls)| Some((lane, calls.try_recv().ok()?))).collect()
    }

    /// The one call that is made now.
    fn call(&mut self) -> (usize, Call<Tasks>) {
        let mut calls = self.calls();
        assert_eq!(calls.len(), 1);
        calls.remove(0)
    }

    fn answer(&mut self, (lane, call): (usize, Call<Tasks>), items: &[&[u8]]) {
        let answer = Ok([&[1], items.concat().as_slice()].concat().into());
        self.dispatcher.answer(Answer { lane, call, answer });
    }

    fn refuse(&mut self, (lane, call): (usize, Call<Tasks>), code: &'static str) {
        let answer = Err(sqlx::Error::Database(Box::new(Refusal(code))));
        self.dispatcher.answer(Answer { lane, call, answer });
    }

    /// Whether the step of this task is asked to end.
    fn is_cancelled(&self, id: u128) -> bool {
        self.dispatcher.running[&Uuid::from_u128(id)].control.token().is_cancelled()
    }
}

fn claim(id: Uuid) -> Claim {
    Claim { id, fence: 1, token: 1, due: 0, queue: Bytes::new(), options: None }
}

/// A task is handed out.
fn task(id: u128) -> Vec<u8> {
    task_under(id, 1)
}

/// So under this token.
fn task_under(id: u128, token: i64) -> Vec<u8> {
    let step = br#"{"Test":{"Hang":null}}"#;
    let [fence, token] = [1_i64.to_be_bytes(), token.to_be_bytes()];
    let length = u32::try_from(step.len()).expect("it is short").to_be_bytes();
    [&[0], &id.to_be_bytes()[..], &fence, &token, &[0; 4], &[0; 8], &[0], &length, step].concat()
}

/// A task was cancelled.
fn cancelled(id: u128, token: i64) -> Vec<u8> {
    [&[3], &id.to_be_bytes()[..], &token.to_be_bytes()].concat()
}

/// What a call brings: of which tasks, with which outcome.
fn brings(call: &Call<Tasks>) -> Vec<(u128, i16)> {
    call.results.iter().map(|result| (result.claim.id.as_u128(), result.outcome.code())).collect()
}

#[test]
fn a_call_is_worth_making_at_once_or_beside_another_one_a_little_later() {
    let called_at = Instant::now();
    let after = |results, want, running, beside| {
        worth_from(results, want, running, beside, called_at).map(|due| due - called_at)
    };
    for running in [0, 1, 100] {
        for beside in [false, true] {
            assert_eq!(after(0, 0, running, beside), None, "there is nothing to call for");
        }
        assert_eq!(after(1, 0, running, false), Some(Duration::ZERO));
        assert_eq!(after(0, 1, running, false), Some(Duration::ZERO));
    }
    // A good part of what runs has ended.
    assert_eq!(after(FEW, 0, 2 * FEW, true), Some(Duration::ZERO));
    assert_eq!(after(FEW - 1, 9, FEW, true), Some(JUST_NOW));
    assert_eq!(after(0, 1, 1, true), Some(JUST_NOW));
    // It has not; but the other call may hang.
    assert_eq!(after(FEW, 0, 2 * FEW + 2, true), Some(GATHERING));
    assert_eq!(after(0, 1, 2, true), Some(GATHERING));
}

#[tokio::test]
async fn a_call_that_hangs_holds_up_no_other_one() {
    let mut worker = Fixture::new();
    worker.dispatcher.work_expected = true;
    let first = worker.call();
    let given: Vec<_> = (1..=6).map(task).collect();
    worker.answer(first, &given.iter().map(Vec::as_slice).collect::<Vec<_>>());
    worker.end([11]);
    let _hangs = worker.call();
    worker.end([12]);
    assert_eq!(worker.dispatcher.call_at(), Some(worker.dispatcher.called_at + GATHERING));
    worker.dispatcher.called_at -= GATHERING;
    assert_eq!(brings(&worker.call().1), [(12, 0)]);
    assert_eq!(worker.dispatcher.call_at(), None);
}

#[tokio::test]
async fn the_results_of_a_refused_call_are_brought_alone_and_hold_up_no_others() {
    let mut worker = Fixture::new();
    worker.end([1, 2]);
    let call = worker.call();
    assert_eq!((brings(&call.1), call.1.want), (vec![(1, 0), (2, 0)], 10));
    worker.refuse(call, "55P03");
    worker.end([3]);
    // One of them alone, and beside it whatever else there is.
    let calls = worker.calls();
    let [locked, others] = <[_; 2]>::try_from(calls).map_err(|_| "two").expect("both lanes are used");
    let (locked, others) = if locked.1.want == 0 { (locked, others) } else { (others, locked) };
    assert_eq!((brings(&locked.1), locked.1.want), (vec![(1, 0)], 0));
    assert_eq!((brings(&others.1), others.1.want), (vec![(3, 0)], 10));
    worker.answer(others, &[]);
    worker.end([4]);
    // As long as the one hangs, the others go their way, and no second one takes their lane.
    let others = worker.call();
    assert_eq!(brings(&others.1), [(4, 0)]);
    worker.answer(others, &[]);
    worker.refuse(locked, "55P03");
    let second = worker.call();
    assert_eq!((brings(&second.1), second.1.want), (vec![(2, 0)], 0));
    worker.answer(second, &[]);
    assert!(worker.calls().is_empty());
    // When it was deferred it is alone again.
    worker.end([5]);
    worker.dispatcher.handle(Event::Deferred(Uuid::from_u128(1)));
    let mut calls: Vec<_> = worker.calls().iter().map(|(_, call)| brings(call)).collect();
    calls.sort();
    assert_eq!(calls, [[(1, 0)], [(5, 0)]]);
}

#[tokio::test]
async fn locked_results_and_a_call_that_hangs_leave_the_others_their_turn() {
    let mut worker = Fixture::new();
    worker.end([1, 2, 3]);
    let call = worker.call();
    worker.dispatcher.called_at -= GATHERING;
    worker.end([10]);
    let _hangs = worker.call();
    worker.refuse(call, "55P03");
    for (alone, other) in [(1, 11), (2, 12)] {
        worker.dispatcher.called_at -= GATHERING;
        worker.end([other]);
        let locked = worker.call();
        assert_eq!((brings(&locked.1), locked.1.want), (vec![(alone, 0)], 0));
        worker.refuse(locked, "55P03");
        let others = worker.call();
        assert_eq!(brings(&others.1), [(other, 0)]);
        worker.answer(others, &[]);
    }
    // Without others it is the turn of the next one.
    let locked = worker.call();
    assert_eq!(brings(&locked.1), [(3, 0)]);
}

#[tokio::test]
async fn a_result_is_not_to_blame_for_what_the_call_asked_for() {
    let mut worker = Fixture::new();
    worker.end([1]);
    let call = worker.call();
    assert!(call.1.want > 0);
    worker.refuse(call, "54000");
    let calls = worker.calls();
    let alone = calls.into_iter().find(|(_, call)| !call.results.is_empty()).expect("it is brought again");
    assert_eq!((brings(&alone.1), alone.1.want), (vec![(1, 0)], 0));
}

#[tokio::test]
async fn a_result_that_is_refused_for_its_data_parks_its_task_and_if_that_is_refused_too_waits() {
    let mut worker = Fixture::new();
    worker.dispatcher.stopping = true;
    worker.end([1]);
    let call = worker.call();
    worker.refuse(call, "23514");
    let alone = worker.call();
    assert_eq!(brings(&alone.1), [(1, 0)]);
    worker.refuse(alone, "23514");
    let parks = worker.call();
    assert_eq!(brings(&parks.1), [(1, 4)]);
    assert!(parks.1.results[0].outcome.error().is_some_and(|error| error.contains("23514")));
    worker.refuse(parks, "23514");
    assert!(worker.calls().is_empty());
    worker.dispatcher.handle(Event::Deferred(Uuid::from_u128(1)));
    let again = worker.call();
    assert_eq!(brings(&again.1), [(1, 4)]);
    // A connection that is lost meanwhile changes nothing about that.
    let (lane, call) = again;
    worker.dispatcher.answer(Answer { lane, call, answer: Err(sqlx::Error::WorkerCrashed) });
    assert!(worker.dispatcher.results.is_empty() && worker.dispatcher.alone.len() == 1);
}

#[tokio::test]
async fn a_step_that_was_cancelled_and_dropped_gives_its_task_back() {
    let mut worker = Fixture::new();
    worker.dispatcher.work_expected = true;
    let call = worker.call();
    worker.answer(call, &[&task(1), &task(2), &task(3)]);
    let control = |id: u128| worker.dispatcher.running[&Uuid::from_u128(id)].control.clone();
    for control in [control(1), control(2)] {
        control.drop_step();
    }
    // That of the second is another worker's.
    worker.dispatcher.registered(&[Uuid::from_u128(2)], 1);
    worker.dispatcher.work_expected = false;
    while worker.dispatcher.running.len() > 1 {
        worker.dispatcher.bell.rung().await;
        worker.dispatcher.take_finished();
    }
    assert_eq!(brings(&worker.call().1), [(1, 5)]);
    let left: Vec<u128> = worker.dispatcher.running.keys().map(Uuid::as_u128).collect();
    assert_eq!(left, [3]);
}

#[tokio::test]
async fn news_of_a_cancelled_run_are_for_that_run_whenever_they_come() {
    let mut worker = Fixture::new();
    worker.dispatcher.work_expected = true;
    let call = worker.call();
    worker.answer(call, &[&task_under(1, 2), &task_under(2, 4)]);
    // The one run ends while a call is under way that brings news of it, and the other lane begins the next run.
    worker.dispatcher.work_expected = true;
    let slow = worker.call();
    worker.dispatcher.running.remove(&Uuid::from_u128(1));
    worker.end([1]);
    worker.dispatcher.called_at -= JUST_NOW;
    let quick = worker.call();
    worker.answer(quick, &[&task_under(1, 6)]);
    worker.answer(slow, &[&cancelled(1, 2), &cancelled(2, 4)]);
    assert!(!worker.is_cancelled(1) && worker.is_cancelled(2));
    // So with a heartbeat; and a call that began before the run tells of its end all the same.
    worker.dispatcher.handle(Event::Cancelled { id: Uuid::from_u128(1), token: 2 });
    assert!(!worker.is_cancelled(1));
    worker.dispatcher.handle(Event::Cancelled { id: Uuid::from_u128(1), token: 6 });
    assert!(worker.is_cancelled(1));
}

#[tokio::test]
async fn a_task_that_was_cancelled_on_its_way_is_not_begun_and_given_back() {
    let mut worker = Fixture::new();
    worker.dispatcher.work_expected = true;
    let slow = worker.call();
    worker.dispatcher.handle(Event::Cancelled { id: Uuid::from_u128(1), token: 2 });
    worker.end([9]);
    worker.dispatcher.called_at -= JUST_NOW;
    let quick = worker.call();
    worker.answer(quick, &[&cancelled(2, 4)]);
    worker.answer(slow, &[&task_under(1, 2), &task_under(2, 4), &task_under(3, 6)]);
    let running: Vec<u128> = worker.dispatcher.running.keys().map(Uuid::as_u128).collect();
    assert_eq!(running, [3]);
    let call = worker.call();
    assert_eq!(brings(&call.1), [(1, 5), (2, 5)]);
    // A token that can come no more is not kept, whatever other calls are under way.
    assert!(worker.dispatcher.cancelled.is_empty());
    worker.dispatcher.handle(Event::Cancelled { id: Uuid::from_u128(4), token: 8 });
    worker.end([5]);
    worker.dispatcher.called_at -= JUST_NOW;
    let later = worker.call();
    worker.answer(call, &[]);
    assert!(worker.dispatcher.cancelled.is_empty());
    worker.answer(later, &[]);
    worker.dispatcher.handle(Event::Cancelled { id: Uuid::from_u128(4), token: 8 });
    assert!(worker.dispatcher.cancelled.is_empty());
}

#[tokio::test]
async fn a_worker_that_takes_no_more_asks_what_it_is_called_for() {
    let mut worker = Fixture::new();
    let (session, mut commands) = mpsc::unbounded_channel();
    worker.dispatcher.session = session;
    // One that does take more asks with its next call.
    worker.dispatcher.handle(Event::Notified);
    assert!(commands.try_recv().is_err());
    worker.dispatcher.stopping = true;
    worker.dispatcher.handle(Event::Notified);
    assert!(matches!(commands.try_recv(), Ok(Command::Beat)));
}
