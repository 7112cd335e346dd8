//! Keys: how many tasks of each key (a tenant, say) within a queue run at once, and turns between keys.
//!
//! Of each key only a few tasks are in memory at a time: the others are left in the table, and the look that follows the end of each claim
//! brings the next, at the end of the lane. So the backlog of one key, however deep, does not stand before the tasks of another.
//!
//! A key has a slot while claims of it count, and while its bucket is not full again: from then on it is as if none of its tokens had been
//! taken, and the bucket that the gate of its queue keeps for all such keys stands for its own. There are only so many slots: when all are in
//! use, tasks of further keys that have a limit or a rate wait, so that neither is ever exceeded for want of memory.

use super::Board;
use super::Leaving;
use super::QueueId;
use super::claim::Claim;
use super::gate::Gate;
use super::group::APART;
use super::group::Look;
use super::layout::Entry;
use super::layout::EntryState;
use super::layout::KEY_SPENT;
use super::layout::NIL;
use crate::Micros;
use crate::TaskId;
use crate::bucket::Bucket;
use crate::names::Key;
use crate::names::Kind;
use crate::names::QueueName;

/// So many tasks of a key are made ready at a time: how long a turn is, unless its queue has weights.
pub const KEY_WINDOW: u32 = 16;

/// The largest weight of a key.
pub const MAX_KEY_WEIGHT: u32 = 100;

/// The longest turn, if the weights are not much different.
const LONGEST_TURN: u32 = 256;

/// Full buckets are not looked for more often than this: it is a look at each slot.
const SWEEP_GAP: Micros = 10_000;

/// No limit.
pub(super) const UNLIMITED: u32 = u32::MAX;

/// A key that has claims, or of which tokens were taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct KeySlot {
    key: Key,
    /// What is left of its rate, if it is `rated`.
    pub(super) bucket: Bucket,
    running: u32,
    /// Tasks that run as their rows say, under workers that have not come back since the server's start.
    held: u32,
    /// The next slot of the chain, or the next free one.
    next: u32,
    /// Its queue, if it is running or rated.
    queue: QueueId,
    rated: bool,
}

impl KeySlot {
    /// A free slot.
    pub const EMPTY: Self = Self {
        key: Key(0),
        bucket: Bucket::NONE,
        running: 0,
        held: 0,
        next: NIL,
        queue: QueueId(0),
        rated: false,
    };
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
    /// None before there is a free slot ([`Board::key_places`]).
    NoPlace,
}

/// How long the turn of a key with the weight 1 is beside keys of which the largest weight is this one; that of a key with another weight is as
/// many times longer. A key whose tasks are taken is at once ready with as many again, behind those of others: so shares are as the lengths.
pub fn turn_beside(largest: u32) -> u32 {
    (LONGEST_TURN / largest.clamp(1, MAX_KEY_WEIGHT)).min(KEY_WINDOW)
}

impl Board<'_> {
    /// Whether a task that was just claimed may be handed out, as far as its key goes. It counts from now on.
    pub fn admit_key(&mut self, claim: &Claim, key: Key, now: Micros, leaving: &Leaving) -> bool {
        let Some(index) = self.find_claim(&claim.id, claim.token) else { return false };
        let queue = self.entries[index as usize].queue;
        if !matches!(self.room_of(key, Some(queue), now, leaving.of_key(key)), KeyRoom::For(_)) {
            return false;
        }
        self.join_key(index, key);
        self.spend_of_key(index, now);
        // What is ready of a key is soon claimed; the next are to be there then, or when its rate lets them go.
        if self.room_of(key, Some(queue), now, 0) != KeyRoom::Shut {
            self.ask_look(Look::Key(key));
        }
        true
    }

    /// How many tasks of a key in a queue may be made ready, if its turn is so long.
    pub fn key_room(&mut self, key: Key, queue: &QueueName, turn: u32, now: Micros) -> KeyRoom {
        let queue = self.number_of(queue);
        match self.room_of(key, queue, now, 0) {
            KeyRoom::For(room) => KeyRoom::For(room.min(turn)),
            other => other,
        }
    }

    /// When the rate of a key lets its next task go, if it holds it back now. Nothing is known of keys that have no slot.
    pub fn key_closed_until(&mut self, key: Key, now: Micros) -> Option<Micros> {
        let slot = self.key_slot(key)?;
        let KeySlot { bucket, rated, .. } = &mut self.keys[slot as usize];
        bucket.settle(now);
        (*rated && bucket.tokens(now) == 0).then(|| bucket.next_at(now))
    }

    /// When a key lets its next task go, if its rate, or the time after a start, holds it back now.
    pub fn key_opens_at(&mut self, key: Key, queue: &QueueName, now: Micros) -> Option<Micros> {
        match self.key_room(key, queue, 1, now) {
            KeyRoom::OpensAt(at) => Some(at),
            _ => None,
        }
    }

    /// How many keys more can have claims that count or take tokens.
    pub fn key_places(&mut self, now: Micros) -> usize {
        self.sweep_keys(now);
        let mut at = self.head.keys_free;
        let free = std::iter::from_fn(|| {
            let slot = self.keys.get(at as usize)?;
            at = slot.next;
            Some(())
        });
        free.count()
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
            let queue = entry.queue;
            let slot = &mut self.keys[slot as usize];
            slot.queue = queue;
            slot.running += 1;
        }
    }

    /// The claim takes a token of its key, if its queue has a rate by key.
    fn spend_of_key(&mut self, index: u32, now: Micros) {
        let entry = &mut self.entries[index as usize];
        let gate = &self.gates[usize::from(entry.queue.0)];
        if !gate.has_key_rate || entry.key_slot == NIL {
            return;
        }
        let slot = &mut self.keys[entry.key_slot as usize];
        if !slot.rated {
            slot.bucket = gate.key_bucket;
            slot.rated = true;
        }
        if slot.bucket.take(now) {
            entry.flags |= KEY_SPENT;
        }
    }

    /// Whether each further step of a claimed task takes a token of its key.
    pub(super) fn is_rated(&self, entry: &Entry) -> bool {
        entry.key_slot != APART && self.gates[usize::from(entry.queue.0)].has_key_rate
    }

    /// Other limits by key hold for a queue. What is known of its keys goes on under them.
    pub(super) fn change_keys(&mut self, place: usize, was: &Gate, now: Micros) {
        let gate = self.gates[place];
        let has_grown = gate.key_limit() > was.key_limit();
        let rate = gate.has_key_rate.then(|| gate.key_bucket.rate());
        let is_rated = was.has_key_rate && rate != Some(was.key_bucket.rate());
        if !has_grown && !is_rated {
            return;
        }
        self.head.keys_full_at = 0;
        for at in 0..self.keys.len() as u32 {
            let slot = &mut self.keys[at as usize];
            if usize::from(slot.queue.0) != place || !(slot.rated || slot.running > 0) {
                continue;
            }
            let key = slot.key;
            if slot.rated {
                match rate {
                    Some(rate) => slot.bucket.change(rate, now),
                    None => slot.rated = false,
                }
            }
            if slot.running > 0 {
                self.ask_look(Look::Key(key));
            }
            self.free_if_idle(at);
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

    /// How many tasks of a key may be handed out.
    fn room_of(&mut self, key: Key, queue: Option<QueueId>, now: Micros, leaving: u32) -> KeyRoom {
        let Some(place) = queue.map(|queue| usize::from(queue.0)) else { return KeyRoom::For(UNLIMITED) };
        let (limit, has_rate) = (self.gates[place].key_limit(), self.gates[place].has_key_rate);
        if limit == UNLIMITED && !has_rate {
            return KeyRoom::For(UNLIMITED);
        }
        let slot = self.key_slot(key);
        if slot.is_none() && self.head.keys_free == NIL {
            self.sweep_keys(now);
            if self.head.keys_free == NIL {
                return KeyRoom::NoPlace;
            }
        }
        let by_limit = if limit == UNLIMITED {
            KeyRoom::For(UNLIMITED)
        } else {
            self.limited(slot, limit, now, leaving)
        };
        if !has_rate || by_limit == KeyRoom::Shut {
            return by_limit;
        }
        let bucket = match slot.map(|slot| &mut self.keys[slot as usize]).filter(|slot| slot.rated) {
            Some(slot) => &mut slot.bucket,
            None => &mut self.gates[place].key_bucket,
        };
        bucket.settle(now);
        match (by_limit, bucket.tokens(now)) {
            (KeyRoom::For(_), 0) => KeyRoom::OpensAt(bucket.next_at(now)),
            (KeyRoom::For(room), tokens) => KeyRoom::For(room.min(tokens)),
            (KeyRoom::OpensAt(at), _) => KeyRoom::OpensAt(at.max(bucket.next_at(now))),
            (other, _) => other,
        }
    }

    /// How many tasks may be made ready as far as the limit of what runs at once goes.
    fn limited(&self, slot: Option<u32>, limit: u32, now: Micros, leaving: u32) -> KeyRoom {
        if now < self.head.settled_at {
            return KeyRoom::OpensAt(self.head.settled_at);
        }
        let KeySlot { running, held, .. } = slot.map_or(KeySlot::EMPTY, |slot| self.keys[slot as usize]);
        let running = running.saturating_sub(leaving);
        let is_trusted = now < self.head.trusted_until;
        match limit.saturating_sub(running.saturating_add(if is_trusted { held } else { 0 })) {
            0 if running < limit => KeyRoom::OpensAt(self.head.trusted_until),
            0 => KeyRoom::Shut,
            room => KeyRoom::For(room),
        }
    }

    /// Frees the slots of idle keys whose buckets are full again.
    #[cold]
    fn sweep_keys(&mut self, now: Micros) {
        if now < self.head.keys_full_at || now.abs_diff(self.head.keys_swept_at) < SWEEP_GAP as u64 {
            return;
        }
        (self.head.keys_full_at, self.head.keys_swept_at) = (Micros::MAX, now);
        for at in 0..self.keys.len() as u32 {
            let slot = &mut self.keys[at as usize];
            if slot.rated && slot.running == 0 && slot.held == 0 {
                slot.bucket.settle(now);
                slot.rated = slot.bucket.full_at() > now;
                self.free_if_idle(at);
            }
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
        let KeySlot { key, running, held, next: after, rated, bucket, .. } = self.keys[at as usize];
        if running > 0 || held > 0 {
            return;
        }
        if rated && !bucket.was_full() {
            self.head.keys_full_at = self.head.keys_full_at.min(bucket.full_at());
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
