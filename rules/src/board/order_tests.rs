//! In which order tasks are handed out when priorities age and when a worker takes its queues by weight.

use proptest::prelude::*;

use super::*;
use crate::bucket::Rate;

fn memory() -> OwnedBoard {
    OwnedBoard::new(&Sizes { entries: 600, lanes: 12, workers: 2, queues: 8 })
}

fn name(n: u16) -> QueueName {
    QueueName::new(&format!("q{n}")).expect("a name")
}

fn id(n: u16) -> TaskId {
    let mut id = [0; 16];
    id[14..].copy_from_slice(&n.to_be_bytes());
    id
}

fn register(board: &mut Board<'_>, weights: &[u16]) -> usize {
    let mut queues = Vec::new();
    let names: Vec<QueueName> = (0..weights.len() as u16).map(name).collect();
    assert!(board.intern_all(&names, &mut queues));
    let registration = Registration {
        id: [1; 16],
        name: Label::EMPTY,
        queues: &queues,
        weights,
        kinds: None,
        lease: 60_000_000,
        role: 10,
        pid: 1,
    };
    board.register(&registration, 0).expect("a place is free")
}

fn push(board: &mut Board<'_>, n: u16, due: Micros, queue: u16, priority: i16) {
    assert_eq!(board.push_due(&name(queue), priority, due, id(n), Place::UNKNOWN), Pushed::Added);
}

fn claim(board: &mut Board<'_>, worker: usize, want: u32) -> Vec<Taken> {
    let mut out = Vec::new();
    board.claim(worker, want, 1_000_000, &mut out);
    out
}

/// How many of a queue's tasks there are.
fn count(board: &Board<'_>, taken: &[Taken], queue: u16) -> usize {
    taken.iter().filter(|taken| board.queue_name(taken.queue) == name(queue)).count()
}

#[test]
fn a_task_that_has_waited_long_enough_goes_before_a_better_priority() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, &[]);
    // Ten microseconds are worth one step of priority.
    for (n, due, priority) in [(1, 0, 5), (2, 49, 0), (3, 50, 0), (4, 51, 0), (5, 60, -1)] {
        push(&mut board, n, due, 0, priority);
    }
    let order = |taken: &[Taken]| taken.iter().map(|taken| taken.claim.id[15]).collect::<Vec<_>>();
    board.head.ageing = 10;
    let aged = claim(&mut board, worker, 9);
    assert_eq!(order(&aged)[0], 2);
    assert_eq!(order(&aged)[4], 4);
    for taken in &aged {
        assert!(board.give_back(&taken.claim.id, taken.claim.token));
    }
    board.head.ageing = 0;
    assert_eq!(order(&claim(&mut board, worker, 9)), [5, 2, 3, 4, 1]);
}

#[test]
fn a_chain_gives_way_to_what_has_aged_past_it() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, &[]);
    push(&mut board, 1, 100, 0, 0);
    let chain = claim(&mut board, worker, 1)[0].claim;
    push(&mut board, 2, 10, 0, 5);
    assert!(board.may_continue(&chain.id, chain.token));
    board.head.ageing = 10;
    assert!(!board.may_continue(&chain.id, chain.token));
}

#[test]
fn queues_are_taken_in_the_proportion_of_their_weights() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, &[1, 3, 6]);
    for n in 0..450 {
        push(&mut board, n, i64::from(n), n % 3, 0);
    }
    let taken = claim(&mut board, worker, 100);
    assert_eq!([0, 1, 2].map(|queue| count(&board, &taken, queue)), [10, 30, 60]);
    // One at a time it is the same, and what is not wanted by one queue goes to the others.
    let mut taken = Vec::new();
    for _ in 0..100 {
        taken.append(&mut claim(&mut board, worker, 1));
    }
    assert_eq!([0, 1, 2].map(|queue| count(&board, &taken, queue)), [10, 30, 60]);
    assert_eq!(claim(&mut board, worker, 999).len(), 250);
}

#[test]
fn within_its_queue_a_weighted_task_keeps_its_place_and_a_pause_its_force() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, &[1, 1]);
    for (n, due, queue, priority) in [(1, 5, 0, 1), (2, 9, 0, 0), (3, 7, 0, 0), (4, 1, 1, 0)] {
        push(&mut board, n, due, queue, priority);
    }
    let paused = QueueRule { paused: true, ..QueueRule::default() };
    assert!(board.set_rule(&name(1), Some(&paused), 0));
    let order: Vec<u8> = claim(&mut board, worker, 9).iter().map(|taken| taken.claim.id[15]).collect();
    assert_eq!(order, [3, 2, 1]);
    let rate = Rate { count: 1, period: 500_000, burst: 5 };
    assert!(board.set_rule(&name(1), Some(&QueueRule { rate: Some(rate), ..QueueRule::default() }), 0));
    assert_eq!(claim(&mut board, worker, 9).len(), 1);
}

proptest! {
    /// Whatever comes and goes: as long as a queue has tasks, it gets its share of what is taken, but for one task and one of each other.
    #[test]
    fn a_queue_that_has_tasks_gets_its_share(
        weights in prop::collection::vec(1..20_u16, 2..5),
        wants in prop::collection::vec((1..12_u32, 0..5_u16, 0..6_u16), 1..32),
    ) {
        let mut memory = memory();
        let mut board = memory.board();
        let worker = register(&mut board, &weights);
        // The first queue is never empty; the others come and go.
        for n in 0..400 {
            push(&mut board, n, i64::from(n), 0, 0);
        }
        let (mut next, mut all, mut first) = (400, 0_usize, 0_usize);
        for (want, queue, more) in wants {
            for _ in 0..more {
                if next < 590 && usize::from(queue) < weights.len() {
                    push(&mut board, next, 0, queue, 0);
                    next += 1;
                }
            }
            let taken = claim(&mut board, worker, want);
            prop_assert_eq!(taken.len(), want as usize);
            all += taken.len();
            first += count(&board, &taken, 0);
        }
        let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
        let share = all * usize::from(weights[0]) / total;
        prop_assert!(first + weights.len() + 1 >= share, "{} of {}: {:?}", first, all, weights);
    }
}
