//! The board: which tasks are ready, which are claimed, by which worker, under which token.
//!
//! All of it is a hint about the table. An id on the board that has no runnable row costs one read; a row that is missing from
//! the board is found again by reading the table. What must hold is exclusion: an id is on the board once, so that no two
//! claims of a task exist at a time.
//!
//! The memory is plain slices of fixed size. Lists are indices into `entries`, so that the board works at any address.

mod claim;
mod clock;
mod gate;
mod group;
mod key;
mod kind_limit;
mod layout;
mod moved;
mod owned;
mod progress;
mod room;
mod wake;
mod weight;
mod workers;

pub use claim::Advance;
pub use claim::AssertedRow;
pub use claim::Claim;
pub use claim::ClaimedRow;
pub use claim::Taken;
pub use gate::{ALL_QUEUES, Gate, Leaving, QueueRule};
pub use group::Look;
pub use group::Turn;
pub use key::KEY_WINDOW;
pub use key::KeyRoom;
pub use key::KeySlot;
pub use key::MAX_KEY_WEIGHT;
pub use key::turn_beside;
pub use kind_limit::MAX_KIND_LIMITS;
pub use layout::{Entry, Head, Lane, MAX_KINDS, MAX_QUEUES_PER_WORKER, Sizes, WorkerSlot, WorkerState};
pub use moved::Belongs;
pub use owned::OwnedBoard;
pub use progress::{MAX_PROGRESS, Progress, ProgressSlot};
pub use room::Displaced;
pub use room::Rank;
pub use room::Wanted;
pub use weight::MAX_WEIGHT;
pub use workers::{Registration, WorkersFull};

use crate::Micros;
use crate::TaskId;
use crate::names::Kind;
use crate::names::Label;
use crate::names::QueueName;
use crate::place::Place;
use layout::EntryState;
use layout::NIL;

/// How far an entry is moved to keep a lane in the order of due times. Hints come nearly sorted; beyond this the
/// order is given up rather than the lock held longer.
const SORT_STEPS: usize = 64;

/// The board over its memory.
pub struct Board<'a> {
    /// Counters and list heads.
    pub head: &'a mut Head,
    /// One entry a task that is ready or claimed.
    pub entries: &'a mut [Entry],
    /// The hash table over the ids; its length is a power of two.
    pub buckets: &'a mut [u32],
    /// Ready tasks, one list for each queue and priority.
    pub lanes: &'a mut [Lane],
    /// The workers.
    pub workers: &'a mut [WorkerSlot],
    /// The queues' names, so that entries carry a number.
    pub queues: &'a mut [QueueName],
    /// What holds a queue's tasks back: one for each place of `queues`, and one for all.
    pub gates: &'a mut [Gate],
    /// The hash table over the groups of claims; its length is a power of two.
    pub group_buckets: &'a mut [u32],
    /// Keys that have claims.
    pub keys: &'a mut [KeySlot],
    /// The hash table over them; its length is a power of two.
    pub key_buckets: &'a mut [u32],
    /// Groups and keys that the scheduler is to look at; `head` tells how many.
    pub looks: &'a mut [Look],
    /// What steps say of how far they are.
    pub progress: &'a mut [ProgressSlot],
}

/// The number of a queue's name on this board.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct QueueId(pub u16);

/// What came of [`Board::push_ready`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pushed {
    /// It is ready now.
    Added,
    /// It was on the board already, ready or claimed.
    Present,
    /// It was on the board already, in another lane: one of the two is out of date, and the row tells which ([`Board::relocate`]).
    Elsewhere,
    /// There is no room: keep it and come back when some tasks were taken.
    Full,
}

impl Board<'_> {
    /// Empties the board and forgets what is set for queues.
    pub fn clear(&mut self) {
        self.gates.fill(Gate::OPEN);
        self.head.kind_limits_len = 0;
        self.reset();
    }

    /// Empties the board. Claims, workers and ready tasks are forgotten; the token counter and what is set for queues are not.
    pub fn reset(&mut self) {
        let old = *self.head;
        *self.head = Head {
            next_token: old.next_token,
            ageing: old.ageing,
            settled_at: old.settled_at,
            trusted_until: old.trusted_until,
            kind_limits: old.kind_limits,
            kind_limits_len: old.kind_limits_len,
            ..Head::EMPTY
        };
        self.reset_gates();
        self.buckets.fill(NIL);
        self.group_buckets.fill(NIL);
        self.lanes.fill(Lane::EMPTY);
        for worker in self.workers.iter_mut() {
            worker.clear();
        }
        let last = self.entries.len().saturating_sub(1);
        for (index, entry) in self.entries.iter_mut().enumerate() {
            *entry = Entry::EMPTY;
            entry.next = if index == last { NIL } else { index as u32 + 1 };
        }
        self.head.free = if self.entries.is_empty() { NIL } else { 0 };
        self.reset_keys();
        self.reset_progress();
    }

    /// The number of a queue's name; none when all the places for names are in use by queues
    /// that have tasks here or that a worker names.
    pub fn intern(&mut self, name: &QueueName) -> Option<QueueId> {
        if let Some(known) = self.number_of(name) {
            return Some(known);
        }
        let known = usize::from(self.head.queues);
        let place = if known < self.queues.len() {
            self.head.queues += 1;
            known
        } else {
            // Many places become free at once, so that the look at every entry is rare.
            let free = |queues: &[QueueName]| queues.iter().position(|queue| *queue == QueueName::EMPTY);
            free(self.queues).or_else(|| {
                self.forget_unused_queues();
                free(self.queues)
            })?
        };
        self.queues[place] = *name;
        Some(QueueId(place as u16))
    }

    /// The number of a queue's name that has one.
    fn number_of(&self, name: &QueueName) -> Option<QueueId> {
        let known = usize::from(self.head.queues);
        self.queues[..known].iter().position(|queue| queue == name).map(|index| QueueId(index as u16))
    }

    /// The numbers of several names, which stay valid together. False when there is no place for all of them.
    pub fn intern_all(&mut self, names: &[QueueName], out: &mut Vec<QueueId>) -> bool {
        // Names that nothing uses yet must not be forgotten for the sake of the next one.
        if usize::from(self.head.queues) + names.len() > self.queues.len() {
            self.forget_unused_queues();
        }
        for name in names {
            let known = usize::from(self.head.queues);
            let place = self.queues[..known]
                .iter()
                .position(|queue| queue == name)
                .or_else(|| self.queues[..known].iter().position(|queue| *queue == QueueName::EMPTY))
                .or((known < self.queues.len()).then_some(known));
            let Some(place) = place else { return false };
            if place == known {
                self.head.queues += 1;
            }
            self.queues[place] = *name;
            out.push(QueueId(place as u16));
        }
        true
    }

    /// Frees the places of names that no task here and no worker has. A look at every entry: done only when all places are taken.
    fn forget_unused_queues(&mut self) {
        let mut used = [0_u64; (u16::MAX as usize + 1) / 64];
        let mut mark = |queue: QueueId| used[usize::from(queue.0) / 64] |= 1 << (queue.0 % 64);
        self.entries
            .iter()
            .filter(|entry| entry.state != EntryState::Free)
            .for_each(|entry| mark(entry.queue));
        for slot in self.workers.iter().filter(|slot| slot.state != WorkerState::Free) {
            slot.queues().iter().for_each(|queue| mark(*queue));
        }
        if self.head.gates > 0 {
            let set = self.gates.iter().zip(0..self.queues.len()).filter(|(gate, _)| gate.is_set());
            set.for_each(|(_, index)| mark(QueueId(index as u16)));
        }
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if used[index / 64] & (1 << (index % 64)) == 0 {
                *queue = QueueName::EMPTY;
            }
        }
    }

    /// The name behind a number.
    pub fn queue_name(&self, queue: QueueId) -> QueueName {
        self.queues.get(usize::from(queue.0)).copied().unwrap_or(QueueName::EMPTY)
    }

    /// Makes a task ready.
    pub fn push_ready(
        &mut self,
        id: TaskId,
        due: Micros,
        queue: QueueId,
        priority: i16,
        place: Place,
    ) -> Pushed {
        if let Some(index) = self.find(&id) {
            return if self.is_in(index, queue, priority) { Pushed::Present } else { Pushed::Elsewhere };
        }
        let Some(lane) = self.lane_for(queue, priority, Kind::ANY) else { return Pushed::Full };
        let Some(index) = self.take_free(id) else {
            self.release_lane(lane);
            return Pushed::Full;
        };
        let entry = &mut self.entries[index as usize];
        entry.due = due;
        entry.queue = queue;
        entry.priority = priority;
        entry.place = place;
        entry.state = EntryState::Ready;
        self.head.ready += 1;
        self.link_ready(lane, index, false);
        Pushed::Added
    }

    /// Whether the task is ready here.
    pub fn is_ready(&self, id: &TaskId) -> bool {
        self.find(id).is_some_and(|index| self.entries[index as usize].state == EntryState::Ready)
    }

    /// Takes a task off the board if it is ready; a claimed one is left to its claim.
    pub fn remove_ready(&mut self, id: &TaskId) -> bool {
        let Some(index) = self.find(id) else { return false };
        if self.entries[index as usize].state != EntryState::Ready {
            return false;
        }
        self.unlink_ready(index);
        self.put_free(index);
        true
    }

    /// The lanes that have ready tasks.
    pub fn lanes_in_use(&self) -> impl Iterator<Item = &Lane> {
        self.lanes[..usize::from(self.head.lanes)].iter().filter(|lane| lane.len > 0)
    }

    /// Room for more tasks.
    pub fn room(&self) -> usize {
        self.entries.len() - (self.head.ready + self.head.claimed) as usize
    }

    fn bucket(&self, id: &TaskId) -> usize {
        // The last eight bytes of a version 7 UUID are random; other ids may differ only in the first.
        let (high, low) = id.split_at(8);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let mixed = (word(high).rotate_left(32) ^ word(low)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.buckets.len() - 1)
    }

    fn find(&self, id: &TaskId) -> Option<u32> {
        let mut index = self.buckets[self.bucket(id)];
        while index != NIL {
            let entry = &self.entries[index as usize];
            if entry.id == *id {
                return Some(index);
            }
            index = entry.hash_next;
        }
        None
    }

    fn take_free(&mut self, id: TaskId) -> Option<u32> {
        let index = self.head.free;
        if index == NIL {
            return None;
        }
        let bucket = self.bucket(&id);
        let entry = &mut self.entries[index as usize];
        self.head.free = entry.next;
        *entry = Entry { id, hash_next: self.buckets[bucket], ..Entry::EMPTY };
        self.buckets[bucket] = index;
        Some(index)
    }

    fn put_free(&mut self, index: u32) {
        let id = self.entries[index as usize].id;
        let bucket = self.bucket(&id);
        let after = self.entries[index as usize].hash_next;
        let mut at = self.buckets[bucket];
        if at == index {
            self.buckets[bucket] = after;
        } else {
            while at != NIL {
                let next = self.entries[at as usize].hash_next;
                if next == index {
                    self.entries[at as usize].hash_next = after;
                    break;
                }
                at = next;
            }
        }
        self.entries[index as usize] = Entry { next: self.head.free, ..Entry::EMPTY };
        self.head.free = index;
    }

    /// The lane of a queue, priority and kind, made if need be. A fresh one is empty: give it a task or release it.
    fn lane_for(&mut self, queue: QueueId, priority: i16, kind: Kind) -> Option<usize> {
        let mut empty = None;
        let in_use = usize::from(self.head.lanes);
        for (index, lane) in self.lanes[..in_use].iter().enumerate() {
            if lane.len == 0 {
                empty.get_or_insert(index);
            } else if lane.queue == queue && lane.priority == priority && lane.kind == kind {
                return Some(index);
            }
        }
        let index = empty.or((in_use < self.lanes.len()).then_some(in_use))?;
        if index == in_use {
            self.head.lanes += 1;
        }
        self.lanes[index] = Lane { queue, priority, kind, ..Lane::EMPTY };
        Some(index)
    }

    fn release_lane(&mut self, lane: usize) {
        if self.lanes[lane].len == 0 && lane + 1 == usize::from(self.head.lanes) {
            self.head.lanes -= 1;
        }
    }

    /// Puts an entry into a lane by its due time: from the back for what is new, from the front for what comes back.
    fn link_ready(&mut self, lane: usize, index: u32, from_front: bool) {
        let due = self.entries[index as usize].due;
        let (mut before, mut after) =
            if from_front { (NIL, self.lanes[lane].first) } else { (self.lanes[lane].last, NIL) };
        for _ in 0..SORT_STEPS {
            if from_front {
                if after == NIL || self.entries[after as usize].due >= due {
                    break;
                }
                before = after;
                after = self.entries[after as usize].next;
            } else {
                if before == NIL || self.entries[before as usize].due <= due {
                    break;
                }
                after = before;
                before = self.entries[before as usize].prev;
            }
        }
        let entry = &mut self.entries[index as usize];
        entry.owner = lane as u32;
        entry.prev = before;
        entry.next = after;
        match before {
            NIL => self.lanes[lane].first = index,
            before => self.entries[before as usize].next = index,
        }
        match after {
            NIL => self.lanes[lane].last = index,
            after => self.entries[after as usize].prev = index,
        }
        self.lanes[lane].len += 1;
    }

    fn unlink_ready(&mut self, index: u32) {
        let Entry { prev, next, owner, .. } = self.entries[index as usize];
        let lane = owner as usize;
        match prev {
            NIL => self.lanes[lane].first = next,
            prev => self.entries[prev as usize].next = next,
        }
        match next {
            NIL => self.lanes[lane].last = prev,
            next => self.entries[next as usize].prev = prev,
        }
        self.lanes[lane].len -= 1;
        self.head.ready -= 1;
        self.release_lane(lane);
    }

    /// Moves an entry that is in no list to a lane, ready.
    fn return_ready(&mut self, index: u32, kind: Kind, label: Label) -> bool {
        let Entry { queue, priority, .. } = self.entries[index as usize];
        let crowded = kind != Kind::ANY && self.is_crowded_by_misfits();
        let Some(lane) = (!crowded).then(|| self.lane_for(queue, priority, kind)).flatten() else {
            self.put_free(index);
            return false;
        };
        if self.lanes[lane].len == 0 {
            self.lanes[lane].label = label;
        }
        let entry = &mut self.entries[index as usize];
        entry.state = EntryState::Ready;
        entry.flags = 0;
        self.head.ready += 1;
        self.link_ready(lane, index, true);
        true
    }
}

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod gate_tests;
#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod moved_tests;
#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod tests;
