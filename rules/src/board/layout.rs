//! How the board lies in memory. Every type is plain data without references or padding that matters.

use super::QueueId;
use super::group::APART;
use super::kind_limit::KindLimit;
use super::kind_limit::MAX_KIND_LIMITS;
use super::progress::MAX_PROGRESS;
use super::weight::Weights;
use crate::Micros;
use crate::TaskId;
use crate::WorkerId;
use crate::names::Group;
use crate::names::Key;
use crate::names::Kind;
use crate::names::Label;
use crate::place::Place;
use crate::token;

/// No entry.
pub(super) const NIL: u32 = u32::MAX;

/// Queues that a worker may name.
pub const MAX_QUEUES_PER_WORKER: usize = 32;

/// Steps that a worker may name.
pub const MAX_KINDS: usize = 512;

/// Steps that a worker which named none may turn out not to know.
pub(super) const MAX_UNKNOWN: usize = 16;

/// How many of everything a board has room for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sizes {
    /// Tasks that are ready or claimed.
    pub entries: usize,
    /// Lists of ready tasks.
    pub lanes: usize,
    /// Workers.
    pub workers: usize,
    /// Names of queues.
    pub queues: usize,
}

impl Sizes {
    /// Sizes for so many tasks and workers.
    pub fn new(entries: usize, workers: usize) -> Self {
        Self { entries, lanes: 512, workers, queues: 1024 }
    }

    /// The number of gates: one for each queue, and one for all.
    pub fn gates(&self) -> usize {
        self.queues + 1
    }

    /// The length of the hash tables over the groups of claims and over keys: a power of two.
    pub fn group_buckets(&self) -> usize {
        (self.entries / 4).next_power_of_two()
    }

    /// How many keys can have claims that count, or tokens of a rate that were taken.
    pub fn keys(&self) -> usize {
        (self.entries / 4).max(16)
    }

    /// How many groups and keys can be noted that the scheduler is to look at.
    pub fn looks(&self) -> usize {
        (self.entries / 4).max(16)
    }

    /// How many claims can have a progress.
    pub fn progress(&self) -> usize {
        self.entries.min(MAX_PROGRESS)
    }

    /// The length of the hash table: a power of two, so that a bucket holds one entry or two.
    pub fn buckets(&self) -> usize {
        self.entries.next_power_of_two()
    }
}

/// Counters and list heads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Head {
    /// The token of the next hand-out.
    pub next_token: i64,
    /// Tasks that are ready.
    pub ready: u32,
    /// Tasks that are claimed.
    pub claimed: u32,
    /// Workers whose place is in use.
    pub workers: u32,
    pub(super) free: u32,
    pub(super) lanes: u16,
    pub(super) queues: u16,
    /// Gates that are set, of queues and of steps.
    pub(super) gates: u32,
    /// Microseconds of waiting that count as much as one step of priority; 0 when waiting changes nothing.
    pub ageing: Micros,
    pub(super) next_to_wake: u32,
    /// When workers have said what they held before memory was made.
    pub(super) settled_at: Micros,
    /// Until when a row that says that it runs is believed.
    pub(super) trusted_until: Micros,
    /// Limits of steps; those in use come first.
    pub(super) kind_limits: [KindLimit; MAX_KIND_LIMITS],
    pub(super) kind_limits_len: u16,
    pub(super) keys_free: u32,
    /// Before this moment no bucket of an idle key is full.
    pub(super) keys_full_at: Micros,
    /// When full buckets were last looked for.
    pub(super) keys_swept_at: Micros,
    /// Claims of tasks that have a key.
    pub(super) keyed: u32,
    /// There were more groups and keys to look at than could be noted.
    pub(super) looks_lost: bool,
    /// Groups to look at.
    pub(super) looks_len: u32,
    /// Claims of tasks that have a group.
    pub(super) in_groups: u32,
    pub(super) progress_free: u32,
}

impl Head {
    /// The head of an empty board, before [`super::Board::reset`] strings the free entries together.
    pub const EMPTY: Self = Self {
        next_token: token::STEP,
        ready: 0,
        claimed: 0,
        workers: 0,
        free: NIL,
        lanes: 0,
        queues: 0,
        next_to_wake: 0,
        ageing: 0,
        gates: 0,
        settled_at: 0,
        trusted_until: 0,
        kind_limits: [KindLimit::NONE; MAX_KIND_LIMITS],
        kind_limits_len: 0,
        keys_free: NIL,
        keys_full_at: Micros::MAX,
        keys_swept_at: 0,
        keyed: 0,
        looks_lost: false,
        looks_len: 0,
        in_groups: 0,
        progress_free: NIL,
    };
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum EntryState {
    /// In the list of free places.
    Free = 0,
    /// In a lane.
    Ready = 1,
    /// In a worker's list.
    Claimed = 2,
}

/// The claim's row was written down with `locked_by`.
pub(super) const WRITTEN: u8 = 1;
/// The attempt was counted in the row before the step was handed out.
pub(super) const COUNTED: u8 = 2;
/// The row was deleted by a user; the worker is to be told.
pub(super) const CANCELLED: u8 = 4;
/// The worker has been told.
pub(super) const CANCEL_TOLD: u8 = 8;
/// The claim has a token of its queue's rate that is not kept yet.
pub(super) const SPENT: u8 = 16;
/// The claim counts against the limit of its step.
pub(super) const ADMITTED: u8 = 32;
/// The claim has such a token of its key's rate.
pub(super) const KEY_SPENT: u8 = 64;
/// The claim has such a token of the rate of all queues together.
pub(super) const SPENT_OF_ALL: u8 = 128;

/// A task that is ready or claimed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Entry {
    /// The task.
    pub id: TaskId,
    /// When it was due.
    pub due: Micros,
    /// The claim's token.
    pub token: i64,
    /// The row's fence when the claim read it.
    pub fence: i64,
    /// When it was claimed.
    pub since: Micros,
    /// Which step it is, once the row was read.
    pub kind: Kind,
    /// How often its worker would retry the step.
    pub retry_limit: i32,
    /// Where its row was seen last.
    pub place: Place,
    /// The group of a claimed task, if `group_next` says that it has one.
    pub(super) group: Group,
    pub(super) group_next: u32,
    /// The key of a claimed task, if `key_slot` says that it has one.
    pub(super) key: Key,
    pub(super) key_slot: u32,
    pub(super) hash_next: u32,
    pub(super) prev: u32,
    pub(super) next: u32,
    /// The lane or the worker that lists it.
    pub(super) owner: u32,
    /// Where it is kept what a claim's step says of how far it is.
    pub(super) progress: u32,
    /// Its queue.
    pub queue: QueueId,
    /// Its priority.
    pub priority: i16,
    pub(super) state: EntryState,
    pub(super) flags: u8,
    pub(super) streak: u16,
}

impl Entry {
    /// A place that is not in use.
    pub const EMPTY: Self = Self {
        id: [0; 16],
        due: 0,
        token: 0,
        fence: -1,
        since: 0,
        kind: Kind::ANY,
        retry_limit: 0,
        place: Place::UNKNOWN,
        group: Group(0),
        group_next: APART,
        key: Key(0),
        key_slot: APART,
        hash_next: NIL,
        prev: NIL,
        next: NIL,
        owner: NIL,
        progress: NIL,
        queue: QueueId(0),
        priority: 0,
        state: EntryState::Free,
        flags: 0,
        streak: 0,
    };

    /// Whether the claim is written in the row.
    pub fn is_written(&self) -> bool {
        self.flags & WRITTEN != 0 && !self.is_asked()
    }

    /// Whether the worker does not run the task, but is asked what to do instead of parking it.
    pub fn is_asked(&self) -> bool {
        token::is_asked(self.token)
    }

    /// Whether the task that was handed out was deleted, or its run is to end.
    pub fn is_cancelled(&self) -> bool {
        self.flags & CANCELLED != 0
    }

    /// Whether the row's `tried` counts this attempt already.
    pub fn is_counted(&self) -> bool {
        self.flags & COUNTED != 0
    }
}

/// A list of ready tasks of one queue and priority.
///
/// With a kind other than [`Kind::ANY`] it holds tasks that some worker did not know, for those that do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Lane {
    /// Whose step it needs.
    pub kind: Kind,
    pub(super) first: u32,
    pub(super) last: u32,
    /// Tasks in it; a lane with none is not in use.
    pub len: u32,
    /// The queue.
    pub queue: QueueId,
    /// The priority.
    pub priority: i16,
    /// The kind's name, for people.
    pub label: Label,
}

impl Lane {
    /// A lane that is not in use.
    pub const EMPTY: Self = Self {
        kind: Kind::ANY,
        first: NIL,
        last: NIL,
        len: 0,
        queue: QueueId(0),
        priority: 0,
        label: Label::EMPTY,
    };
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum WorkerState {
    /// The place is free.
    Free = 0,
    /// It is there.
    Live = 1,
    /// The connection that registered it has ended; the grace runs.
    Gone = 2,
    /// It is given up; the scheduler writes down what it held.
    Lost = 3,
}

/// A worker.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct WorkerSlot {
    /// Its id.
    pub id: WorkerId,
    /// When it registered, first or again.
    pub registered_at: Micros,
    /// When it was last heard of.
    pub heartbeat_at: Micros,
    /// When its connection ended; of a lost worker, when what it held is to be written down.
    pub gone_at: Micros,
    /// How long it may be silent, in microseconds.
    pub lease: Micros,
    /// Counts registrations: what was begun under an older one is void.
    pub generation: u32,
    /// The role that registered it (an oid).
    pub role: u32,
    /// The process that serves its registering connection; 0 when it is not bound to it.
    pub pid: i32,
    /// Tasks that it would take and has not got. Above 0 it is idle: it waits for a wake-up.
    pub wanted: u32,
    /// Until then it is expected to call by itself, with the results of what it was just given: it is not woken before.
    pub(super) returns_at: Micros,
    /// Tasks that it holds.
    pub claimed: u32,
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) cancels: u32,
    pub(super) kinds_len: u16,
    pub(super) unknown_len: u16,
    pub(super) queues_len: u16,
    /// Where it stands.
    pub state: WorkerState,
    /// It was asked to stop.
    pub stop: bool,
    /// A notification about a stop or a cancelled task is on its way.
    pub(super) nudged: bool,
    pub(super) all_kinds: bool,
    /// It can be asked what a step's code does about a task that is to be parked without a run.
    pub gives_up: bool,
    /// Its name.
    pub name: Label,
    pub(super) queues: [QueueId; MAX_QUEUES_PER_WORKER],
    /// Shares of the queues, if the worker takes them by weight.
    pub(super) weights: Weights,
    pub(super) unknown: [Kind; MAX_UNKNOWN],
    pub(super) kinds: [Kind; MAX_KINDS],
    pub(super) limits: [i32; MAX_KINDS],
}

impl WorkerSlot {
    /// Frees the place. The generation lives on: it tells the next worker here from the last.
    pub(super) fn clear(&mut self) {
        *self = Self { generation: self.generation.wrapping_add(1), ..Self::EMPTY };
    }

    /// A free place.
    pub const EMPTY: Self = Self {
        id: [0; 16],
        registered_at: 0,
        heartbeat_at: 0,
        gone_at: 0,
        returns_at: 0,
        lease: 0,
        generation: 0,
        role: 0,
        pid: 0,
        wanted: 0,
        claimed: 0,
        first: NIL,
        last: NIL,
        cancels: 0,
        kinds_len: 0,
        unknown_len: 0,
        queues_len: 0,
        state: WorkerState::Free,
        stop: false,
        nudged: false,
        all_kinds: true,
        gives_up: false,
        name: Label::EMPTY,
        queues: [QueueId(0); MAX_QUEUES_PER_WORKER],
        weights: Weights::NONE,
        unknown: [Kind::ANY; MAX_UNKNOWN],
        kinds: [Kind::ANY; MAX_KINDS],
        limits: [0; MAX_KINDS],
    };

    /// Whether it is there and was not asked to stop: it may be given tasks.
    pub(super) fn is_there(&self) -> bool {
        self.state == WorkerState::Live && !self.stop
    }

    /// The queues it named; empty means all.
    pub fn queues(&self) -> &[QueueId] {
        &self.queues[..usize::from(self.queues_len)]
    }

    /// How many steps it named; none means all.
    pub fn kinds_len(&self) -> Option<u16> {
        (!self.all_kinds).then_some(self.kinds_len)
    }

    /// Whether it takes tasks from the queue.
    pub fn takes(&self, queue: QueueId) -> bool {
        self.queues_len == 0 || self.queues().contains(&queue)
    }

    /// Whether it knows the step.
    pub fn knows(&self, kind: Kind) -> bool {
        if self.unknown[..usize::from(self.unknown_len)].contains(&kind) {
            return false;
        }
        self.all_kinds || self.kind_index(kind).is_some()
    }

    /// How often it would retry the step.
    pub fn retry_limit(&self, kind: Kind) -> Option<i32> {
        self.kind_index(kind).map(|index| self.limits[index])
    }

    fn kind_index(&self, kind: Kind) -> Option<usize> {
        self.kinds[..usize::from(self.kinds_len)].binary_search(&kind).ok()
    }
}
