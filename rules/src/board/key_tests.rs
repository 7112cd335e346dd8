//! Keys: limits hold in every order of claims, ends and looks, nothing waits for ever, and keys take turns.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::bucket::Bucket;
use crate::bucket::Rate;
use crate::due::DueBook;
use crate::due::LaneKey;
use crate::due::Offered;
use crate::due::RowKey;
use crate::names::Key;
use crate::turns::Passes;
use crate::turns::Turn;
use crate::up_to;

const NONE: u32 = u32::MAX;

const SECOND: Micros = 1_000_000;

fn name() -> QueueName {
    QueueName::new("a").expect("a name")
}

fn id(n: u16) -> TaskId {
    let mut id = [0; 16];
    id[14..].copy_from_slice(&n.to_be_bytes());
    id
}

fn number(id: &TaskId) -> u16 {
    u16::from_be_bytes([id[14], id[15]])
}

fn register(board: &mut Board<'_>) {
    let registration = Registration {
        id: [1; 16],
        name: Label::EMPTY,
        queues: &[],
        weights: &[],
        kinds: None,
        lease: i64::MAX / 2,
        role: 10,
        pid: 1,
    };
    board.register(&registration, 0).expect("a place is free");
}

/// A table of tasks with keys, the scheduler's book, and the board.
struct World {
    memory: OwnedBoard,
    book: DueBook,
    rows: BTreeMap<u16, Key>,
    enqueued: u16,
    /// Claims whose rows are being read.
    fresh: Vec<Claim>,
    running: Vec<Claim>,
    done: Vec<u16>,
    later: Vec<(Micros, Look)>,
    /// How long the turns of keys are, if they have weights.
    turns: BTreeMap<Key, u32>,
    passes: Passes,
    /// Hand-outs: of which key, when, and under which token.
    begun: Vec<(Key, Micros, i64)>,
}

impl World {
    fn new(limit: Option<u32>) -> Self {
        Self::with(&QueueRule { key_concurrency: limit, ..QueueRule::default() })
    }

    fn with(rule: &QueueRule) -> Self {
        let mut memory = OwnedBoard::new(&Sizes { entries: 256, lanes: 6, workers: 2, queues: 8 });
        let mut board = memory.board();
        register(&mut board);
        assert!(board.set_rule(&name(), Some(rule), 0));
        Self {
            memory,
            book: DueBook::new(1_000, 100),
            rows: BTreeMap::new(),
            enqueued: 0,
            fresh: Vec::new(),
            running: Vec::new(),
            done: Vec::new(),
            later: Vec::new(),
            turns: BTreeMap::new(),
            passes: Passes::default(),
            begun: Vec::new(),
        }
    }

    fn enqueue(&mut self, key: Key) {
        self.enqueued += 1;
        self.rows.insert(self.enqueued, key);
        self.memory.board().ask_look(Look::Key(key));
    }

    /// What the scheduler does.
    fn look(&mut self, now: Micros) {
        let (due, later) = self.later.iter().partition::<Vec<_>, _>(|(at, _)| *at <= now);
        let mut looks: Vec<Look> = due.into_iter().map(|(_, look)| look).collect();
        self.later = later;
        let mut board = self.memory.board();
        if board.take_looks(&mut looks) {
            looks.extend(self.rows.values().map(|key| Look::Key(*key)));
        }
        looks.sort_unstable();
        looks.dedup();
        let lane = LaneKey { priority: 0, queue: name() };
        let mut found = Vec::new();
        for look in looks {
            let Look::Key(key) = look else { continue };
            let length = self.turns.get(&key).copied().unwrap_or(KEY_WINDOW);
            let room = match board.key_room(key, &name(), length, now) {
                KeyRoom::For(room) => room,
                KeyRoom::Shut => continue,
                KeyRoom::OpensAt(at) => {
                    assert!(at > now, "{at} is not after {now}");
                    self.later.push((at, look));
                    continue;
                }
                KeyRoom::NoPlace => {
                    self.later.push((now + 1, look));
                    continue;
                }
            };
            let rows = self.rows.iter().filter(|(_, other)| **other == key).map(|(n, _)| *n);
            let free = rows.filter(|n| board.claim_of(&id(*n)).is_none()).take(room as usize);
            let new =
                free.filter(|n| !board.is_ready_in(&id(*n), &name(), 0) && !self.book.is_in_turn(&id(*n)));
            found.push(Turn { key, length, tasks: new.collect() });
        }
        for n in self.passes.order(lane, found) {
            self.book.hint_in_turn(lane, RowKey { due: i64::from(n), id: id(n) }, now);
        }
        self.book.offer_due(now, |lane, row, place| {
            let (due, place) = if place == Place::IN_TURN { (now, Place::UNKNOWN) } else { (row.due, place) };
            match board.push_due(&lane.queue, lane.priority, due, row.id, place) {
                Pushed::Full => Offered::NoRoom,
                _ => Offered::Taken,
            }
        });
    }

    fn claim(&mut self, want: u32, now: Micros) {
        self.take(want, now);
        self.hand_out();
    }

    fn take(&mut self, want: u32, now: Micros) {
        let mut board = self.memory.board();
        let mut taken = Vec::new();
        board.claim(0, want, now, &mut taken);
        for Taken { claim, .. } in taken {
            let key = self.rows.get(&number(&claim.id)).copied();
            if key.is_some_and(|key| board.admit_key(&claim, key, now, &Leaving::default())) {
                self.fresh.push(claim);
                self.begun.extend(key.map(|key| (key, now, claim.token)));
            } else {
                board.withdraw(&claim);
                board.end_claim(&claim.id, claim.token);
                key.into_iter().for_each(|key| board.ask_look(Look::Key(key)));
            }
        }
    }

    fn end(&mut self, at: usize, is_done: bool) {
        if self.running.is_empty() {
            return;
        }
        let claim = self.running.remove(at % self.running.len());
        if is_done {
            self.rows.remove(&number(&claim.id));
            self.done.push(number(&claim.id));
            self.memory.board().end_claim(&claim.id, claim.token);
        } else {
            self.memory.board().give_back(&claim.id, claim.token);
        }
    }

    /// The rows of all claims were read.
    fn hand_out(&mut self) {
        let mut board = self.memory.board();
        for claim in self.fresh.drain(..) {
            let row = ClaimedRow { fence: 1, kind: Kind::ANY, place: Place::UNKNOWN, counted: false };
            board.note_row(&claim, &row);
            self.running.push(claim);
        }
    }

    /// A claim does not lead to a hand-out after all.
    fn refuse(&mut self, at: usize) -> Option<(Key, i64)> {
        if self.fresh.is_empty() {
            return None;
        }
        let claim = self.fresh.remove(at % self.fresh.len());
        let key = self.rows[&number(&claim.id)];
        let mut board = self.memory.board();
        board.withdraw(&claim);
        board.give_back(&claim.id, claim.token);
        self.begun.retain(|(.., token)| *token != claim.token);
        Some((key, claim.token))
    }

    /// Sets the rate of each key.
    fn set(&mut self, rule: &QueueRule, now: Micros) {
        assert!(self.memory.board().set_rule(&name(), Some(rule), now));
        // What the scheduler does when settings have changed.
        self.later.iter_mut().for_each(|(at, _)| *at = now);
    }

    fn most(&self) -> u32 {
        let mut counts: BTreeMap<Key, u32> = BTreeMap::new();
        for claim in self.running.iter().chain(&self.fresh) {
            *counts.entry(self.rows[&number(&claim.id)]).or_default() += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }
}

#[test]
fn the_backlog_of_one_key_does_not_stand_before_another() {
    let mut world = World::new(None);
    let backlog = up_to(1_000);
    (0..backlog).for_each(|_| world.enqueue(Key(1)));
    world.look(2_000);
    (0..10).for_each(|_| world.enqueue(Key(2)));
    let mut now = 2_000;
    while world.done.len() < 60 {
        now += 1;
        world.look(now);
        world.claim(1, now);
        world.end(0, true);
    }
    let of_second = world.done.iter().filter(|n| usize::from(**n) > backlog).count();
    assert_eq!(of_second, 10, "{:?}", world.done);
}

#[test]
fn what_its_row_says_to_be_running_counts_until_its_worker_is_back_or_is_not_believed_any_more() {
    let mut world = World::new(Some(2));
    let mut board = world.memory.board();
    board.set_settling(10, 100);
    board.set_held_of_key(Key(1), &[id(7)]);
    assert_eq!(board.key_room(Key(1), &name(), KEY_WINDOW, 5), KeyRoom::OpensAt(10));
    assert_eq!(board.key_room(Key(1), &name(), KEY_WINDOW, 10), KeyRoom::For(1));
    assert_eq!(board.key_room(Key(2), &name(), KEY_WINDOW, 10), KeyRoom::For(2));
    let queue = board.intern(&name()).expect("there is room");
    let row = AssertedRow {
        fence: 1,
        due: 1,
        queue,
        priority: 0,
        kind: Kind::ANY,
        group: None,
        key: Some(Key(1)),
        written: true,
        counted: false,
    };
    assert!(board.assert_claim(0, &Claim { id: id(7), token: 1 }, &row, 10));
    assert_eq!(board.running_of_key(Key(1)), 1);
    assert_eq!(board.key_room(Key(1), &name(), KEY_WINDOW, 10), KeyRoom::For(1));
    assert!(board.end_claim(&id(7), 1));
    board.set_held_of_key(Key(1), &[id(8), id(9)]);
    assert_eq!(board.key_room(Key(1), &name(), KEY_WINDOW, 99), KeyRoom::OpensAt(100));
    assert_eq!(board.key_room(Key(1), &name(), KEY_WINDOW, 100), KeyRoom::For(2));
}

fn rated(count: u32, period: Micros, burst: u32) -> QueueRule {
    QueueRule { key_rate: Some(Rate { count, period, burst }), ..QueueRule::default() }
}

#[test]
fn a_key_that_waits_for_its_rate_says_when_it_goes_on_and_holds_up_no_other() {
    let mut world = World::with(&rated(1, 10 * SECOND, 1));
    (0..3).for_each(|_| world.enqueue(Key(1)));
    world.look(SECOND);
    world.claim(9, SECOND);
    assert!(world.running.is_empty(), "a rate begins with an empty bucket");
    world.look(10 * SECOND);
    world.claim(9, 10 * SECOND);
    assert_eq!(world.running.len(), 1);
    // Another key has its own token, and the claim, however long it runs, does not hold up the next of the first.
    world.enqueue(Key(2));
    world.look(10 * SECOND + 1);
    world.claim(9, 10 * SECOND + 1);
    assert_eq!(world.running.len(), 2);
    world.look(10 * SECOND + 1);
    assert_eq!(world.later.iter().map(|(at, _)| *at).min(), Some(20 * SECOND));
    world.look(20 * SECOND);
    world.claim(9, 20 * SECOND);
    assert_eq!(world.running.len(), 3);
}

#[test]
fn a_token_of_a_claim_that_was_not_handed_out_is_there_again() {
    let mut world = World::with(&rated(1, SECOND, 1));
    world.enqueue(Key(1));
    world.look(SECOND);
    world.take(1, SECOND);
    assert_eq!(
        world.memory.board().key_room(Key(1), &name(), KEY_WINDOW, SECOND),
        KeyRoom::OpensAt(2 * SECOND)
    );
    assert_eq!(world.refuse(0).map(|(key, _)| key), Some(Key(1)));
    assert!(world.begun.is_empty());
    assert_eq!(world.memory.board().key_room(Key(1), &name(), KEY_WINDOW, SECOND), KeyRoom::For(1));
    assert_eq!(world.memory.board().key_places(SECOND), 64, "nothing is to be remembered");
}

#[test]
fn a_step_that_follows_another_takes_a_token_too() {
    let mut world = World::with(&rated(2, SECOND, 2));
    world.enqueue(Key(1));
    world.look(SECOND);
    world.claim(1, SECOND);
    let claim = world.running[0];
    let board = world.memory.board();
    assert!(!board.may_continue(&claim.id, claim.token));
    world.set(&QueueRule::default(), SECOND);
    assert!(world.memory.board().may_continue(&claim.id, claim.token));
}

#[test]
fn keys_are_forgotten_when_their_buckets_are_full_and_until_then_more_keys_than_places_wait() {
    let mut world = World::with(&rated(1, SECOND, 5));
    let start = 10 * SECOND;
    for n in 0..100 {
        world.enqueue(Key(n << 21));
    }
    world.look(start);
    world.claim(200, start);
    // As many places as a quarter of the entries.
    assert_eq!(world.running.len(), 64);
    while !world.running.is_empty() {
        world.end(0, true);
    }
    let mut board = world.memory.board();
    assert_eq!(board.key_places(start + SECOND - 1), 0);
    assert_eq!(board.key_room(Key(99 << 21), &name(), KEY_WINDOW, start + SECOND - 1), KeyRoom::NoPlace);
    assert_eq!(board.key_room(Key(0), &name(), KEY_WINDOW, start), KeyRoom::For(4));
    assert_eq!(board.key_places(start + SECOND), 64);
    assert_eq!(board.key_room(Key(99 << 21), &name(), KEY_WINDOW, start + SECOND), KeyRoom::For(5));
    assert_eq!(board.key_room(Key(0), &name(), KEY_WINDOW, start + SECOND), KeyRoom::For(5));
}

#[test]
fn what_was_taken_of_keys_is_not_given_again_when_the_board_is_emptied() {
    let mut world = World::with(&rated(1, SECOND, 5));
    world.enqueue(Key(1));
    world.look(10 * SECOND);
    world.claim(1, 10 * SECOND);
    let mut board = world.memory.board();
    board.reset();
    for key in [Key(1), Key(2)] {
        assert_eq!(board.key_room(key, &name(), KEY_WINDOW, 10 * SECOND), KeyRoom::OpensAt(11 * SECOND));
    }
    assert_eq!(board.key_room(Key(1), &name(), KEY_WINDOW, 12 * SECOND), KeyRoom::For(2));
}

#[test]
fn a_clock_that_is_set_back_gives_nothing_and_holds_nothing_up() {
    let mut world = World::with(&QueueRule {
        rate: Some(Rate { count: 1, period: SECOND, burst: 1 }),
        ..rated(1, SECOND, 1)
    });
    let late = 1_000 * SECOND;
    (0..2).for_each(|_| world.enqueue(Key(1)));
    world.look(late);
    world.claim(1, late);
    assert_eq!(world.begun.len(), 1);
    let mut board = world.memory.board();
    let now = 100 * SECOND;
    board.clock_went_back(now);
    assert_eq!(board.key_room(Key(1), &name(), KEY_WINDOW, now), KeyRoom::OpensAt(now + SECOND));
    assert_eq!(board.key_closed_until(Key(1), now), Some(now + SECOND));
    world.later.iter_mut().for_each(|(at, _)| *at = now);
    for now in [now + SECOND - 1, now + SECOND, now + SECOND + 1] {
        world.look(now);
        world.claim(1, now);
        assert_eq!(world.begun.len(), 1 + usize::from(now > 101 * SECOND - 1));
    }
}

#[test]
fn a_limit_that_is_raised_lets_waiting_tasks_of_a_key_go_at_once() {
    let mut world = World::new(Some(1));
    (0..5).for_each(|_| world.enqueue(Key(1)));
    world.look(1_000);
    world.claim(5, 1_000);
    world.look(1_001);
    world.claim(5, 1_001);
    assert_eq!(world.running.len(), 1);
    world.set(&QueueRule { key_concurrency: Some(3), ..QueueRule::default() }, 1_002);
    world.look(1_003);
    world.claim(5, 1_003);
    assert_eq!(world.running.len(), 3);
}

#[derive(Clone, Debug)]
enum Event {
    Enqueue(u8),
    Look,
    Claim(u32),
    HandOut,
    Refuse(usize),
    Done(usize),
    Back(usize),
    Set(Option<Rate>),
    Wait(Micros),
}

fn rate() -> impl Strategy<Value = Rate> {
    (1..6_u32, 1..400_i64, 1..6_u32).prop_map(|(count, period, burst)| Rate { count, period, burst })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..200_u8).prop_map(Event::Enqueue),
        6 => Just(Event::Look),
        6 => (1..6_u32).prop_map(Event::Claim),
        6 => any::<usize>().prop_map(Event::Done),
        2 => any::<usize>().prop_map(Event::Back),
        4 => Just(Event::HandOut),
        3 => any::<usize>().prop_map(Event::Refuse),
        1 => prop::option::weighted(0.8, rate()).prop_map(Event::Set),
        3 => (0..300_i64).prop_map(Event::Wait),
    ]
}

/// What rates by key allow, with memory for every key there ever was.
#[derive(Default)]
struct Reference {
    untouched: Option<Bucket>,
    keys: BTreeMap<Key, Bucket>,
    /// Claims whose tokens are not kept yet.
    spent: BTreeSet<i64>,
}

impl Reference {
    fn set(&mut self, rate: Option<Rate>, now: Micros) {
        match (rate, &mut self.untouched) {
            (None, _) => *self = Self::default(),
            (Some(rate), None) => self.untouched = Some(Bucket::empty(rate, now)),
            (Some(rate), Some(untouched)) if untouched.rate() != rate => {
                untouched.change(rate, now);
                self.keys.values_mut().for_each(|bucket| bucket.change(rate, now));
            }
            _ => {}
        }
    }

    fn of(&mut self, key: Key) -> Option<&mut Bucket> {
        self.untouched.map(|untouched| self.keys.entry(key).or_insert(untouched))
    }
}

proptest! {
    #[test]
    fn no_key_has_more_than_its_limit_at_once_or_its_rate_allows_and_none_is_forgotten(
        limit in prop_oneof![Just(None), (1..4_u32).prop_map(Some)],
        first in prop::option::of(rate()),
        many in any::<bool>(),
        events in prop::collection::vec(event(), 0..up_to(300)),
    ) {
        let rule = |rate| QueueRule { key_concurrency: limit, key_rate: rate, ..QueueRule::default() };
        let mut world = World::with(&rule(first));
        let mut reference = Reference::default();
        reference.set(first, 0);
        let mut now = 1_000;
        // More keys than there are slots, or a few.
        let key = |n: u8| Key(i64::from(if many { n } else { n % 4 }) << 21);
        let rest = (0..up_to(900)).flat_map(|_| [Event::Look, Event::Claim(3), Event::HandOut, Event::Done(0), Event::Done(0), Event::Done(0), Event::Wait(400)]);
        for event in events.into_iter().chain(rest) {
            now += 1;
            let begun = world.begun.len();
            match event {
                Event::Enqueue(n) => world.enqueue(key(n)),
                Event::Look => world.look(now),
                Event::Claim(want) => world.take(want, now),
                Event::Done(at) => world.end(at, true),
                Event::Back(at) => world.end(at, false),
                Event::HandOut => {
                    for claim in &world.fresh {
                        if reference.spent.remove(&claim.token) {
                            let key = world.rows[&number(&claim.id)];
                            reference.of(key).expect("there is a rate").keep();
                        }
                    }
                    world.hand_out();
                }
                Event::Refuse(at) => {
                    if let Some((key, token)) = world.refuse(at)
                        && reference.spent.remove(&token)
                    {
                        reference.of(key).expect("there is a rate").put_back();
                    }
                }
                Event::Set(rate) => {
                    world.set(&rule(rate), now);
                    reference.set(rate, now);
                }
                Event::Wait(time) => now += time,
            }
            for (key, at, token) in world.begun.iter().skip(begun) {
                if let Some(bucket) = reference.of(*key) {
                    prop_assert!(bucket.take(*at), "{key:?} at {at}");
                    reference.spent.insert(*token);
                }
            }
            prop_assert!(world.most() <= limit.unwrap_or(NONE));
            // What is told of a key is what someone who forgets nothing would tell.
            let mut board = world.memory.board();
            for n in 0..5 {
                let running = board.running_of_key(key(n));
                let by_limit = limit.map_or(KEY_WINDOW, |limit| limit.saturating_sub(running).min(KEY_WINDOW));
                let bucket = reference.of(key(n)).copied();
                let tokens = bucket.map_or(NONE, |bucket| bucket.tokens(now));
                let told = match board.key_room(key(n), &name(), KEY_WINDOW, now) {
                    KeyRoom::NoPlace => continue,
                    told => told,
                };
                let expected = match (by_limit, tokens) {
                    (0, _) => KeyRoom::Shut,
                    (_, 0) => KeyRoom::OpensAt(bucket.map_or(0, |bucket| bucket.next_at(now))),
                    (room, tokens) => KeyRoom::For(room.min(tokens)),
                };
                prop_assert_eq!(told, expected, "key {}", n);
            }
        }
        prop_assert!(world.rows.is_empty(), "forgotten: {:?}", world.rows);
        let mut board = world.memory.board();
        for slot in 0..64 {
            prop_assert_eq!(board.running_of_key(Key(slot << 21)), 0);
        }
        // Every slot is free again.
        now += SECOND;
        let slots = board.keys.len();
        let full: Vec<usize> = (1..3).map(|n| board.key_places(now + n * SECOND)).collect();
        prop_assert!(full.contains(&slots), "{:?} of {}", full, slots);
        for n in 0..slots {
            board.set_held_of_key(Key(n as i64), &[id(n as u16 + 1)]);
        }
        prop_assert_eq!(board.key_places(now), 0);
    }

    #[test]
    fn no_stretch_of_time_sees_more_of_a_key_than_its_burst_and_rate(
        rate in rate(),
        many in any::<bool>(),
        events in prop::collection::vec(event(), 0..up_to(400)),
    ) {
        let mut world = World::with(&QueueRule { key_rate: Some(rate), ..QueueRule::default() });
        let key = |n: u8| Key(i64::from(if many { n } else { n % 4 }) << 21);
        let mut now = 0;
        for event in events {
            now += 1;
            match event {
                Event::Enqueue(n) => world.enqueue(key(n)),
                Event::Look => world.look(now),
                Event::Claim(want) => world.take(want, now),
                Event::Done(at) => world.end(at, true),
                Event::Back(at) => world.end(at, false),
                Event::HandOut => world.hand_out(),
                Event::Refuse(at) => _ = world.refuse(at),
                // Memory is lost, and with it what was taken.
                Event::Set(None) => {
                    world.hand_out();
                    world.running.clear();
                    world.memory.board().reset();
                    register(&mut world.memory.board());
                    world.book = DueBook::new(1_000, 100);
                    let keys: Vec<Key> = world.rows.values().copied().collect();
                    keys.into_iter().for_each(|key| world.memory.board().ask_look(Look::Key(key)));
                }
                Event::Set(Some(_)) => {}
                Event::Wait(time) => now += time,
            }
        }
        let mut times: BTreeMap<Key, Vec<Micros>> = BTreeMap::new();
        world.begun.iter().for_each(|(key, at, _)| times.entry(*key).or_default().push(*at));
        for times in times.values() {
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    let most = i64::from(rate.burst) * rate.period + i64::from(rate.count) * (to - from);
                    prop_assert!((last - first + 1) as i64 * rate.period <= most);
                }
                prop_assert!((first + 1) as i64 * rate.period <= i64::from(rate.count) * from);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 64 }))]

    #[test]
    fn keys_with_a_backlog_have_shares_as_their_weights_however_much_is_taken_between_two_looks(
        weights in prop::collection::vec(prop_oneof![3 => 1..5_u32, 1 => 1..=MAX_KEY_WEIGHT], 2..5),
        claims in prop::collection::vec((prop_oneof![1..4_u32, 1..60_u32, Just(24)], prop::bool::weighted(0.7)), 5..up_to(200)),
    ) {
        let mut world = World::new(None);
        let turn = turn_beside(*weights.iter().max().expect("some"));
        let keys: Vec<Key> = (0..weights.len() as i64).map(Key).collect();
        let mut counts = vec![0_u32; keys.len()];
        let backlog = up_to(1_000) as u16;
        for _ in 0..backlog {
            keys.iter().for_each(|key| world.enqueue(*key));
        }
        world.turns = keys.iter().zip(&weights).map(|(key, weight)| (*key, weight * turn)).collect();
        let least = *weights.iter().min().expect("some");
        let mut now = 10_000;
        world.look(now);
        for (want, looks) in claims {
            now += 1;
            let before = world.begun.len();
            world.claim(want, now);
            for (key, ..) in &world.begun[before..] {
                counts[key.0 as usize] += 1;
                let left = |at: usize| u32::from(backlog) - counts[at];
                if (0..keys.len()).any(|at| left(at) < 2 * weights[at] * turn) {
                    return Ok(());
                }
                for (one, of_one) in counts.iter().zip(&weights) {
                    for (two, of_two) in counts.iter().zip(&weights) {
                        // By one task of a key with the least weight, and the remainders of divisions.
                        prop_assert!(one * of_two * least <= two * of_one * least + of_one * of_two, "{:?} by {:?}", counts, weights);
                    }
                }
            }
            while !world.running.is_empty() {
                world.end(0, true);
            }
            if looks {
                world.look(now);
            }
        }
    }

    /// Keys come and go. Over any stretch in which two of them have a backlog, their shares differ by two turns at most; and of a key that has tasks
    /// something is taken before the others have had two turns each.
    #[test]
    fn keys_that_come_and_go_get_their_shares_and_starve_none(
        weights in prop::collection::vec(prop_oneof![3 => 1..5_u32, 1 => 1..=MAX_KEY_WEIGHT], 2..5),
        events in prop::collection::vec((1..60_u32, prop::bool::weighted(0.8), prop::option::weighted(0.2, (0..4_usize, 1..400_u16))), 5..up_to(200)),
    ) {
        let mut world = World::new(None);
        let turn = turn_beside(*weights.iter().max().expect("some"));
        let keys: Vec<Key> = (0..weights.len() as i64).map(Key).collect();
        world.turns = keys.iter().zip(&weights).map(|(key, weight)| (*key, weight * turn)).collect();
        let mut left = vec![0_u32; keys.len()];
        let mut counts = vec![0_u32; keys.len()];
        // Of two keys: the least and the most by which the first was ahead, in thousandths of a turn, since both have tasks.
        let mut ahead: BTreeMap<(usize, usize), (i64, i64)> = BTreeMap::new();
        // Of a key that has tasks: what was taken of the others since one of it was.
        let mut passed = vec![0_u32; keys.len()];
        let all: u32 = weights.iter().sum();
        let mut now = 10_000;
        for (want, looks, more) in events {
            now += 1;
            if let Some((at, count)) = more
                && at < keys.len()
                && world.enqueued + count < 6_000
            {
                (0..count).for_each(|_| world.enqueue(keys[at]));
                left[at] += u32::from(count);
                world.look(now);
            }
            let before = world.begun.len();
            world.claim(want, now);
            for key in world.begun[before..].iter().map(|(key, ..)| key.0 as usize) {
                counts[key] += 1;
                left[key] -= 1;
                for other in 0..keys.len() {
                    passed[other] = if other == key || left[other] == 0 { 0 } else { passed[other] + 1 };
                    prop_assert!(passed[other] <= 2 * turn * (all - weights[other]), "key {} by {:?}", other, weights);
                }
                for one in 0..keys.len() {
                    for two in 0..one {
                        let has_backlog = |at: usize| left[at] >= 2 * weights[at] * turn;
                        if !has_backlog(one) || !has_backlog(two) {
                            ahead.remove(&(one, two));
                            continue;
                        }
                        let share = |at: usize| i64::from(counts[at]) * 1_000 / i64::from(weights[at] * turn);
                        let by = share(one) - share(two);
                        let (least, most) = ahead.entry((one, two)).or_insert((by, by));
                        (*least, *most) = ((*least).min(by), (*most).max(by));
                        prop_assert!(*most - *least <= 2_001, "{} and {}: {} to {} by {:?}", one, two, least, most, weights);
                    }
                }
            }
            while !world.running.is_empty() {
                world.end(0, true);
            }
            if looks {
                world.look(now);
            }
        }
    }
}
