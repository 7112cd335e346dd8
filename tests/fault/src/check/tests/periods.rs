//! Keys that are held for a period, and calls that fail for a key.

use super::*;

/// A call that makes a task, and another one so much later that makes one too.
fn calls(later: u64) -> Vec<String> {
    let (call, run) = (100 + later, 500 + later);
    [
        "100 1 intended Nap 0 unique 3 period skip",
        "101 1 answered enqueued 00000000-0000-0000-0000-000000000001",
        "101 1 committed",
        "102 1 began step 0 token 10 attempt 1 via 0 worker 7",
        "103 1 ended step 0 token 10 done",
        &*format!("{call} 2 intended Nap 0 unique 3 period error"),
        &*format!("{call} 2 answered enqueued 00000000-0000-0000-0000-000000000002"),
        &*format!("{call} 2 committed"),
        &*format!("{run} 2 began step 0 token 11 attempt 1 via 0 worker 7"),
        &*format!("{run} 2 ended step 0 token 11 done"),
    ]
    .map(str::to_owned)
    .to_vec()
}

fn told(lines: &[String]) -> Evidence {
    evidence(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn two_tasks_of_a_key_within_its_period_are_found() {
    assert_eq!(complaints(&told(&calls(210))), Vec::<String>::new());
    assert_found(&told(&calls(150)), "within 150 hundredths of a second its key has given another task");
    // Another key.
    let other: Vec<String> = calls(150)
        .iter()
        .map(|line| line.replace("unique 3 period error", "unique 7 period error"))
        .collect();
    assert_eq!(complaints(&told(&other)), Vec::<String>::new());
}

#[test]
fn a_key_that_is_held_longer_than_its_period_is_found() {
    let met = |later, word: &str| {
        let mut lines = calls(later);
        lines.truncate(7);
        lines[6] = match word {
            "refused" => format!("{} 2 refused 00000000-0000-0000-0000-000000000001", 100 + later),
            _ => format!("{} 2 answered {word} 00000000-0000-0000-0000-000000000001", 100 + later),
        };
        lines.push(format!(
            "{} 2 {}",
            100 + later,
            if word == "refused" { "rolled-back" } else { "committed" }
        ));
        told(&lines)
    };
    for word in ["skipped", "refused"] {
        assert_eq!(complaints(&met(150, word)), Vec::<String>::new());
        assert_found(&met(250, word), "longer than its period");
    }
}

#[test]
fn a_call_that_is_refused_for_another_key_or_for_no_task_is_found() {
    let refused = |id: u32, name: u32| {
        told(&[
            format!("100 1 intended Nap 0 unique {name} done skip"),
            "101 1 answered enqueued 00000000-0000-0000-0000-000000000001".to_owned(),
            "101 1 committed".to_owned(),
            "102 1 began step 0 token 10 attempt 1 via 0 worker 7".to_owned(),
            "103 1 ended step 0 token 10 done".to_owned(),
            "102 2 intended Nap 0 unique 3 done error".to_owned(),
            "102 2 rolled-back".to_owned(),
            format!("102 2 refused 00000000-0000-0000-0000-00000000000{id}"),
        ])
    };
    assert_eq!(complaints(&refused(1, 3)), Vec::<String>::new());
    assert_found(&refused(1, 7), "which has another key");
    assert_found(&refused(5, 3), "which has not ended and is not there");
}
