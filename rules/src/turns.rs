//! In which order tasks become ready that were found for several keys at once: by the lengths of their turns.
//!
//! As many tasks of a key are in memory as its turn is long, and each that is taken is followed by one more. If each came at the end of the line
//! at the moment at which the one before it was taken, shares would be as these lengths. But many are taken before the next look, and then
//! all that follow are found together. Each key has a *pass*, which grows with each task that is put into the line, by the more the shorter the
//! key's turns are; the key with the least pass is next (stride scheduling, Waldspurger and Weihl 1995).
//!
//! **Why the shares hold, however much is taken between two looks.** Let all keys have a backlog. After a look a key has had as many tasks put into the line as
//! were taken of it, and one turn more: so the passes at the end of the line are as far apart as they were at the place up to which it has been
//! taken. Between the end that one look leaves and the end that the next leaves they are no farther apart than at the two ends, or by the largest step
//! of one: who is put in is the last of all. So they never come farther apart.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::collections::HashMap;

use crate::due::LaneKey;
use crate::names::Key;

/// By how much the pass of a key grows in one turn.
const TURN: u64 = 1 << 32;

/// Passes that are kept, in all lanes together, at most: a key without one begins where the others are.
const MOST: usize = if cfg!(miri) { 50 } else { 50_000 };

/// What was found of a key in one lane.
#[derive(Clone, Debug)]
pub struct Turn<T> {
    /// The key.
    pub key: Key,
    /// How long a turn of it is, in tasks.
    pub length: u32,
    /// Its tasks that are to be put into the line, in their own order.
    pub tasks: Vec<T>,
}

/// Where the turns of keys stand.
#[derive(Clone, Debug, Default)]
pub struct Passes {
    lanes: BTreeMap<LaneKey, Line>,
    kept: usize,
}

#[derive(Clone, Debug, Default)]
struct Line {
    passes: HashMap<Key, u64>,
    /// The largest pass at which a task was put into the line.
    now: u64,
}

impl Passes {
    /// One order for what was found in a lane.
    pub fn order<T>(&mut self, lane: LaneKey, found: Vec<Turn<T>>) -> Vec<T> {
        if self.kept > MOST {
            *self = Self::default();
        }
        let line = self.lanes.entry(lane).or_default();
        let before = line.passes.len();
        let order = line.order(found);
        self.kept += line.passes.len() - before;
        order
    }
}

impl Line {
    fn order<T>(&mut self, found: Vec<Turn<T>>) -> Vec<T> {
        let mut order = Vec::with_capacity(found.iter().map(|of_key| of_key.tasks.len()).sum());
        let mut next = BinaryHeap::with_capacity(found.len());
        let mut rest = Vec::with_capacity(found.len());
        for Turn { key, length, tasks } in found {
            // A key that had nothing to do for a while has saved a turn at most.
            let least = self.now.saturating_sub(TURN);
            let pass = self.passes.get(&key).map_or(self.now, |&pass| pass.max(least));
            next.push(Reverse((pass, rest.len())));
            rest.push((key, TURN / u64::from(length.max(1)), tasks.into_iter()));
        }
        while let Some(Reverse((pass, at))) = next.pop() {
            let (key, stride, tasks) = &mut rest[at];
            match tasks.next() {
                Some(task) => {
                    order.push(task);
                    self.now = self.now.max(pass);
                    next.push(Reverse((pass + *stride, at)));
                }
                None => _ = self.passes.insert(*key, pass),
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::QueueName;

    fn lane(priority: i16) -> LaneKey {
        LaneKey { priority, queue: QueueName::new("a").expect("a name") }
    }

    fn order(passes: &mut Passes, found: &[(i64, u32, &str)]) -> String {
        let found = found.iter().map(|&(key, length, tasks)| Turn {
            key: Key(key),
            length,
            tasks: tasks.chars().collect(),
        });
        passes.order(lane(0), found.collect()).into_iter().collect()
    }

    #[test]
    fn what_is_found_together_is_mixed_by_the_lengths_of_turns_and_goes_on_where_it_ended() {
        let mut passes = Passes::default();
        assert_eq!(order(&mut passes, &[(1, 3, "aaaaaa"), (2, 1, "bb")]), "abaaabaa");
        assert_eq!(order(&mut passes, &[(1, 3, "a"), (2, 1, "bbb")]), "abbb");
        // The first is behind now, by more than it has saved.
        assert_eq!(order(&mut passes, &[(1, 3, "aaaaaaaa"), (2, 1, "b")]), "aaaaaaaba");
    }

    #[test]
    fn a_key_that_comes_late_begins_where_the_others_are() {
        let mut passes = Passes::default();
        order(&mut passes, &[(1, 1, &"a".repeat(100))]);
        assert_eq!(order(&mut passes, &[(1, 1, "aaa"), (2, 1, "bbb")]), "bababa");
    }

    #[test]
    fn lanes_know_nothing_of_each_other_and_no_more_is_kept_than_there_is_room_for() {
        let mut passes = Passes::default();
        order(&mut passes, &[(1, 1, "aaa")]);
        let both = [Key(1), Key(2)].map(|key| Turn { key, length: 1, tasks: vec![key; 2] });
        assert_eq!(passes.order(lane(1), both.to_vec()), [Key(1), Key(2), Key(1), Key(2)]);
        for key in 0..2 * MOST as i64 {
            passes.order(lane((key % 7) as i16), vec![Turn { key: Key(key), length: 1, tasks: vec![()] }]);
            assert!(passes.kept <= MOST + 1);
        }
        assert_eq!(passes.kept, passes.lanes.values().map(|line| line.passes.len()).sum::<usize>());
    }
}
