//! The board's memory under calls with any values that can reach it: tiny sizes, ids and tokens of nobody, times at the ends of their range.
//! Nothing panics or runs for ever, and every index and counter stays right.

use proptest::prelude::*;

use super::*;
use crate::bucket::Rate;

/// What every list and counter has to agree on.
fn check(board: &Board<'_>) {
    let mut seen = vec![0_u8; board.entries.len()];
    let mut walk = |first: u32, list: &str| {
        let (mut index, mut count) = (first, 0_u32);
        while index != NIL {
            let at = index as usize;
            assert!(at < seen.len(), "{list}: index {index} of {}", seen.len());
            seen[at] += 1;
            assert_eq!(seen[at], 1, "{list}: entry {index} is in two lists, or the list is a ring");
            count += 1;
            index = board.entries[at].next;
        }
        count
    };
    let free = walk(board.head.free, "free");
    let mut ready = 0;
    assert!(usize::from(board.head.lanes) <= board.lanes.len());
    for (number, lane) in board.lanes[..usize::from(board.head.lanes)].iter().enumerate() {
        if lane.len > 0 {
            assert_eq!(walk(lane.first, "lane"), lane.len);
            assert_eq!(board.entries[lane.last as usize].owner as usize, number);
            ready += lane.len;
        }
    }
    let (mut claimed, mut workers) = (0, 0);
    for slot in board.workers.iter() {
        workers += u32::from(slot.state != WorkerState::Free);
        assert_eq!(walk(slot.first, "worker"), slot.claimed);
        claimed += slot.claimed;
    }
    assert_eq!((ready, claimed, workers), (board.head.ready, board.head.claimed, board.head.workers));
    assert_eq!((free + ready + claimed) as usize, board.entries.len());
    assert_eq!(free as usize, board.room());
    let mut places = vec![0_u8; board.progress.len()];
    let mut at = board.head.progress_free;
    while at != NIL {
        places[at as usize] += 1;
        assert_eq!(places[at as usize], 1, "the free places for progress are a ring");
        at = board.next_free_progress(at);
    }
    for entry in board.entries.iter().filter(|entry| entry.progress != NIL) {
        assert_eq!(entry.state, EntryState::Claimed);
        places[entry.progress as usize] += 1;
    }
    assert!(places.iter().all(|&count| count == 1), "a place for progress is lost, or in use twice");
    for entry in board.entries.iter().filter(|entry| entry.state != EntryState::Free) {
        let found = board.find(&entry.id).expect("it is found by its id");
        assert_eq!(board.entries[found as usize].id, entry.id);
        assert!(usize::from(entry.queue.0) < board.queues.len());
    }
}

fn id(n: u8) -> TaskId {
    [n; 16]
}

fn queue(n: u8) -> QueueName {
    QueueName::new(&"q".repeat(usize::from(n) + 1)).expect("a name")
}

fn kind(n: u8) -> Kind {
    if n == 0 { Kind::ANY } else { Kind::new("task", &"s".repeat(n.into())) }
}

/// Moments and other numbers: small ones, and the ends of the range.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -3..20_i64, 1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => any::<i64>()]
}

/// Numbers without their meaning: each operation takes of them what it needs.
#[derive(Clone, Debug)]
struct Call {
    what: u8,
    task: u8,
    worker: u8,
    name: u8,
    priority: i16,
    small: u32,
    one: i64,
    two: i64,
    flag: bool,
}

fn call() -> impl Strategy<Value = Call> {
    let priority = prop_oneof![-1..2_i16, Just(i16::MIN), Just(i16::MAX)];
    (0..22_u8, 0..7_u8, 0..5_u8, 0..5_u8, priority, 0..9_u32, number(), number(), any::<bool>()).prop_map(
        |(what, task, worker, name, priority, small, one, two, flag)| Call {
            what,
            task,
            worker,
            name,
            priority,
            small,
            one,
            two,
            flag,
        },
    )
}

fn apply(board: &mut Board<'_>, call: &Call) {
    let Call { what, task, worker, name, priority, small, one, two, flag } = call.clone();
    let task = id(task);
    let place = board.find_worker(&[worker; 16]);
    // Half of the tokens are right.
    let token = board.claim_of(&task).filter(|_| flag).map_or(one, |entry| entry.token);
    let claim = Claim { id: task, token };
    let mut workers = Vec::new();
    match (what, place) {
        (0..4, _) => {
            let pushed = board.push_due(&queue(name), priority, one, task, Place::UNKNOWN);
            if pushed == Pushed::Elsewhere {
                let to = Belongs { id: task, queue: queue(name), priority, due: one, kind: kind(name) };
                board.relocate(&to);
            }
        }
        (4 | 5, _) => {
            let mut queues = Vec::new();
            let names: Vec<QueueName> =
                (0..small % 3).map(|n| queue(name.wrapping_add(n as u8) % 5)).collect();
            if board.intern_all(&names, &mut queues) {
                let kinds: Vec<(Kind, i32)> = (0..small as u8).map(|n| (kind(n), one as i32)).collect();
                let weights = [small as u16, 0, u16::MAX, 7, 1];
                let registration = Registration {
                    id: [worker; 16],
                    name: Label::EMPTY,
                    queues: &queues,
                    weights: if flag { &[] } else { &weights },
                    kinds: flag.then_some(&kinds),
                    lease: two,
                    role: 10,
                    pid: small as i32,
                };
                let _ = board.register(&registration, one);
            }
        }
        (6 | 7, Some(place)) => {
            let mut taken = Vec::new();
            board.claim(place, if flag { small } else { u32::MAX }, one, &mut taken);
        }
        (8, _) => _ = board.end_claim(&task, token),
        (9, _) => _ = board.give_back(&task, token),
        (10, _) => _ = board.misfit(&task, token, kind(name), Label::EMPTY),
        (11, _) => {
            let token = board.next_token();
            let next = Advance { token, fence: two, place: Place::UNKNOWN, kind: Kind::ANY };
            let may = board.may_continue(&task, claim.token);
            if flag || may {
                board.advance(&task, claim.token, &next, one);
            }
        }
        (12, Some(place)) => {
            let Some(queue) = board.intern(&queue(name)) else { return };
            let row = AssertedRow {
                fence: two,
                due: one,
                queue,
                priority,
                kind: kind(name),
                group: None,
                key: None,
                written: flag,
                counted: flag,
            };
            board.assert_claim(place, &claim, &row, two);
        }
        (13, _) => _ = board.cancel(&task),
        (14, Some(place)) => {
            let mut cancels = Vec::new();
            board.take_cancels(place, &mut cancels);
            board.note_unknown(place, kind(name));
            board.note_wanted(place, small, two);
            board.heard(place, one);
        }
        (15, Some(place)) => {
            if flag {
                board.leave(place);
            } else {
                board.ask_stop(place);
            }
        }
        (16, _) => {
            board.gone(&[worker; 16], small as i32, one);
            let _ = board.next_loss(one);
            if let Some(lost) = board.take_lost(one, two) {
                if flag {
                    board.give_back_all(lost);
                }
                board.end_loss(lost, one);
            }
        }
        (17, _) => {
            let mut out = Vec::new();
            board.displace(Rank { unwanted: flag, priority, due: one }, &mut out);
        }
        (18, _) => {
            let row = ClaimedRow { fence: two, kind: kind(name), place: Place::UNKNOWN, counted: flag };
            board.note_row(&claim, &row);
            let mut out = Vec::new();
            board.take_unwritten(one, small as usize, &mut out);
            board.not_written(&task, token);
            let _ = board.oldest_unwritten();
        }
        (19, _) => {
            let rate = Rate { count: small, period: two, burst: small };
            let rule = QueueRule {
                paused: flag,
                concurrency: Some(small),
                rate: flag.then_some(rate),
                key_concurrency: (small > 4).then_some(small),
                key_rate: flag.then_some(Rate { count: small, period: one, burst: small }),
            };
            let of =
                if flag && task[0] > 4 { QueueName::new(ALL_QUEUES).expect("a name") } else { queue(name) };
            board.set_rule(&of, (task[0] > 0).then_some(&rule), one);
            board.set_settling(one, two);
            board.head.ageing = if flag { two } else { 0 };
            board.set_held(&of, &[task]);
            board.set_kind_limit(kind(name), (task[0] > 1).then_some(small));
            board.admit(&claim, kind(name), one, &board.leaving([(task, token)].into_iter()));
            board.set_held_of_kind(kind(name), &[task]);
            board.withdraw(&claim);
            let _ = (board.next_opening(two), board.may_hand_out(two), board.has_freed_place(one));
        }
        (20, Some(place)) => {
            let text = "é".repeat(small as usize * 20);
            let progress = Progress::new(flag.then_some(one as f64), &text, two);
            board.set_progress(place, &claim, &progress);
            let _ = board.claim_of(&task).and_then(|entry| board.progress_of(entry)).map(Progress::text);
        }
        _ => {
            board.take_idle(one, &mut workers);
            board.take_told(&mut workers);
            board.not_woken(&[worker; 16]);
            board.remove_ready(&task);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 500 }, ..ProptestConfig::default() })]

    #[test]
    fn no_value_leads_out_of_the_boards_memory(
        (entries, lanes, workers, queues) in (0..6_usize, 0..4_usize, 0..4_usize, 0..4_usize),
        calls in prop::collection::vec(call(), 1..if cfg!(miri) { 40 } else { 150 }),
    ) {
        let mut memory = OwnedBoard::new(&Sizes { entries, lanes, workers, queues });
        for call in calls {
            apply(&mut memory.board(), &call);
            check(&memory.board());
        }
    }
}
