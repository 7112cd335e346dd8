//! A token bucket in whole numbers: so many hand-outs in a time, and so many at once.
//!
//! A token is worth `period` units; a microsecond brings `count` of them. Nothing is rounded, so that in any stretch of time *t* at most
//! `burst + count · t / period` tokens are taken, whatever the order of calls.

use crate::Micros;

/// `count` tokens in each `period`, of which at most `burst` gather.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Rate {
    /// Microseconds, at least 1.
    pub period: Micros,
    /// Tokens in that time, at least 1.
    pub count: u32,
    /// How many gather while none is taken, at least 1.
    pub burst: u32,
}

impl Rate {
    /// The most tokens that may gather or come in one period.
    pub const MAX_COUNT: u32 = 1_000_000;

    /// The longest period: 30 days. With [`Rate::MAX_COUNT`] the level of a bucket stays within its type.
    pub const MAX_PERIOD: Micros = 30 * 86_400 * 1_000_000;

    /// The rate with each number within its bounds.
    pub fn clamped(self) -> Self {
        Self {
            period: self.period.clamp(1, Self::MAX_PERIOD),
            count: self.count.clamp(1, Self::MAX_COUNT),
            burst: self.burst.clamp(1, Self::MAX_COUNT),
        }
    }

    fn capacity(&self) -> i64 {
        self.period * i64::from(self.burst)
    }
}

/// What a rate allows at each moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Bucket {
    rate: Rate,
    /// Units in it at the moment `at`.
    level: i64,
    at: Micros,
}

impl Bucket {
    /// In the place of a bucket where there is no rate.
    pub const NONE: Self = Self { rate: Rate { period: 1, count: 1, burst: 1 }, level: 0, at: 0 };

    /// An empty bucket: the first token comes after `period / count`. Whoever forgot what was taken before begins with this one, and the
    /// bound holds over that moment too.
    pub fn empty(rate: Rate, now: Micros) -> Self {
        Self { rate: rate.clamped(), level: 0, at: now }
    }

    /// The rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Whole tokens at a moment.
    pub fn tokens(&self, now: Micros) -> u32 {
        (self.level_at(now) / self.rate.period) as u32
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Micros) -> bool {
        self.level = self.level_at(now);
        // After a step of the clock backwards it goes on from there.
        self.at = now;
        let full = self.level >= self.rate.period;
        if full {
            self.level -= self.rate.period;
        }
        full
    }

    /// Puts a token back that was not used.
    pub fn put_back(&mut self) {
        self.level = (self.level + self.rate.period).min(self.rate.capacity());
    }

    /// When there is a token: `now` if there is one already.
    pub fn next_at(&self, now: Micros) -> Micros {
        let missing = self.rate.period - self.level_at(now);
        if missing <= 0 {
            return now;
        }
        now + (missing + i64::from(self.rate.count) - 1) / i64::from(self.rate.count)
    }

    /// Goes on with another rate. What has gathered stays, as far as the new one allows.
    pub fn change(&mut self, rate: Rate, now: Micros) {
        let rate = rate.clamped();
        let tokens = i128::from(self.level_at(now));
        let level = tokens * i128::from(rate.period) / i128::from(self.rate.period);
        let level = level.min(i128::from(rate.capacity())) as i64;
        *self = Self { rate, level, at: now };
    }

    fn level_at(&self, now: Micros) -> i64 {
        let elapsed = now.saturating_sub(self.at).max(0);
        let gained = elapsed.saturating_mul(i64::from(self.rate.count));
        self.level.saturating_add(gained).min(self.rate.capacity())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Micros = 1_000_000;

    #[test]
    fn an_empty_bucket_gives_its_first_token_after_one_interval_and_gathers_up_to_its_burst() {
        let mut bucket = Bucket::empty(Rate { count: 10, period: SECOND, burst: 3 }, 0);
        assert!(!bucket.take(99_999));
        assert_eq!(bucket.next_at(99_999), 100_000);
        assert!(bucket.take(100_000));
        assert_eq!(bucket.tokens(100_000 + 60 * SECOND), 3);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_and_holds_nothing_up() {
        let mut bucket = Bucket::empty(Rate { count: 1, period: SECOND, burst: 1 }, 100 * SECOND);
        assert!(!bucket.take(50 * SECOND));
        assert!(!bucket.take(51 * SECOND - 1));
        assert!(bucket.take(51 * SECOND));
    }

    #[test]
    fn the_largest_numbers_stay_within_the_type() {
        let rate = Rate { count: u32::MAX, period: Micros::MAX, burst: u32::MAX };
        let mut bucket = Bucket::empty(rate, Micros::MIN);
        assert_eq!(bucket.tokens(Micros::MAX), Rate::MAX_COUNT);
        assert!(bucket.take(Micros::MAX));
        bucket.change(Rate { count: 1, period: 1, burst: 1 }, Micros::MAX);
        assert_eq!(bucket.tokens(Micros::MAX), 1);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_sees_more_than_burst_and_rate(
            count in 1_u32..50, period in 1_i64..5_000, burst in 1_u32..10,
            steps in proptest::collection::vec((0_i64..3_000, 0_u32..8), 1..80),
        ) {
            let mut bucket = Bucket::empty(Rate { count, period, burst }, 0);
            let (mut now, mut taken) = (0, Vec::new());
            for (pause, tries) in steps {
                now += pause;
                for _ in 0..tries {
                    let had = bucket.tokens(now) > 0;
                    prop_assert_eq!(had, bucket.next_at(now) == now);
                    prop_assert_eq!(bucket.take(now), had);
                    if had {
                        taken.push(now);
                    }
                }
                // A token comes at the moment that was told, and not a microsecond before.
                let next = bucket.next_at(now);
                prop_assert!(bucket.tokens(next) > 0);
                prop_assert!(next == now || bucket.tokens(next - 1) == 0);
            }
            for (first, from) in taken.iter().enumerate() {
                for (last, to) in taken.iter().enumerate().skip(first) {
                    let most = i64::from(burst) * period + i64::from(count) * (to - from);
                    prop_assert!((last - first + 1) as i64 * period <= most);
                }
                // From the start, where it was empty, without a burst.
                prop_assert!((first + 1) as i64 * period <= i64::from(count) * from);
            }
        }
    }
}
