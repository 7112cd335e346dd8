//! What there is at a moment: rows, memory, worker processes, and notes about what has happened.

use super::Handout;
use super::Outcome;

/// A row of the table, as it is committed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Row {
    /// Its changes.
    pub fence: u8,
    /// Which step it is at.
    pub step: u8,
    /// Attempts of the step that were counted.
    pub tried: u8,
    /// The worker that is written down.
    pub locked_by: Option<u8>,
    /// The lock says that the attempt was counted when it was made: the row was changed at the moment at which it was locked.
    pub counted: bool,
    /// It has an error.
    pub parked: bool,
    /// It was last changed before the last crash (`crash_barrier`).
    pub old: bool,
}

/// A claim in shared memory.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Claim {
    /// Who holds it.
    pub worker: u8,
    /// The attempt.
    pub token: u8,
    /// The row's fence; none until the row was read.
    pub fence: Option<u8>,
    /// The row counts the attempt already.
    pub counted: bool,
    /// The row names the worker, or is about to.
    pub written: bool,
    /// It has the turn of its group.
    pub in_turn: bool,
}

/// Where a worker stands in memory.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Standing {
    /// Not known.
    Absent,
    /// Registered.
    Live,
    /// Given up; what it held is to be written down.
    Lost,
}

/// Shared memory.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Memory {
    /// How often each task is ready: more than once only if a rule is broken.
    pub ready: Vec<u8>,
    /// The claims.
    pub claims: Vec<Option<Claim>>,
    /// Hints in the inbox.
    pub hints: Vec<bool>,
    /// The table is to be read.
    pub rescan: bool,
    /// The scheduler is to look for the next task of the group.
    pub look: bool,
    /// The workers.
    pub standing: Vec<Standing>,
}

/// A step that a worker process runs or has run.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Attempt {
    /// Of which task.
    pub task: u8,
    /// The row's fence.
    pub fence: u8,
    /// The attempt.
    pub token: u8,
    /// The step.
    pub step: u8,
    /// The row was changed by the scheduler or a user since: its result must be refused.
    pub given_up: bool,
    /// Memory forgot it: another may run beside it until the fence decides.
    pub orphan: bool,
}

/// An `exchange` call that is under way.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Call {
    /// The task is claimed in memory, its row not read yet.
    Claiming {
        /// The task.
        task: u8,
        /// The attempt.
        token: u8,
    },
    /// The result was checked against memory, and is not written yet.
    Checked {
        /// Whose result.
        attempt: Attempt,
        /// The result.
        outcome: Outcome,
        /// Whether the attempt was counted already; none when memory does not know.
        counted: Option<bool>,
    },
    /// The transaction has committed, and memory does not know yet.
    Committed {
        /// Whose result.
        attempt: Attempt,
        /// What memory is told.
        end: End,
    },
}

/// What memory is told after a commit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum End {
    /// The task is gone or parked.
    Over,
    /// The task is gone, and memory knew no claim that could end: its row's trigger tells (`task_gone`).
    Gone,
    /// Ready again, to be read anew.
    Back,
    /// Due again, told by a hint.
    Hint,
}

/// What the scheduler has in hand between two moments.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Scheduler {
    /// Rows that a read of the table saw and that are not pushed yet.
    pub seen: Vec<u8>,
    /// The task of the group that a look has found and that is not pushed yet.
    pub found: Option<u8>,
    /// A claim that was marked as written down and is not written yet: task, fence, worker, token.
    pub to_write: Option<(u8, u8, u8, u8)>,
    /// A worker whose loss is written and not settled in memory yet.
    pub loss: Option<u8>,
}

/// Something that must never happen.
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
#[expect(missing_docs, reason = "the properties say what they mean")]
pub enum Violation {
    BeyondLimit = 1,
    CountedTwice = 2,
    CrashUncounted = 4,
    DoubleTransition = 8,
    OldToken = 16,
    StaleResult = 32,
    Uncounted = 64,
    WrongLock = 128,
    OutOfOrder = 256,
    OutOfTurn = 512,
}

/// Notes about a task that no part of the real system keeps.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Notes {
    /// It was enqueued.
    pub enqueued: bool,
    /// Steps whose transition has happened, as bits.
    pub done: u8,
    /// The token of its last hand-out.
    pub last_token: u8,
    /// Attempts of the current step that were counted, as bits of their tokens.
    pub counted: u64,
    /// Attempts of the current step that ran when the server crashed, as bits of their tokens.
    pub crashed: u64,
    /// Crashes that met an attempt of the current step that had not met one before.
    pub crashes: u8,
    /// Attempts of the current step that were given up.
    pub lost: u64,
}

impl Notes {
    /// The row is at another step, or a user has changed it: a new count begins.
    pub(super) fn forget_attempts(&mut self) {
        (self.counted, self.crashed, self.crashes, self.lost) = (0, 0, 0, 0);
    }
}

/// Everything.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct State {
    /// The table.
    pub rows: Vec<Option<Row>>,
    /// Shared memory.
    pub memory: Memory,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// What each worker process holds.
    pub attempts: Vec<Vec<Attempt>>,
    /// What each worker process asks.
    pub calls: Vec<Option<Call>>,
    /// The process has ended; another one has another id, which takes the place once this one's loss is settled.
    pub dead: Vec<bool>,
    /// The last answer was lost on its way: the worker will register again.
    pub unsure: Vec<bool>,
    /// The token of the next hand-out.
    pub next_token: u8,
    /// Faults so far.
    pub faults: u8,
    /// Notes about each task.
    pub notes: Vec<Notes>,
    /// What must not happen and has.
    pub violations: u16,
    /// A result was refused.
    pub refused: bool,
    /// A worker said that it holds a task, and memory did not know.
    pub reasserted: bool,
}

impl State {
    pub(super) fn new(model: &Handout) -> Self {
        Self {
            rows: vec![None; model.tasks],
            memory: Memory::empty(model),
            scheduler: Scheduler::default(),
            attempts: vec![Vec::new(); model.workers],
            calls: vec![None; model.workers],
            dead: vec![false; model.workers],
            unsure: vec![false; model.workers],
            next_token: 1,
            faults: 0,
            notes: vec![Notes::default(); model.tasks],
            violations: 0,
            refused: false,
            reasserted: false,
        }
    }

    /// Whether something that must not happen has.
    pub fn has(&self, violation: Violation) -> bool {
        self.violations & violation as u16 != 0
    }

    pub(super) fn note(&mut self, violation: Violation) {
        self.violations |= violation as u16;
    }

    /// Every attempt that a worker process holds or is bringing the result of.
    pub(super) fn every_attempt(&mut self) -> impl Iterator<Item = &mut Attempt> {
        let brought = self.calls.iter_mut().flatten().filter_map(|call| match call {
            Call::Checked { attempt, .. } => Some(attempt),
            _ => None,
        });
        self.attempts.iter_mut().flatten().chain(brought)
    }

    /// For each task, how many attempts run with the right to: not given up, and known to memory.
    pub fn live_attempts(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.rows.len()).map(|task| {
            let brought = self.calls.iter().flatten().filter_map(|call| match call {
                Call::Checked { attempt, .. } => Some(attempt),
                _ => None,
            });
            self.attempts
                .iter()
                .flatten()
                .chain(brought)
                .filter(|attempt| usize::from(attempt.task) == task && !attempt.given_up && !attempt.orphan)
                .count()
        })
    }

    /// A task that nothing would ever run again.
    pub fn forgotten(&self) -> Option<usize> {
        (0..self.rows.len()).find(|&task| {
            let number = task as u8;
            self.rows[task].is_some_and(|row| !row.parked)
                && !self.memory.rescan
                && self.memory.ready[task] == 0
                && !self.memory.hints[task]
                && !self.scheduler.seen.contains(&number)
                && !self.memory.claims[task].is_some_and(|claim| self.will_end(number, &claim))
                && !self.calls.iter().flatten().any(|call| match call {
                    Call::Claiming { .. } => false,
                    Call::Checked { attempt, .. } => {
                        attempt.task == number && !self.is_held_by_memory(attempt)
                    }
                    Call::Committed { attempt, .. } => attempt.task == number,
                })
        })
    }

    /// Whether nothing would ever run the next task of the group. What is known of any of its tasks leads to a look, as long as its row is there:
    /// it is refused, or its claim ends.
    pub fn is_group_forgotten(&self) -> bool {
        let is_runnable = |task: usize| self.rows[task].is_some_and(|row| !row.parked);
        let oldest = (0..self.rows.len()).find(|task| self.rows[*task].is_some());
        let leads_on = |task: usize| {
            let (number, claim) = (task as u8, self.memory.claims[task]);
            let is_known = self.memory.ready[task] > 0
                || self.memory.hints[task]
                || self.scheduler.seen.contains(&number)
                || claim.is_some_and(|claim| self.will_end(number, &claim));
            let has_turn = claim.is_some_and(|claim| claim.in_turn && self.will_end(number, &claim));
            let is_settled = |call: &Call| match call {
                Call::Claiming { .. } => true,
                Call::Checked { attempt, .. } => attempt.task != number || self.is_held_by_memory(attempt),
                Call::Committed { attempt, .. } => attempt.task != number,
            };
            has_turn || (is_runnable(task) && is_known) || !self.calls.iter().flatten().all(is_settled)
        };
        oldest.is_some_and(is_runnable)
            && !self.memory.rescan
            && !self.memory.look
            && self.scheduler.found.is_none()
            && !(0..self.rows.len()).any(leads_on)
    }

    /// Whether another task of the group is claimed that has the turn.
    pub(super) fn has_turn_beside(&self, task: u8) -> bool {
        let others = self.memory.claims.iter().enumerate().filter(|(other, _)| *other != usize::from(task));
        others.filter_map(|(_, claim)| *claim).any(|claim| claim.in_turn)
    }

    /// Whether no older task is in the table.
    pub(super) fn is_oldest(&self, task: u8) -> bool {
        self.rows[..usize::from(task)].iter().all(Option::is_none)
    }

    fn is_held_by_memory(&self, attempt: &Attempt) -> bool {
        self.memory.claims[usize::from(attempt.task)].is_some_and(|claim| claim.token == attempt.token)
    }

    /// Whether a claim will come to its end: its call is under way, its worker runs it or will register again, or the worker is not there any
    /// more, which the grace or the lease will notice. A worker that is there and holds nothing would keep it for ever.
    fn will_end(&self, task: u8, claim: &Claim) -> bool {
        let worker = usize::from(claim.worker);
        let its = |attempt: &Attempt| attempt.task == task && attempt.token == claim.token;
        let called = self.calls[worker].is_some_and(|call| match call {
            Call::Claiming { task: claiming, .. } => claiming == task,
            Call::Checked { attempt, .. } | Call::Committed { attempt, .. } => its(&attempt),
        });
        called
            || self.attempts[worker].iter().any(its)
            || self.unsure[worker]
            || self.memory.standing[worker] != Standing::Live
    }

    /// Whether every task was enqueued and has run all its steps.
    pub fn all_done(&self) -> bool {
        self.rows.iter().all(Option::is_none)
            && self.notes.iter().all(|notes| notes.enqueued && notes.done != 0)
    }
}

impl Memory {
    pub(super) fn empty(model: &Handout) -> Self {
        Self {
            ready: vec![0; model.tasks],
            claims: vec![None; model.tasks],
            hints: vec![false; model.tasks],
            rescan: false,
            look: false,
            standing: vec![Standing::Absent; model.workers],
        }
    }
}
