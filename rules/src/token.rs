//! Attempt tokens: larger for every later hand-out, across restarts.
//!
//! The lowest bit says that the worker does not run the task, but is asked what to do instead of parking it. It travels with the token, so
//! that a worker which says after a crash of the server what it holds brings it back: nothing else remembers it.

use crate::Micros;

/// From one hand-out to the next.
pub const STEP: i64 = 2;

const ASKED: i64 = 1;

const EPOCH_SECONDS_START: i64 = 820_454_400; // 2026-01-01 00:00 UTC, in seconds since 2000-01-01

/// The epoch of a scheduler that starts now: larger than the last one kept, and, if the clock is right, larger than
/// any that a lost server may have used, because a server cannot hand out 2^31 tasks in a second.
///
/// The first token of the epoch is [`first_token`].
pub fn next_epoch(last: i64, now: Micros) -> i64 {
    let seconds = now.div_euclid(1_000_000) - EPOCH_SECONDS_START;
    seconds.max(last.saturating_add(1)).clamp(1, (i64::MAX >> 32) - 1)
}

/// The first token of an epoch.
pub fn first_token(epoch: i64) -> i64 {
    epoch << 32
}

/// The token of the same attempt when its worker is only asked.
pub fn asked(token: i64) -> i64 {
    token | ASKED
}

/// Whether the worker does not run the task, but is asked what to do instead of parking it.
pub fn is_asked(token: i64) -> bool {
    token & ASKED != 0
}

/// Whether the token under which an attempt is held is this one, or became it when its worker was only to be asked.
pub fn is_held_as(token: i64, held: i64) -> bool {
    held == token || held == asked(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_grow_across_restarts_even_when_the_clock_stood_back() {
        let now = (EPOCH_SECONDS_START + 1000) * 1_000_000;
        let first = next_epoch(0, now);
        let second = next_epoch(first, now - 500_000_000);
        assert!(second > first);
        assert!(first_token(second) > asked(first_token(first)) && !is_asked(first_token(second)));
    }

    #[test]
    fn a_token_says_that_its_worker_is_only_asked_and_is_that_of_the_attempt() {
        let token = first_token(7) + 5 * STEP;
        assert!(!is_asked(token) && is_asked(asked(token)) && asked(asked(token)) == asked(token));
        assert!(is_held_as(token, token) && is_held_as(token, asked(token)));
        assert!(!is_held_as(asked(token), token) && !is_held_as(token + STEP, asked(token)));
        assert!(token + STEP > asked(token));
    }

    #[test]
    fn a_clock_before_the_start_gives_a_positive_epoch() {
        assert_eq!(next_epoch(0, 0), 1);
    }
}
