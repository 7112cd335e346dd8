//! Rates and pauses: a hand-out too many, or at a time at which there must be none.

use super::*;

/// Tasks of one key of the queue with a rate that are enqueued and begin so many hundredths of a second after each other.
fn metered(count: u64, apart: u64, key: impl Fn(u64) -> u64) -> Vec<String> {
    let mut lines = Vec::new();
    for task in 1..=count {
        let at = 1_000 + task * apart;
        lines.push(format!("{at} {task} intended Noop 0 metered {}", key(task)));
        lines.push(format!("{at} {task} committed"));
        lines.push(format!("{} {task} began step 0 token {task} attempt 1 via 0 worker 7", at + 1));
        lines.push(format!("{} {task} ended step 0 token {task} done", at + 1));
    }
    lines
}

fn told(lines: &[String]) -> Evidence {
    evidence(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn more_hand_outs_of_a_key_than_its_rate_brings_are_found() {
    assert_eq!(complaints(&told(&metered(30, 26, |_| 1))), Vec::<String>::new());
    assert_found(&told(&metered(30, 15, |_| 1)), "queue metered, key 1:");
    // No more than the burst at once.
    assert_found(&told(&metered(4, 1, |_| 1)), "queue metered, key 1: 4 hand-outs");
    assert_eq!(complaints(&told(&metered(2, 1, |_| 1))), Vec::<String>::new());
}

#[test]
fn more_hand_outs_of_a_queue_than_its_rate_brings_are_found() {
    // No key has more than it may.
    let found = complaints(&told(&metered(60, 6, |task| task % 4)));
    assert!(found.len() == 1 && found[0].contains("queue metered:"), "{found:?}");
    assert_eq!(complaints(&told(&metered(60, 9, |task| task % 4))), Vec::<String>::new());
}

#[test]
fn tasks_that_are_handed_out_in_time_and_begin_together_are_right_and_others_tell_when_they_were_handed_out()
{
    let late = |others: bool| {
        let mut lines = Vec::new();
        for task in 1..=4_u64 {
            // All begin at once; what was enqueued before each, and got a smaller token, says that it was handed out as late.
            lines.push(format!("1000 {task} intended Noop 0 metered 1"));
            lines.push(format!("2000 {task} began step 0 token {} attempt 1 via 0 worker 7", task * 2));
            lines.push(format!("2000 {task} ended step 0 token {} done", task * 2));
            if others {
                lines.push(format!("1990 {} intended Noop 0", task + 10));
                lines.push(format!(
                    "1995 {} began step 0 token {} attempt 1 via 0 worker 7",
                    task + 10,
                    task * 2 - 1
                ));
                lines.push(format!("1995 {} ended step 0 token {} done", task + 10, task * 2 - 1));
            }
        }
        lines
    };
    assert_eq!(complaints(&told(&late(false))), Vec::<String>::new());
    assert_found(&told(&late(true)), "queue metered, key 1: 4 hand-outs");
}

#[test]
fn a_task_that_was_moved_to_another_queue_may_have_taken_no_token() {
    let mut lines = metered(8, 1, |_| 1);
    assert_found(&told(&lines), "queue metered");
    lines.extend((3..=8).map(|task| format!("2000 {task} changing")));
    assert_eq!(complaints(&told(&lines)), Vec::<String>::new());
}

#[test]
fn a_hand_out_in_a_pause_is_found() {
    let paused = |queue: &str, from: u64, to: u64| {
        let mut lines = metered(30, 26, |_| 1);
        // 1780 is when the last of these began.
        lines.extend([format!("{from} 0 paused {queue}"), format!("{to} 0 unpausing {queue}")]);
        told(&lines)
    };
    assert_eq!(complaints(&paused("metered", 5_000, 9_000)), Vec::<String>::new());
    assert_found(&paused("metered", 1_300, 1_500), "the queue metered was paused");
    assert_found(&paused("*", 1_300, 1_500), "the queue * was paused");
    assert_eq!(complaints(&paused("tenants", 1_300, 1_500)), Vec::<String>::new());
    // Enqueued before, and begun after: it was handed out before or after.
    assert_eq!(complaints(&paused("metered", 1_312, 1_313)), Vec::<String>::new());
}

#[test]
fn a_task_that_begins_in_a_pause_may_have_been_handed_out_before() {
    let lines = |enqueued: u64| {
        told(&[
            "1000 0 paused *".to_owned(),
            format!("{enqueued} 1 intended Noop 0"),
            "1100 1 began step 0 token 10 attempt 1 via 0 worker 7".to_owned(),
            "1100 1 ended step 0 token 10 done".to_owned(),
            "1200 0 unpausing *".to_owned(),
        ])
    };
    assert_eq!(complaints(&lines(990)), Vec::<String>::new());
    assert_found(&lines(1_010), "the queue * was paused");
}

#[test]
fn a_task_that_is_handed_out_before_the_time_for_which_it_was_resumed_is_found() {
    let lines = |other: u64, began: u64| {
        told(&[
            "1000 1 intended Doomed 0".to_owned(),
            "1100 1 resuming".to_owned(),
            "1105 1 resumed 1000".to_owned(),
            // It tells when the hand-out was, at the earliest.
            format!("{other} 2 intended Noop 0"),
            format!("{other} 2 began step 0 token 9 attempt 1 via 0 worker 7"),
            format!("{other} 2 ended step 0 token 9 done"),
            format!("{began} 1 began step 0 token 10 attempt 1 via 0 worker 7"),
            format!("{began} 1 ended step 0 token 10 done"),
        ])
    };
    assert_eq!(complaints(&lines(1_110, 1_205)), Vec::<String>::new());
    assert_found(&lines(1_110, 1_150), "it was resumed for 1200, and handed out between 1110 and 1150");
    // Perhaps before it was parked.
    assert_eq!(complaints(&lines(1_090, 1_150)), Vec::<String>::new());
}
