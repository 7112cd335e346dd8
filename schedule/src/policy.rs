//! What becomes of ticks that nobody was there for, and of those that come while the last run goes on.

use crate::Seconds;
use crate::plan::Due;

/// A tick that is served later than this was missed.
pub const TOLERANCE: i64 = 60;

/// What becomes of ticks that were missed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Missed {
    /// Each of them is run, the last so many.
    All,
    /// One run stands for all of them.
    Once,
    /// None is run.
    Skip,
}

/// What becomes of a tick while a task of the schedule is still there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overlap {
    /// It is run beside the other.
    Allow,
    /// It waits for the end of the other.
    Queue,
    /// It is not run.
    Skip,
}

impl Missed {
    /// As the table has it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "all" => Some(Self::All),
            "once" => Some(Self::Once),
            "skip" => Some(Self::Skip),
            _ => None,
        }
    }

    /// How many of the ticks that are due have to be known.
    pub fn wanted(self, limit: usize) -> usize {
        if self == Self::All { limit } else { 1 }
    }
}

impl Overlap {
    /// As the table has it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "allow" => Some(Self::Allow),
            "queue" => Some(Self::Queue),
            "skip" => Some(Self::Skip),
            _ => None,
        }
    }
}

/// Which of the ticks that are due are run. `due` has the last [`Missed::wanted`] of them.
pub fn choose(due: &Due, missed: Missed, now: Seconds) -> Vec<Seconds> {
    match missed {
        Missed::All | Missed::Once => due.ticks.clone(),
        Missed::Skip => due.ticks.iter().copied().filter(|tick| now - tick <= TOLERANCE).collect(),
    }
}

/// What is enqueued now, and what waits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Placed {
    /// Ticks that get their task now.
    pub run: Vec<Seconds>,
    /// Ticks that wait for the end of a run.
    pub waiting: Vec<Seconds>,
    /// Ticks that get none.
    pub skipped: u64,
}

/// What becomes of `ticks` beside those that wait already, while so many tasks of the schedule are there. At most `limit` wait.
pub fn place(overlap: Overlap, waiting: &[Seconds], ticks: &[Seconds], live: usize, limit: usize) -> Placed {
    let mut all = waiting.to_vec();
    all.extend(ticks);
    let free = usize::from(live == 0);
    match overlap {
        Overlap::Allow => Placed { run: all, ..Placed::default() },
        Overlap::Skip => {
            let rest = all.split_off(free.min(all.len()));
            Placed { run: all, waiting: Vec::new(), skipped: rest.len() as u64 }
        }
        Overlap::Queue => {
            let mut rest = all.split_off(free.min(all.len()));
            let skipped = rest.len().saturating_sub(limit);
            rest.truncate(limit);
            Placed { run: all, waiting: rest, skipped: skipped as u64 }
        }
    }
}

/// How long after its tick a task is due: 0 to `most` microseconds, always the same for one tick of one schedule.
pub fn jitter(name: &str, tick: Seconds, most: i64) -> i64 {
    // FNV-1a, and the end of SplitMix64 to spread it.
    let bytes = name.bytes().chain(tick.to_le_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let most = u64::try_from(most).unwrap_or(0);
    ((u128::from(hash) * (u128::from(most) + 1)) >> 64) as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_missed_is_run_as_the_policy_says() {
        let due = |ticks: &[Seconds]| Due { ticks: ticks.to_vec(), count: 9, next: None };
        assert_eq!(choose(&due(&[10, 20, 30]), Missed::All, 500), [10, 20, 30]);
        assert_eq!(choose(&due(&[30]), Missed::Once, 500), [30]);
        assert_eq!(choose(&due(&[30]), Missed::Skip, 30 + TOLERANCE), [30]);
        assert_eq!(choose(&due(&[30]), Missed::Skip, 31 + TOLERANCE), [0; 0]);
        assert_eq!((Missed::All.wanted(7), Missed::Once.wanted(7), Missed::Skip.wanted(7)), (7, 1, 1));
    }

    #[test]
    fn ticks_beside_a_run_go_on_wait_or_are_left_out() {
        let placed = |run: &[Seconds], waiting: &[Seconds], skipped| Placed {
            run: run.to_vec(),
            waiting: waiting.to_vec(),
            skipped,
        };
        assert_eq!(place(Overlap::Allow, &[], &[1, 2], 5, 9), placed(&[1, 2], &[], 0));
        assert_eq!(place(Overlap::Skip, &[], &[1, 2], 0, 9), placed(&[1], &[], 1));
        assert_eq!(place(Overlap::Skip, &[], &[1, 2], 1, 9), placed(&[], &[], 2));
        assert_eq!(place(Overlap::Queue, &[], &[1, 2], 0, 9), placed(&[1], &[2], 0));
        assert_eq!(place(Overlap::Queue, &[1], &[2], 1, 9), placed(&[], &[1, 2], 0));
        assert_eq!(place(Overlap::Queue, &[1, 2], &[3], 1, 2), placed(&[], &[1, 2], 1));
        assert_eq!(place(Overlap::Queue, &[1, 2], &[], 0, 2), placed(&[1], &[2], 0));
        assert_eq!(place(Overlap::Queue, &[], &[], 0, 2), placed(&[], &[], 0));
    }

    proptest! {
        #[test]
        fn no_tick_gets_lost_between_run_waiting_and_skipped(
            overlap in prop::sample::select(vec![Overlap::Allow, Overlap::Queue, Overlap::Skip]),
            waiting in prop::collection::vec(0..9_i64, 0..5),
            ticks in prop::collection::vec(10..19_i64, 0..5),
            live in 0..3_usize,
            limit in 1..6_usize,
        ) {
            let placed = place(overlap, &waiting, &ticks, live, limit);
            let all = placed.run.len() + placed.waiting.len() + placed.skipped as usize;
            prop_assert_eq!(all, waiting.len() + ticks.len());
            prop_assert!(placed.waiting.len() <= limit);
            prop_assert!(overlap == Overlap::Allow || live + placed.run.len() <= 1.max(live));
        }

        #[test]
        fn jitter_stays_within_its_bound_and_with_its_tick(name in ".{0,9}", tick: i64, most in 0..i64::MAX) {
            let chance = jitter(&name, tick, most);
            prop_assert!((0..=most).contains(&chance));
            prop_assert_eq!(chance, jitter(&name, tick, most));
        }
    }

    #[test]
    fn jitter_spreads_over_its_whole_range() {
        let halves: usize = (0..1_000).filter(|tick| jitter("nightly", *tick, 1_000_000) < 500_000).count();
        assert!((400..600).contains(&halves), "{halves}");
    }
}
