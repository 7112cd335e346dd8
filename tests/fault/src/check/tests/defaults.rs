//! What queues say for their tasks, and copies of tasks.

use super::*;

/// A task that fails at 5100 and is found parked at 5400, while its queue says so many retries.
fn parked(limit: i32) -> Vec<String> {
    [
        &*format!("5000 0 ruled {limit}"),
        "5010 1 intended Heir 2",
        "5011 1 committed",
        "5100 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "5100 1 ended step 0 token 10 failed",
        "5400 1 parked tried 1 not in this attempt",
        "5401 1 resuming",
        "5450 1 began step 0 token 11 attempt 1 via 0 worker 7",
        "5450 1 ended step 0 token 11 done",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn told(lines: &[String]) -> Evidence {
    evidence(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_task_that_is_parked_though_its_queue_says_retries_is_found() {
    assert_eq!(complaints(&told(&parked(0))), Vec::<String>::new());
    assert_found(&told(&parked(5)), "its queue said 5 retries");
    // It was about to say something else, or had said it later.
    let mut lines = parked(5);
    lines.insert(5, "5200 0 ruling".to_owned());
    assert_eq!(complaints(&told(&lines)), Vec::<String>::new());
    for later in ["5200 0 ruled 5", "5100 0 ruled 5"] {
        let mut lines = parked(5);
        lines[0] = later.to_owned();
        assert_eq!(complaints(&told(&lines)), Vec::<String>::new());
    }
}

#[test]
fn a_task_that_is_tried_again_though_its_queue_says_no_retries_is_found() {
    let again = |limit: i32| {
        let mut lines = parked(limit);
        lines.truncate(5);
        lines.push("5450 1 began step 0 token 11 attempt 2 via 0 worker 7".to_owned());
        lines.push("5450 1 ended step 0 token 11 done".to_owned());
        lines
    };
    assert_eq!(complaints(&told(&again(5))), Vec::<String>::new());
    assert_found(&told(&again(0)), "attempt 2 follows, and its queue said 0 retries");
    // A fault may have taken the result.
    let mut faulty = told(&again(0));
    faulty.faults.push(Span { name: "kill".to_owned(), from: 5_200, to: 5_200 });
    assert_eq!(complaints(&faulty), Vec::<String>::new());
}

#[test]
fn a_history_of_a_queue_that_keeps_none_is_found() {
    let lines = [
        "5010 1 intended Heir 1 forgotten",
        "5100 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "5100 1 ended step 0 token 10 done",
    ];
    let mut told = evidence(&lines);
    assert_found(&told, "its queue leaves no history, and it is there");
    told.history.clear();
    assert_eq!(complaints(&told), Vec::<String>::new());
}

/// A task with the id 1 and a copy with the id 2.
fn twins(written: &[u64], ended: &[u64], lines: &[&str]) -> Evidence {
    let mut all = vec![
        "100 1 intended Twin 0",
        "101 1 committed",
        "102 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "102 1 ended step 0 token 10 done",
    ];
    all.extend(lines);
    let mut told = evidence(&all);
    told.twins.insert(1, written.iter().map(|id| id_of(*id)).collect());
    let past = |id: &u64| Past { outcome: Outcome::Done, seq: 0, attempts: 1, id: id_of(*id), mark: 0 };
    told.history.insert(1, ended.iter().map(past).collect());
    told
}

#[test]
fn a_copy_that_is_lost_doubled_or_made_by_nobody_is_found() {
    let copied = ["103 1 copying", "104 1 copied 00000000-0000-0000-0000-000000000002"];
    assert_eq!(complaints(&twins(&[1], &[1], &[])), Vec::<String>::new());
    assert_eq!(complaints(&twins(&[1, 2], &[1, 2], &copied)), Vec::<String>::new());
    assert_found(&twins(&[1], &[1], &copied), "lost: the copy 00000000-0000-0000-0000-000000000002");
    assert_found(&twins(&[2], &[2], &copied), "only its copies have ended");
    assert_found(&twins(&[1, 2, 2], &[1, 2], &copied), "has written twice");
    assert_found(&twins(&[1, 2], &[1, 2, 2], &copied), "has ended twice");
    assert_found(&twins(&[1], &[1, 2], &copied), "these have written");
    assert_found(&twins(&[1, 2, 3], &[1, 2, 3], &copied), "2 have ended that nobody made");
    // Whether it was copied is not known.
    assert_eq!(complaints(&twins(&[1], &[1], &copied[..1])), Vec::<String>::new());
    assert_eq!(complaints(&twins(&[1, 2], &[1, 2], &copied[..1])), Vec::<String>::new());
    let mut waits = twins(&[1, 2], &[1, 2], &copied);
    waits.rows.push(Row { key: 1, text: "a row".to_owned() });
    assert_found(&waits, "it or a copy waits for no reason");
}
