//! Keys: limits hold in every order of claims, ends and looks, nothing waits for ever, and keys take turns.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::due::DueBook;
use crate::due::LaneKey;
use crate::due::Offered;
use crate::due::RowKey;
use crate::names::Key;

const NONE: u32 = u32::MAX;

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
    running: Vec<Claim>,
    done: Vec<u16>,
    later: Vec<Look>,
}

impl World {
    fn new(limit: Option<u32>) -> Self {
        let mut memory = OwnedBoard::new(&Sizes { entries: 256, lanes: 6, workers: 2, queues: 8 });
        let mut board = memory.board();
        register(&mut board);
        let rule = QueueRule { key_concurrency: limit, ..QueueRule::default() };
        assert!(board.set_rule(&name(), Some(&rule), 0));
        Self {
            memory,
            book: DueBook::new(1_000, 100),
            rows: BTreeMap::new(),
            enqueued: 0,
            running: Vec::new(),
            done: Vec::new(),
            later: Vec::new(),
        }
    }

    fn enqueue(&mut self, key: Key) {
        self.enqueued += 1;
        self.rows.insert(self.enqueued, key);
        self.memory.board().ask_look(Look::Key(key));
    }

    /// What the scheduler does.
    fn look(&mut self, now: Micros) {
        let mut looks = std::mem::take(&mut self.later);
        let mut board = self.memory.board();
        assert!(!board.take_looks(&mut looks));
        for look in looks {
            let Look::Key(key) = look else { continue };
            let room = match board.key_room(key, &name(), now) {
                KeyRoom::For(room) => room,
                KeyRoom::Shut => continue,
                KeyRoom::OpensAt(_) => {
                    self.later.push(look);
                    continue;
                }
            };
            let rows = self.rows.iter().filter(|(_, other)| **other == key).map(|(n, _)| *n);
            let free = rows.filter(|n| board.claim_of(&id(*n)).is_none()).take(room as usize);
            for n in free {
                let lane = LaneKey { priority: 0, queue: name() };
                self.book.hint_in_turn(lane, RowKey { due: i64::from(n), id: id(n) }, now);
            }
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
        let mut board = self.memory.board();
        let mut taken = Vec::new();
        board.claim(0, want, now, &mut taken);
        for Taken { claim, .. } in taken {
            let key = self.rows.get(&number(&claim.id)).copied();
            if key.is_some_and(|key| board.admit_key(&claim, key, now, &Leaving::default())) {
                self.running.push(claim);
            } else {
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

    fn most(&self) -> u32 {
        let mut counts: BTreeMap<Key, u32> = BTreeMap::new();
        for claim in &self.running {
            *counts.entry(self.rows[&number(&claim.id)]).or_default() += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }
}

#[test]
fn the_backlog_of_one_key_does_not_stand_before_another() {
    let mut world = World::new(None);
    (0..1_000).for_each(|_| world.enqueue(Key(1)));
    world.look(2_000);
    (0..10).for_each(|_| world.enqueue(Key(2)));
    let mut now = 2_000;
    while world.done.len() < 100 {
        now += 1;
        world.look(now);
        world.claim(1, now);
        world.end(0, true);
    }
    let of_second = world.done.iter().take(60).filter(|n| **n > 1_000).count();
    assert_eq!(of_second, 10, "{:?}", world.done);
}

#[test]
fn what_its_row_says_to_be_running_counts_until_its_worker_is_back_or_is_not_believed_any_more() {
    let mut world = World::new(Some(2));
    let mut board = world.memory.board();
    board.set_settling(10, 100);
    board.set_held_of_key(Key(1), &[id(7)]);
    assert_eq!(board.key_room(Key(1), &name(), 5), KeyRoom::OpensAt(10));
    assert_eq!(board.key_room(Key(1), &name(), 10), KeyRoom::For(1));
    assert_eq!(board.key_room(Key(2), &name(), 10), KeyRoom::For(2));
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
    assert_eq!(board.key_room(Key(1), &name(), 10), KeyRoom::For(1));
    assert!(board.end_claim(&id(7), 1));
    board.set_held_of_key(Key(1), &[id(8), id(9)]);
    assert_eq!(board.key_room(Key(1), &name(), 99), KeyRoom::OpensAt(100));
    assert_eq!(board.key_room(Key(1), &name(), 100), KeyRoom::For(2));
}

#[derive(Clone, Debug)]
enum Event {
    Enqueue(u8),
    Look,
    Claim(u32),
    Done(usize),
    Back(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..200_u8).prop_map(Event::Enqueue),
        3 => Just(Event::Look),
        3 => (1..6_u32).prop_map(Event::Claim),
        3 => any::<usize>().prop_map(Event::Done),
        1 => any::<usize>().prop_map(Event::Back),
    ]
}

proptest! {
    #[test]
    fn no_key_has_more_than_its_limit_at_once_and_none_is_forgotten(
        limit in prop_oneof![Just(None), (1..4_u32).prop_map(Some)],
        many in any::<bool>(),
        events in prop::collection::vec(event(), 0..300),
    ) {
        let mut world = World::new(limit);
        let mut now = 1_000;
        // More keys than there are slots, or a few.
        let key = |n: u8| Key(i64::from(if many { n } else { n % 4 }) << 21);
        let rest = (0..600).flat_map(|_| [Event::Look, Event::Claim(3), Event::Done(0), Event::Done(0), Event::Done(0)]);
        for event in events.into_iter().chain(rest) {
            now += 1;
            match event {
                Event::Enqueue(n) => world.enqueue(key(n)),
                Event::Look => world.look(now),
                Event::Claim(want) => world.claim(want, now),
                Event::Done(at) => world.end(at, true),
                Event::Back(at) => world.end(at, false),
            }
            prop_assert!(world.most() <= limit.unwrap_or(NONE));
        }
        prop_assert!(world.rows.is_empty(), "forgotten: {:?}", world.rows);
        let mut board = world.memory.board();
        for slot in 0..64 {
            prop_assert_eq!(board.running_of_key(Key(slot << 21)), 0);
        }
        // Every slot is free again.
        let slots = board.keys.len() as u32;
        for n in 0..slots {
            board.set_held_of_key(Key(i64::from(n)), &[id(n as u16 + 1)]);
        }
        prop_assert_eq!(board.key_room(Key(-1), &name(), now), if limit.is_some() { KeyRoom::OpensAt(now + 1_000_000) } else { KeyRoom::For(KEY_WINDOW) });
    }
}
