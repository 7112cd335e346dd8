//! Attempt tokens: larger for every later hand-out, across restarts.

use crate::Micros;

/// Hand-outs that one epoch has room for; a scheduler that used them up takes the next epoch.
pub const TOKENS_PER_EPOCH: i64 = 1 << 32;

const EPOCH_SECONDS_START: i64 = 820_454_400; // 2026-01-01 00:00 UTC, in seconds since 2000-01-01

/// The epoch of a scheduler that starts now: larger than the last one kept, and, if the clock is right, larger than
/// any that a lost server may have used, because a server cannot hand out 2^32 tasks in a second.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_grow_across_restarts_even_when_the_clock_stood_back() {
        let now = (EPOCH_SECONDS_START + 1000) * 1_000_000;
        let first = next_epoch(0, now);
        let second = next_epoch(first, now - 500_000_000);
        assert!(second > first);
        assert!(first_token(second) >= first_token(first) + TOKENS_PER_EPOCH);
    }

    #[test]
    fn a_clock_before_the_start_gives_a_positive_epoch() {
        assert_eq!(next_epoch(0, 0), 1);
    }
}
