//! Claims: from a lane to a worker, and every way in which a claim ends.

use super::Board;
use super::Leaving;
use super::QueueId;
use super::group::APART;
use super::layout::CANCEL_TOLD;
use super::layout::CANCELLED;
use super::layout::COUNTED;
use super::layout::Entry;
use super::layout::EntryState;
use super::layout::NIL;
use super::layout::WRITTEN;
use super::layout::WorkerState;
use crate::Micros;
use crate::TaskId;
use crate::names::Group;
use crate::names::Key;
use crate::names::Kind;
use crate::names::Label;
use crate::place::Place;
use crate::token;

/// A task that was handed out: its row is still to be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Claim {
    /// The task.
    pub id: TaskId,
    /// The attempt.
    pub token: i64,
}

impl Claim {
    /// The claim of a worker that does not run the task, but is asked what to do instead of parking it.
    pub fn asked(self) -> Self {
        Self { token: token::asked(self.token), ..self }
    }
}

/// A claim that was just made, with what the board knows about its task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Taken {
    /// The claim.
    pub claim: Claim,
    /// The queue from which it was taken.
    pub queue: QueueId,
    /// The priority with which it was ready.
    pub priority: i16,
    /// Where its row was seen last.
    pub place: Place,
}

/// A chain may run so many steps at a time before tasks of the same priority that have waited get their turn.
const MAX_STREAK: u16 = 100;

impl Board<'_> {
    /// Hands out up to `want` ready tasks to a live worker: lower priority numbers first, then earlier due times.
    ///
    /// What it did not get it is recorded to want, so that the scheduler wakes it.
    pub fn claim(&mut self, worker: usize, want: u32, now: Micros, out: &mut Vec<Taken>) {
        self.claim_beside(worker, want, now, &Leaving::default(), out);
    }

    /// The same for a call with which some claims end.
    pub fn claim_beside(
        &mut self,
        worker: usize,
        want: u32,
        now: Micros,
        leaving: &Leaving,
        out: &mut Vec<Taken>,
    ) {
        if !self.workers[worker].is_there() {
            return;
        }
        let plain = self.head.gates == 0 && self.head.ageing == 0;
        let got = if self.workers[worker].weights.are_set() {
            self.take_by_weight(worker, want, now, leaving, out)
        } else if plain {
            self.take_ready::<false>(worker, want, now, leaving, out)
        } else {
            self.take_ready::<true>(worker, want, now, leaving, out)
        };
        if want > 0 {
            self.workers[worker].wanted = want - got;
        }
    }

    /// Moves up to `want` ready tasks to the worker; with `RULED` as far as the gates of their queues allow it, and in
    /// the order in which they have aged.
    fn take_ready<const RULED: bool>(
        &mut self,
        worker: usize,
        want: u32,
        now: Micros,
        leaving: &Leaving,
        out: &mut Vec<Taken>,
    ) -> u32 {
        let mut candidates = [0_u16; 512];
        let mut count = 0;
        let slot = &self.workers[worker];
        for (index, lane) in
            self.lanes[..usize::from(self.head.lanes)].iter().enumerate().take(candidates.len())
        {
            let fits = lane.kind == Kind::ANY || slot.knows(lane.kind);
            if lane.len > 0 && fits && slot.takes(lane.queue) {
                candidates[count] = index as u16;
                count += 1;
            }
        }
        let mut got = 0;
        while got < want {
            // The best lane, and the key of the second best up to which the best may be emptied.
            let (mut best, mut best_key, mut limit) =
                (None, (i16::MAX, Micros::MAX), (i16::MAX, Micros::MAX));
            for &lane in &candidates[..count] {
                let Some(key) = self.lane_key::<RULED>(usize::from(lane)) else { continue };
                if best.is_none() || key < best_key {
                    if best.is_some() {
                        limit = best_key;
                    }
                    (best, best_key) = (Some(usize::from(lane)), key);
                } else if key < limit {
                    limit = key;
                }
            }
            let Some(lane) = best else { break };
            let mut allowed = u32::MAX;
            if RULED {
                allowed = self.allowance_beside(&self.lanes[lane], now, leaving);
                if allowed == 0 {
                    let closed = candidates[..count].iter().position(|&other| usize::from(other) == lane);
                    count -= 1;
                    candidates.swap(closed.unwrap_or(count), count);
                    continue;
                }
            }
            while got < want && self.lane_key::<RULED>(lane).is_some_and(|key| key <= limit) {
                if RULED {
                    if allowed == 0 {
                        break;
                    }
                    allowed -= 1;
                }
                let index = self.lanes[lane].first;
                let kind = self.lanes[lane].kind;
                self.unlink_ready(index);
                let claim = self.claim_entry(index, worker, now);
                if RULED {
                    self.spend(index, now);
                    self.entries[index as usize].kind = kind;
                    self.count_kind_in(index);
                }
                let Entry { queue, priority, place, .. } = self.entries[index as usize];
                out.push(Taken { claim, queue, priority, place });
                got += 1;
            }
        }
        got
    }

    /// Moves the first task of a lane to the worker.
    pub(super) fn take_first(&mut self, lane: usize, worker: usize, now: Micros) -> Taken {
        let index = self.lanes[lane].first;
        let kind = self.lanes[lane].kind;
        self.unlink_ready(index);
        let claim = self.claim_entry(index, worker, now);
        if self.head.gates > 0 {
            self.spend(index, now);
            self.entries[index as usize].kind = kind;
            self.count_kind_in(index);
        }
        let Entry { queue, priority, place, .. } = self.entries[index as usize];
        Taken { claim, queue, priority, place }
    }

    /// How many more tasks the worker would take, after those that it was given: ids without a row to run do not count. And until when it is
    /// expected to call by itself.
    pub fn note_wanted(&mut self, worker: usize, wanted: u32, returns_at: Micros) {
        let slot = &mut self.workers[worker];
        if slot.is_there() {
            slot.wanted = wanted;
            slot.returns_at = returns_at;
        }
    }

    /// What the claim's row said when it was read.
    pub fn note_row(&mut self, claim: &Claim, row: &ClaimedRow) {
        if let Some(index) = self.find_claim(&claim.id, claim.token) {
            if self.head.gates > 0 && self.entries[index as usize].kind != row.kind {
                self.count_kind_out(index);
            }
            let entry = &mut self.entries[index as usize];
            entry.fence = row.fence;
            entry.kind = row.kind;
            entry.place = row.place;
            entry.retry_limit = self.workers[entry.owner as usize].retry_limit(row.kind).unwrap_or(0);
            if row.counted {
                entry.flags |= COUNTED | WRITTEN;
            }
            if self.head.gates > 0 {
                self.keep_tokens(index);
                self.count_kind_in(index);
            }
        }
    }

    /// The worker does not run the task: it is asked what to do instead of parking it. Nothing is written down about that; its token says it
    /// from now on ([`Claim::asked`]).
    pub fn note_asked(&mut self, claim: &Claim) {
        if let Some(index) = self.find_claim(&claim.id, claim.token) {
            let entry = &mut self.entries[index as usize];
            entry.token = token::asked(entry.token);
            entry.flags |= WRITTEN;
        }
    }

    /// A claim of the task, by whichever worker.
    pub fn claim_of(&self, id: &TaskId) -> Option<&Entry> {
        let index = self.find(id)?;
        let entry = &self.entries[index as usize];
        (entry.state == EntryState::Claimed).then_some(entry)
    }

    /// The worker that holds a claimed entry.
    pub fn holder(&self, entry: &Entry) -> Option<usize> {
        (entry.state == EntryState::Claimed).then_some(entry.owner as usize)
    }

    /// Ends a claim: the task is done, or waits for a later time that the caller tells the scheduler.
    pub fn end_claim(&mut self, id: &TaskId, token: i64) -> bool {
        let Some(index) = self.find_claim(id, token) else { return false };
        self.unlink_claimed(index);
        self.put_free(index);
        true
    }

    /// Ends a claim; the task is ready again. Used whenever the row may still be there: what it says is read again.
    pub fn give_back(&mut self, id: &TaskId, token: i64) -> bool {
        let Some(index) = self.find_claim(id, token) else { return false };
        self.unlink_claimed(index);
        self.return_ready(index, Kind::ANY, Label::EMPTY)
    }

    /// Ends a claim whose step the worker does not know: the task waits for one that does.
    pub fn misfit(&mut self, id: &TaskId, token: i64, kind: Kind, label: Label) -> bool {
        let Some(index) = self.find_claim(id, token) else { return false };
        self.unlink_claimed(index);
        self.return_ready(index, kind, label)
    }

    /// Whether a chain may go on with its next step in the worker that ran the last one: nothing better waits, and it has not had
    /// the floor for too long.
    pub fn may_continue(&self, id: &TaskId, token: i64) -> bool {
        let Some(index) = self.find_claim(id, token) else { return false };
        let entry = &self.entries[index as usize];
        let slot = &self.workers[entry.owner as usize];
        let gated = self.head.gates > 0;
        // A lane that is shut waits for something else than this place, unless it is of the same queue.
        let waits = |queue: QueueId| !gated || queue == entry.queue || !self.is_shut(queue);
        slot.is_there()
            && (!gated || (self.may_stay(entry.queue) && !self.is_rated(entry)))
            && self.lanes_in_use().filter(|lane| slot.takes(lane.queue) && waits(lane.queue)).all(|lane| {
                if self.head.ageing == 0 {
                    lane.priority > entry.priority
                        || (lane.priority == entry.priority && entry.streak < MAX_STREAK)
                } else {
                    let first = self.entries[lane.first as usize].due;
                    self.aged(entry.priority, entry.due) <= self.aged(lane.priority, first)
                        && entry.streak < MAX_STREAK
                }
            })
    }

    /// The claim goes on as the claim of the task's next step, under a new token.
    pub fn advance(&mut self, id: &TaskId, token: i64, next: &Advance, now: Micros) -> bool {
        let Some(index) = self.find_claim(id, token) else { return false };
        if self.head.gates > 0 {
            self.keep_tokens(index);
            // Its next step is another one, without a limit.
            self.count_kind_out(index);
        }
        if self.entries[index as usize].progress != NIL {
            self.end_progress(index);
        }
        let owner = self.entries[index as usize].owner as usize;
        let retry_limit = self.workers[owner].retry_limit(next.kind).unwrap_or(0);
        let entry = &mut self.entries[index as usize];
        entry.retry_limit = retry_limit;
        entry.token = next.token;
        entry.fence = next.fence;
        entry.place = next.place;
        entry.since = now;
        entry.flags = 0;
        entry.streak = entry.streak.saturating_add(1);
        // The worker's list is ordered by the time of the claim.
        self.unlink_from_worker(index);
        self.link_to_worker(index);
        true
    }

    /// A worker that was known before says that it holds the task. Granted unless someone else does.
    pub fn assert_claim(&mut self, worker: usize, claim: &Claim, row: &AssertedRow, now: Micros) -> bool {
        let index = match self.find(&claim.id) {
            Some(index) => match self.entries[index as usize].state {
                EntryState::Claimed => {
                    let entry = &self.entries[index as usize];
                    return entry.owner as usize == worker && entry.token == claim.token;
                }
                EntryState::Ready => {
                    self.unlink_ready(index);
                    index
                }
                EntryState::Free => return false,
            },
            None => match self.take_free(claim.id) {
                Some(index) => index,
                None => return false,
            },
        };
        let entry = &mut self.entries[index as usize];
        entry.queue = row.queue;
        entry.priority = row.priority;
        entry.due = row.due;
        self.claim_entry(index, worker, now);
        let entry = &mut self.entries[index as usize];
        entry.token = claim.token;
        entry.fence = row.fence;
        entry.kind = row.kind;
        entry.retry_limit = self.workers[worker].retry_limit(row.kind).unwrap_or(0);
        if row.written || entry.is_asked() {
            entry.flags |= WRITTEN;
        }
        if row.counted {
            entry.flags |= COUNTED;
        }
        if let Some(group) = row.group {
            self.join(index, group);
        }
        if let Some(key) = row.key {
            self.join_key(index, key);
            if row.written {
                self.count_key_back(key);
            }
        }
        if self.head.gates > 0 {
            self.count_kind_in(index);
            if row.written {
                self.count_back(row.queue);
                self.count_kind_back(row.kind);
            }
        }
        true
    }

    /// A user deleted the task. If it is claimed, returns the worker to be told.
    pub fn cancel(&mut self, id: &TaskId) -> Option<usize> {
        let index = self.find(id)?;
        let entry = &mut self.entries[index as usize];
        if entry.state != EntryState::Claimed {
            self.remove_ready(id);
            return None;
        }
        if entry.flags & CANCELLED == 0 {
            entry.flags |= CANCELLED;
            self.workers[entry.owner as usize].cancels += 1;
        }
        Some(entry.owner as usize)
    }

    /// The worker's claims of tasks that were cancelled of which it has not been told.
    pub fn take_cancels(&mut self, worker: usize, out: &mut Vec<Claim>) {
        if self.workers[worker].cancels == 0 {
            return;
        }
        let mut index = self.workers[worker].first;
        while index != NIL {
            let entry = &mut self.entries[index as usize];
            if entry.flags & (CANCELLED | CANCEL_TOLD) == CANCELLED {
                entry.flags |= CANCEL_TOLD;
                out.push(Claim { id: entry.id, token: entry.token });
            }
            index = entry.next;
        }
        self.workers[worker].cancels = 0;
    }

    /// The answer that was to tell of a cancelled task was not sent: the next one tells of it.
    pub fn not_told(&mut self, id: &TaskId) {
        let Some(index) = self.find(id) else { return };
        let entry = &mut self.entries[index as usize];
        if entry.state == EntryState::Claimed && entry.flags & CANCEL_TOLD != 0 {
            entry.flags &= !CANCEL_TOLD;
            self.workers[entry.owner as usize].cancels += 1;
        }
    }

    /// Claims that are older than `before` and not written down yet, at most `limit`. They count as written from now on.
    pub fn take_unwritten(&mut self, before: Micros, limit: usize, out: &mut Vec<(usize, Entry)>) {
        for worker in 0..self.workers.len() {
            if self.workers[worker].state == WorkerState::Free {
                continue;
            }
            let mut index = self.workers[worker].first;
            while index != NIL && out.len() < limit {
                let entry = &mut self.entries[index as usize];
                if entry.since > before {
                    break;
                }
                if entry.flags & WRITTEN == 0 && entry.fence >= 0 {
                    entry.flags |= WRITTEN;
                    out.push((worker, *entry));
                }
                index = entry.next;
            }
        }
    }

    /// A claim could not be written down: it will be tried again.
    pub fn not_written(&mut self, id: &TaskId, token: i64) {
        if let Some(index) = self.find_claim(id, token) {
            self.entries[index as usize].flags &= !WRITTEN;
        }
    }

    /// When the oldest claim that is not written down was made.
    pub fn oldest_unwritten(&self) -> Option<Micros> {
        let mut oldest = None;
        for slot in self.workers.iter().filter(|slot| slot.state != WorkerState::Free) {
            let mut index = slot.first;
            while index != NIL {
                let entry = &self.entries[index as usize];
                if entry.flags & WRITTEN == 0 {
                    oldest = Some(oldest.map_or(entry.since, |oldest: Micros| oldest.min(entry.since)));
                    break;
                }
                index = entry.next;
            }
        }
        oldest
    }

    /// Every claim, with its worker.
    pub fn claims(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries
            .iter()
            .filter(|entry| entry.state == EntryState::Claimed)
            .map(|entry| (entry.owner as usize, entry))
    }

    /// The claims of a worker, oldest first.
    pub fn claims_of(&self, worker: usize) -> impl Iterator<Item = &Entry> {
        let mut index = self.workers[worker].first;
        core::iter::from_fn(move || {
            let entry = (index != NIL).then(|| &self.entries[index as usize])?;
            index = entry.next;
            Some(entry)
        })
    }

    /// The token for a hand-out.
    pub fn next_token(&mut self) -> i64 {
        let token = self.head.next_token;
        self.head.next_token += token::STEP;
        token
    }

    #[inline]
    pub(super) fn unlink_claimed(&mut self, index: u32) {
        self.unlink_from_worker(index);
        self.head.claimed -= 1;
        let worker = self.entries[index as usize].owner as usize;
        self.workers[worker].claimed -= 1;
        if self.head.gates > 0 {
            // One that ends before its row was read may have been handed out all the same.
            self.keep_tokens(index);
            self.count_out(self.entries[index as usize].queue);
            self.count_kind_out(index);
        }
        if self.entries[index as usize].group_next != APART {
            self.end_turn(index);
        }
        if self.entries[index as usize].key_slot != APART {
            self.end_key(index);
        }
        if self.entries[index as usize].progress != NIL {
            self.end_progress(index);
        }
    }

    pub(super) fn find_claim(&self, id: &TaskId, token: i64) -> Option<u32> {
        self.find(id).filter(|&index| {
            let entry = &self.entries[index as usize];
            entry.state == EntryState::Claimed && token::is_held_as(token, entry.token)
        })
    }

    pub(super) fn lane_key<const RULED: bool>(&self, lane: usize) -> Option<(i16, Micros)> {
        let lane = &self.lanes[lane];
        (lane.len > 0).then(|| {
            let due = self.entries[lane.first as usize].due;
            if RULED { self.aged(lane.priority, due) } else { (lane.priority, due) }
        })
    }

    /// The place in the order of a task that has waited since `due`.
    fn aged(&self, priority: i16, due: Micros) -> (i16, Micros) {
        match self.head.ageing {
            0 => (priority, due),
            // A task of a better priority is as good as one that was due so much earlier.
            ageing => (0, due.saturating_add(i64::from(priority).saturating_mul(ageing))),
        }
    }

    fn claim_entry(&mut self, index: u32, worker: usize, now: Micros) -> Claim {
        let token = self.next_token();
        let entry = &mut self.entries[index as usize];
        entry.state = EntryState::Claimed;
        entry.owner = worker as u32;
        entry.token = token;
        entry.fence = -1;
        entry.since = now;
        entry.flags = 0;
        entry.streak = 0;
        let (id, queue) = (entry.id, entry.queue);
        self.head.claimed += 1;
        self.workers[worker].claimed += 1;
        if self.head.gates > 0 {
            self.count_in(queue);
        }
        self.link_to_worker(index);
        Claim { id, token }
    }

    fn link_to_worker(&mut self, index: u32) {
        let worker = self.entries[index as usize].owner as usize;
        let last = self.workers[worker].last;
        let entry = &mut self.entries[index as usize];
        entry.prev = last;
        entry.next = NIL;
        match last {
            NIL => self.workers[worker].first = index,
            last => self.entries[last as usize].next = index,
        }
        self.workers[worker].last = index;
    }

    fn unlink_from_worker(&mut self, index: u32) {
        let Entry { prev, next, owner, .. } = self.entries[index as usize];
        let worker = owner as usize;
        match prev {
            NIL => self.workers[worker].first = next,
            prev => self.entries[prev as usize].next = next,
        }
        match next {
            NIL => self.workers[worker].last = prev,
            next => self.entries[next as usize].prev = prev,
        }
    }
}

/// The claim of a task's next step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Advance {
    /// The next attempt.
    pub token: i64,
    /// The row's fence after the transition.
    pub fence: i64,
    /// Where the row is after the transition.
    pub place: Place,
    /// The next step, as far as it is known.
    pub kind: Kind,
}

/// What the row of a task says that was handed out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClaimedRow {
    /// Its fence.
    pub fence: i64,
    /// Its step.
    pub kind: Kind,
    /// Where it is.
    pub place: Place,
    /// Whether the claim was made in writing: the row counts the attempt and names the worker.
    pub counted: bool,
}

/// What the row of a task says that a worker claims to hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AssertedRow {
    /// Its fence.
    pub fence: i64,
    /// When it was due.
    pub due: Micros,
    /// Its queue.
    pub queue: QueueId,
    /// Its priority.
    pub priority: i16,
    /// Its step.
    pub kind: Kind,
    /// Its group, if it has one.
    pub group: Option<Group>,
    /// Its key, if it has one.
    pub key: Option<Key>,
    /// Whether it is written down as locked.
    pub written: bool,
    /// Whether the row counts the attempt already.
    pub counted: bool,
}
