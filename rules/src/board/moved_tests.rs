//! Changed rows: a task goes to where its row says, once.

use super::*;

fn id(n: u8) -> TaskId {
    let mut id = [0; 16];
    id[15] = n;
    id
}

fn name(text: &str) -> QueueName {
    QueueName::new(text).expect("a short name")
}

fn memory() -> OwnedBoard {
    OwnedBoard::new(&Sizes { entries: 8, lanes: 4, workers: 3, queues: 8 })
}

fn worker(board: &mut Board<'_>, n: u8, queue: &str) -> usize {
    let queues = [board.intern(&name(queue)).expect("a place is free")];
    let registration = Registration {
        id: [n; 16],
        name: Label::EMPTY,
        queues: &queues,
        weights: &[],
        kinds: None,
        lease: 60_000_000,
        role: 10,
        pid: 1,
    };
    board.register(&registration, 0).expect("a place is free")
}

fn push(board: &mut Board<'_>, n: u8, queue: &str, priority: i16) -> Pushed {
    board.push_due(&name(queue), priority, i64::from(n), id(n), Place::UNKNOWN)
}

fn to(n: u8, queue: &str, priority: i16) -> Belongs {
    Belongs { id: id(n), queue: name(queue), priority, due: i64::from(n), kind: Kind::new("A", "B") }
}

fn claimed(board: &mut Board<'_>, worker: usize) -> Vec<Claim> {
    let mut taken = Vec::new();
    board.claim(worker, 8, 100, &mut taken);
    taken.iter().map(|taken| taken.claim).collect()
}

fn numbers(claims: &[Claim]) -> Vec<u8> {
    claims.iter().map(|claim| claim.id[15]).collect()
}

#[test]
fn a_ready_task_goes_to_the_queue_and_the_priority_of_its_row() {
    let mut memory = memory();
    let mut board = memory.board();
    let (a, b) = (worker(&mut board, 1, "a"), worker(&mut board, 2, "b"));
    for n in 1..=4 {
        assert_eq!(push(&mut board, n, "a", 0), Pushed::Added);
    }
    assert_eq!(push(&mut board, 2, "a", 0), Pushed::Present);
    assert_eq!(push(&mut board, 2, "b", 0), Pushed::Elsewhere);
    assert_eq!(push(&mut board, 4, "a", -1), Pushed::Elsewhere);
    assert!(board.relocate(&to(2, "b", 0)) && board.relocate(&to(4, "a", -1)));
    // A hint from before the change, and the row once more: nothing moves.
    assert_eq!(push(&mut board, 2, "a", 0), Pushed::Elsewhere);
    assert!(board.relocate(&to(2, "b", 0)));
    assert_eq!(board.head.ready, 4);
    assert_eq!(numbers(&claimed(&mut board, b)), [2]);
    assert_eq!(numbers(&claimed(&mut board, a)), [4, 1, 3]);
}

#[test]
fn an_early_task_comes_first_in_the_lane_that_it_comes_to() {
    let mut memory = memory();
    let mut board = memory.board();
    let a = worker(&mut board, 1, "a");
    push(&mut board, 1, "a", 5);
    for n in 2..=6 {
        push(&mut board, n, "a", 0);
    }
    assert!(board.relocate(&to(1, "a", 0)));
    assert_eq!(numbers(&claimed(&mut board, a)), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_claimed_task_stays_with_its_worker_counts_in_the_other_queue_and_comes_back_to_it() {
    let mut memory = memory();
    let mut board = memory.board();
    let (a, b) = (worker(&mut board, 1, "a"), worker(&mut board, 2, "b"));
    let rule = QueueRule { concurrency: Some(5), ..QueueRule::default() };
    for queue in ["a", "b"] {
        assert!(board.set_rule(&name(queue), Some(&rule), 0));
    }
    push(&mut board, 1, "a", 0);
    let claims = claimed(&mut board, a);
    let running = |board: &mut Board<'_>| {
        ["a", "b"]
            .map(|queue| board.intern(&name(queue)).map(|queue| board.gates[usize::from(queue.0)].running()))
    };
    assert_eq!(running(&mut board), [Some(1), Some(0)]);
    assert_eq!(push(&mut board, 1, "b", 0), Pushed::Elsewhere);
    assert!(board.relocate(&to(1, "b", 0)));
    assert_eq!(running(&mut board), [Some(0), Some(1)]);
    assert_eq!((board.head.ready, board.head.claimed), (0, 1));
    assert!(board.give_back(&claims[0].id, claims[0].token));
    assert_eq!(running(&mut board), [Some(0), Some(0)]);
    assert_eq!(numbers(&claimed(&mut board, a)), []);
    assert_eq!(numbers(&claimed(&mut board, b)), [1]);
}

#[test]
fn a_task_that_waits_for_a_worker_that_knows_its_step_is_offered_to_all_when_its_step_is_another() {
    let mut memory = memory();
    let mut board = memory.board();
    let a = worker(&mut board, 1, "a");
    let kinds = [(Kind::new("A", "B"), 0)];
    push(&mut board, 1, "a", 0);
    let claims = claimed(&mut board, a);
    board.misfit(&claims[0].id, claims[0].token, Kind::new("Un", "known"), Label::EMPTY);
    let queues = [board.intern(&name("a")).expect("known")];
    let knows = Registration {
        id: [1; 16],
        name: Label::EMPTY,
        queues: &queues,
        weights: &[],
        kinds: Some(&kinds),
        lease: 60_000_000,
        role: 10,
        pid: 1,
    };
    let a = board.register(&knows, 0).expect("known");
    assert_eq!(numbers(&claimed(&mut board, a)), []);
    // A look at the row that finds the same step leaves it where it is.
    assert_eq!(push(&mut board, 1, "a", 0), Pushed::Elsewhere);
    assert!(board.relocate(&Belongs { kind: Kind::new("Un", "known"), ..to(1, "a", 0) }));
    assert_eq!(numbers(&claimed(&mut board, a)), []);
    assert!(board.relocate(&to(1, "a", 0)));
    assert_eq!(numbers(&claimed(&mut board, a)), [1]);
}

#[test]
fn without_room_for_its_lane_it_leaves_the_board_and_one_that_is_gone_stays_gone() {
    let mut memory = memory();
    let mut board = memory.board();
    for (n, queue) in [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "a")] {
        assert_eq!(push(&mut board, n, queue, 0), Pushed::Added);
    }
    assert!(!board.relocate(&to(5, "e", 0)));
    assert_eq!(board.head.ready, 4);
    assert!(board.relocate(&to(5, "e", 0)));
    assert_eq!(board.head.ready, 4);
    // The last of a lane makes room for itself.
    assert!(board.relocate(&to(1, "e", 0)));
    assert_eq!(board.head.ready, 4);
}
