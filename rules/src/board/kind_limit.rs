//! Limits of what runs at once of one step, whatever queue it is in.
//!
//! Which step a task is at is known when its row has been read: a claim is *admitted* then, or the task goes to a lane of its kind, from which
//! it is taken when there is a place.

use super::Board;
use super::Leaving;
use super::claim::Claim;
use super::layout::ADMITTED;
use super::layout::EntryState;
use crate::Micros;
use crate::TaskId;
use crate::names::Kind;

/// Steps that can have a limit.
pub const MAX_KIND_LIMITS: usize = 64;

/// A step's limit and what counts against it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub(super) struct KindLimit {
    kind: Kind,
    limit: u32,
    running: u32,
    held: u32,
}

impl KindLimit {
    pub(super) const NONE: Self = Self { kind: Kind::ANY, limit: 0, running: 0, held: 0 };

    pub(super) fn forget_claims(&mut self) {
        (self.running, self.held) = (0, 0);
    }
}

impl Board<'_> {
    /// Sets how many tasks are at the step at once, from now on, or that any number may. False when there is no place for another limit.
    pub fn set_kind_limit(&mut self, kind: Kind, limit: Option<u32>) -> bool {
        let known = self.kind_limit(kind);
        let len = usize::from(self.head.kind_limits_len);
        match (limit, known) {
            (None, None) => {}
            (None, Some(index)) => {
                self.head.kind_limits[index] = self.head.kind_limits[len - 1];
                self.head.kind_limits_len -= 1;
                self.head.gates -= 1;
                let claims = self.entries.iter_mut().filter(|entry| entry.state == EntryState::Claimed);
                claims.filter(|entry| entry.kind == kind).for_each(|entry| entry.flags &= !ADMITTED);
            }
            (Some(limit), Some(index)) => self.head.kind_limits[index].limit = limit,
            (Some(_), None) if len == MAX_KIND_LIMITS => return false,
            (Some(limit), None) => {
                self.head.kind_limits[len] = KindLimit { kind, limit, ..KindLimit::NONE };
                self.head.kind_limits_len += 1;
                self.head.gates += 1;
                for index in 0..self.entries.len() as u32 {
                    let entry = &self.entries[index as usize];
                    if entry.state == EntryState::Claimed && entry.kind == kind {
                        self.count_kind_in(index);
                    }
                }
            }
        }
        true
    }

    /// Forgets every limit that is not among these.
    pub fn keep_kind_limits(&mut self, kinds: &[Kind]) {
        let gone: Vec<Kind> = self.limited_kinds().filter(|kind| !kinds.contains(kind)).collect();
        for kind in gone {
            self.set_kind_limit(kind, None);
        }
    }

    /// The steps that have a limit.
    pub fn limited_kinds(&self) -> impl Iterator<Item = Kind> {
        self.head.kind_limits[..usize::from(self.head.kind_limits_len)].iter().map(|limit| limit.kind)
    }

    /// How many tasks count against the step's limit, if it has one.
    pub fn running_of_kind(&self, kind: Kind) -> Option<u32> {
        self.kind_limit(kind).map(|index| self.head.kind_limits[index].running)
    }

    /// Tasks at the step that run as their rows say. Those of them that are claimed here count already.
    pub fn set_held_of_kind(&mut self, kind: Kind, ids: &[TaskId]) {
        let held = ids.iter().filter(|id| self.claim_of(id).is_none()).count() as u32;
        if let Some(index) = self.kind_limit(kind) {
            self.head.kind_limits[index].held = held;
        }
    }

    /// Whether the step of a task that was just claimed may be begun. It counts from now on.
    pub fn admit(&mut self, claim: &Claim, kind: Kind, now: Micros, leaving: &Leaving) -> bool {
        let Some(index) = self.find_claim(&claim.id, claim.token) else { return false };
        let entry = &self.entries[index as usize];
        if entry.flags & ADMITTED != 0 && entry.kind == kind {
            return true;
        }
        if self.kind_allowance(kind, now, leaving) == 0 {
            return false;
        }
        self.count_kind_out(index);
        self.entries[index as usize].kind = kind;
        self.count_kind_in(index);
        true
    }

    /// How many tasks at the step may be begun now.
    pub(super) fn kind_allowance(&self, kind: Kind, now: Micros, leaving: &Leaving) -> u32 {
        let Some(index) = self.kind_limit(kind) else { return u32::MAX };
        if now < self.head.settled_at {
            return 0;
        }
        let KindLimit { limit, running, held, .. } = self.head.kind_limits[index];
        let held = if now < self.head.trusted_until { held } else { 0 };
        limit.saturating_sub(running.saturating_sub(leaving.of_kind(kind)).saturating_add(held))
    }

    /// When the step's limit lets a task go: none when something has to end first.
    pub(super) fn kind_opening(&self, kind: Kind, now: Micros) -> Option<Micros> {
        let Some(index) = self.kind_limit(kind) else { return Some(now) };
        let KindLimit { limit, running, held, .. } = self.head.kind_limits[index];
        if running >= limit {
            return None;
        }
        let at = now.max(self.head.settled_at);
        if now < self.head.trusted_until && running.saturating_add(held) >= limit {
            return Some(at.max(self.head.trusted_until));
        }
        Some(at)
    }

    /// The claim counts against the limit of its step, if there is one.
    pub(super) fn count_kind_in(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        if entry.flags & ADMITTED != 0 {
            return;
        }
        if let Some(limit) = self.kind_limit(entry.kind) {
            self.head.kind_limits[limit].running += 1;
            self.entries[index as usize].flags |= ADMITTED;
        }
    }

    /// The claim counts no more.
    pub(super) fn count_kind_out(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        if entry.flags & ADMITTED == 0 {
            return;
        }
        entry.flags &= !ADMITTED;
        let kind = entry.kind;
        if let Some(limit) = self.kind_limit(kind) {
            let running = &mut self.head.kind_limits[limit].running;
            *running = running.saturating_sub(1);
        }
    }

    /// A worker has come back with a task that its row said to be running.
    pub(super) fn count_kind_back(&mut self, kind: Kind) {
        if let Some(index) = self.kind_limit(kind) {
            let held = &mut self.head.kind_limits[index].held;
            *held = held.saturating_sub(1);
        }
    }

    fn kind_limit(&self, kind: Kind) -> Option<usize> {
        if kind == Kind::ANY {
            return None;
        }
        let limits = &self.head.kind_limits[..usize::from(self.head.kind_limits_len)];
        limits.iter().position(|limit| limit.kind == kind)
    }
}
