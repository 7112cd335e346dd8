//! The check must be able to fail: each promise broken once.

mod defaults;
mod hand_outs;
mod periods;
mod ticks;

use super::*;

/// A story that is well: a chain of three steps, the second of which ran twice because its worker was lost.
fn good() -> Vec<&'static str> {
    vec![
        "100 1 intended Chain 2",
        "101 1 committed",
        "102 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "102 1 ended step 0 token 10 next",
        "103 1 began step 1 token 11 attempt 1 via 10 worker 7",
        "600 1 began step 1 token 20 attempt 2 via 10 worker 8",
        "600 1 ended step 1 token 20 next",
        "601 1 began step 2 token 21 attempt 1 via 20 worker 8",
        "601 1 ended step 2 token 21 done",
    ]
}

fn evidence(lines: &[&str]) -> Evidence {
    let folder = std::env::temp_dir();
    let path = folder.join(format!("pg_task-fault-check-{:?}", std::thread::current().id()));
    std::fs::write(&path, lines.join("\n")).expect("the file is written");
    let lines = crate::ledger::read(&path).expect("the lines are whole");
    let _ = std::fs::remove_file(&path);
    let faults = vec![Span { name: "kill".to_owned(), from: 300, to: 300 }];
    let history = history_of(&lines);
    Evidence { lines, faults, history, lost_limit: 3, ..Evidence::default() }
}

/// What the history should say: of each task that is done the first run that says so, and what was cancelled.
fn history_of(lines: &[Line]) -> HashMap<u64, Vec<Past>> {
    let mut history = HashMap::new();
    for line in lines {
        let past = match line.entry {
            Entry::Cancelled => {
                Past { outcome: Outcome::Cancelled, seq: 0, attempts: 0, id: id_of(line.key), mark: 0 }
            }
            Entry::Ended(seq, token, End::Done) => {
                let attempts = lines.iter().find_map(|line| match line.entry {
                    Entry::Began(run) if run.token == token => Some(run.attempt),
                    _ => None,
                });
                Past {
                    outcome: Outcome::Done,
                    seq,
                    attempts: attempts.unwrap_or_default(),
                    id: id_of(line.key),
                    mark: 0,
                }
            }
            _ => continue,
        };
        history.entry(line.key).or_insert_with(|| vec![past]);
    }
    history
}

/// The task that a key of the ledger belongs to, if nothing else is said.
fn id_of(key: u64) -> Uuid {
    Uuid::from_u128(u128::from(key))
}

fn complaints(evidence: &Evidence) -> Vec<String> {
    check(evidence).into_iter().map(|violation| violation.text).collect()
}

#[track_caller]
fn assert_found(evidence: &Evidence, what: &str) {
    let found = complaints(evidence);
    assert!(found.iter().any(|text| text.contains(what)), "{what:?} is not among {found:?}");
}

#[test]
fn a_story_that_is_well_has_no_violation() {
    assert_eq!(complaints(&evidence(&good())), Vec::<String>::new());
}

#[test]
fn a_lost_task_is_found() {
    let mut lines = good();
    lines.truncate(8);
    assert_found(&evidence(&lines), "lost: its row is gone");
    // Never run at all.
    assert_found(&evidence(&good()[..2]), "lost: its row is gone");
    // It was never committed for certain: nothing is promised.
    assert_eq!(complaints(&evidence(&good()[..1])), Vec::<String>::new());
}

#[test]
fn a_task_that_waits_for_no_reason_is_found() {
    let row = Row { key: 1, text: "a row".to_owned() };
    let mut evidence = evidence(&good()[..2]);
    evidence.rows = vec![row.clone()];
    assert_found(&evidence, "waits for no reason");
    evidence.rows.push(row);
    assert_found(&evidence, "there are 2 rows");
}

#[test]
fn a_doubled_transition_is_found() {
    let mut lines = good();
    // The lost worker's result was taken as well, and the third step ran for each of the two.
    lines.insert(6, "599 1 ended step 1 token 11 next");
    lines.push("602 1 began step 2 token 22 attempt 1 via 11 worker 7");
    assert_found(&evidence(&lines), "the transition to step 2 was made 2 times");
}

#[test]
fn a_task_that_goes_back_is_found() {
    let mut lines = good();
    lines.push("602 1 began step 1 token 22 attempt 1 via 10 worker 7");
    assert_found(&evidence(&lines), "it went back");
}

#[test]
fn a_skipped_step_is_found() {
    let lines: Vec<&str> = good().into_iter().filter(|line| !line.contains("step 1")).collect();
    assert_found(&evidence(&lines), "step 1 was skipped");
    assert_found(&evidence(&lines), "by no run of the step before");
}

#[test]
fn a_rolled_back_task_that_ran_is_found() {
    let mut lines = good();
    lines[1] = "101 1 rolled-back";
    assert_found(&evidence(&lines), "rolled back, and it ran");
    let mut evidence = evidence(&lines[..2]);
    evidence.rows = vec![Row { key: 1, text: "a row".to_owned() }];
    assert_found(&evidence, "rolled back, and there is a row");
}

#[test]
fn what_nobody_enqueued_is_found() {
    assert_found(&evidence(&good()[2..]), "nobody enqueued it");
    let mut evidence = evidence(&[]);
    evidence.rows = vec![Row { key: 9, text: "a row".to_owned() }];
    assert_found(&evidence, "a row that nobody enqueued");
}

#[test]
fn a_token_that_is_given_out_twice_is_found() {
    let mut lines = good();
    lines.push("700 2 intended Noop 0");
    lines.push("701 2 began step 0 token 21 attempt 1 via 0 worker 7");
    lines.push("701 2 ended step 0 token 21 done");
    assert_found(&evidence(&lines), "the token 21 was given out twice");
}

#[test]
fn attempts_that_are_counted_wrong_are_found() {
    // Two failures, no fault near, and the second is called the first again.
    let failing = [
        "5000 1 intended Flaky 2",
        "5001 1 committed",
        "5002 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "5002 1 ended step 0 token 10 failed",
        "5007 1 began step 0 token 11 attempt 1 via 0 worker 7",
        "5007 1 ended step 0 token 11 done",
    ];
    assert_found(&evidence(&failing), "attempt 1 follows attempt 1");
    // An attempt that nothing explains.
    let jumping = [
        "5000 1 intended Noop 0",
        "5002 1 began step 0 token 10 attempt 2 via 0 worker 7",
        "5002 1 ended step 0 token 10 done",
    ];
    assert_found(&evidence(&jumping), "do not make it attempt 2");
}

#[test]
fn a_task_that_is_parked_too_early_or_too_late_is_found() {
    let doomed = |parked: &'static str| {
        evidence(&[
            "100 1 intended Doomed 0",
            "101 1 committed",
            "102 1 began step 0 token 10 attempt 1 via 0 worker 7",
            "102 1 ended step 0 token 10 failed",
            "103 1 began step 0 token 11 attempt 2 via 0 worker 7",
            "103 1 ended step 0 token 11 failed",
            parked,
            "105 1 resuming",
            "106 1 began step 0 token 12 attempt 1 via 0 worker 7",
            "106 1 ended step 0 token 12 done",
        ])
    };
    assert_eq!(complaints(&doomed("104 1 parked tried 2 the world is broken")), Vec::<String>::new());
    assert_found(&doomed("104 1 parked tried 1 the world is broken"), "though 1 retries are allowed");
    assert_found(&doomed("104 1 parked tried 3 the world is broken"), "no such attempt failed");
    assert_found(&doomed("104 1 parked tried 2 the worker was lost while"), "after 2 attempts, not 4..=4");
}

#[test]
fn a_write_that_went_back_is_found() {
    let lines = [
        "100 1 intended Fenced 0",
        "102 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "103 1 began step 0 token 11 attempt 1 via 0 worker 8",
        "104 1 ended step 0 token 11 done",
        "105 1 ended step 0 token 10 done",
    ];
    let mut evidence = evidence(&lines);
    evidence.effects.insert(1, 11);
    assert_eq!(complaints(&evidence), Vec::<String>::new());
    evidence.effects.insert(1, 10);
    assert_found(&evidence, "the token that is left is 10");
    evidence.effects.clear();
    assert_found(&evidence, "nothing is there");
}

#[test]
fn what_a_transactional_step_wrote_not_at_all_twice_or_by_another_run_is_found() {
    let lines = [
        "100 1 intended Exact 1",
        "102 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "102 1 ended step 0 token 10 next",
        "103 1 began step 0 token 11 attempt 1 via 0 worker 8",
        "103 1 ended step 0 token 11 next",
        "104 1 began step 1 token 12 attempt 1 via 11 worker 8",
        "104 1 ended step 1 token 12 done",
    ];
    let mut evidence = evidence(&lines);
    let mut written = |rows: &[(u32, i64)]| {
        evidence.exactly.insert(1, rows.to_vec());
        evidence.clone()
    };
    assert_eq!(complaints(&written(&[(0, 11), (1, 12)])), Vec::<String>::new());
    assert_found(&written(&[(0, 10), (0, 11), (1, 12)]), "step 0 has written 2 times");
    assert_found(&written(&[(1, 12)]), "what was written is []");
    assert_found(&written(&[(0, 10), (1, 12)]), "what was written is [10]");
    assert_found(&written(&[(0, 11)]), "nothing was written");
    assert_found(&written(&[(0, 11), (1, 12), (1, 12)]), "step 1 has written 2 times");
    assert_found(&written(&[(0, 11), (1, 99)]), "no run of it had it");
}

#[test]
fn a_task_of_tomorrow_that_ran_or_is_gone_is_found() {
    let lines = ["100 1 intended Future 0", "101 1 committed"];
    assert_found(&evidence(&lines), "its row is gone");
    let ran = ["100 1 intended Future 0", "102 1 began step 0 token 10 attempt 1 via 0 worker 7"];
    assert_found(&evidence(&ran), "due in a day, and it ran");
}

#[test]
fn a_cancelled_task_that_runs_on_is_found() {
    let lines = [
        "100 1 intended Slow 0",
        "101 1 committed",
        "102 1 cancelling",
        "103 1 cancelled",
        "9000 1 began step 0 token 10 attempt 1 via 0 worker 7",
    ];
    assert_found(&evidence(&lines), "long after it was cancelled");
    assert_eq!(complaints(&evidence(&lines[..4])), Vec::<String>::new());
}

#[test]
fn a_task_that_begins_after_its_deadline_is_found() {
    let lines = |parked: &'static str, began: &'static str| {
        evidence(&[
            "1000 1 intended Expired 0",
            "1001 1 committed",
            parked,
            "1003 1 resuming",
            began,
            "1005 1 ended step 0 token 10 done",
        ])
    };
    let parked = "1002 1 parked tried 0 the task was not begun before its deadline, 2020";
    let began = "1004 1 began step 0 token 10 attempt 1 via 0 worker 7";
    assert_eq!(complaints(&lines(parked, began)), Vec::<String>::new());
    let early = "1002 1 began step 0 token 10 attempt 1 via 0 worker 7";
    assert_found(&lines(parked, early), "its deadline was over, and it began");
    let counted = "1002 1 parked tried 1 the task was not begun before its deadline, 2020";
    assert_found(&lines(counted, began), "and 1 attempts are counted");
    let none = evidence(&["1000 1 intended Chain 0", "1001 1 committed", parked]);
    assert_found(&none, "it has no deadline");
}

#[test]
fn a_timeout_that_counts_not_at_all_or_twice_is_found() {
    let lines = |second: &'static str| {
        evidence(&[
            "5000 1 intended Tardy 1",
            "5001 1 committed",
            "5002 1 began step 0 token 10 attempt 1 via 0 worker 7",
            "5010 1 ended step 0 token 10 failed",
            second,
            "5017 1 ended step 0 token 11 done",
        ])
    };
    let counted = "5016 1 began step 0 token 11 attempt 2 via 0 worker 7";
    assert_eq!(complaints(&lines(counted)), Vec::<String>::new());
    let not = "5016 1 began step 0 token 11 attempt 1 via 0 worker 7";
    assert_found(&lines(not), "attempt 1 follows attempt 1");
    let twice = "5016 1 began step 0 token 11 attempt 3 via 0 worker 7";
    assert_found(&lines(twice), "do not make it attempt 3");
}

/// Two tasks of a group, the second enqueued after the first was committed; the first runs twice, because its worker was lost.
fn group() -> Vec<&'static str> {
    vec![
        "100 1 intended Nap 0 group 4 batch 1",
        "101 1 committed",
        "102 2 intended Nap 0 group 4 batch 2",
        "103 2 committed",
        "104 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "600 1 began step 0 token 11 attempt 2 via 0 worker 8",
        "601 1 ended step 0 token 11 done",
        "602 2 began step 0 token 12 attempt 1 via 0 worker 8",
        "603 2 ended step 0 token 12 done",
        // Given up long ago, and still at it.
        "604 1 ended step 0 token 10 done",
    ]
}

#[test]
fn a_group_whose_tasks_overlap_is_found() {
    assert_eq!(complaints(&evidence(&group())), Vec::<String>::new());
    let mut lines = group();
    // The lost run was the last of the first task, and the second began before the first was run again.
    lines[5] = "604 1 began step 0 token 13 attempt 2 via 0 worker 8";
    lines[6] = "605 1 ended step 0 token 13 done";
    assert_found(&evidence(&lines), "it was handed out before task 1");
    assert_found(&evidence(&lines), "it began before task 1");
    // Handed out in order, and yet at once.
    let mut lines = group();
    lines[6] = "604 1 ended step 0 token 11 done";
    assert_found(&evidence(&lines), "it began before task 1");
    // The first was cancelled: nothing holds the second up.
    lines.extend(["600 1 cancelling", "600 1 cancelled"]);
    assert!(!complaints(&evidence(&lines)).iter().any(|text| text.contains("began before")));
}

#[test]
fn a_group_out_of_order_is_found_where_the_order_is_known() {
    let mut lines = vec![
        "100 1 intended Nap 0 group 4 batch 1",
        "100 2 intended Nap 0 group 4 batch 1",
        "101 1 committed",
        "101 2 committed",
        "104 2 began step 0 token 10 attempt 1 via 0 worker 7",
        "105 2 ended step 0 token 10 done",
        "106 1 began step 0 token 11 attempt 1 via 0 worker 8",
        "107 1 ended step 0 token 11 done",
    ];
    // One transaction has enqueued both.
    assert_found(&evidence(&lines), "it was handed out before task 1");
    // Two that overlapped.
    lines[1] = "100 2 intended Nap 0 group 4 batch 2";
    assert_eq!(complaints(&evidence(&lines)), Vec::<String>::new());
    // Another group.
    lines[1] = "100 2 intended Nap 0 group 5 batch 1";
    assert_eq!(complaints(&evidence(&lines)), Vec::<String>::new());
}

#[test]
fn more_tasks_of_a_key_at_once_than_allowed_are_found() {
    let lines = |third: &'static str| {
        evidence(&[
            "100 1 intended Nap 0 tenant 4",
            "100 2 intended Nap 0 tenant 4",
            third,
            "104 1 began step 0 token 10 attempt 1 via 0 worker 7",
            "105 2 began step 0 token 11 attempt 1 via 0 worker 7",
            "108 3 began step 0 token 12 attempt 1 via 0 worker 8",
            "109 1 ended step 0 token 10 done",
            "109 2 ended step 0 token 11 done",
            "109 3 ended step 0 token 12 done",
        ])
    };
    assert_found(&lines("100 3 intended Nap 0 tenant 4"), "3 tasks of tenant 4 ran at once");
    assert_eq!(complaints(&lines("100 3 intended Nap 0 tenant 5")), Vec::<String>::new());
    // One that was given up does not count, nor does one that goes on when another ends.
    let mut lines = vec![
        "100 1 intended Nap 0 tenant 4",
        "100 2 intended Nap 0 tenant 4",
        "100 3 intended Nap 0 tenant 4",
        "104 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "105 2 began step 0 token 11 attempt 1 via 0 worker 7",
        "299 2 ended step 0 token 11 done",
        "299 3 began step 0 token 12 attempt 1 via 0 worker 8",
        "300 3 ended step 0 token 12 done",
        "305 1 ended step 0 token 10 done",
    ];
    assert_eq!(complaints(&evidence(&lines)), Vec::<String>::new());
    lines[5] = "305 2 ended step 0 token 11 done";
    assert_found(&evidence(&lines), "ran at once");
    lines.push("300 1 began step 0 token 13 attempt 2 via 0 worker 8");
    lines.push("301 1 ended step 0 token 13 done");
    assert_eq!(complaints(&evidence(&lines)), Vec::<String>::new());
}

/// Two calls with one key, each of which has made a task; the second was made after the first had ended.
fn unique() -> Vec<&'static str> {
    vec![
        "100 1 intended Nap 0 unique 3 done skip",
        "101 1 answered enqueued 00000000-0000-0000-0000-000000000001",
        "101 1 committed",
        "102 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "103 1 ended step 0 token 10 done",
        "103 2 intended Nap 0 unique 3 done replace",
        "104 2 answered enqueued 00000000-0000-0000-0000-000000000002",
        "104 2 committed",
        "105 2 began step 0 token 11 attempt 1 via 0 worker 7",
        "106 2 ended step 0 token 11 done",
    ]
}

#[test]
fn a_key_that_stands_for_two_tasks_at_once_is_found() {
    assert_eq!(complaints(&evidence(&unique())), Vec::<String>::new());
    let mut lines = unique();
    lines[4] = "105 1 ended step 0 token 10 done";
    assert_found(&evidence(&lines), "its key stood for two tasks at once");
    // Two keys.
    lines[5] = "103 2 intended Nap 0 unique 6 done replace";
    assert_eq!(complaints(&evidence(&lines)), Vec::<String>::new());
}

#[test]
fn a_caller_who_was_told_something_else_than_what_happened_is_found() {
    // Skipped, and it ran.
    let mut lines = unique();
    lines[6] = "104 2 answered skipped 00000000-0000-0000-0000-000000000001";
    assert_found(&evidence(&lines), "told that it was skipped, and it ran");
    lines.truncate(8);
    assert_eq!(complaints(&evidence(&lines)), Vec::<String>::new());
    // Skipped for a task that never ended.
    lines[6] = "104 2 answered skipped 00000000-0000-0000-0000-000000000009";
    assert_found(&evidence(&lines), "lost: its row is gone");
    // Replaced, and yet the older payload ended.
    lines[6] = "104 2 answered replaced 00000000-0000-0000-0000-000000000001";
    assert_found(&evidence(&lines), "it was to take the place of 1");
    // Replaced, and it ended: the first has no row in the history.
    let mut lines = unique();
    lines[6] = "104 2 answered replaced 00000000-0000-0000-0000-000000000001";
    let mut replaced = evidence(&lines);
    replaced.history.clear();
    let past = Past { outcome: Outcome::Done, seq: 0, attempts: 1, id: id_of(1), mark: 0 };
    replaced.history.insert(2, vec![past]);
    assert_eq!(complaints(&replaced), Vec::<String>::new());
    // Both ended.
    replaced.history.insert(1, vec![past]);
    assert_found(&replaced, "ended twice");
}

#[test]
fn a_wish_that_stays_is_found() {
    let mut evidence = evidence(&unique());
    evidence.wishes.push(2);
    assert_found(&evidence, "committed with a wish");
}

#[test]
fn an_edit_that_is_lost_is_found() {
    let mut lines = good();
    lines.insert(4, "102 1 editing mark 50");
    let marked = |lines: &[&str], mark| {
        let mut evidence = evidence(lines);
        evidence
            .history
            .insert(1, vec![Past { outcome: Outcome::Done, seq: 2, attempts: 1, id: id_of(1), mark }]);
        evidence
    };
    // Whether it was committed is not known.
    assert_eq!(complaints(&marked(&lines, 0)), Vec::<String>::new());
    assert_eq!(complaints(&marked(&lines, 50)), Vec::<String>::new());
    assert_found(&marked(&lines, 40), "an edit was lost");
    lines.insert(5, "102 1 edited mark 50");
    assert_eq!(complaints(&marked(&lines, 50)), Vec::<String>::new());
    assert_found(&marked(&lines, 0), "an edit was lost");
}

#[test]
fn what_an_operator_has_seen_to_be_wrong_is_told() {
    let mut lines = good();
    lines.push("700 0 wrong cancel_all says 3");
    assert_found(&evidence(&lines), "cancel_all says 3");
}

#[test]
fn a_history_that_says_something_else_is_found() {
    let told = |past: &[Past]| {
        let mut evidence = evidence(&good());
        evidence.history.insert(1, past.to_vec());
        evidence
    };
    let right = Past { outcome: Outcome::Done, seq: 2, attempts: 1, id: id_of(1), mark: 0 };
    assert_eq!(complaints(&told(&[right])), Vec::<String>::new());
    assert_found(&told(&[]), "the history does not know of it");
    assert_found(&told(&[right, right]), "the history has 2 rows of it");
    assert_found(&told(&[Past { seq: 1, ..right }]), "done with step 1");
    assert_found(&told(&[Past { attempts: 2, ..right }]), "took 2 attempts");
    assert_found(&told(&[Past { outcome: Outcome::Cancelled, ..right }]), "nobody cancelled it");
    let mut there = told(&[right]);
    there.rows = vec![Row { key: 1, text: "a row".to_owned() }];
    assert_found(&there, "its row is there, and the history says that it has ended");
    there.history.insert(9, vec![right]);
    assert_found(&there, "the history knows of it, and nobody enqueued it");

    let mut lines = good();
    lines[1] = "101 1 rolled-back";
    assert_found(&evidence(&lines), "rolled back, and the history knows of it");
    let mut lines = good();
    lines.extend(["602 1 cancelling", "602 1 cancelled"]);
    let mut cancelled = evidence(&lines);
    cancelled.history.insert(1, vec![right]);
    assert_found(&cancelled, "it was cancelled, and the history says that it is done");
    let mut lines = good();
    lines.truncate(8);
    let mut early = evidence(&lines);
    early.history.insert(1, vec![right]);
    assert_found(&early, "and no run was");
}

#[test]
fn the_account_tells_the_task_s_lines_its_row_and_the_faults_around_it() {
    let mut evidence = evidence(&good()[..5]);
    evidence.rows = vec![Row { key: 1, text: "a row".to_owned() }];
    let violation = check(&evidence).remove(0);
    let account = evidence.account(&violation);
    for part in ["waits for no reason", "token 11", "FAULT kill", "row: a row"] {
        assert!(account.contains(part), "{part} is missing in {account}");
    }
}
