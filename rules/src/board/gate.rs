//! Gates: what holds the tasks of a queue back although they are due. A pause, a limit of what runs at once, a rate.
//!
//! A queue without settings has no gate, and a board without gates asks one question more than it would without this file.
//! `gates` has a place for each place of `queues`, and one more for all queues together.

use super::Board;
use super::QueueId;
use super::claim::Claim;
use super::group::APART;
use super::key::UNLIMITED;
use super::layout::ADMITTED;
use super::layout::EntryState;
use super::layout::KEY_SPENT;
use super::layout::Lane;
use super::layout::SPENT;
use super::layout::SPENT_OF_ALL;
use super::layout::WorkerState;
use crate::Micros;
use crate::TaskId;
use crate::bucket::Bucket;
use crate::bucket::Rate;
use crate::names::Group;
use crate::names::Key;
use crate::names::Kind;
use crate::names::QueueName;

/// The name under which the settings for all queues together are kept.
pub const ALL_QUEUES: &str = "*";

/// What is set for a queue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct QueueRule {
    /// Nothing is handed out.
    pub paused: bool,
    /// So many tasks are claimed at once, at most.
    pub concurrency: Option<u32>,
    /// So many tasks are handed out in a time, at most.
    pub rate: Option<Rate>,
    /// So many tasks of each key are claimed at once, at most.
    pub key_concurrency: Option<u32>,
    /// So many tasks of each key are handed out in a time, at most.
    pub key_rate: Option<Rate>,
}

/// A queue's settings and what counts against them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Gate {
    bucket: Bucket,
    /// The bucket of a key of which no task was handed out since the rate by key is set, if `has_key_rate`.
    pub(super) key_bucket: Bucket,
    limit: u32,
    key_limit: u32,
    /// Claims of the queue, kept while the gate is set.
    running: u32,
    /// Tasks that run as their rows say, under workers that have not come back since the server's start.
    held: u32,
    has_rate: bool,
    pub(super) has_key_rate: bool,
    paused: bool,
    set: bool,
}

impl Gate {
    /// No settings.
    pub const OPEN: Self = Self {
        bucket: Bucket::NONE,
        key_bucket: Bucket::NONE,
        limit: UNLIMITED,
        key_limit: UNLIMITED,
        running: 0,
        held: 0,
        has_rate: false,
        has_key_rate: false,
        paused: false,
        set: false,
    };

    /// Claims that count against its limit.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// How many tasks of each key may be claimed at once.
    pub(super) fn key_limit(&self) -> u32 {
        self.key_limit
    }

    /// Whether something is set.
    pub fn is_set(&self) -> bool {
        self.set
    }

    /// Whether the queue is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }
}

/// Claims that end when the call commits that asks for more: their places are free for that call, and for no other.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    queues: Vec<(QueueId, u32)>,
    kinds: Vec<(Kind, u32)>,
    groups: Vec<Group>,
    keys: Vec<Key>,
    total: u32,
}

impl Leaving {
    fn of(&self, gate: usize) -> u32 {
        self.queues.iter().find(|(queue, _)| usize::from(queue.0) == gate).map_or(0, |(_, count)| *count)
    }

    pub(super) fn of_group(&self, group: Group) -> usize {
        self.groups.iter().filter(|other| **other == group).count()
    }

    pub(super) fn of_key(&self, key: Key) -> u32 {
        self.keys.iter().filter(|other| **other == key).count() as u32
    }

    pub(super) fn of_kind(&self, kind: Kind) -> u32 {
        self.kinds.iter().find(|(other, _)| *other == kind).map_or(0, |(_, count)| *count)
    }
}

/// When a gate opens.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Opens {
    /// It is open, or opens at this moment by itself.
    At(Micros),
    /// When a claim ends or the settings change.
    Unknown,
}

impl Board<'_> {
    /// Sets what holds for a queue, from now on, or that nothing does. False when there is no place for its name.
    ///
    /// What runs goes on, and counts. A rate begins with an empty bucket; another rate goes on with what has gathered.
    pub fn set_rule(&mut self, name: &QueueName, rule: Option<&QueueRule>, now: Micros) -> bool {
        let place = if name.as_str() == ALL_QUEUES {
            Some(self.queues.len())
        } else if rule.is_some() {
            self.has_place_for_rule(name, 0)
                .then(|| self.intern(name))
                .flatten()
                .map(|queue| usize::from(queue.0))
        } else {
            self.number_of(name).map(|queue| usize::from(queue.0))
        };
        let Some(place) = place else { return rule.is_none() };
        let was = self.gates[place];
        let Some(rule) = rule else {
            self.head.gates -= u32::from(was.set);
            self.gates[place] = Gate::OPEN;
            self.change_tokens(place, &was, now);
            return true;
        };
        self.head.gates += u32::from(!was.set);
        let running = if was.set { was.running } else { self.count_claims(place) };
        let bucket = |rate: Option<Rate>, was: Option<Bucket>| match (rate, was) {
            (None, _) => Bucket::NONE,
            (Some(rate), Some(mut bucket)) => {
                bucket.settle(now);
                if bucket.rate() != rate.clamped() {
                    bucket.change(rate, now);
                }
                bucket
            }
            (Some(rate), None) => Bucket::empty(rate, now),
        };
        self.gates[place] = Gate {
            bucket: bucket(rule.rate, was.has_rate.then_some(was.bucket)),
            key_bucket: bucket(rule.key_rate, was.has_key_rate.then_some(was.key_bucket)),
            limit: rule.concurrency.unwrap_or(UNLIMITED),
            key_limit: rule.key_concurrency.unwrap_or(UNLIMITED),
            running,
            held: was.held,
            has_rate: rule.rate.is_some(),
            has_key_rate: rule.key_rate.is_some(),
            paused: rule.paused,
            set: true,
        };
        self.change_tokens(place, &was, now);
        true
    }

    /// Whether settings for the queue have a place, beside so many that come with them: half of the names are left to queues without settings.
    pub fn has_place_for_rule(&self, name: &QueueName, beside: usize) -> bool {
        let known = self.number_of(name).is_some_and(|queue| self.gates[usize::from(queue.0)].set);
        let all = self.queues.len();
        known
            || name.as_str() == ALL_QUEUES
            || (self.head.gates - u32::from(self.head.kind_limits_len) - u32::from(self.gates[all].set))
                as usize
                + beside
                < all / 2
    }

    /// The names with settings, that for all queues together included.
    pub fn ruled(&self) -> impl Iterator<Item = QueueName> {
        let all = QueueName::new(ALL_QUEUES).unwrap_or(QueueName::EMPTY);
        self.gates
            .iter()
            .enumerate()
            .filter(|(_, gate)| gate.set)
            .map(move |(place, _)| if place == self.queues.len() { all } else { self.queues[place] })
    }

    /// Memory was made anew. Until `settled` workers say what they hold, and nothing that is limited is handed out; until
    /// `trusted` the tasks that their rows say to be running count, whether their workers have come back or not.
    pub fn set_settling(&mut self, settled: Micros, trusted: Micros) {
        self.head.settled_at = settled;
        self.head.trusted_until = trusted;
    }

    /// Tasks of a queue that run as their rows say. Those of them that are claimed here count already.
    pub fn set_held(&mut self, name: &QueueName, ids: &[TaskId]) {
        let held = ids.iter().filter(|id| self.claim_of(id).is_none()).count() as u32;
        let place = if name.as_str() == ALL_QUEUES {
            Some(self.queues.len())
        } else {
            self.number_of(name).map(|queue| usize::from(queue.0))
        };
        if let Some(gate) = place.map(|place| &mut self.gates[place]).filter(|gate| gate.set) {
            gate.held = held;
        }
    }

    /// What ends with the call that brings these results.
    pub fn leaving(&self, ends: impl Iterator<Item = (TaskId, i64)>) -> Leaving {
        let mut leaving = Leaving::default();
        if self.head.gates == 0 && self.head.in_groups == 0 && self.head.keyed == 0 {
            return leaving;
        }
        for (id, token) in ends {
            let Some(entry) = self.claim_of(&id).filter(|entry| entry.token == token) else { continue };
            leaving.total += 1;
            if entry.group_next != APART {
                leaving.groups.push(entry.group);
            }
            if entry.key_slot != APART {
                leaving.keys.push(entry.key);
            }
            if entry.flags & ADMITTED != 0 {
                match leaving.kinds.iter_mut().find(|(kind, _)| *kind == entry.kind) {
                    Some((_, count)) => *count += 1,
                    None => leaving.kinds.push((entry.kind, 1)),
                }
            }
            match leaving.queues.iter_mut().find(|(queue, _)| *queue == entry.queue) {
                Some((_, count)) => *count += 1,
                None => leaving.queues.push((entry.queue, 1)),
            }
        }
        leaving
    }

    /// The claim does not lead to a hand-out: what it took of rates is there again.
    pub fn withdraw(&mut self, claim: &Claim) {
        if self.head.gates == 0 {
            return;
        }
        if let Some(index) = self.find_claim(&claim.id, claim.token) {
            self.tokens_of(index, Bucket::put_back);
        }
    }

    /// The claim has led to a hand-out: what it took of rates is gone.
    pub(super) fn keep_tokens(&mut self, index: u32) {
        self.tokens_of(index, Bucket::keep);
    }

    /// What becomes of the tokens that a claim has taken.
    fn tokens_of(&mut self, index: u32, end: fn(&mut Bucket)) {
        let entry = &mut self.entries[index as usize];
        let (flags, queue, slot) = (entry.flags, usize::from(entry.queue.0), entry.key_slot);
        entry.flags &= !(SPENT | SPENT_OF_ALL | KEY_SPENT);
        if flags & SPENT != 0 {
            end(&mut self.gates[queue].bucket);
        }
        if flags & SPENT_OF_ALL != 0 {
            end(&mut self.gates[self.queues.len()].bucket);
        }
        if flags & KEY_SPENT != 0
            && let Some(slot) = self.keys.get_mut(slot as usize)
        {
            end(&mut slot.bucket);
        }
    }

    fn change_tokens(&mut self, place: usize, was: &Gate, now: Micros) {
        if was.has_rate && !self.gates[place].has_rate {
            let flag = if place == self.queues.len() { SPENT_OF_ALL } else { SPENT };
            self.forget_tokens(place, flag);
        }
        if was.has_key_rate && !self.gates[place].has_key_rate {
            self.forget_tokens(place, KEY_SPENT);
        }
        self.change_keys(place, was, now);
    }

    /// A rate is no more: the tokens that claims have of it are none of the next one's.
    fn forget_tokens(&mut self, place: usize, flag: u8) {
        let is_of_all = place == self.queues.len();
        let claims = self.entries.iter_mut().filter(|entry| entry.state == EntryState::Claimed);
        let claims = claims.filter(|entry| is_of_all || usize::from(entry.queue.0) == place);
        claims.for_each(|entry| entry.flags &= !flag);
    }

    /// Whether a ready task may be handed out, as far as its queue goes.
    pub fn may_hand_out(&self, now: Micros) -> bool {
        if self.head.gates == 0 {
            return self.head.ready > 0;
        }
        self.lanes_in_use().any(|lane| self.allowance(lane, now) > 0)
    }

    /// Whether a worker waits for what the end of a claim has made possible.
    pub fn has_freed_place(&self, now: Micros) -> bool {
        let is_limited = |lane: &Lane| {
            let of = |place: usize| self.gates[place].limit != UNLIMITED;
            of(usize::from(lane.queue.0))
                || of(self.queues.len())
                || self.running_of_kind(lane.kind).is_some()
        };
        self.head.gates > 0
            && self.head.ready > 0
            && self.workers.iter().any(|slot| slot.state == WorkerState::Live && slot.wanted > 0)
            && self.lanes_in_use().any(|lane| is_limited(lane) && self.allowance(lane, now) > 0)
    }

    /// When the next queue with ready tasks opens that is closed for a time.
    pub fn next_opening(&self, now: Micros) -> Option<Micros> {
        if self.head.gates == 0 {
            return None;
        }
        let openings = self.lanes_in_use().filter_map(|lane| {
            let (queue, kind) = (self.opening_of(lane.queue, now)?, self.kind_opening(lane.kind, now)?);
            Some(queue.max(kind))
        });
        openings.filter(|&at| at > now).min()
    }

    /// When the queue opens, if it is closed for a time: not now, and not when something ends.
    pub fn opening_of(&self, queue: QueueId, now: Micros) -> Option<Micros> {
        let opens = [usize::from(queue.0), self.queues.len()].map(|place| self.opens(place, now));
        match opens.into_iter().max() {
            Some(Opens::At(at)) => Some(at),
            _ => None,
        }
    }

    /// Whether the queue, or all, is paused.
    pub fn is_paused(&self, queue: QueueId) -> bool {
        self.head.gates > 0
            && (self.gates[usize::from(queue.0)].paused || self.gates[self.queues.len()].paused)
    }

    /// How many tasks of the lane may be handed out now.
    pub(super) fn allowance(&self, lane: &Lane, now: Micros) -> u32 {
        self.allowance_beside(lane, now, &Leaving::default())
    }

    /// The same for a call with which some claims end.
    pub(super) fn allowance_beside(&self, lane: &Lane, now: Micros, leaving: &Leaving) -> u32 {
        let place = usize::from(lane.queue.0);
        let own = self.allows(place, leaving.of(place), now);
        if own == 0 {
            return 0;
        }
        own.min(self.allows(self.queues.len(), leaving.total, now))
            .min(self.kind_allowance(lane.kind, now, leaving))
    }

    /// Whether nothing of the queue can be handed out before something ends or is set.
    pub(super) fn is_shut(&self, queue: QueueId) -> bool {
        let is_shut = |place: usize| {
            let gate = &self.gates[place];
            gate.paused || self.running_in(place) >= gate.limit
        };
        is_shut(usize::from(queue.0)) || is_shut(self.queues.len())
    }

    /// Whether the next step of a task that runs may go on in its place: its queue is not paused, it is not one too many, and no rate counts it.
    pub(super) fn may_stay(&self, queue: QueueId) -> bool {
        let may_stay = |place: usize| {
            let gate = &self.gates[place];
            !gate.paused && !gate.has_rate && self.running_in(place) <= gate.limit
        };
        may_stay(usize::from(queue.0)) && may_stay(self.queues.len())
    }

    /// A task is handed out: a token of each rate that counts it.
    pub(super) fn spend(&mut self, index: u32, now: Micros) {
        let queue = self.entries[index as usize].queue;
        for (place, flag) in [(usize::from(queue.0), SPENT), (self.queues.len(), SPENT_OF_ALL)] {
            if self.gates[place].has_rate && self.gates[place].bucket.take(now) {
                self.entries[index as usize].flags |= flag;
            }
        }
    }

    /// A claim of the queue begins.
    #[cold]
    pub(super) fn count_in(&mut self, queue: QueueId) {
        let gate = &mut self.gates[usize::from(queue.0)];
        gate.running += u32::from(gate.set);
    }

    /// A claim of the queue ends.
    #[cold]
    pub(super) fn count_out(&mut self, queue: QueueId) {
        let gate = &mut self.gates[usize::from(queue.0)];
        gate.running = gate.running.saturating_sub(u32::from(gate.set));
    }

    /// A worker has come back with a task that its row said to be running.
    pub(super) fn count_back(&mut self, queue: QueueId) {
        for place in [usize::from(queue.0), self.queues.len()] {
            let gate = &mut self.gates[place];
            gate.held = gate.held.saturating_sub(1);
        }
    }

    /// The clock was set back to this moment: rates go on from there.
    pub(super) fn settle_rates(&mut self, now: Micros) {
        self.gates.iter_mut().for_each(|gate| gate.bucket.settle(now));
        self.head.keys_full_at = 0;
    }

    /// Claims and workers are forgotten; what is set stays.
    pub(super) fn reset_gates(&mut self) {
        for gate in self.gates.iter_mut() {
            gate.running = 0;
            gate.held = 0;
            gate.bucket.keep_all();
            // What was taken of each key is forgotten too.
            gate.key_bucket = gate.key_bucket.forgotten();
        }
        let known = self.queues.len();
        for (queue, _) in self.queues.iter_mut().zip(self.gates.iter()).filter(|(_, gate)| !gate.set) {
            *queue = QueueName::EMPTY;
        }
        for limit in &mut self.head.kind_limits {
            limit.forget_claims();
        }
        let set = self.gates.iter().filter(|gate| gate.set).count();
        self.head.gates = set as u32 + u32::from(self.head.kind_limits_len);
        self.head.queues =
            self.gates[..known].iter().rposition(|gate| gate.set).map_or(0, |last| last as u16 + 1);
    }

    fn allows(&self, place: usize, leaving: u32, now: Micros) -> u32 {
        let gate = &self.gates[place];
        if !gate.set {
            return UNLIMITED;
        }
        if gate.paused {
            return 0;
        }
        let mut room = UNLIMITED;
        if gate.limit != UNLIMITED {
            if now < self.head.settled_at {
                return 0;
            }
            let running = self.running_in(place).saturating_sub(leaving);
            room = gate.limit.saturating_sub(running.saturating_add(self.held_in(place, now)));
        }
        if gate.has_rate { room.min(gate.bucket.tokens(now)) } else { room }
    }

    fn opens(&self, place: usize, now: Micros) -> Opens {
        let gate = &self.gates[place];
        if !gate.set {
            return Opens::At(now);
        }
        if gate.paused {
            return Opens::Unknown;
        }
        let mut at = now;
        if gate.limit != UNLIMITED {
            let running = self.running_in(place);
            if running >= gate.limit {
                return Opens::Unknown;
            }
            at = at.max(self.head.settled_at);
            if running.saturating_add(self.held_in(place, now)) >= gate.limit {
                at = at.max(self.head.trusted_until);
            }
        }
        if gate.has_rate {
            at = at.max(gate.bucket.next_at(now));
        }
        Opens::At(at)
    }

    fn running_in(&self, place: usize) -> u32 {
        if place == self.queues.len() { self.head.claimed } else { self.gates[place].running }
    }

    fn held_in(&self, place: usize, now: Micros) -> u32 {
        if now < self.head.trusted_until { self.gates[place].held } else { 0 }
    }

    fn count_claims(&self, place: usize) -> u32 {
        let is_of = |queue: QueueId| usize::from(queue.0) == place;
        let claims =
            self.entries.iter().filter(|entry| entry.state == EntryState::Claimed && is_of(entry.queue));
        claims.count() as u32
    }
}
