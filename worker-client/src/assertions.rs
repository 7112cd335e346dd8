//! What `assert_enqueued!` and `assert_not_enqueued!` expand to.

use std::fmt::Debug;

use crate::testing::Waiting;

#[doc(hidden)]
#[track_caller]
pub fn enqueued<T: Debug>(
    mut tasks: Vec<Waiting<T>>,
    matches: impl Fn(&T) -> bool,
    pattern: &str,
) -> Waiting<T> {
    match tasks.iter().position(|task| matches(&task.step)) {
        Some(at) => tasks.swap_remove(at),
        None => panic!("no task is enqueued that matches {pattern}, only these: {tasks:#?}"),
    }
}

#[doc(hidden)]
#[track_caller]
pub fn not_enqueued<T: Debug>(tasks: Vec<Waiting<T>>, matches: impl Fn(&T) -> bool, pattern: &str) {
    if let Some(task) = tasks.iter().find(|task| matches(&task.step)) {
        panic!("a task is enqueued that matches {pattern}: {task:#?}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    fn tasks() -> Vec<Waiting<Option<i32>>> {
        let waiting = |number, step| Waiting {
            id: Uuid::from_u128(number),
            queue: "default".to_owned(),
            priority: 0,
            step,
            due_in: Duration::ZERO,
            tried: 0,
            error: None,
            options: serde_json::Value::Null,
        };
        vec![waiting(1, None), waiting(2, Some(7)), waiting(3, Some(7))]
    }

    #[test]
    fn the_first_task_that_matches_is_returned() {
        assert_eq!(crate::assert_enqueued!(tasks(), Some(_)).id, Uuid::from_u128(2));
        assert_eq!(crate::assert_enqueued!(tasks(), Some(n) if *n > 6).id, Uuid::from_u128(2));
        crate::assert_not_enqueued!(tasks(), Some(n) if *n > 7);
    }

    #[test]
    #[should_panic = "no task is enqueued that matches Some(n) if *n > 7, only these: [\n    Waiting {"]
    fn what_waits_is_shown_when_none_matches() {
        crate::assert_enqueued!(tasks(), Some(n) if *n > 7);
    }

    #[test]
    #[should_panic = "a task is enqueued that matches None"]
    fn a_task_that_should_not_be_there_is_shown() {
        crate::assert_not_enqueued!(tasks(), None);
    }
}
