//! Keys: how many tasks of each key (a tenant, say) within a queue run at once, and turns between keys.
//!
//! Of each key only a few tasks are in memory at a time: the others are left in the table, and the look that follows the end of each claim
//! brings the next, at the end of the lane. So the backlog of one key, however deep, does not stand before the tasks of another.
//!
//! A key has a slot while claims of it count. There are only so many: when all are in use, tasks of further keys that have a limit wait, so
//! that no limit is ever exceeded for want of memory.

use super::Board;
use super::Leaving;
use super::QueueId;
use super::claim::Claim;
use super::group::APART;
use super::group::Look;
use super::layout::EntryState;
use super::layout::NIL;
use crate::Micros;
use crate::TaskId;
use crate::names::Key;
use crate::names::Kind;
use crate::names::QueueName;

/// So many tasks of a key are made ready at a time: how long a turn is.
pub const KEY_WINDOW: u32 = 16;

/// When there is no slot, a task of a limited key is looked for again after this time.
const NO_SLOT: Micros = 1_000_000;

/// No limit.
pub(super) const UNLIMITED: u32 = u32::MAX;

/// A key that has claims.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct KeySlot {
    key: Key,
    running: u32,
    /// Tasks that run as their rows say, under workers that have not come back since the server's start.
    held: u32,
    /// The next slot of the chain, or the next free one.
    next: u32,
}

impl KeySlot {
    /// A free slot.
    pub const EMPTY: Self = Self { key: Key(0), running: 0, held: 0, next: NIL };
}

/// How many tasks of a key may be made ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyRoom {
    /// So many; at least one.
    For(u32),
    /// None before a claim of the key ends, which asks for a look.
    Shut,
    /// None before this moment.
    OpensAt(Micros),
}

impl Board<'_> {
    /// Whether a task that was just claimed may be handed out, as far as its key goes. It counts from now on.
    pub fn admit_key(&mut self, claim: &Claim, key: Key, now: Micros, leaving: &Leaving) -> bool {
        let Some(index) = self.find_claim(&claim.id, claim.token) else { return false };
        let limit = self.key_limit(self.entries[index as usize].queue);
        if !matches!(self.room_of(key, limit, now, leaving.of_key(key)), KeyRoom::For(_)) {
            return false;
        }
        self.join_key(index, key);
        // What is ready of a key is soon claimed; the next are to be there then.
        if matches!(self.room_of(key, limit, now, 0), KeyRoom::For(_)) {
            self.ask_look(Look::Key(key));
        }
        true
    }

    /// How many tasks of a key in a queue may be made ready.
    pub fn key_room(&self, key: Key, queue: &QueueName, now: Micros) -> KeyRoom {
        let limit = self.number_of(queue).map_or(UNLIMITED, |queue| self.key_limit(queue));
        self.room_of(key, limit, now, 0)
    }

    /// Whether a task is claimed, or waits aside for a worker that knows its step or for a place at it: others of its key may pass it.
    pub fn is_aside(&self, id: &TaskId) -> bool {
        self.find(id).is_some_and(|index| {
            let entry = &self.entries[index as usize];
            entry.state == EntryState::Claimed || self.lanes[entry.owner as usize].kind != Kind::ANY
        })
    }

    /// How many tasks wait aside.
    pub fn aside(&self) -> u32 {
        self.lanes_in_use().filter(|lane| lane.kind != Kind::ANY).map(|lane| lane.len).sum()
    }

    /// Claims of the key.
    pub fn running_of_key(&self, key: Key) -> u32 {
        self.key_slot(key).map_or(0, |slot| self.keys[slot as usize].running)
    }

    /// Tasks of a key that run as their rows say. Those of them that are claimed here count already.
    pub fn set_held_of_key(&mut self, key: Key, ids: &[TaskId]) {
        let held = ids.iter().filter(|id| self.claim_of(id).is_none()).count() as u32;
        if let Some(slot) = self.key_slot(key).or_else(|| self.new_key_slot(key)) {
            self.keys[slot as usize].held = held;
            self.free_if_idle(slot);
        }
    }

    /// The claim is one of the key's.
    pub(super) fn join_key(&mut self, index: u32, key: Key) {
        if self.entries[index as usize].key_slot != APART {
            self.end_key(index);
        }
        let slot = self.key_slot(key).or_else(|| self.new_key_slot(key)).unwrap_or(NIL);
        let entry = &mut self.entries[index as usize];
        entry.key = key;
        entry.key_slot = slot;
        self.head.keyed += 1;
        if slot != NIL {
            self.keys[slot as usize].running += 1;
        }
    }

    /// A claim of a key ends: there is room for another of its tasks.
    #[cold]
    pub(super) fn end_key(&mut self, index: u32) {
        let key = self.leave_key(index);
        self.ask_look(Look::Key(key));
    }

    pub(super) fn leave_key(&mut self, index: u32) -> Key {
        let entry = &mut self.entries[index as usize];
        let (key, slot) = (entry.key, std::mem::replace(&mut entry.key_slot, APART));
        self.head.keyed -= 1;
        if slot != NIL {
            let running = &mut self.keys[slot as usize].running;
            *running = running.saturating_sub(1);
            self.free_if_idle(slot);
        }
        key
    }

    /// A worker has come back with a task that its row said to be running.
    pub(super) fn count_key_back(&mut self, key: Key) {
        if let Some(slot) = self.key_slot(key) {
            let held = &mut self.keys[slot as usize].held;
            *held = held.saturating_sub(1);
        }
    }

    /// Forgets the claims of all keys.
    pub(super) fn reset_keys(&mut self) {
        self.key_buckets.fill(NIL);
        let last = self.keys.len().saturating_sub(1);
        for (at, slot) in self.keys.iter_mut().enumerate() {
            *slot = KeySlot { next: if at == last { NIL } else { at as u32 + 1 }, ..KeySlot::EMPTY };
        }
        self.head.keys_free = if self.keys.is_empty() { NIL } else { 0 };
    }

    fn key_limit(&self, queue: QueueId) -> u32 {
        self.gates[usize::from(queue.0)].key_limit()
    }

    fn room_of(&self, key: Key, limit: u32, now: Micros, leaving: u32) -> KeyRoom {
        if limit == UNLIMITED {
            return KeyRoom::For(KEY_WINDOW);
        }
        if now < self.head.settled_at {
            return KeyRoom::OpensAt(self.head.settled_at);
        }
        let Some(slot) = self.key_slot(key) else {
            let has_slot = self.head.keys_free != NIL;
            return if has_slot {
                KeyRoom::For(limit.min(KEY_WINDOW))
            } else {
                KeyRoom::OpensAt(now + NO_SLOT)
            };
        };
        let KeySlot { running, held, .. } = self.keys[slot as usize];
        let running = running.saturating_sub(leaving);
        let is_trusted = now < self.head.trusted_until;
        match limit.saturating_sub(running.saturating_add(if is_trusted { held } else { 0 })) {
            0 if running < limit => KeyRoom::OpensAt(self.head.trusted_until),
            0 => KeyRoom::Shut,
            room => KeyRoom::For(room.min(KEY_WINDOW)),
        }
    }

    fn key_slot(&self, key: Key) -> Option<u32> {
        let mut at = self.key_buckets[self.key_bucket(key)];
        while at != NIL {
            let slot = &self.keys[at as usize];
            if slot.key == key {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    fn new_key_slot(&mut self, key: Key) -> Option<u32> {
        let at = self.head.keys_free;
        if at == NIL {
            return None;
        }
        let bucket = self.key_bucket(key);
        self.head.keys_free = self.keys[at as usize].next;
        self.keys[at as usize] = KeySlot { key, next: self.key_buckets[bucket], ..KeySlot::EMPTY };
        self.key_buckets[bucket] = at;
        Some(at)
    }

    fn free_if_idle(&mut self, at: u32) {
        let KeySlot { key, running, held, next: after } = self.keys[at as usize];
        if running > 0 || held > 0 {
            return;
        }
        let bucket = self.key_bucket(key);
        let mut before = self.key_buckets[bucket];
        if before == at {
            self.key_buckets[bucket] = after;
        } else {
            while before != NIL && self.keys[before as usize].next != at {
                before = self.keys[before as usize].next;
            }
            if before != NIL {
                self.keys[before as usize].next = after;
            }
        }
        self.keys[at as usize] = KeySlot { next: self.head.keys_free, ..KeySlot::EMPTY };
        self.head.keys_free = at;
    }

    fn key_bucket(&self, key: Key) -> usize {
        (key.0 as u64 >> 20) as usize & (self.key_buckets.len() - 1)
    }
}
