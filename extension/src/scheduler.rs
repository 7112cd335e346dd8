//! A scheduler: one process for each database that has the extension.
//!
//! It sleeps on its latch until something is due, a commit has left a hint, or a worker may be lost. Its main loop survives every
//! error: the failed tick is rolled back, logged once, and tried again after a while.

mod beat;
mod keys;
mod loss;
mod retention;
mod rules;
mod schedules;
mod sweep;
mod tick;

use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pgrx::FromDatum;
use pgrx::pg_sys;

use crate::background;
use crate::guc;
use crate::shmem;
use crate::shmem::Slot;
use crate::shmem::State;
use crate::version;
use tick::Ticker;

pub use beat::unwrite;
pub use sweep::Queues;

const FIRST_BACKOFF: Micros = 100_000;
const LAST_BACKOFF: Micros = 60_000_000;

/// Between two looks for the extension.
const LOOK_AGAIN: Micros = 100_000;

#[pgrx::pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn pg_task_scheduler_main(argument: pg_sys::Datum) {
    background::take_signals();
    // SAFETY: the launcher passes the database's oid; the worker was registered with database access.
    let database = unsafe {
        let database = pg_sys::Oid::from_datum(argument, false).unwrap_or(pg_sys::InvalidOid);
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
        database
    };
    let Some(slot) = shmem::slot_of(database) else { return };
    if !take_over(slot) {
        return;
    }
    prepare_session();
    serve(slot);
    // Returning means exit code 0: the postmaster forgets the worker, and the launcher decides what comes next.
}

/// Serves the database as long as it has the extension.
///
/// Whoever makes the extension while a scheduler looks in vain finds a scheduler that is there and starts none. So the slot is given up only if
/// nobody has wanted one since. And what has just been committed can be seen a moment later than it is told (from the caches of PostgreSQL 18): a
/// scheduler that was called looks twice.
fn serve(slot: Slot) {
    let mut was_called = false;
    loop {
        was_called |= slot.control().wanted.swap(false, SeqCst);
        match background::transaction(extension_oid) {
            Ok(Some(extension)) => match run(slot, extension) {
                End::Replaced => return,
                End::Gone => was_called = true,
            },
            Ok(None) if std::mem::take(&mut was_called) => {
                background::pause_until(background::now() + LOOK_AGAIN);
            }
            Ok(None) if slot.free_unless_wanted() => return,
            Ok(None) => {}
            Err(error) => return slot.control().set_error(&error, background::now()),
        }
    }
}

/// Why the main loop has ended.
enum End {
    /// The extension is gone.
    Gone,
    /// It is another one: the next scheduler begins from nothing.
    Replaced,
}

/// Makes this process the slot's scheduler, unless another one lives.
fn take_over(slot: Slot) -> bool {
    // SAFETY: plain reads of this process' own variables.
    let (pid, latch) = unsafe { (pg_sys::MyProcPid, pg_sys::MyLatch) };
    let control = slot.control();
    if control.pid.compare_exchange(0, pid, SeqCst, SeqCst).is_err() {
        return false;
    }
    control.latch.store(latch, SeqCst);
    control.started_at.store(background::now(), SeqCst);
    // SAFETY: the callback takes no argument.
    unsafe { pg_sys::before_shmem_exit(Some(at_exit), 0.into()) };
    true
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    // SAFETY: a plain read of this process' own variable.
    let pid = unsafe { pg_sys::MyProcPid };
    for slot in shmem::slots().filter(|slot| slot.control().pid.load(SeqCst) == pid) {
        slot.control().latch.store(std::ptr::null_mut(), SeqCst);
        slot.control().pid.store(0, SeqCst);
        if slot.control().database.load(SeqCst) != 0 {
            slot.control().set_state(State::BackingOff);
        }
    }
    shmem::wake_launcher();
}

/// Settings of this session, whatever a database or role sets: names mean the same, nothing that is written is refused or ended by a clock,
/// an error ends a tick and not the process, and no plan reads the whole table.
const SESSION: &[(&CStr, &CStr)] = &[
    (c"role", c"none"),
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"default_transaction_deferrable", c"off"),
    (c"session_replication_role", c"origin"),
    (c"exit_on_error", c"off"),
    (c"statement_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    (c"transaction_timeout", c"0"),
    (c"lock_timeout", c"10s"),
    (c"enable_seqscan", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"enable_sort", c"off"),
    (c"enable_hashjoin", c"off"),
    (c"enable_mergejoin", c"off"),
    (c"enable_indexscan", c"on"),
    (c"enable_indexonlyscan", c"on"),
    (c"enable_nestloop", c"on"),
    (c"plan_cache_mode", c"auto"),
    (c"jit", c"off"),
    // What it writes can be done again; it need not wait for the disk.
    (c"synchronous_commit", c"off"),
];

fn prepare_session() {
    for (name, value) in SESSION {
        // SAFETY: constant strings; the session is a background worker's own.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// The extension's oid: another one after DROP and CREATE.
fn extension_oid() -> Option<u32> {
    // SAFETY: a catalog look-up inside a transaction.
    let oid = unsafe { pg_sys::get_extension_oid(c"pg_task".as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
}

/// Says once when this database's extension is of another version than the library, which serves it all the same. Returns what was said.
fn tell_of_versions(slot: Slot, told: Option<String>) -> Option<String> {
    let difference = background::transaction(version::difference).ok().flatten();
    if let Some(difference) = &difference
        && told != Some(difference.clone())
    {
        pgrx::warning!("pg_task scheduler: {difference}");
        slot.control().set_error(difference, background::now());
    }
    difference
}

/// The main loop. Returns when the extension is gone.
fn run(slot: Slot, extension: u32) -> End {
    let control = slot.control();
    let mut ticker = Ticker::new(slot);
    let mut failures = 0_u32;
    let mut last_error = String::new();
    let mut check_at = Micros::MAX;
    let mut told = tell_of_versions(slot, None);
    loop {
        let now = background::now();
        if control.recheck.swap(false, SeqCst) || now >= check_at {
            check_at = Micros::MAX;
            match background::transaction(extension_oid) {
                Ok(Some(found)) if found == extension => {
                    ticker.forget();
                    told = tell_of_versions(slot, told);
                }
                Ok(None) => return End::Gone,
                Ok(Some(_)) => {
                    // Dropped and made anew: begin from nothing.
                    slot.reset_memory();
                    control.retry_at.store(0, SeqCst);
                    return End::Replaced;
                }
                Err(error) => control.set_error(&error, now),
            }
        }
        control.ticks.fetch_add(1, Relaxed);
        let wake = match ticker.tick() {
            Ok(wake) => {
                if failures > 0 {
                    control.set_state(ticker.state());
                }
                failures = 0;
                last_error.clear();
                control.start_failures.store(0, Relaxed);
                wake
            }
            Err(error) => {
                control.failures.fetch_add(1, Relaxed);
                control.set_error(&error, now);
                control.set_state(State::BackingOff);
                if error != last_error {
                    pgrx::warning!("pg_task scheduler: a tick failed and will be tried again: {error}");
                    last_error = error;
                }
                check_at = now;
                let delay = (FIRST_BACKOFF << failures.min(10)).min(LAST_BACKOFF);
                failures += 1;
                now + delay
            }
        };
        let wake = wake.min(background::now() + guc::max_sleep().as_micros() as Micros);
        control.next_wake.store(wake, Relaxed);
        if failures > 0 {
            // Commits that go on while something is wrong must not make it try without a pause.
            background::pause_until(wake);
        } else {
            background::sleep_until(wake);
            ticker.keep_gap();
        }
    }
}
