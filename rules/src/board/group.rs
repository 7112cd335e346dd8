//! Groups: the tasks of one group run one at a time, in the order of their ids.
//!
//! Which task of a group is the next is a question for the table: the oldest that is there. The board knows which groups have a claim, so that
//! no second task runs beside it, and which groups the scheduler is to look at because a claim in them has ended. A task whose turn has not come
//! is not kept here: the look that follows each end finds the next one.

use super::Board;
use super::Leaving;
use super::claim::Claim;
use super::layout::Entry;
use super::layout::NIL;
use crate::Micros;
use crate::names::Group;
use crate::names::Key;

/// In the place of the next entry of a chain: the entry is in none.
pub(super) const APART: u32 = u32::MAX - 1;

/// What the scheduler is to look for in the table.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub enum Look {
    /// The next task of a group.
    Group(Group),
    /// The next tasks of a key.
    Key(Key),
}

/// Whether a task may run, as far as the other claims of its group go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// It has the turn, unless the table knows an older task.
    Taken,
    /// Another task of the group is claimed: the group is looked at when that claim ends.
    Waits,
    /// Workers may still say what they hold: not before this moment.
    NotBefore(Micros),
}

impl Entry {
    /// Where others are the next when this claim has ended.
    pub fn looks(&self) -> [Option<Look>; 2] {
        let group = (self.group_next != APART).then_some(Look::Group(self.group));
        [group, (self.key_slot != APART).then_some(Look::Key(self.key))]
    }
}

impl Board<'_> {
    /// Takes the turn of a group for a claim that was just made; with `leaving`, beside claims that end with the same call.
    pub fn take_turn(&mut self, claim: &Claim, group: Group, now: Micros, leaving: &Leaving) -> Turn {
        let Some(index) = self.find_claim(&claim.id, claim.token) else { return Turn::Waits };
        if now < self.head.settled_at {
            return Turn::NotBefore(self.head.settled_at);
        }
        if self.claims_in(group).count() > leaving.of_group(group) {
            return Turn::Waits;
        }
        self.join(index, group);
        Turn::Taken
    }

    /// Whether a task of the group is claimed.
    pub fn has_turn(&self, group: Group) -> bool {
        self.claims_in(group).next().is_some()
    }

    /// The scheduler is to look which tasks are the next.
    pub fn ask_look(&mut self, look: Look) {
        let len = self.head.looks_len as usize;
        if len > 0 && self.looks[len - 1] == look {
            return;
        }
        match self.looks.get_mut(len) {
            Some(place) => {
                *place = look;
                self.head.looks_len += 1;
            }
            None => self.head.looks_lost = true,
        }
    }

    /// Whether the scheduler is to look for the next tasks of a group or key.
    pub fn wants_look(&self) -> bool {
        self.head.looks_len > 0 || self.head.looks_lost
    }

    /// The groups and keys to look at. True when there were more than could be noted: the whole table is to be read.
    pub fn take_looks(&mut self, out: &mut Vec<Look>) -> bool {
        out.extend_from_slice(&self.looks[..self.head.looks_len as usize]);
        self.head.looks_len = 0;
        std::mem::take(&mut self.head.looks_lost)
    }

    /// The claim is one of the group's.
    pub(super) fn join(&mut self, index: u32, group: Group) {
        if self.entries[index as usize].group_next != APART {
            self.end_turn(index);
        }
        let bucket = self.group_bucket(group);
        let entry = &mut self.entries[index as usize];
        entry.group = group;
        entry.group_next = self.group_buckets[bucket];
        self.group_buckets[bucket] = index;
        self.head.in_groups += 1;
    }

    /// Ends a claim whose task comes back by itself, at a later moment that the caller tells the scheduler: nobody is to look for it sooner.
    pub fn postpone(&mut self, claim: &Claim) -> bool {
        let Some(index) = self.find_claim(&claim.id, claim.token) else { return false };
        let entry = &self.entries[index as usize];
        let (in_group, has_key) = (entry.group_next != APART, entry.key_slot != APART);
        if in_group {
            self.leave_group(index);
        }
        if has_key {
            self.leave_key(index);
        }
        self.end_claim(&claim.id, claim.token)
    }

    /// A claim of a group ends: another task may be the next.
    #[cold]
    pub(super) fn end_turn(&mut self, index: u32) {
        let group = self.leave_group(index);
        self.ask_look(Look::Group(group));
    }

    fn leave_group(&mut self, index: u32) -> Group {
        let group = self.entries[index as usize].group;
        let after = std::mem::replace(&mut self.entries[index as usize].group_next, APART);
        let bucket = self.group_bucket(group);
        let mut at = self.group_buckets[bucket];
        if at == index {
            self.group_buckets[bucket] = after;
        } else {
            while at != NIL {
                let next = self.entries[at as usize].group_next;
                if next == index {
                    self.entries[at as usize].group_next = after;
                    break;
                }
                at = next;
            }
        }
        self.head.in_groups -= 1;
        group
    }

    fn claims_in(&self, group: Group) -> impl Iterator<Item = u32> {
        let mut index = self.group_buckets[self.group_bucket(group)];
        std::iter::from_fn(move || {
            while index != NIL {
                let entry = &self.entries[index as usize];
                let at = std::mem::replace(&mut index, entry.group_next);
                if entry.group == group {
                    return Some(at);
                }
            }
            None
        })
    }

    fn group_bucket(&self, group: Group) -> usize {
        (group.0 as u64 >> 20) as usize & (self.group_buckets.len() - 1)
    }
}
