//! A token bucket in whole numbers: so many hand-outs in a time, and so many at once.
//!
//! A token is worth `period` units; a microsecond brings `count` of them. Nothing is rounded, so that in any stretch of time *t* at most
//! `burst + count · t / period` tokens are taken and kept, whatever the order of calls.
//!
//! A token that is taken lies in the bucket until it is kept or put back: meanwhile it is nobody else's, and the bucket is full with it. So one
//! that is put back was not replaced before.

use crate::Micros;

/// Of calls by several processes one may come with a moment that is a little earlier than the last one's. What goes back farther is a step of
/// the clock.
const STEP: Micros = 1_000_000;

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
    /// Tokens in it that were taken and are not kept yet.
    taken: u32,
}

impl Bucket {
    /// In the place of a bucket where there is no rate.
    pub const NONE: Self = Self { rate: Rate { period: 1, count: 1, burst: 1 }, level: 0, at: 0, taken: 0 };

    /// An empty bucket: the first token comes after `period / count`. Whoever forgot what was taken before begins with this one, and the
    /// bound holds over that moment too.
    pub fn empty(rate: Rate, now: Micros) -> Self {
        Self { rate: rate.clamped(), level: 0, at: now, taken: 0 }
    }

    /// The same rate, of which nothing is known: empty, as of the first moment with which [`Bucket::settle`] is called.
    pub fn forgotten(self) -> Self {
        Self { level: 0, at: Micros::MAX, taken: 0, ..self }
    }

    /// The rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Whole tokens that can be taken at a moment.
    pub fn tokens(&self, now: Micros) -> u32 {
        (self.free_at(now).max(0) / self.rate.period) as u32
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Micros) -> bool {
        self.level = self.level_at(now);
        self.at = self.moment(now);
        let has_one = self.free_at(now) >= self.rate.period;
        self.taken += u32::from(has_one);
        has_one
    }

    /// A token that was taken is used.
    pub fn keep(&mut self) {
        self.level -= self.rate.period;
        self.taken = self.taken.saturating_sub(1);
    }

    /// All that were taken are used.
    pub fn keep_all(&mut self) {
        self.level -= i64::from(self.taken) * self.rate.period;
        self.taken = 0;
    }

    /// A token that was taken is not used.
    pub fn put_back(&mut self) {
        self.taken = self.taken.saturating_sub(1);
    }

    /// After a step of the clock backwards it goes on from there: nothing is gained, and nothing waits until the old time is reached again.
    pub fn settle(&mut self, now: Micros) {
        if now < self.at {
            self.at = self.moment(now);
        }
    }

    /// When there is a token, if those that are taken are kept: `now` if there is one already.
    pub fn next_at(&self, now: Micros) -> Micros {
        let missing = self.rate.period - self.free_at(now);
        if missing <= 0 {
            return now;
        }
        self.moment(now).saturating_add(self.time_for(missing))
    }

    /// When it is full, if nothing is taken until then: from that moment on it is as if none of its tokens had ever been taken.
    pub fn full_at(&self) -> Micros {
        self.at.saturating_add(self.time_for(self.rate.capacity() - self.level))
    }

    /// Whether it was full when it was last touched.
    pub fn was_full(&self) -> bool {
        self.level >= self.rate.capacity()
    }

    /// Goes on with another rate. What has gathered stays, as far as the new one allows.
    pub fn change(&mut self, rate: Rate, now: Micros) {
        let rate = rate.clamped();
        let tokens = i128::from(self.level_at(now));
        let level = tokens * i128::from(rate.period) / i128::from(self.rate.period);
        let level = level.min(i128::from(rate.capacity())) as i64;
        *self = Self { rate, level, at: self.moment(now), ..*self };
    }

    fn moment(&self, now: Micros) -> Micros {
        if now < self.at && self.at.saturating_sub(now) < STEP { self.at } else { now }
    }

    fn time_for(&self, units: i64) -> Micros {
        (units + i64::from(self.rate.count) - 1) / i64::from(self.rate.count)
    }

    fn free_at(&self, now: Micros) -> i64 {
        self.level_at(now).saturating_sub(i64::from(self.taken).saturating_mul(self.rate.period))
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

    fn take(bucket: &mut Bucket, now: Micros) -> bool {
        let has_one = bucket.take(now);
        if has_one {
            bucket.keep();
        }
        has_one
    }

    #[test]
    fn an_empty_bucket_gives_its_first_token_after_one_interval_and_gathers_up_to_its_burst() {
        let mut bucket = Bucket::empty(Rate { count: 10, period: SECOND, burst: 3 }, 0);
        assert!(!take(&mut bucket, 99_999));
        assert_eq!(bucket.next_at(99_999), 100_000);
        assert!(take(&mut bucket, 100_000));
        assert_eq!(bucket.tokens(100_000 + 60 * SECOND), 3);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_and_holds_nothing_up() {
        let mut bucket = Bucket::empty(Rate { count: 1, period: SECOND, burst: 1 }, 100 * SECOND);
        assert!(!take(&mut bucket, 50 * SECOND));
        assert!(!take(&mut bucket, 51 * SECOND - 1));
        assert!(take(&mut bucket, 51 * SECOND));
    }

    #[test]
    fn a_moment_that_comes_a_little_late_is_not_counted_twice() {
        let mut bucket = Bucket::empty(Rate { count: 1, period: 10, burst: 1 }, 0);
        assert!(take(&mut bucket, 10));
        assert!(!take(&mut bucket, 5));
        assert_eq!(bucket.next_at(5), 20);
        assert!(!take(&mut bucket, 19));
        assert!(take(&mut bucket, 20));
    }

    #[test]
    fn what_was_forgotten_is_empty_from_the_first_look_on() {
        let mut bucket = Bucket::empty(Rate { count: 1, period: SECOND, burst: 5 }, 0);
        take(&mut bucket, 100 * SECOND);
        let mut bucket = bucket.forgotten();
        assert_eq!(bucket.tokens(200 * SECOND), 0);
        bucket.settle(200 * SECOND);
        assert_eq!((bucket.next_at(200 * SECOND), bucket.full_at()), (201 * SECOND, 205 * SECOND));
        assert_eq!(bucket.tokens(203 * SECOND), 3);
    }

    #[test]
    fn a_token_that_is_put_back_was_not_replaced_meanwhile() {
        let mut bucket = Bucket::empty(Rate { count: 1, period: SECOND, burst: 2 }, 0);
        assert!(bucket.take(2 * SECOND) && bucket.take(2 * SECOND));
        assert_eq!((bucket.tokens(9 * SECOND), bucket.next_at(2 * SECOND)), (0, 3 * SECOND));
        bucket.put_back();
        assert_eq!(bucket.tokens(9 * SECOND), 1);
        bucket.keep();
        assert_eq!(bucket.tokens(9 * SECOND), 2);
    }

    #[test]
    fn the_largest_numbers_stay_within_the_type() {
        let rate = Rate { count: u32::MAX, period: Micros::MAX, burst: u32::MAX };
        let mut bucket = Bucket::empty(rate, Micros::MIN);
        assert_eq!(bucket.tokens(Micros::MAX), Rate::MAX_COUNT);
        assert!(take(&mut bucket, Micros::MAX));
        bucket.change(Rate { count: 1, period: 1, burst: 1 }, Micros::MAX);
        assert_eq!(bucket.tokens(Micros::MAX), 1);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_sees_more_than_burst_and_rate(
            count in 1_u32..50, period in 1_i64..5_000, burst in 1_u32..10,
            steps in proptest::collection::vec((0_i64..3_000, 0_u32..8, 0_usize..4, any::<bool>()), 1..crate::up_to(80)),
        ) {
            let mut bucket = Bucket::empty(Rate { count, period, burst }, 0);
            let (mut now, mut kept, mut open) = (0, Vec::new(), Vec::new());
            for (pause, tries, ends, is_kept) in steps {
                now += pause;
                for _ in 0..tries {
                    let had = bucket.tokens(now) > 0;
                    prop_assert_eq!(had, bucket.next_at(now) == now);
                    prop_assert_eq!(bucket.take(now), had);
                    if had {
                        open.push(now);
                    }
                }
                for _ in 0..ends.min(open.len()) {
                    let taken = open.remove(0);
                    if is_kept {
                        bucket.keep();
                        kept.push(taken);
                    } else {
                        bucket.put_back();
                    }
                }
                if open.is_empty() {
                    // A token comes at the moment that was told, and not a microsecond before.
                    let next = bucket.next_at(now);
                    prop_assert!(bucket.tokens(next) > 0);
                    prop_assert!(next == now || bucket.tokens(next - 1) == 0);
                    let full = bucket.full_at();
                    prop_assert_eq!(bucket.tokens(full), burst);
                    prop_assert!(bucket.was_full() || bucket.level_at(full - 1) < bucket.rate.capacity());
                }
            }
            for (first, from) in kept.iter().enumerate() {
                for (last, to) in kept.iter().enumerate().skip(first) {
                    let most = i64::from(burst) * period + i64::from(count) * (to - from);
                    prop_assert!((last - first + 1) as i64 * period <= most);
                }
                // From the start, where it was empty, without a burst.
                prop_assert!((first + 1) as i64 * period <= i64::from(count) * from);
            }
        }
    }
}
