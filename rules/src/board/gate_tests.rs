//! Gates against a model: whatever happens in whatever order, no more runs than is allowed, and nothing waits that is allowed.

use proptest::prelude::*;

use super::*;
use crate::bucket::Rate;
use crate::up_to;

const SECOND: Micros = 1_000_000;

fn memory() -> OwnedBoard {
    OwnedBoard::new(&Sizes { entries: 24, lanes: 6, workers: 2, queues: 8 })
}

fn name(n: u8) -> QueueName {
    QueueName::new(if n == 9 { ALL_QUEUES } else { ["a", "b", "c"][usize::from(n)] }).expect("a name")
}

fn id(n: u8) -> TaskId {
    let mut id = [0; 16];
    id[15] = n;
    id
}

/// The step of a task.
fn kind(n: u8) -> Kind {
    Kind::new("task", ["a", "b", "c"][usize::from(n % 3)])
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

fn push(board: &mut Board<'_>, n: u8, queue: u8) {
    assert_eq!(board.push_due(&name(queue), 0, i64::from(n), id(n), Place::UNKNOWN), Pushed::Added);
}

fn claim(board: &mut Board<'_>, worker: usize, want: u32, now: Micros) -> Vec<Claim> {
    let mut out = Vec::new();
    board.claim(worker, want, now, &mut out);
    out.iter().map(|taken| taken.claim).collect()
}

fn limit(concurrency: u32) -> QueueRule {
    QueueRule { concurrency: Some(concurrency), ..QueueRule::default() }
}

#[test]
fn a_paused_queue_gives_nothing_and_another_one_does() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, 1);
    push(&mut board, 1, 0);
    push(&mut board, 2, 1);
    assert!(board.set_rule(&name(0), Some(&QueueRule { paused: true, ..QueueRule::default() }), 0));
    assert_eq!(claim(&mut board, worker, 5, 0).len(), 1);
    assert!(!board.has_work_for(worker, 0) && !board.may_hand_out(0));
    let mut woken = Vec::new();
    board.take_idle(0, &mut woken);
    assert!(woken.is_empty(), "nobody is woken for what is paused");
    assert!(board.set_rule(&name(0), None, 0));
    board.take_idle(0, &mut woken);
    assert_eq!(woken.len(), 1);
    assert_eq!(claim(&mut board, worker, 5, 0).len(), 1);
}

#[test]
fn a_running_chain_stops_at_a_pause_and_a_limit_lets_it_go_on_in_its_place() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, 1);
    push(&mut board, 1, 0);
    let first = claim(&mut board, worker, 1, 0)[0];
    assert!(board.set_rule(&name(0), Some(&limit(1)), 0));
    assert!(board.may_continue(&first.id, first.token));
    push(&mut board, 2, 1);
    assert!(board.set_rule(&name(1), Some(&QueueRule { paused: true, ..QueueRule::default() }), 0));
    assert!(board.may_continue(&first.id, first.token), "what is paused waits for nobody's place");
    assert!(board.set_rule(&name(9), Some(&QueueRule { paused: true, ..QueueRule::default() }), 0));
    assert!(!board.may_continue(&first.id, first.token));
}

#[test]
fn a_call_that_brings_a_result_takes_the_place_that_becomes_free_and_no_other_call_does() {
    let mut memory = memory();
    let mut board = memory.board();
    let (one, two) = (register(&mut board, 1), register(&mut board, 2));
    assert!(board.set_rule(&name(0), Some(&limit(1)), 0));
    push(&mut board, 1, 0);
    push(&mut board, 2, 0);
    let first = claim(&mut board, one, 1, 0)[0];
    let leaving = board.leaving([(first.id, first.token)].into_iter());
    assert!(claim(&mut board, two, 1, 0).is_empty());
    let mut out = Vec::new();
    board.claim_beside(one, 1, 0, &leaving, &mut out);
    assert_eq!(out.len(), 1);
    assert!(board.end_claim(&first.id, first.token));
    assert!(!board.has_freed_place(0), "the place is taken already");
    assert!(board.end_claim(&out[0].claim.id, out[0].claim.token));
    push(&mut board, 3, 0);
    assert!(board.has_freed_place(0), "the second worker waits for it");
}

#[test]
fn after_a_start_nothing_limited_goes_before_workers_have_spoken_and_rows_that_say_they_run_count() {
    let mut memory = memory();
    let mut board = memory.board();
    board.set_settling(SECOND, 60 * SECOND);
    assert!(board.set_rule(&name(0), Some(&limit(2)), 0));
    board.set_held(&name(0), &[id(7), id(8)]);
    let worker = register(&mut board, 1);
    for n in 1..=3 {
        push(&mut board, n, 0);
    }
    push(&mut board, 4, 1);
    assert_eq!(claim(&mut board, worker, 9, 0).iter().map(|claim| claim.id).collect::<Vec<_>>(), [id(4)]);
    assert_eq!(board.next_opening(0), Some(60 * SECOND));
    assert!(claim(&mut board, worker, 9, SECOND).is_empty());
    // One comes back, and its result.
    let queue = board.intern(&name(0)).expect("known");
    let row = AssertedRow {
        fence: 0,
        due: 0,
        queue,
        priority: 0,
        kind: Kind::ANY,
        group: None,
        key: None,
        written: true,
        counted: false,
    };
    assert!(board.assert_claim(worker, &Claim { id: id(7), token: 1 }, &row, SECOND));
    assert!(claim(&mut board, worker, 9, SECOND).is_empty());
    assert!(board.end_claim(&id(7), 1));
    assert_eq!(claim(&mut board, worker, 9, SECOND).len(), 1);
    // The other one does not.
    assert_eq!(claim(&mut board, worker, 9, 60 * SECOND).len(), 1);
}

#[test]
fn a_rate_says_when_its_next_task_may_go_and_takes_nothing_for_a_claim_that_comes_to_nothing() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, 1);
    let rate = Rate { count: 1, period: SECOND, burst: 2 };
    assert!(board.set_rule(&name(0), Some(&QueueRule { rate: Some(rate), ..QueueRule::default() }), 0));
    for n in 1..=5 {
        push(&mut board, n, 0);
    }
    assert!(claim(&mut board, worker, 9, 0).is_empty());
    assert_eq!(board.next_opening(0), Some(SECOND));
    let claims = claim(&mut board, worker, 9, 2 * SECOND);
    assert_eq!(claims.len(), 2);
    board.withdraw(&claims[0]);
    board.withdraw(&claims[0]);
    assert!(board.end_claim(&claims[0].id, claims[0].token));
    assert_eq!(claim(&mut board, worker, 9, 2 * SECOND).len(), 1);
    assert_eq!(board.next_opening(2 * SECOND), Some(3 * SECOND));
}

#[test]
fn what_is_set_outlives_a_reset_and_not_a_clear() {
    let mut memory = memory();
    let mut board = memory.board();
    board.intern(&name(2));
    assert!(board.set_rule(&name(1), Some(&QueueRule { paused: true, ..QueueRule::default() }), 0));
    assert!(board.set_rule(&name(9), Some(&limit(3)), 0));
    board.reset();
    assert_eq!(board.ruled().collect::<Vec<_>>(), [name(1), name(9)]);
    let worker = register(&mut board, 1);
    push(&mut board, 1, 1);
    assert!(claim(&mut board, worker, 1, 0).is_empty());
    board.clear();
    assert_eq!(board.ruled().count(), 0);
    let worker = register(&mut board, 1);
    push(&mut board, 1, 1);
    assert_eq!(claim(&mut board, worker, 1, 0).len(), 1);
}

#[test]
fn settings_leave_half_of_the_names_to_queues_without_settings() {
    let mut memory = OwnedBoard::new(&Sizes { entries: 4, lanes: 4, workers: 1, queues: 4 });
    let mut board = memory.board();
    assert!(board.set_rule(&name(0), Some(&limit(1)), 0) && board.set_rule(&name(9), Some(&limit(1)), 0));
    assert!(board.set_rule(&name(1), Some(&limit(1)), 0));
    assert!(!board.set_rule(&name(2), Some(&limit(1)), 0));
    assert!(board.set_rule(&name(1), Some(&limit(2)), 0), "what has a place keeps it");
    assert!(board.set_rule(&name(1), None, 0));
    assert!(board.set_rule(&name(2), Some(&limit(1)), 0));
}

#[test]
fn a_step_at_its_limit_waits_in_a_lane_of_its_own_and_others_pass_it() {
    let mut memory = memory();
    let mut board = memory.board();
    let worker = register(&mut board, 1);
    assert!(board.set_kind_limit(kind(0), Some(1)));
    for n in [0, 3, 6, 1] {
        push(&mut board, n, 0);
    }
    let mut begun = Vec::new();
    for claim in claim(&mut board, worker, 9, 0) {
        if board.admit(&claim, kind(claim.id[15]), 0, &Leaving::default()) {
            begun.push(claim);
        } else {
            board.misfit(&claim.id, claim.token, kind(claim.id[15]), Label::EMPTY);
        }
    }
    assert_eq!(begun.iter().map(|claim| claim.id[15]).collect::<Vec<_>>(), [0, 1]);
    assert!(claim(&mut board, worker, 9, 0).is_empty() && !board.may_hand_out(0));
    // The call that brings the first one's result takes the next; a step that follows is another one.
    let leaving = board.leaving([(begun[0].id, begun[0].token)].into_iter());
    let mut out = Vec::new();
    board.claim_beside(worker, 9, 0, &leaving, &mut out);
    assert_eq!(out.len(), 1);
    assert!(board.end_claim(&begun[0].id, begun[0].token));
    let next = Advance { token: board.next_token(), fence: 1, place: Place::UNKNOWN, kind: Kind::ANY };
    assert!(board.advance(&out[0].claim.id, out[0].claim.token, &next, 0));
    assert_eq!(board.running_of_kind(kind(0)), Some(0));
    assert_eq!(claim(&mut board, worker, 9, 0).len(), 1);
    assert!(board.set_kind_limit(kind(0), None) && board.running_of_kind(kind(0)).is_none());
}

#[derive(Clone, Debug)]
enum Op {
    Push(u8, u8),
    Claim(usize, u32),
    End(u8),
    GiveBack(u8),
    Assert(u8, u8),
    Rule(u8, Option<(bool, Option<u32>, bool)>),
    Limit(u8, Option<u32>),
    Pass(Micros),
}

fn op() -> impl Strategy<Value = Op> {
    let queue = || prop_oneof![4 => 0..3_u8, 1 => Just(9)];
    let rule = (prop::bool::weighted(0.2), prop::option::of(1..5_u32), any::<bool>());
    prop_oneof![
        6 => (0..20_u8, 0..3_u8).prop_map(|(n, queue)| Op::Push(n, queue)),
        5 => (0..2_usize, 1..6_u32).prop_map(|(worker, want)| Op::Claim(worker, want)),
        4 => (0..20_u8).prop_map(Op::End),
        2 => (0..20_u8).prop_map(Op::GiveBack),
        1 => (0..20_u8, 0..3_u8).prop_map(|(n, queue)| Op::Assert(n, queue)),
        2 => (queue(), prop::option::of(rule)).prop_map(|(queue, rule)| Op::Rule(queue, rule)),
        2 => (0..3 * SECOND).prop_map(Op::Pass),
        2 => (0..3_u8, prop::option::of(1..4_u32)).prop_map(|(kind, limit)| Op::Limit(kind, limit)),
    ]
}

proptest! {
    #[test]
    fn never_more_than_is_allowed_at_once_and_nothing_waits_that_is_allowed(ops in prop::collection::vec(op(), 1..up_to(200))) {
        let mut memory = memory();
        let mut rules: [Option<QueueRule>; 10] = [None; 10];
        let mut limits: [Option<u32>; 3] = [None; 3];
        let mut claimed: std::collections::BTreeMap<u8, (u8, i64)> = std::collections::BTreeMap::new();
        let (mut now, mut token) = (0, 1_000_000);
        let workers = [1, 2].map(|n| register(&mut memory.board(), n));
        for op in ops {
            let mut board = memory.board();
            match op {
                Op::Push(n, queue) => _ = board.push_due(&name(queue), 0, i64::from(n), id(n), Place::UNKNOWN),
                Op::Claim(worker, want) => {
                    let before = claimed.clone();
                    let mut out = Vec::new();
                    board.claim(workers[worker], want, now, &mut out);
                    let (got, mut refused) = (out.len() as u32, 0);
                    for taken in out {
                        let queue = (0..3).find(|&n| board.queue_name(taken.queue) == name(n)).expect("a name");
                        let n = taken.claim.id[15];
                        let at = claimed.keys().filter(|other| *other % 3 == n % 3).count() as u32;
                        let limit = limits[usize::from(n % 3)];
                        if board.admit(&taken.claim, kind(n), now, &Leaving::default()) {
                            prop_assert!(limit.is_none_or(|limit| at < limit), "{at} of {limit:?}");
                            let row = ClaimedRow { fence: 0, kind: kind(n), place: Place::UNKNOWN, counted: false };
                            board.note_row(&taken.claim, &row);
                            prop_assert!(claimed.insert(n, (queue, taken.claim.token)).is_none());
                        } else {
                            // One that was taken from the lane of its kind may come after it and count already.
                            prop_assert!(board.running_of_kind(kind(n)) >= limit && limit.is_some());
                            refused += 1;
                            board.withdraw(&taken.claim);
                            board.misfit(&taken.claim.id, taken.claim.token, kind(n), Label::EMPTY);
                        }
                    }
                    let count = |claimed: &std::collections::BTreeMap<u8, (u8, i64)>, of: u8| {
                        claimed.values().filter(|(queue, _)| of == 9 || *queue == of).count() as u32
                    };
                    for queue in [0, 1, 2, 9_u8] {
                        let (was, is) = (count(&before, queue), count(&claimed, queue));
                        let Some(rule) = rules[usize::from(queue)] else { continue };
                        if is > was {
                            prop_assert!(!rule.paused, "{queue} is paused");
                            prop_assert!(rule.concurrency.is_none_or(|limit| is <= limit), "{is} of {queue}: {rule:?}");
                        }
                    }
                    // What was refused may have made room for others: they come with the next call.
                    if got < want && refused == 0 {
                        prop_assert!(!board.may_hand_out(now), "something that is allowed waits");
                    }
                }
                Op::End(n) => {
                    if let Some((_, token)) = claimed.remove(&n) {
                        prop_assert!(board.end_claim(&id(n), token));
                    }
                }
                Op::GiveBack(n) => {
                    if let Some((_, token)) = claimed.remove(&n) {
                        board.withdraw(&Claim { id: id(n), token });
                        board.give_back(&id(n), token);
                    }
                }
                Op::Assert(n, queue) => {
                    let Some(number) = board.intern(&name(queue)) else { continue };
                    token += 1;
                    let row = AssertedRow {
                        fence: 0, due: 0, queue: number, priority: 0, kind: kind(n), written: n % 2 == 0, counted: false,
                        group: None, key: None,
                    };
                    if board.assert_claim(workers[0], &Claim { id: id(n), token }, &row, now) {
                        claimed.insert(n, (queue, token));
                    }
                }
                Op::Rule(queue, rule) => {
                    let rule = rule.map(|(paused, concurrency, rated)| QueueRule {
                        paused,
                        concurrency,
                        rate: rated.then_some(Rate { count: 2, period: SECOND, burst: 3 }),
                        ..QueueRule::default()
                    });
                    prop_assert!(board.set_rule(&name(queue), rule.as_ref(), now));
                    rules[usize::from(queue)] = rule;
                }
                Op::Pass(time) => now += time,
                Op::Limit(of, limit) => {
                    prop_assert!(board.set_kind_limit(kind(of), limit));
                    limits[usize::from(of)] = limit;
                }
            }
            let board = memory.board();
            let set = rules.iter().filter(|rule| rule.is_some()).count() + limits.iter().flatten().count();
            prop_assert_eq!(board.head.gates as usize, set);
            for queue in 0..3_u8 {
                let Some(place) = board.queues.iter().position(|known| *known == name(queue)) else { continue };
                let claims = claimed.values().filter(|(of, _)| *of == queue).count() as u32;
                let counted = board.gates[place].running();
                prop_assert!(!board.gates[place].is_set() || counted == claims, "{counted} of {claims} in {queue}");
            }
            for of in 0..3_u8 {
                let claims = claimed.keys().filter(|n| *n % 3 == of).count() as u32;
                prop_assert!(board.running_of_kind(kind(of)).is_none_or(|running| running == claims), "{claims} at {of}");
            }
            // What is closed for a time opens at the moment that is told.
            if let Some(at) = board.next_opening(now) {
                prop_assert!(board.may_hand_out(at) && at > now);
            }
        }
    }
}
