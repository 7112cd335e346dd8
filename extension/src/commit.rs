//! What a transaction remembers until it ends: rows to tell the scheduler about, claims to settle.
//!
//! **Architecture invariant.** Nothing in the COMMIT event may fail: an error there, after the commit record, takes the whole
//! server down. So it allocates nothing, logs nothing, and takes only this extension's own locks.

use std::cell::Cell;
use std::cell::RefCell;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Look;
use pg_task_rules::board::QueueRule;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key;
use pg_task_rules::names::Kind;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;

use crate::background;
use crate::handout;
use crate::shmem;
use crate::shmem::Slot;
use crate::spi;

/// Rows of one transaction that are told one by one; a larger transaction tells the scheduler to read the table from its earliest due time.
const MAX_HINTS: usize = 256;

/// From so many deleted tasks on, of one transaction, those alone are kept in mind that somebody runs.
const MANY_CANCELLED: usize = 10_000;

/// Cancelled tasks that memory is told of under one hold of its lock.
const CANCEL_CHUNK: usize = 1_000;

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static PENDING: RefCell<Pending> = const { RefCell::new(Pending::NOTHING) };
}

struct Pending {
    any: bool,
    hints: Vec<Hint>,
    /// Tasks and the subtransactions that deleted them.
    cancelled: Vec<(TaskId, pg_sys::SubTransactionId)>,
    looks: Vec<Look>,
    /// Tasks that SQL has ended or parked, for those who wait for them.
    ended: Vec<TaskId>,
    many_ended: bool,
    rescan_from: Micros,
    /// Tasks were taken off the board that this transaction has changed.
    withheld: bool,
    /// What holds for queues from now on, in the order in which it was set.
    rules: Vec<(QueueName, Option<QueueRule>)>,
    /// Limits of steps, likewise.
    step_limits: Vec<(Kind, Option<u32>)>,
    rules_stale: bool,
    /// Statements of this transaction have changed settings of queues, or may have.
    queues_touched: bool,
    /// What queues say for their tasks has changed.
    defaults_changed: bool,
    schedules_stale: bool,
    recheck: bool,
    start: bool,
    unique: bool,
}

impl Pending {
    const NOTHING: Self = Self {
        any: false,
        hints: Vec::new(),
        cancelled: Vec::new(),
        looks: Vec::new(),
        ended: Vec::new(),
        many_ended: false,
        rescan_from: Micros::MAX,
        withheld: false,
        rules: Vec::new(),
        step_limits: Vec::new(),
        rules_stale: false,
        queues_touched: false,
        defaults_changed: false,
        schedules_stale: false,
        recheck: false,
        start: false,
        unique: false,
    };

    /// Forgets everything but keeps the memory.
    fn clear(&mut self) {
        self.any = false;
        self.hints.clear();
        self.cancelled.clear();
        self.looks.clear();
        self.ended.clear();
        self.many_ended = false;
        self.rescan_from = Micros::MAX;
        self.withheld = false;
        self.rules.clear();
        self.step_limits.clear();
        self.rules_stale = false;
        self.queues_touched = false;
        self.defaults_changed = false;
        self.schedules_stale = false;
        self.recheck = false;
        self.start = false;
        self.unique = false;
    }
}

/// A row is due at `due`, if this transaction commits.
pub fn note_due(queue: &QueueName, priority: i16, due: Micros, id: TaskId) {
    note(|pending| {
        if pending.hints.len() < MAX_HINTS {
            pending.hints.push(Hint { due, id, priority, queue: *queue });
        } else {
            pending.rescan_from = pending.rescan_from.min(due);
        }
    });
}

/// As `note_due`, for a task that may have a group or a key: one of those that is due comes by a look.
pub fn note_task(
    queue: &QueueName,
    priority: i16,
    due: Micros,
    id: TaskId,
    group: Option<Group>,
    key: Option<Key>,
) {
    let look = key.map(Look::Key).or(group.map(Look::Group));
    match look.filter(|_| due <= spi::transaction_time()) {
        Some(look) => note_look(look),
        None => note_due(queue, priority, due, id),
    }
}

/// A task was deleted by a user, or the run of its step is to end, if this transaction commits and no savepoint takes it back.
pub fn note_cancelled(id: TaskId) {
    // SAFETY: inside a transaction.
    let subtransaction = unsafe { pg_sys::GetCurrentSubTransactionId() };
    note(|pending| pending.cancelled.push((id, subtransaction)));
}

/// The same of a task that SQL has deleted: of very many those alone that a worker holds now.
pub fn note_deleted(slot: Slot, id: TaskId) {
    let are_many = PENDING.with_borrow(|pending| pending.cancelled.len() >= MANY_CANCELLED);
    if !are_many || slot.with_board(|board| board.claim_of(&id).is_some()) {
        note_cancelled(id);
    }
}

/// Another task of a group, or more of a key, may be the next, if this transaction commits.
pub fn note_look(look: Look) {
    note(|pending| match pending.looks.last() {
        Some(last) if *last == look => {}
        _ if pending.looks.len() < MAX_HINTS => pending.looks.push(look),
        _ => pending.rescan_from = Micros::MIN,
    });
}

/// A task was ended or parked by SQL, if this transaction commits.
pub fn note_ended(id: TaskId) {
    note(|pending| {
        if pending.ended.len() < MAX_HINTS {
            pending.ended.push(id);
        } else {
            pending.many_ended = true;
        }
    });
}

/// Rows may have become visible of which nothing is known: read the table again.
pub fn note_rescan() {
    note(|pending| pending.rescan_from = Micros::MIN);
}

/// Tasks were taken off the board because this transaction has locked and changed their rows. If that is taken back, the table is read again.
pub fn note_withheld() {
    note(|pending| pending.withheld = true);
}

/// A statement of this transaction is about to change settings of queues.
pub fn note_queues_touched() {
    note(|pending| pending.queues_touched = true);
}

/// Whether this transaction has changed settings of queues, or tried to.
pub fn has_touched_queues() -> bool {
    PENDING.with_borrow(|pending| pending.queues_touched)
}

/// What a queue says for its tasks has changed, if this transaction commits.
pub fn note_defaults_changed() {
    note(|pending| pending.defaults_changed = true);
}

/// This holds for a queue, if this transaction commits.
pub fn note_rule(queue: QueueName, rule: Option<QueueRule>) {
    note(|pending| {
        pending.rules.push((queue, rule));
        pending.rules_stale = true;
    });
}

/// So many tasks may be at a step at once, if this transaction commits.
pub fn note_step_limit(kind: Kind, limit: Option<u32>) {
    note(|pending| {
        pending.step_limits.push((kind, limit));
        pending.rules_stale = true;
    });
}

/// How many queues get settings, or others, if this transaction commits.
pub fn rules_noted() -> usize {
    PENDING.with_borrow(|pending| pending.rules.iter().filter(|(_, rule)| rule.is_some()).count())
}

/// How many steps get a limit, or another one, if this transaction commits.
pub fn step_limits_noted() -> usize {
    PENDING.with_borrow(|pending| pending.step_limits.iter().filter(|(_, limit)| limit.is_some()).count())
}

/// The settings of queues may have changed, in a way of which nothing is known.
pub fn note_rules_stale() {
    note(|pending| pending.rules_stale = true);
}

/// Schedules may have changed.
pub fn note_schedules_stale() {
    note(|pending| pending.schedules_stale = true);
}

/// The extension may be another one after this transaction.
pub fn note_recheck() {
    note(|pending| pending.recheck = true);
}

/// There are keys of unique tasks to be removed some day, if this transaction commits.
pub fn note_unique() {
    note(|pending| pending.unique = true);
}

/// This database wants a scheduler.
pub fn note_start() {
    note(|pending| pending.start = true);
}

/// Makes sure that [`handout::at_end`] is called when the transaction ends.
pub fn note_handout() {
    note(|_| {});
}

fn note(f: impl FnOnce(&mut Pending)) {
    if !REGISTERED.replace(true) {
        // SAFETY: the callbacks live as long as the process and take no argument.
        unsafe {
            pg_sys::RegisterXactCallback(Some(at_xact_event), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(at_subxact_event), std::ptr::null_mut());
        }
    }
    PENDING.with_borrow_mut(|pending| {
        pending.any = true;
        f(pending);
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_xact_event(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::*;
    if !PENDING.with_borrow(|pending| pending.any) {
        return;
    }
    match event {
        XACT_EVENT_COMMIT => {
            handout::at_end(true);
            PENDING.with_borrow_mut(|pending| {
                tell(pending);
                pending.clear();
            });
        }
        XACT_EVENT_ABORT => {
            handout::at_end(false);
            PENDING.with_borrow_mut(|pending| {
                if pending.withheld {
                    give_back_withheld();
                }
                pending.clear();
            });
        }
        // Whoever commits it later has no hints: the utility hook asks for a read of the table then.
        XACT_EVENT_PREPARE => PENDING.with_borrow_mut(Pending::clear),
        XACT_EVENT_PRE_PREPARE => handout::before_prepare(),
        _ => {}
    }
}

/// What was cancelled after a savepoint is not, when that is rolled back. Later subtransactions have larger numbers.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_subxact_event(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        PENDING.with_borrow_mut(|pending| {
            pending.cancelled.retain(|(_, by)| *by < subtransaction);
            if pending.withheld {
                pending.rescan_from = Micros::MIN;
            }
        });
    }
}

fn give_back_withheld() {
    let Some(slot) = shmem::my_slot() else { return };
    if slot.with_inbox(|inbox| inbox.ask_rescan(Micros::MIN)) {
        slot.wake_scheduler();
    }
}

fn tell(pending: &Pending) {
    if pending.start {
        // SAFETY: a plain read of this process' own variable.
        shmem::want_scheduler(unsafe { pg_sys::MyDatabaseId });
    }
    let Some(slot) = shmem::my_slot() else {
        if pending.start || !pending.hints.is_empty() || pending.rescan_from != Micros::MAX {
            // SAFETY: a plain read of this process' own variable.
            shmem::take_slot(unsafe { pg_sys::MyDatabaseId });
            shmem::wake_launcher();
        }
        return;
    };
    // A read of the table is asked for when nothing is known of what has committed.
    if pending.many_ended || pending.rescan_from == Micros::MIN {
        slot.control().waiters.wake_all();
    } else {
        slot.control().waiters.wake(pending.ended.iter());
    }
    let mut wake = pending.recheck;
    if pending.recheck {
        slot.control().recheck.store(true, SeqCst);
    }
    if !slot.is_served() {
        shmem::wake_launcher();
    }
    for cancelled in pending.cancelled.chunks(CANCEL_CHUNK) {
        slot.with_board(|board| {
            for (id, _) in cancelled {
                wake |= board.cancel(id).is_some();
            }
        });
    }
    if !pending.looks.is_empty() {
        slot.with_board(|board| pending.looks.iter().for_each(|look| board.ask_look(*look)));
        wake = true;
    }
    if pending.rules_stale {
        if !pending.rules.is_empty() || !pending.step_limits.is_empty() {
            let now = background::now();
            slot.with_board(|board| {
                for (queue, rule) in &pending.rules {
                    // One for which there is no place is found by the scheduler, which holds its tasks back.
                    board.set_rule(queue, rule.as_ref(), now);
                }
                for (kind, limit) in &pending.step_limits {
                    board.set_kind_limit(*kind, *limit);
                }
                slot.control().limits_steps.store(board.limited_kinds().next().is_some(), SeqCst);
                let version = slot.control().rules_version.fetch_add(1, SeqCst) + 1;
                if pending.defaults_changed {
                    slot.control().defaults_version.store(version, SeqCst);
                }
            });
        }
        slot.control().rules_stale.store(true, SeqCst);
        wake = true;
    }
    if pending.unique {
        slot.control().has_keys.store(true, SeqCst);
    }
    if pending.schedules_stale {
        slot.control().schedules_stale.store(true, SeqCst);
        wake = true;
    }
    if !pending.hints.is_empty() || pending.rescan_from != Micros::MAX {
        slot.with_inbox(|inbox| {
            for hint in &pending.hints {
                wake |= inbox.push(hint);
            }
            if pending.rescan_from != Micros::MAX {
                wake |= inbox.ask_rescan(pending.rescan_from);
            }
        });
    }
    // SAFETY: a plain read of this process' own variable.
    if wake && slot.control().pid.load(SeqCst) != unsafe { pg_sys::MyProcPid } {
        slot.wake_scheduler();
    }
}
