//! Workers: registration, leases, loss.

use super::Board;
use super::QueueId;
use super::layout::Entry;
use super::layout::MAX_KINDS;
use super::layout::MAX_QUEUES_PER_WORKER;
use super::layout::MAX_UNKNOWN;
use super::layout::NIL;
use super::layout::WorkerSlot;
use super::layout::WorkerState;
use super::weight::Weights;
use crate::Micros;
use crate::WorkerId;
use crate::names::Kind;
use crate::names::Label;

/// What a worker says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Registration<'a> {
    /// Its id.
    pub id: WorkerId,
    /// Its name.
    pub name: Label,
    /// Queues to take from, at most [`MAX_QUEUES_PER_WORKER`]; empty for all.
    pub queues: &'a [QueueId],
    /// How much it takes of each queue, beside the others; empty when it takes what is first, of whichever queue.
    pub weights: &'a [u16],
    /// Steps it knows with their retry limits, at most [`MAX_KINDS`]; none for all.
    pub kinds: Option<&'a [(Kind, i32)]>,
    /// How long it may be silent, in microseconds.
    pub lease: Micros,
    /// Its role.
    pub role: u32,
    /// The process of the registering connection, or 0.
    pub pid: i32,
}

/// All places for workers are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WorkersFull;

impl Board<'_> {
    /// Makes a worker known, or renews what is known of it, and returns its place. Its claims stay as they are.
    pub fn register(&mut self, registration: &Registration<'_>, now: Micros) -> Result<usize, WorkersFull> {
        let known = self.find_worker(&registration.id);
        let place = known
            .or_else(|| self.workers.iter().position(|slot| slot.state == WorkerState::Free))
            .ok_or(WorkersFull)?;
        if known.is_none() {
            self.head.workers += 1;
        }
        let slot = &mut self.workers[place];
        slot.id = registration.id;
        slot.name = registration.name;
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = WorkerState::Live;
        slot.role = registration.role;
        slot.pid = registration.pid;
        slot.lease = registration.lease;
        slot.registered_at = now;
        slot.heartbeat_at = now;
        slot.wanted = 0;
        slot.nudged = false;
        slot.unknown_len = 0;
        let queues = registration.queues.len().min(MAX_QUEUES_PER_WORKER);
        slot.queues[..queues].copy_from_slice(&registration.queues[..queues]);
        slot.queues_len = queues as u16;
        slot.weights = Weights::new(&registration.weights[..registration.weights.len().min(queues)]);
        slot.all_kinds = registration.kinds.is_none();
        let kinds = registration.kinds.unwrap_or_default();
        let count = kinds.len().min(MAX_KINDS);
        for (index, (kind, limit)) in kinds[..count].iter().enumerate() {
            slot.kinds[index] = *kind;
            slot.limits[index] = *limit;
        }
        slot.kinds_len = count as u16;
        sort_together(&mut slot.kinds[..count], &mut slot.limits[..count]);
        Ok(place)
    }

    /// Whether the place holds a worker that is there.
    pub fn is_live(&self, worker: usize) -> bool {
        self.workers[worker].state == WorkerState::Live
    }

    /// The place of a worker.
    pub fn find_worker(&self, id: &WorkerId) -> Option<usize> {
        self.workers.iter().position(|slot| slot.state != WorkerState::Free && slot.id == *id)
    }

    /// The worker was heard of. False when it has to register again.
    pub fn heard(&mut self, worker: usize, now: Micros) -> bool {
        let slot = &mut self.workers[worker];
        if slot.state != WorkerState::Live {
            return false;
        }
        slot.heartbeat_at = slot.heartbeat_at.max(now);
        slot.nudged = false;
        true
    }

    /// The connection that registered the worker has ended.
    pub fn gone(&mut self, id: &WorkerId, pid: i32, now: Micros) -> bool {
        let Some(worker) = self.find_worker(id) else { return false };
        let slot = &mut self.workers[worker];
        if slot.pid != pid || slot.state != WorkerState::Live {
            return false;
        }
        slot.state = WorkerState::Gone;
        slot.gone_at = now;
        slot.wanted = 0;
        true
    }

    /// A step that the worker turned out not to know.
    pub fn note_unknown(&mut self, worker: usize, kind: Kind) {
        let slot = &mut self.workers[worker];
        if !slot.knows(kind) {
            return;
        }
        let at = usize::from(slot.unknown_len) % MAX_UNKNOWN;
        slot.unknown[at] = kind;
        slot.unknown_len = (slot.unknown_len + 1).min(MAX_UNKNOWN as u16);
    }

    /// Asks a worker to stop; it gets no more tasks.
    pub fn ask_stop(&mut self, worker: usize) {
        self.workers[worker].stop = true;
        self.workers[worker].wanted = 0;
    }

    /// Signs a worker off; what it holds is ready again. Returns how many tasks that were.
    pub fn leave(&mut self, worker: usize) -> u32 {
        let count = self.workers[worker].claimed;
        self.give_back_all(worker);
        self.forget(worker);
        count
    }

    /// Frees a worker's place; it holds nothing any more.
    pub fn forget(&mut self, worker: usize) {
        debug_assert_eq!(self.workers[worker].claimed, 0, "a worker is forgotten only when it holds nothing");
        self.workers[worker].clear();
        self.head.workers -= 1;
    }

    /// Every claim of the worker is ready again.
    pub fn give_back_all(&mut self, worker: usize) {
        while self.workers[worker].first != NIL {
            let Entry { id, token, .. } = self.entries[self.workers[worker].first as usize];
            self.give_back(&id, token);
        }
    }

    /// A worker whose grace or lease has run out. It is given up: from now on it gets nothing and what it says is void.
    pub fn take_lost(&mut self, grace: Micros, now: Micros) -> Option<usize> {
        let worker = (0..self.workers.len())
            .find(|&worker| self.workers[worker].deadline(grace).is_some_and(|deadline| deadline <= now))?;
        let slot = &mut self.workers[worker];
        if slot.state != WorkerState::Lost {
            slot.state = WorkerState::Lost;
            slot.gone_at = now;
            slot.generation = slot.generation.wrapping_add(1);
            slot.wanted = 0;
        }
        Some(worker)
    }

    /// What a lost worker held is written down, but for what could not be written yet: that is tried again at `again_at`.
    pub fn end_loss(&mut self, worker: usize, again_at: Micros) {
        let slot = &mut self.workers[worker];
        if slot.state != WorkerState::Lost {
            return;
        }
        if slot.claimed == 0 {
            self.forget(worker);
        } else {
            slot.gone_at = again_at;
        }
    }

    /// When the next worker is lost if nothing more is heard.
    pub fn next_loss(&self, grace: Micros) -> Option<Micros> {
        self.workers.iter().filter_map(|slot| slot.deadline(grace)).min()
    }
}

impl WorkerSlot {
    fn deadline(&self, grace: Micros) -> Option<Micros> {
        match self.state {
            WorkerState::Free => None,
            WorkerState::Lost => Some(self.gone_at),
            WorkerState::Live => Some(self.heartbeat_at.saturating_add(self.lease)),
            WorkerState::Gone => {
                Some(self.gone_at.saturating_add(grace).min(self.heartbeat_at.saturating_add(self.lease)))
            }
        }
    }
}

/// Sorts the kinds and carries their limits along: an insertion sort, for a few hundred elements and no memory.
fn sort_together(kinds: &mut [Kind], limits: &mut [i32]) {
    for end in 1..kinds.len() {
        let mut at = end;
        while at > 0 && kinds[at - 1] > kinds[at] {
            kinds.swap(at - 1, at);
            limits.swap(at - 1, at);
            at -= 1;
        }
    }
}
