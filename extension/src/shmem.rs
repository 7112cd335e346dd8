//! Shared memory: one global head, and for each database a slot with its control block, its board and its inbox.
//!
//! Nothing here is the truth. The region is sized once from settings, is zeroed by a crash restart, and is then filled again
//! from the table.

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pg_task_rules::board::Board;
use pg_task_rules::inbox::Inbox;
use pgrx::pg_sys;

use crate::guc;
use crate::memory::Layout;
use crate::waiters::Waiters;

const NAME: &std::ffi::CStr = c"pg_task";

/// `AddinShmemInitLock` in `lwlocknames.txt`: the same number from 13 to 18.
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

static REGION: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static LOCKS: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());
static SHAPE: OnceLock<Shape> = OnceLock::new();
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Sizes, fixed at server start.
#[derive(Clone, Copy)]
struct Shape {
    slots: usize,
    slot_size: usize,
    layout: Layout,
}

/// What all databases share.
#[repr(C, align(128))]
struct GlobalHead {
    launcher_pid: AtomicI32,
    launcher_latch: AtomicPtr<pg_sys::Latch>,
    /// When connections were accepted for the first time since this memory was made.
    opened_at: AtomicI64,
    /// Rows that were last changed before this moment may be what took the server down: it did not stop in good order.
    crash_barrier: AtomicI64,
}

/// Where a scheduler stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum State {
    /// The launcher is to start it.
    Wanted = 0,
    /// The launcher has asked the postmaster for it.
    Starting = 1,
    /// It runs.
    Running = 2,
    /// It runs, after a start, and lets workers re-assert what they hold.
    Settling = 3,
    /// It failed and will be started again.
    BackingOff = 4,
}

impl State {
    /// The state's name in the view `pg_task.scheduler`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Settling => "settling",
            Self::BackingOff => "backing off",
        }
    }
}

/// A slot's control block. All fields but the error text are atomics, so that a commit callback may read them without a lock.
#[repr(C, align(128))]
pub struct Control {
    /// The database; 0 when the slot is free.
    pub database: AtomicU32,
    state: AtomicU32,
    /// The scheduler's process; 0 when none runs.
    pub pid: AtomicI32,
    /// The scheduler's latch.
    pub latch: AtomicPtr<pg_sys::Latch>,
    /// The extension may have been dropped or made anew: the scheduler has to look.
    pub recheck: AtomicBool,
    /// A scheduler was asked for since one last looked whether the extension is there. Set under the lock of all slots.
    pub wanted: AtomicBool,
    /// The settings of queues have changed: the scheduler has to read them.
    pub rules_stale: AtomicBool,
    /// Schedules have changed: the scheduler has to look when the next one ticks.
    pub schedules_stale: AtomicBool,
    /// Whether some step has a limit.
    pub limits_steps: AtomicBool,
    /// The partition of the history that is in use.
    pub history_part: AtomicU32,
    /// Rows of the history that were written, those of transactions that were rolled back included.
    pub history_written: AtomicU64,
    /// Sessions that wait for the end of a task.
    pub waiters: Waiters,
    /// Keys of unique tasks were taken since the scheduler last looked.
    pub has_keys: AtomicBool,
    /// Counts the changes of the settings of queues that are on the board. Changed under the board's lock.
    pub rules_version: AtomicU64,
    /// Which settings of queues hold for their tasks where these say nothing themselves: the version with which they changed last; 0 when no queue
    /// has some. Changed under the board's lock.
    pub defaults_version: AtomicU64,
    /// A scheduler has taken an epoch for the tokens since the board was emptied.
    pub prepared: AtomicBool,
    /// Set while the board is being changed: whoever finds it set knows that someone failed half-way.
    mutating: AtomicBool,
    /// No scheduler is started before this moment: the database is about to be dropped or renamed.
    pub hold_until: AtomicI64,
    /// No scheduler is started before this moment: the last start failed.
    pub retry_at: AtomicI64,
    /// Failed starts in a row.
    pub start_failures: AtomicU32,
    /// When the scheduler started.
    pub started_at: AtomicI64,
    /// Until when the scheduler sleeps.
    pub next_wake: AtomicI64,
    /// Ready tasks below which a worker's claim wakes the scheduler for more; 0 when the table holds no more.
    pub low_water: AtomicU32,
    /// Ticks of the scheduler.
    pub ticks: AtomicU64,
    /// Notifications sent to idle workers.
    pub wakeups_sent: AtomicU64,
    /// Tasks handed out.
    pub handed_out: AtomicU64,
    /// Results taken.
    pub finished: AtomicU64,
    /// Results refused.
    pub refused: AtomicU64,
    /// Claims of lost workers.
    pub lost: AtomicU64,
    /// Reads of the table that were asked for because hints were lost.
    pub rescans: AtomicU64,
    /// Ticks that failed.
    pub failures: AtomicU64,
    error_at: AtomicI64,
    error_len: AtomicU32,
    error: [std::sync::atomic::AtomicU8; 256],
}

impl Control {
    /// Where the scheduler stands.
    pub fn state(&self) -> State {
        match self.state.load(Relaxed) {
            1 => State::Starting,
            2 => State::Running,
            3 => State::Settling,
            4 => State::BackingOff,
            _ => State::Wanted,
        }
    }

    /// Whether a scheduler has made the board ready: then tasks are handed out even while it is being started again.
    pub fn serves(&self) -> bool {
        self.prepared.load(SeqCst)
    }

    /// Says where the scheduler stands.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u32, Relaxed);
    }

    /// Keeps the text of the last failure, cut to its place. A reader may see a mix of two texts, never anything else.
    pub fn set_error(&self, text: &str, now: Micros) {
        let mut len = text.len().min(self.error.len());
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        for (place, byte) in self.error.iter().zip(&text.as_bytes()[..len]) {
            place.store(*byte, Relaxed);
        }
        self.error_len.store(len as u32, Relaxed);
        self.error_at.store(now, Relaxed);
    }

    /// The last failure and when it was.
    pub fn last_error(&self) -> Option<(String, Micros)> {
        let at = self.error_at.load(Relaxed);
        let len = (self.error_len.load(Relaxed) as usize).min(self.error.len());
        let bytes: Vec<u8> = self.error[..len].iter().map(|byte| byte.load(Relaxed)).collect();
        (at != 0).then(|| (String::from_utf8_lossy(&bytes).into_owned(), at))
    }
}

/// A database's slot: a number, from which everything else is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Slot(usize);

/// Asks for the memory and the locks. Called while the server preloads its libraries.
pub fn init() {
    // SAFETY: the process has one thread, and the hooks are only read by the server after this returns.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

/// Whether the region is there, that is whether the library was preloaded.
pub fn ready() -> bool {
    !REGION.load(Relaxed).is_null()
}

/// Every slot, in use or not.
pub fn slots() -> impl Iterator<Item = Slot> {
    (0..if ready() { shape().slots } else { 0 }).map(Slot)
}

/// The slot of a database.
pub fn slot_of(database: pg_sys::Oid) -> Option<Slot> {
    slots().find(|slot| slot.control().database.load(SeqCst) == database.to_u32())
}

/// The slot of this process' database.
///
/// Looked for on every commit that enqueued something; the databases are few.
pub fn my_slot() -> Option<Slot> {
    // SAFETY: a plain read of this process' own variable.
    slot_of(unsafe { pg_sys::MyDatabaseId })
}

/// The slot of a database, taken if there is none. Fails when all are in use.
pub fn take_slot(database: pg_sys::Oid) -> Option<Slot> {
    if let Some(slot) = slot_of(database) {
        return Some(slot);
    }
    if !ready() {
        return None;
    }
    locked(global_lock(), || find_or_take(database))
}

/// A scheduler is wanted for a database, which has to look whether the extension is there: one that is about to give the slot up keeps it. Fails
/// when all slots are in use.
pub fn want_scheduler(database: pg_sys::Oid) -> Option<Slot> {
    if !ready() {
        return None;
    }
    locked(global_lock(), || {
        let slot = find_or_take(database)?;
        slot.control().wanted.store(true, SeqCst);
        Some(slot)
    })
}

/// Under the global lock.
fn find_or_take(database: pg_sys::Oid) -> Option<Slot> {
    slot_of(database).or_else(|| {
        let slot = slots().find(|slot| slot.control().database.load(SeqCst) == 0)?;
        slot.clear();
        slot.control().database.store(database.to_u32(), SeqCst);
        Some(slot)
    })
}

/// Wakes the launcher.
pub fn wake_launcher() {
    if ready() {
        wake(&global().launcher_latch);
    }
}

/// The server is open for connections; `crashed` when its last life did not end in good order. Only the first call counts.
pub fn open(now: Micros, crashed: bool) {
    if global().opened_at.compare_exchange(0, now, SeqCst, SeqCst).is_ok() && crashed {
        global().crash_barrier.store(now, SeqCst);
    }
}

/// The clock was set back to this moment: the server was opened no later.
pub fn clock_went_back(now: Micros) {
    global().opened_at.fetch_min(now, SeqCst);
}

/// Until this moment old tasks are not handed out: workers that have lived through a restart re-assert theirs.
pub fn settled_at() -> Micros {
    global().opened_at.load(SeqCst) + guc::micros(&guc::SETTLE_TIME)
}

/// Until this moment a task that is locked in its row is left to its worker, which may come back.
pub fn trust_locks_until() -> Micros {
    global().opened_at.load(SeqCst) + DEFAULT_LEASE
}

/// Rows that were last changed before this moment are claimed in writing.
pub fn crash_barrier() -> Micros {
    match global().crash_barrier.load(SeqCst) {
        0 => Micros::MIN,
        barrier => barrier,
    }
}

/// The lease of workers that name none, in microseconds.
pub const DEFAULT_LEASE: Micros = 60_000_000;

/// Publishes the launcher's latch, so that it can be woken; `null` when it ends.
pub fn set_launcher(pid: i32, latch: *mut pg_sys::Latch) {
    global().launcher_pid.store(pid, SeqCst);
    global().launcher_latch.store(latch, SeqCst);
}

impl Slot {
    /// The control block.
    pub fn control(self) -> &'static Control {
        // SAFETY: the region was laid out for `slots` slots, zeroed bytes are a valid control block, and it lives as long as
        // the process is attached to shared memory.
        unsafe { &*self.start().cast::<Control>() }
    }

    /// Runs `f` on the board under its lock. What `f` does must be plain work on memory: no call into PostgreSQL, no log line.
    pub fn with_board<R>(self, f: impl FnOnce(&mut Board<'_>) -> R) -> R {
        locked(lock(1 + 2 * self.0), || {
            // SAFETY: the area was initialised by `startup`, and the lock is held.
            let mut board = unsafe { shape().layout.board(self.area()) };
            let control = self.control();
            if control.mutating.swap(true, SeqCst) {
                // Someone failed half-way: throw it all away, it can be read again from the table.
                board.reset();
                control.recheck.store(true, SeqCst);
            }
            let result = f(&mut board);
            control.mutating.store(false, SeqCst);
            result
        })
    }

    /// Runs `f` on the inbox under its lock, as [`Slot::with_board`] does.
    pub fn with_inbox<R>(self, f: impl FnOnce(&mut Inbox<'_>) -> R) -> R {
        locked(lock(2 + 2 * self.0), || {
            // SAFETY: as in `with_board`.
            f(&mut unsafe { shape().layout.inbox(self.area()) })
        })
    }

    /// Wakes the scheduler of the slot, if it runs.
    pub fn wake_scheduler(self) {
        wake(&self.control().latch);
    }

    /// Whether a scheduler runs.
    pub fn is_served(self) -> bool {
        self.control().pid.load(SeqCst) != 0
    }

    /// Gives the slot up, unless a scheduler was wanted since `wanted` was taken; the board and the inbox are emptied. Returns whether it was given up.
    pub fn free_unless_wanted(self) -> bool {
        locked(global_lock(), || {
            let is_wanted = self.control().wanted.load(SeqCst);
            if !is_wanted {
                self.clear();
            }
            !is_wanted
        })
    }

    /// Empties the board and the inbox, with every claim and worker.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is not general over the board's lifetime"
    )]
    pub fn reset_memory(self) {
        self.control().prepared.store(false, SeqCst);
        self.control().limits_steps.store(false, SeqCst);
        self.control().defaults_version.store(0, SeqCst);
        self.with_board(|board| board.clear());
        self.with_inbox(|inbox| *inbox.head = pg_task_rules::inbox::InboxHead::EMPTY);
    }

    fn clear(self) {
        let control = self.control();
        control.database.store(0, SeqCst);
        control.wanted.store(false, SeqCst);
        control.set_state(State::Wanted);
        control.pid.store(0, SeqCst);
        control.latch.store(std::ptr::null_mut(), SeqCst);
        for moment in [&control.hold_until, &control.retry_at, &control.started_at] {
            moment.store(0, Relaxed);
        }
        control.start_failures.store(0, Relaxed);
        control.error_at.store(0, Relaxed);
        control.history_part.store(0, Relaxed);
        control.history_written.store(0, Relaxed);
        for counter in [
            &control.ticks,
            &control.wakeups_sent,
            &control.handed_out,
            &control.finished,
            &control.refused,
            &control.lost,
            &control.rescans,
            &control.failures,
        ] {
            counter.store(0, Relaxed);
        }
        self.reset_memory();
    }

    fn start(self) -> *mut u8 {
        // SAFETY: the region has room for the head and all slots.
        unsafe { REGION.load(Relaxed).add(size_of::<GlobalHead>() + self.0 * shape().slot_size) }
    }

    fn area(self) -> *mut u8 {
        // SAFETY: the area follows the control block inside the slot; both are multiples of 128 bytes.
        unsafe { self.start().add(size_of::<Control>()) }
    }
}

fn shape() -> &'static Shape {
    SHAPE.get_or_init(|| {
        let layout = Layout::new(
            guc::READY_CAPACITY.get() as usize,
            guc::MAX_WORKERS.get() as usize,
            guc::INBOX_CAPACITY.get() as usize,
        );
        Shape {
            slots: guc::MAX_DATABASES.get() as usize,
            slot_size: size_of::<Control>() + layout.total,
            layout,
        }
    })
}

fn region_size() -> usize {
    size_of::<GlobalHead>() + shape().slots * shape().slot_size
}

fn global() -> &'static GlobalHead {
    // SAFETY: callers checked `ready`; the head is at the start of the region and zeroed bytes are a valid one.
    unsafe { &*REGION.load(Relaxed).cast::<GlobalHead>() }
}

fn global_lock() -> *mut pg_sys::LWLock {
    lock(0)
}

fn lock(index: usize) -> *mut pg_sys::LWLock {
    // SAFETY: the tranche has one lock for all and two for each slot.
    unsafe { &raw mut (*LOCKS.load(Relaxed).add(index)).lock }
}

fn locked<R>(lock: *mut pg_sys::LWLock, f: impl FnOnce() -> R) -> R {
    struct Release(*mut pg_sys::LWLock);
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: the lock was taken below by this process and is released once. Releasing cannot fail for a held lock.
            unsafe { pg_sys::LWLockRelease(self.0) };
        }
    }
    // SAFETY: the pointer comes from the tranche; no path takes one of these locks while it holds another of them, except
    // that the global lock is taken first.
    unsafe { pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE) };
    let _release = Release(lock);
    f()
}

fn wake(latch: &AtomicPtr<pg_sys::Latch>) {
    let latch = latch.load(SeqCst);
    if !latch.is_null() {
        // SAFETY: a published latch lies in the array of process structures, which lives as long as shared memory. If its owner has
        // just ended, a stranger is woken once, which every waiter expects.
        unsafe { pg_sys::SetLatch(latch) };
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the server at the moment at which these requests are allowed.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        pg_sys::RequestAddinShmemSpace(region_size().next_multiple_of(128));
        pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), 1 + 2 * shape().slots as i32);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called by the server when shared memory is there, again after each crash restart: hence every pointer is set anew.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let init_lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(init_lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let mut found = false;
        let region = pg_sys::ShmemInitStruct(NAME.as_ptr(), region_size(), &mut found).cast::<u8>();
        LOCKS.store(pg_sys::GetNamedLWLockTranche(NAME.as_ptr()), SeqCst);
        REGION.store(region, SeqCst);
        if !found {
            region.write_bytes(0, region_size());
            for slot in slots() {
                shape().layout.initialise(slot.area());
            }
        }
        pg_sys::LWLockRelease(init_lock);
    }
}
