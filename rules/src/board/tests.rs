//! The board against a model: random operations, and what must hold after each.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::token;
use crate::up_to;

pub(super) fn small() -> OwnedBoard {
    OwnedBoard::new(&Sizes { entries: 8, lanes: 4, workers: 3, queues: 3 })
}

fn id(n: u8) -> TaskId {
    let mut id = [0; 16];
    id[15] = n;
    id
}

pub(super) fn registration(n: u8) -> Registration<'static> {
    Registration {
        id: [n; 16],
        name: Label::EMPTY,
        queues: &[],
        weights: &[],
        kinds: None,
        lease: 60_000_000,
        role: 10,
        pid: i32::from(n),
    }
}

fn claim_all(board: &mut Board<'_>, worker: usize, want: u32, now: Micros) -> Vec<Claim> {
    let mut out = Vec::new();
    board.claim(worker, want, now, &mut out);
    out.iter().map(|taken| taken.claim).collect()
}

const Q: QueueId = QueueId(0);

#[test]
fn lower_priority_numbers_run_first_then_earlier_due_times() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("a place is free");
    for (n, due, priority) in [(1, 30, 0), (2, 10, 0), (3, 20, 0), (4, 99, -1), (5, 1, 7)] {
        assert_eq!(board.push_ready(id(n), due, Q, priority, Place::UNKNOWN), Pushed::Added);
    }
    let order: Vec<_> = claim_all(&mut board, worker, 10, 100).iter().map(|claim| claim.id[15]).collect();
    assert_eq!(order, [4, 2, 3, 1, 5]);
}

#[test]
fn two_queues_of_one_priority_are_merged_by_due_time() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("a place is free");
    for (n, due, queue) in [(1, 10, 0), (2, 20, 1), (3, 30, 0), (4, 40, 1)] {
        board.push_ready(id(n), due, QueueId(queue), 0, Place::UNKNOWN);
    }
    let order: Vec<_> = claim_all(&mut board, worker, 3, 100).iter().map(|claim| claim.id[15]).collect();
    assert_eq!(order, [1, 2, 3]);
}

#[test]
fn a_worker_gets_tasks_of_its_queues_only() {
    let mut memory = small();
    let mut board = memory.board();
    let queues = [QueueId(1)];
    let worker = board.register(&Registration { queues: &queues, ..registration(1) }, 0).expect("free");
    board.push_ready(id(1), 1, QueueId(0), 0, Place::UNKNOWN);
    board.push_ready(id(2), 2, QueueId(1), 0, Place::UNKNOWN);
    let claims = claim_all(&mut board, worker, 5, 10);
    assert_eq!(claims.iter().map(|claim| claim.id).collect::<Vec<_>>(), [id(2)]);
    assert_eq!(board.workers[worker].wanted, 4);
}

#[test]
fn names_of_queues_make_room_when_no_task_and_no_worker_refers_to_them() {
    let mut memory = small();
    let mut board = memory.board();
    let name = |text: &str| QueueName::new(text).expect("a short name");
    let [ready, claimed, named] =
        ["ready", "claimed", "named"].map(|text| board.intern(&name(text)).expect("three places"));
    let worker =
        board.register(&Registration { queues: &[claimed, named], ..registration(1) }, 0).expect("free");
    board.push_ready(id(1), 1, ready, 0, Place::UNKNOWN);
    board.push_ready(id(2), 1, claimed, 0, Place::UNKNOWN);
    let claim = claim_all(&mut board, worker, 1, 10)[0];
    assert_eq!(board.intern(&name("new")), None);

    // The worker names another queue from now on; the claim still refers to its own.
    board.register(&Registration { queues: &[ready], ..registration(1) }, 0).expect("known");
    assert_eq!(board.intern(&name("new")), Some(named));
    assert_eq!(board.queue_name(claimed), name("claimed"));
    board.push_ready(id(3), 1, named, 0, Place::UNKNOWN);
    assert_eq!(board.intern(&name("newer")), None);
    assert!(board.end_claim(&claim.id, claim.token));
    assert_eq!(board.intern(&name("newer")), Some(claimed));
    assert_eq!(board.queue_name(ready), name("ready"));
    assert_eq!(board.queue_name(named), name("new"));
}

fn queue(n: usize) -> QueueName {
    QueueName::new(&format!("queue {n}")).expect("a short name")
}

fn push_due(board: &mut Board<'_>, n: u8, due: Micros, of: usize, priority: i16) -> Pushed {
    board.push_due(&queue(of), priority, due, id(n), Place::UNKNOWN)
}

#[test]
fn what_can_wait_longest_gives_way_when_every_lane_is_taken() {
    let mut memory = OwnedBoard::new(&Sizes { entries: 64, lanes: 4, workers: 3, queues: 16 });
    let mut board = memory.board();
    // A worker takes queues 0 to 5; nobody takes queue 9.
    let mut numbers = Vec::new();
    assert!(board.intern_all(&[0, 1, 2, 3, 4, 5].map(queue), &mut numbers));
    board.register(&Registration { queues: &numbers, ..registration(1) }, 0).expect("free");
    assert!(board.wanted().has(&queue(0)) && !board.wanted().has(&queue(9)));
    for (n, due, of, priority) in [(1, 10, 0, 0), (2, 40, 1, 0), (3, 1, 2, 7), (4, 1, 9, -5), (5, 2, 9, -5)] {
        assert_eq!(push_due(&mut board, n, due, of, priority), Pushed::Added);
    }
    let rank = |unwanted, priority, due| Rank { unwanted, priority, due };
    let displace = |board: &mut Board<'_>, rank| {
        let mut out = Vec::new();
        assert_eq!(board.displace(rank, &mut out), !out.is_empty());
        out.iter().map(|task| task.id[15]).collect::<Vec<_>>()
    };
    assert_eq!(push_due(&mut board, 6, 20, 3, 0), Pushed::Full);
    // First what nobody takes, then the larger number of priority, then what was due last.
    assert_eq!(displace(&mut board, rank(true, -6, 0)), [4, 5]);
    assert_eq!(push_due(&mut board, 6, 20, 3, 0), Pushed::Added);
    assert_eq!(displace(&mut board, rank(false, 0, 30)), [3]);
    assert_eq!(push_due(&mut board, 7, 30, 4, 0), Pushed::Added);
    assert_eq!(displace(&mut board, rank(false, 0, 35)), [2]);
    assert_eq!(push_due(&mut board, 8, 35, 5, 0), Pushed::Added);
    assert_eq!(displace(&mut board, rank(false, 0, 35)), []);
    assert_eq!(board.head.ready, 4);
}

#[test]
fn half_of_the_board_is_kept_from_what_nobody_takes_or_knows() {
    let mut memory = OwnedBoard::new(&Sizes { entries: 8, lanes: 4, workers: 3, queues: 16 });
    let mut board = memory.board();
    assert!(board.has_room_for_unwanted(true));
    push_due(&mut board, 1, 1, 0, 0);
    push_due(&mut board, 2, 1, 1, 0);
    assert!(!board.has_room_for_unwanted(true) && board.has_room_for_unwanted(false));
    push_due(&mut board, 3, 1, 1, 0);
    push_due(&mut board, 4, 1, 1, 0);
    assert!(!board.has_room_for_unwanted(false));

    // Steps that no worker knows, all of one kind: they would fill the board from a single lane.
    board.reset();
    let worker = board.register(&registration(1), 0).expect("free");
    let mut kept = 0;
    for n in 10..30 {
        push_due(&mut board, n, 1, 2, 0);
        for claim in claim_all(&mut board, worker, 8, 5) {
            kept += usize::from(board.misfit(&claim.id, claim.token, Kind::new("a", "b"), Label::EMPTY));
            board.note_unknown(worker, Kind::new("a", "b"));
        }
    }
    assert_eq!((kept, board.head.ready), (4, 4));
    assert_eq!(push_due(&mut board, 31, 1, 3, 0), Pushed::Added);
}

#[test]
fn a_full_board_says_so_and_has_room_again_after_a_claim_ends() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    for n in 0..8 {
        assert_eq!(board.push_ready(id(n), 1, Q, 0, Place::UNKNOWN), Pushed::Added);
    }
    assert_eq!(board.push_ready(id(9), 1, Q, 0, Place::UNKNOWN), Pushed::Full);
    let claim = claim_all(&mut board, worker, 1, 10)[0];
    assert_eq!(board.push_ready(claim.id, 1, Q, 0, Place::UNKNOWN), Pushed::Present);
    assert_eq!(board.push_ready(id(9), 1, Q, 0, Place::UNKNOWN), Pushed::Full);
    assert!(board.end_claim(&claim.id, claim.token));
    assert_eq!(board.push_ready(id(9), 1, Q, 0, Place::UNKNOWN), Pushed::Added);
}

#[test]
fn a_finish_with_an_older_token_does_nothing() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    let first = claim_all(&mut board, worker, 1, 10)[0];
    assert!(board.give_back(&first.id, first.token));
    let second = claim_all(&mut board, worker, 1, 10)[0];
    assert!(second.token > first.token);
    assert!(!board.end_claim(&first.id, first.token));
    assert!(board.end_claim(&second.id, second.token));
}

#[test]
fn a_step_that_a_worker_does_not_know_waits_for_one_that_does() {
    let mut memory = small();
    let mut board = memory.board();
    let new = Kind::new("Task", "New");
    let old = board
        .register(&Registration { kinds: Some(&[(Kind::new("Task", "Old"), 0)]), ..registration(1) }, 0)
        .expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    let claim = claim_all(&mut board, old, 1, 10)[0];
    assert!(!board.workers[old].knows(new));
    assert!(board.misfit(&claim.id, claim.token, new, Label::new("Task/New")));
    assert!(claim_all(&mut board, old, 1, 11).is_empty());
    assert!(!board.has_work_for(old, 0));

    let both = [(Kind::new("Task", "Old"), 0), (new, 7)];
    let newer = board.register(&Registration { kinds: Some(&both), ..registration(2) }, 0).expect("free");
    assert_eq!(board.workers[newer].retry_limit(new), Some(7));
    assert_eq!(claim_all(&mut board, newer, 1, 12).len(), 1);
}

#[test]
fn a_worker_that_named_no_steps_can_still_learn_that_it_does_not_know_one() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    let kind = Kind::new("Task", "New");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    let claim = claim_all(&mut board, worker, 1, 10)[0];
    board.note_unknown(worker, kind);
    board.misfit(&claim.id, claim.token, kind, Label::new("Task/New"));
    assert!(claim_all(&mut board, worker, 1, 10).is_empty());
}

#[test]
fn only_as_many_idle_workers_are_woken_as_there_are_tasks_and_each_once() {
    let mut memory = small();
    let mut board = memory.board();
    for n in 1..=3 {
        let worker = board.register(&registration(n), 0).expect("free");
        claim_all(&mut board, worker, 2, 0);
    }
    for n in 0..3 {
        board.push_ready(id(n), 1, Q, 0, Place::UNKNOWN);
    }
    let mut woken = Vec::new();
    board.take_idle(0, &mut woken);
    assert_eq!(woken, [[1; 16], [2; 16]]);
    board.push_ready(id(4), 1, Q, 0, Place::UNKNOWN);
    woken.clear();
    board.take_idle(0, &mut woken);
    assert_eq!(woken, [[3; 16]]);
    woken.clear();
    board.take_idle(0, &mut woken);
    assert!(woken.is_empty());
}

#[test]
fn a_worker_that_was_just_given_tasks_is_woken_only_if_it_does_not_come_back_by_itself() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    assert_eq!(claim_all(&mut board, worker, 2, 10).len(), 1);
    board.note_wanted(worker, 1, 20);
    assert_eq!(board.next_return(10), None, "nothing is ready");
    board.push_ready(id(2), 1, Q, 0, Place::UNKNOWN);
    let mut woken = Vec::new();
    board.take_idle(10, &mut woken);
    assert!(woken.is_empty());
    assert_eq!(board.next_return(10), Some(20));
    // Another one that waits is woken at once.
    let other = board.register(&registration(2), 10).expect("free");
    board.note_wanted(other, 1, 0);
    board.take_idle(10, &mut woken);
    assert_eq!(woken, [[2; 16]]);
    woken.clear();
    board.take_idle(20, &mut woken);
    assert_eq!((woken.as_slice(), board.next_return(20)), (&[[1; 16]][..], None));
}

#[test]
fn a_worker_is_lost_after_the_grace_or_the_lease_and_not_before() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    assert_eq!(board.next_loss(2_000_000), Some(60_000_000));
    assert_eq!(board.take_lost(2_000_000, 59_999_999), None);
    assert!(board.heard(worker, 30_000_000));
    assert_eq!(board.next_loss(2_000_000), Some(90_000_000));
    assert!(!board.gone(&[1; 16], 99, 31_000_000), "another process than the one it is bound to");
    assert!(board.gone(&[1; 16], 1, 31_000_000));
    assert_eq!(board.take_lost(2_000_000, 32_999_999), None);
    assert_eq!(board.take_lost(2_000_000, 33_000_000), Some(worker));
    assert!(!board.heard(worker, 33_000_001), "a lost worker has to register again");
}

#[test]
fn a_worker_that_comes_back_within_the_grace_keeps_its_claims() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    let claim = claim_all(&mut board, worker, 1, 10)[0];
    board.gone(&[1; 16], 1, 20);
    assert_eq!(board.register(&registration(1), 30), Ok(worker));
    assert_eq!(board.claim_of(&claim.id).map(|entry| entry.token), Some(claim.token));
}

const ASSERTED: AssertedRow = AssertedRow {
    fence: 3,
    due: 1,
    queue: Q,
    priority: 0,
    kind: Kind::ANY,
    group: None,
    key: None,
    written: false,
    counted: false,
};

#[test]
fn an_asserted_claim_is_granted_unless_another_worker_has_the_task() {
    let mut memory = small();
    let mut board = memory.board();
    let row = ASSERTED;
    let held = Claim { id: id(1), token: 78 };
    let first = board.register(&registration(1), 0).expect("free");
    assert!(board.assert_claim(first, &held, &row, 5));
    assert!(board.assert_claim(first, &held, &row, 6), "saying it twice does no harm");
    let second = board.register(&registration(2), 0).expect("free");
    assert!(!board.assert_claim(second, &held, &row, 7));
    assert_eq!(board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN), Pushed::Present);
    assert!(board.end_claim(&held.id, 78));
}

#[test]
fn an_asserted_claim_whose_attempt_the_row_counts_is_not_counted_again() {
    let mut memory = small();
    let mut board = memory.board();
    let row = AssertedRow { written: true, counted: true, ..ASSERTED };
    let worker = board.register(&registration(1), 0).expect("free");
    assert!(board.assert_claim(worker, &Claim { id: id(1), token: 78 }, &row, 5));
    assert!(board.claim_of(&id(1)).is_some_and(Entry::is_counted));
}

#[test]
fn the_next_step_s_own_retries_count_when_its_worker_is_lost() {
    let (first, second) = (Kind::new("T", "First"), Kind::new("T", "Second"));
    let mut memory = small();
    let mut board = memory.board();
    let kinds = [(first, 0), (second, 9)];
    let worker = board.register(&Registration { kinds: Some(&kinds), ..registration(1) }, 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    let claim = claim_all(&mut board, worker, 1, 10)[0];
    board.note_row(&claim, &ClaimedRow { fence: 0, kind: first, place: Place::UNKNOWN, counted: false });
    let next = Advance { token: board.next_token(), fence: 1, place: Place::UNKNOWN, kind: second };
    assert!(board.advance(&claim.id, claim.token, &next, 10));
    assert_eq!(board.claim_of(&id(1)).map(|entry| entry.retry_limit), Some(9));
}

#[test]
fn a_chain_gives_way_to_better_priorities_and_after_a_hundred_steps_to_its_equals() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    let mut claim = claim_all(&mut board, worker, 1, 10)[0];
    board.push_ready(id(2), 1, Q, 0, Place::UNKNOWN);
    for step in 0..100 {
        assert!(board.may_continue(&claim.id, claim.token), "step {step}");
        let next = board.next_token();
        assert!(board.advance(
            &claim.id,
            claim.token,
            &Advance { token: next, fence: step, place: Place::UNKNOWN, kind: Kind::ANY },
            10
        ));
        claim.token = next;
    }
    assert!(!board.may_continue(&claim.id, claim.token));
    board.remove_ready(&id(2));
    assert!(board.may_continue(&claim.id, claim.token));
    board.push_ready(id(3), 1, Q, -1, Place::UNKNOWN);
    assert!(!board.may_continue(&claim.id, claim.token));
}

#[test]
fn a_cancelled_task_is_told_once_to_its_worker() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    board.push_ready(id(2), 2, Q, 0, Place::UNKNOWN);
    let claim = claim_all(&mut board, worker, 1, 10)[0];
    assert_eq!(board.cancel(&id(1)), Some(worker));
    assert_eq!(board.cancel(&id(2)), None);
    assert!(!board.is_ready(&id(2)));
    let mut woken = Vec::new();
    board.take_told(&mut woken);
    board.take_told(&mut woken);
    assert_eq!(woken, [[1; 16]]);
    let mut told = Vec::new();
    board.take_cancels(worker, &mut told);
    board.take_cancels(worker, &mut told);
    assert_eq!(told, [claim]);
    // The call that was to tell it has failed; of one that was never claimed nothing is told.
    told.clear();
    board.not_told(&id(1));
    board.not_told(&id(2));
    board.take_cancels(worker, &mut told);
    board.take_cancels(worker, &mut told);
    assert_eq!(told, [claim]);
}

#[test]
fn claims_are_written_down_once_when_they_are_old_enough() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    board.push_ready(id(2), 1, Q, 0, Place::UNKNOWN);
    let first = claim_all(&mut board, worker, 1, 10)[0];
    let second = claim_all(&mut board, worker, 1, 20)[0];
    let row = ClaimedRow { fence: 4, kind: Kind::new("a", "b"), counted: false, place: Place::UNKNOWN };
    board.note_row(&first, &row);
    board.note_row(&second, &ClaimedRow { fence: 5, ..row });
    assert_eq!(board.oldest_unwritten(), Some(10));
    let mut out = Vec::new();
    board.take_unwritten(15, 10, &mut out);
    assert_eq!(out.iter().map(|(_, entry)| (entry.id, entry.fence)).collect::<Vec<_>>(), [(id(1), 4)]);
    assert_eq!(board.oldest_unwritten(), Some(20));
}

#[test]
fn nothing_is_written_down_about_a_task_whose_worker_is_only_asked() {
    let mut memory = small();
    let mut board = memory.board();
    let worker = board.register(&registration(1), 0).expect("free");
    board.push_ready(id(1), 1, Q, 0, Place::UNKNOWN);
    let claim = claim_all(&mut board, worker, 1, 10)[0];
    let row = ClaimedRow { fence: 4, kind: Kind::new("a", "b"), counted: false, place: Place::UNKNOWN };
    board.note_row(&claim, &row);
    board.note_asked(&claim);
    assert_eq!(board.oldest_unwritten(), None);
    let mut out = Vec::new();
    board.take_unwritten(15, 10, &mut out);
    assert!(out.is_empty());
    let entry = *board.claim_of(&id(1)).expect("claimed");
    assert!(entry.is_asked() && !entry.is_written() && !entry.is_counted());
    // The worker brings the mark back after a crash of the server, with its token.
    assert_eq!(entry.token, claim.asked().token);
    board.reset();
    let worker = board.register(&registration(1), 0).expect("free");
    assert!(board.assert_claim(worker, &claim.asked(), &ASSERTED, 30));
    assert!(board.claim_of(&id(1)).is_some_and(|entry| entry.is_asked() && !entry.is_written()));
    assert_eq!(board.oldest_unwritten(), None);
    // Given back, it may be run by the next one.
    board.give_back(&claim.id, claim.token);
    let claim = claim_all(&mut board, worker, 1, 20)[0];
    board.note_row(&claim, &row);
    assert!(board.claim_of(&id(1)).is_some_and(|entry| !entry.is_asked()));
}

#[test]
fn names_of_queues_that_nothing_uses_make_place_for_others() {
    let mut memory = small();
    let mut board = memory.board();
    let name = |n: usize| QueueName::new(&format!("queue {n}")).expect("a name");
    let worker_queue = board.intern(&name(0)).expect("three places");
    board.register(&Registration { queues: &[worker_queue], ..registration(1) }, 0).expect("a place is free");
    let busy = board.intern(&name(1)).expect("three places");
    board.push_ready(id(1), 1, busy, 0, Place::UNKNOWN);
    for n in 2..100 {
        assert!(board.intern(&name(n)).is_some(), "the third place is free for queue {n}");
    }
    assert_eq!(board.queue_name(worker_queue), name(0));
    assert_eq!(board.queue_name(busy), name(1));
    let mut both = Vec::new();
    assert!(!board.intern_all(&[name(200), name(201)], &mut both), "one place for two names");
    assert!(board.remove_ready(&id(1)));
    both.clear();
    assert!(board.intern_all(&[name(200), name(201)], &mut both));
    assert_eq!(both.iter().map(|queue| board.queue_name(*queue)).collect::<Vec<_>>(), [name(200), name(201)]);
}

#[derive(Clone, Debug)]
enum Op {
    Push(u8, i64, u16, i16),
    Claim(usize, u32),
    End(u8),
    GiveBack(u8),
    Misfit(u8),
    Advance(u8),
    Remove(u8),
    Cancel(u8),
    Leave(usize),
    Lose(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..12_u8, 0..50_i64, 0..2_u16, -1..2_i16).prop_map(|(n, due, queue, priority)| Op::Push(n, due, queue, priority)),
        4 => (0..3_usize, 0..4_u32).prop_map(|(worker, want)| Op::Claim(worker, want)),
        2 => (0..12_u8).prop_map(Op::End),
        2 => (0..12_u8).prop_map(Op::GiveBack),
        1 => (0..12_u8).prop_map(Op::Misfit),
        1 => (0..12_u8).prop_map(Op::Advance),
        1 => (0..12_u8).prop_map(Op::Remove),
        1 => (0..12_u8).prop_map(Op::Cancel),
        1 => (0..3_usize).prop_map(Op::Leave),
        1 => (0..3_usize).prop_map(Op::Lose),
    ]
}

proptest! {
    /// Whatever happens in whatever order: a task is on the board at most once, a claim has one holder, tokens only grow, every
    /// list agrees with the counters, and no place is lost.
    #[test]
    fn exclusion_and_bookkeeping_hold_under_any_order_of_operations(ops in prop::collection::vec(op(), 1..up_to(300))) {
        let mut memory = small();
        let mut ready = BTreeSet::new();
        let mut claimed: BTreeMap<u8, (usize, i64)> = BTreeMap::new();
        let mut last_token = 0;
        for n in 1..=3 {
            memory.board().register(&registration(n), 0).expect("free");
        }
        for op in ops {
            let mut board = memory.board();
            match op {
                Op::Push(n, due, queue, priority) => match board.push_ready(id(n), due, QueueId(queue), priority, Place::UNKNOWN) {
                    Pushed::Added => {
                        prop_assert!(!claimed.contains_key(&n));
                        prop_assert!(ready.insert(n));
                    }
                    Pushed::Present => prop_assert!(ready.contains(&n) || claimed.contains_key(&n)),
                    Pushed::Elsewhere => {
                        prop_assert!(ready.contains(&n) || claimed.contains_key(&n));
                        let name = board.queue_name(QueueId(queue));
                        let to = Belongs { id: id(n), queue: name, priority, due, kind: Kind::ANY };
                        if name != QueueName::EMPTY && !board.relocate(&to) {
                            prop_assert!(ready.remove(&n));
                        }
                    }
                    Pushed::Full => prop_assert!(ready.len() + claimed.len() == 8 || board.lanes_in_use().count() == 4),
                },
                Op::Claim(worker, want) => {
                    for claim in claim_all(&mut board, worker, want, 100) {
                        let n = claim.id[15];
                        prop_assert!(ready.remove(&n));
                        prop_assert!(claim.token > last_token);
                        last_token = claim.token;
                        prop_assert!(claimed.insert(n, (worker, claim.token)).is_none());
                    }
                }
                Op::End(n) => {
                    let token = claimed.get(&n).map_or(-1, |claim| claim.1);
                    prop_assert!(!board.end_claim(&id(n), token.wrapping_add(token::STEP)));
                    prop_assert_eq!(board.end_claim(&id(n), token), claimed.remove(&n).is_some());
                }
                Op::GiveBack(n) | Op::Misfit(n) => {
                    if let Some((_, token)) = claimed.remove(&n) {
                        let back = match op {
                            Op::Misfit(_) => board.misfit(&id(n), token, Kind::new("a", "b"), Label::EMPTY),
                            _ => board.give_back(&id(n), token),
                        };
                        if back {
                            ready.insert(n);
                        }
                    }
                }
                Op::Advance(n) => {
                    if let Some((_, token)) = claimed.get_mut(&n) {
                        let next = board.next_token();
                        let step = Advance { token: next, fence: 1, place: Place::UNKNOWN, kind: Kind::ANY };
                        prop_assert!(board.advance(&id(n), *token, &step, 200));
                        *token = next;
                        last_token = next;
                    }
                }
                Op::Remove(n) => prop_assert_eq!(board.remove_ready(&id(n)), ready.remove(&n)),
                Op::Cancel(n) => {
                    prop_assert_eq!(board.cancel(&id(n)), claimed.get(&n).map(|claim| claim.0));
                    ready.remove(&n);
                }
                Op::Leave(worker) | Op::Lose(worker) => {
                    if matches!(op, Op::Lose(_)) {
                        board.workers[worker].heartbeat_at = Micros::MIN / 2;
                        prop_assert_eq!(board.take_lost(0, 0), Some(worker));
                        prop_assert!(claim_all(&mut board, worker, 5, 1).is_empty());
                    }
                    board.leave(worker);
                    let back: Vec<u8> = claimed.iter().filter(|(_, claim)| claim.0 == worker).map(|(n, _)| *n).collect();
                    for n in back {
                        claimed.remove(&n);
                        if board.is_ready(&id(n)) {
                            ready.insert(n);
                        }
                    }
                    prop_assert_eq!(board.register(&registration(worker as u8 + 1), 1), Ok(worker));
                }
            }
            let board = memory.board();
            prop_assert_eq!(board.head.ready as usize, ready.len());
            prop_assert_eq!(board.head.claimed as usize, claimed.len());
            prop_assert_eq!(board.lanes_in_use().map(|lane| lane.len as usize).sum::<usize>(), ready.len());
            for worker in 0..3 {
                let held: BTreeSet<u8> = board.claims_of(worker).map(|entry| entry.id[15]).collect();
                let expected: BTreeSet<u8> =
                    claimed.iter().filter(|(_, claim)| claim.0 == worker).map(|(n, _)| *n).collect();
                prop_assert_eq!(held.len() as u32, board.workers[worker].claimed);
                prop_assert_eq!(held, expected);
            }
            let mut free = 0;
            let mut index = board.head.free;
            while index != NIL {
                free += 1;
                index = board.entries[index as usize].next;
            }
            prop_assert_eq!(free, board.room());
        }
    }
}
