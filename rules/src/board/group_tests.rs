//! Groups against a model, in every order of a commit, of what memory hears of it, and of the looks: no two tasks of a group run at once, none
//! overtakes an older one, and none is forgotten.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::names::Group;
use crate::up_to;

fn memory() -> OwnedBoard {
    OwnedBoard::new(&Sizes { entries: 64, lanes: 6, workers: 2, queues: 8 })
}

fn id(n: u8) -> TaskId {
    let mut id = [0; 16];
    id[15] = n;
    id
}

fn register(board: &mut Board<'_>, n: u8) -> usize {
    let registration = Registration {
        id: [n; 16],
        name: Label::EMPTY,
        queues: &[],
        weights: &[],
        kinds: None,
        lease: i64::MAX / 2,
        role: 10,
        pid: 1,
    };
    board.register(&registration, 0).expect("a place is free")
}

fn push(board: &mut Board<'_>, n: u8) -> Pushed {
    let queue = QueueName::new("a").expect("a name");
    board.push_due(&queue, 0, i64::from(n), id(n), Place::UNKNOWN)
}

fn claim(board: &mut Board<'_>, worker: usize, want: u32) -> Vec<Claim> {
    let mut out = Vec::new();
    board.claim(worker, want, 0, &mut out);
    out.iter().map(|taken| taken.claim).collect()
}

#[test]
fn the_turn_ends_with_the_claim_and_asks_for_a_look() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, 1);
    (1..=3).for_each(|n| assert_eq!(push(&mut board, n), Pushed::Added));
    let [first, second, third] = claim(&mut board, worker, 3)[..] else { panic!("three are ready") };
    let none = Leaving::default();
    assert_eq!(board.take_turn(&first, Group(7), 0, &none), Turn::Taken);
    assert_eq!(board.take_turn(&second, Group(7), 0, &none), Turn::Waits);
    assert_eq!(board.take_turn(&third, Group(8), 0, &none), Turn::Taken);
    // Beside a claim that ends with the same call.
    let leaving = board.leaving([(first.id, first.token)].into_iter());
    assert_eq!(board.take_turn(&second, Group(7), 0, &leaving), Turn::Taken);
    assert!(board.end_claim(&first.id, first.token));
    assert!(board.has_turn(Group(7)) && board.wants_look());
    assert!(board.give_back(&second.id, second.token));
    assert!(!board.has_turn(Group(7)) && board.has_turn(Group(8)));
    let mut looks = Vec::new();
    assert!(!board.take_looks(&mut looks) && !board.wants_look());
    assert_eq!(looks, [Look::Group(Group(7))], "the same twice in a row is one look");
}

#[test]
fn a_chain_keeps_the_turn_and_a_worker_that_comes_back_brings_it() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, 1);
    push(&mut board, 1);
    let [first] = claim(&mut board, worker, 1)[..] else { panic!("one is ready") };
    assert_eq!(board.take_turn(&first, Group(7), 0, &Leaving::default()), Turn::Taken);
    let next = Advance { token: board.next_token(), fence: 1, place: Place::UNKNOWN, kind: Kind::ANY };
    assert!(board.advance(&first.id, first.token, &next, 0));
    assert!(board.has_turn(Group(7)));
    board.reset();
    assert!(!board.has_turn(Group(7)) && !board.wants_look());
    board.set_settling(5, 10);
    let worker = register(&mut board, 1);
    push(&mut board, 2);
    let queue = board.intern(&QueueName::new("a").expect("a name")).expect("there is room");
    let row = AssertedRow {
        fence: 1,
        due: 1,
        queue,
        priority: 0,
        kind: Kind::ANY,
        group: Some(Group(7)),
        key: None,
        written: true,
        counted: false,
    };
    let [second] = claim(&mut board, worker, 1)[..] else { panic!("one is ready") };
    assert_eq!(board.take_turn(&second, Group(7), 4, &Leaving::default()), Turn::NotBefore(5));
    assert!(board.assert_claim(worker, &Claim { id: first.id, token: next.token }, &row, 0));
    assert_eq!(board.take_turn(&second, Group(7), 5, &Leaving::default()), Turn::Waits);
    assert!(board.end_claim(&first.id, next.token));
    assert_eq!(board.take_turn(&second, Group(7), 5, &Leaving::default()), Turn::Taken);
}

#[test]
fn a_task_that_is_put_off_is_not_looked_for() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, 1);
    push(&mut board, 1);
    let [first] = claim(&mut board, worker, 1)[..] else { panic!("one is ready") };
    assert_eq!(board.take_turn(&first, Group(7), 0, &Leaving::default()), Turn::Taken);
    assert!(board.admit_key(&first, crate::names::Key(8), 0, &Leaving::default()));
    let mut looks = Vec::new();
    board.take_looks(&mut looks);
    assert!(board.postpone(&first) && !board.postpone(&first));
    assert!(!board.wants_look() && !board.has_turn(Group(7)));
    assert_eq!(board.running_of_key(crate::names::Key(8)), 0);
}

#[test]
fn more_looks_than_there_is_room_for_are_told_as_lost() {
    let mut memory = memory();
    let mut board = memory.board();
    for group in 0..17 {
        board.ask_look(Look::Group(Group(group)));
    }
    let mut looks = Vec::new();
    assert!(board.take_looks(&mut looks));
    assert_eq!(looks.len(), 16);
    looks.clear();
    assert!(!board.take_looks(&mut looks) && looks.is_empty());
}

/// What a step of a history does; the number chooses among what there is.
#[derive(Clone, Debug)]
enum Event {
    Enqueue(u8),
    /// A call takes ids off the board, and reads the table as it is now.
    Claim(u8),
    /// A call hands out what may run and gives the rest up.
    Judge(usize),
    /// A step is done: its row is gone, and memory hears of it later.
    Commit(usize),
    Settle(usize),
    /// A step failed and is due again at once.
    Fail(usize),
    /// A call is taken back, or a worker lost.
    GiveBack(usize),
    Look,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..3_u8).prop_map(Event::Enqueue),
        3 => (1..4_u8).prop_map(Event::Claim),
        3 => any::<usize>().prop_map(Event::Judge),
        3 => any::<usize>().prop_map(Event::Commit),
        3 => any::<usize>().prop_map(Event::Settle),
        1 => any::<usize>().prop_map(Event::Fail),
        1 => any::<usize>().prop_map(Event::GiveBack),
        2 => Just(Event::Look),
    ]
}

#[derive(Default)]
struct World {
    /// The table: which group each task is in.
    rows: BTreeMap<u8, Group>,
    enqueued: u8,
    /// Claims whose rows were read, with the rows as they were then.
    read: Vec<(Claim, BTreeMap<u8, Group>)>,
    running: Vec<Claim>,
    committed: Vec<Claim>,
    done: Vec<u8>,
}

fn oldest(rows: &BTreeMap<u8, Group>, group: Group) -> Option<u8> {
    rows.iter().find(|(_, other)| **other == group).map(|(n, _)| *n)
}

fn choose<T>(list: &mut Vec<T>, n: usize) -> Option<T> {
    (!list.is_empty()).then(|| list.remove(n % list.len()))
}

impl World {
    fn step(&mut self, board: &mut Board<'_>, event: &Event) {
        match *event {
            Event::Enqueue(group) if self.enqueued < 40 => {
                self.enqueued += 1;
                self.rows.insert(self.enqueued, Group(i64::from(group)));
                push(board, self.enqueued);
            }
            Event::Enqueue(_) => {}
            Event::Claim(want) => {
                let claims = claim(board, 0, u32::from(want));
                self.read.extend(claims.into_iter().map(|claim| (claim, self.rows.clone())));
            }
            Event::Judge(n) => {
                let Some((claim, rows)) = choose(&mut self.read, n) else { return };
                let n = claim.id[15];
                let Some(&group) = rows.get(&n) else {
                    board.end_claim(&claim.id, claim.token);
                    return;
                };
                let turn = board.take_turn(&claim, group, 0, &Leaving::default());
                if turn == Turn::Taken && oldest(&rows, group) == Some(n) {
                    self.running.push(claim);
                    return;
                }
                board.end_claim(&claim.id, claim.token);
                board.ask_look(Look::Group(group));
            }
            Event::Commit(n) => {
                let Some(claim) = choose(&mut self.running, n) else { return };
                self.rows.remove(&claim.id[15]);
                self.done.push(claim.id[15]);
                self.committed.push(claim);
            }
            Event::Settle(n) => {
                let Some(claim) = choose(&mut self.committed, n) else { return };
                board.end_claim(&claim.id, claim.token);
            }
            Event::Fail(n) => {
                let Some(claim) = choose(&mut self.running, n) else { return };
                board.end_claim(&claim.id, claim.token);
                push(board, claim.id[15]);
            }
            Event::GiveBack(n) => {
                let Some(claim) = choose(&mut self.running, n) else { return };
                board.give_back(&claim.id, claim.token);
            }
            Event::Look => {
                let mut looks = Vec::new();
                assert!(!board.take_looks(&mut looks));
                for look in looks {
                    let Look::Group(group) = look else { continue };
                    let next = oldest(&self.rows, group);
                    if let Some(next) = next.filter(|_| !board.has_turn(group)) {
                        push(board, next);
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn a_group_runs_in_order_and_one_at_a_time_and_none_of_it_is_forgotten(
        events in prop::collection::vec(event(), 0..up_to(150)),
        groups in prop::collection::vec(0..3_u8, 0..10),
    ) {
        let mut memory = memory();
        let mut board = memory.board();
        register(&mut board, 1);
        let mut world = World::default();
        // Drained at the end, with nothing but the looks to bring back what had to wait.
        let rest = (0..up_to(200)).flat_map(|_| {
            [Event::Claim(3), Event::Judge(0), Event::Judge(0), Event::Judge(0), Event::Commit(0), Event::Settle(0), Event::Look]
        });
        let enqueue = groups.into_iter().map(Event::Enqueue);
        for event in events.into_iter().chain(enqueue).chain(rest) {
            world.step(&mut board, &event);
            let mut at_once = BTreeSet::new();
            for claim in &world.running {
                let n = claim.id[15];
                let group = world.rows[&n];
                prop_assert!(at_once.insert(group), "two of a group at once");
                prop_assert_eq!(oldest(&world.rows, group), Some(n), "an older one waits");
            }
        }
        prop_assert!(world.rows.is_empty(), "forgotten: {:?}", world.rows);
    }
}
