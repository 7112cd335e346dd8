//! Schedules: a tick forgotten, doubled, made up, in a pause, or beside the one before.

use super::*;
use crate::ticks::Count;
use crate::ticks::Past;
use crate::ticks::SCHEDULES;
use crate::ticks::Second;

/// A schedule that has ticked every second from 1001 to 1005, and what its runs have noted.
fn ticks(name: &str) -> (Past, Vec<String>) {
    let schedule = *SCHEDULES.iter().find(|schedule| schedule.name == name).expect("there is one");
    let mut lines = Vec::new();
    let mut done = Vec::new();
    for at in (1001..=1005).filter(|at| at % schedule.every == 0) {
        let task = id_of(at as u64);
        let moment = at * 100;
        lines.push(format!("{moment} 0 ticked {name} at {at} task {task} begins"));
        lines.push(format!("{} 0 ticked {name} at {at} task {task} ends", moment + 50));
        done.push((at, task));
    }
    let from = Count { last: 1000, noted: 1000, fired: 7, skipped: 1 };
    let to = Count { last: 1005, noted: 0, fired: 7 + done.len() as i64, skipped: 1 };
    (Past { schedule, from, to, done }, lines)
}

fn told(past: Past, lines: &[String]) -> Evidence {
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    Evidence { schedules: vec![past], ..evidence(&lines) }
}

fn without(past: &Past, at: Second) -> Past {
    let mut past = past.clone();
    past.done.retain(|(other, _)| *other != at);
    past.to.fired = past.from.fired + past.done.len() as i64;
    past
}

#[test]
fn a_tick_that_is_forgotten_doubled_or_made_up_is_found() {
    let (past, lines) = ticks("all");
    assert_eq!(complaints(&told(past.clone(), &lines)), Vec::<String>::new());
    assert_found(&told(without(&past, 1003), &lines), "forgotten: [1003]");
    // Counted as skipped or not: it may leave none out.
    let mut skipped = without(&past, 1003);
    skipped.to.skipped += 1;
    assert_found(&told(skipped, &lines), "forgotten: [1003]");
    let mut twice = past.clone();
    twice.done.push((1003, id_of(9)));
    twice.to.fired += 1;
    assert_found(&told(twice, &lines), "the tick 1003 has had its task 2 times");
    let mut later = past.clone();
    later.done.push((1006, id_of(9)));
    assert_found(&told(later, &lines), "there is no tick 1006");
    let (mut odd, lines) = ticks("cron");
    assert_eq!(complaints(&told(odd.clone(), &lines)), Vec::<String>::new());
    odd.done.push((1003, id_of(9)));
    assert_found(&told(odd, &lines), "there is no tick 1003");
}

#[test]
fn a_tick_whose_first_task_was_lost_with_a_server_and_ran_is_found() {
    let (past, mut lines) = ticks("all");
    lines.push(format!("100320 0 ticked all at 1003 task {} begins", id_of(9)));
    assert_found(&told(past.clone(), &lines), "the tick 1003 has had several tasks");
    // The same task may run twice.
    lines.pop();
    lines.push(format!("100320 0 ticked all at 1003 task {} begins", id_of(1003)));
    assert_eq!(complaints(&told(past, &lines)), Vec::<String>::new());
}

#[test]
fn a_tick_that_is_left_out_and_not_counted_or_counted_and_not_left_out_is_found() {
    let (past, lines) = ticks("once");
    let mut missed = without(&past, 1003);
    assert_found(&told(missed.clone(), &lines), "it has counted 0 skipped ticks");
    missed.to.skipped += 1;
    assert_eq!(complaints(&told(missed.clone(), &lines)), Vec::<String>::new());
    missed.to.fired += 1;
    assert_found(&told(missed, &lines), "it has counted 5 tasks, and there were 4");
}

#[test]
fn a_tick_within_a_pause_or_left_out_without_one_is_found() {
    let (past, mut lines) = ticks("rested");
    lines.push("100500 0 rested rested dealt 1002 since 1003 until 1003 over 1004".to_owned());
    assert_found(&told(past.clone(), &lines), "it was paused, and ticked at 1003");
    let paused = without(&past, 1003);
    assert_eq!(complaints(&told(paused.clone(), &lines)), Vec::<String>::new());
    // While it is resumed the tick may be left out.
    assert_eq!(complaints(&told(without(&paused, 1004), &lines)), Vec::<String>::new());
    assert_found(&told(without(&paused, 1002), &lines), "forgotten: [1002]");
    assert_found(&told(without(&paused, 1005), &lines), "forgotten: [1005]");
}

#[test]
fn a_task_of_a_tick_beside_the_one_before_is_found() {
    let (past, mut lines) = ticks("alone");
    assert_eq!(complaints(&told(past.clone(), &lines)), Vec::<String>::new());
    lines[1] = format!("100110 0 ticked alone at 1001 task {} begins", id_of(1001));
    lines.push(format!("100210 0 ticked alone at 1001 task {} ends", id_of(1001)));
    assert_found(&told(past, &lines), "the task of the tick 1002 began before that of 1001 had ended");
    // Where nothing is said of it, they may.
    let (past, mut lines) = ticks("all");
    lines[1] = format!("100210 0 ticked all at 1001 task {} ends", id_of(1001));
    assert_eq!(complaints(&told(past.clone(), &lines)), Vec::<String>::new());
    lines.remove(1);
    let mut earlier = past.clone();
    earlier.from.noted = 1001;
    assert_eq!(complaints(&told(earlier, &lines)), Vec::<String>::new());
    assert_found(&told(past, &lines), "the task of the tick 1001 is done, and no run of it ended");
}
