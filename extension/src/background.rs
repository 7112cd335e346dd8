//! What the launcher and the schedulers have in common: signals, waiting, and one guarded transaction.

use std::ffi::CStr;
use std::panic::AssertUnwindSafe;
use std::panic::RefUnwindSafe;
use std::panic::UnwindSafe;
use std::time::Duration;
use std::time::Instant;

use pg_task_rules::Micros;
use pgrx::PgTryBuilder;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;

mod signal {
    unsafe extern "C-unwind" {
        /// PostgreSQL's own handler for a request to end, `tcop/postgres.c`: acts at the next check for interrupts.
        pub fn die(signal: std::ffi::c_int);
        /// `postmaster/interrupt.c`: sets `ConfigReloadPending`.
        pub fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
    }
}

#[cfg(not(feature = "pg18"))]
use pg_sys::pqsignal as set_signal;
#[cfg(feature = "pg18")]
use pg_sys::pqsignal_be as set_signal;

/// Installs the signal handlers of an ordinary backend. pgrx's own are not heeded while the process waits for a lock.
pub fn take_signals() {
    // SAFETY: called first thing in a background worker, whose signals are still blocked; the handlers are async-signal-safe.
    unsafe {
        set_signal(pg_sys::SIGHUP as i32, Some(signal::SignalHandlerForConfigReload));
        set_signal(pg_sys::SIGTERM as i32, Some(signal::die));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Now, by the server's clock.
pub fn now() -> Micros {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// A wait of the latch ends at a whole millisecond. What is left after it is slept in steps of this length, in microseconds.
const FINE_SLEEP: i64 = 100;

/// A moment to which it is as long as it is now, whatever becomes of the server's clock meanwhile: one that is set back makes no wait longer.
struct Wait {
    began: Instant,
    length: Duration,
}

impl Wait {
    fn until(moment: Micros) -> Self {
        let left = moment.saturating_sub(now()).clamp(0, LONGEST_WAIT);
        // What is left is rounded down: it does not end before the moment.
        let length = if left > 0 { left + 1 } else { 0 };
        Self { began: Instant::now(), length: Duration::from_micros(length as u64) }
    }

    /// Microseconds that are left.
    fn left(&self) -> i64 {
        self.length.saturating_sub(self.began.elapsed()).as_micros() as i64
    }
}

/// An hour: whoever waits looks at the clock again then.
const LONGEST_WAIT: Micros = 3_600_000_000;

/// Sleeps on the process' latch until it is set or the moment has come, then serves interrupts and a reload.
///
/// Called at the bottom of a loop, after the work: a wake-up that came meanwhile lets it return at once.
pub fn sleep_until(moment: Micros) {
    let wait = Wait::until(moment);
    loop {
        let left = wait.left();
        // SAFETY: the process is a background worker with a latch of its own.
        let woken = unsafe {
            if left <= 0 || (*pg_sys::MyLatch).is_set != 0 {
                true
            } else if left < 1_000 {
                std::thread::sleep(Duration::from_micros(left.min(FINE_SLEEP) as u64));
                false
            } else {
                let events = pg_sys::WaitLatch(
                    pg_sys::MyLatch,
                    (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                    left / 1_000,
                    pg_sys::PG_WAIT_EXTENSION,
                );
                events & pg_sys::WL_LATCH_SET as i32 != 0
            }
        };
        if woken {
            break;
        }
    }
    // SAFETY: interrupts are served outside any lock.
    unsafe {
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pgrx::check_for_interrupts!();
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Sleeps until the moment has come, whether the latch is set or not; wake-ups that come meanwhile are not lost.
pub fn pause_until(moment: Micros) {
    let wait = Wait::until(moment);
    loop {
        let millis = wait.left().div_ceil_micros();
        if millis <= 0 {
            return;
        }
        // SAFETY: as in `sleep_until`.
        unsafe {
            pg_sys::WaitLatch(
                std::ptr::null_mut(),
                (pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                millis.min(100),
                pg_sys::PG_WAIT_EXTENSION,
            );
            pgrx::check_for_interrupts!();
        }
    }
}

trait DivCeil {
    fn div_ceil_micros(self) -> i64;
}

impl DivCeil for i64 {
    fn div_ceil_micros(self) -> i64 {
        (self + 999) / 1_000
    }
}

/// Changes a setting until the end of the transaction.
pub fn set_local(name: &CStr, value: &CStr) {
    // SAFETY: inside a transaction; both strings are copied.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// The commit of this transaction waits for the disk, because something that a worker is told follows from it. Not for a standby, which could
/// hold up everything else.
pub fn flush_at_commit() {
    set_local(c"synchronous_commit", c"local");
}

/// Runs `f` in a transaction of its own. An error or a panic aborts it and comes back as text; the process goes on.
pub fn transaction<R>(f: impl FnOnce() -> R + UnwindSafe + RefUnwindSafe) -> Result<R, String> {
    let f = AssertUnwindSafe(f);
    let result = PgTryBuilder::new(AssertUnwindSafe(move || {
        // SAFETY: a background worker outside any transaction; the commit is inside the guarded block.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        let AssertUnwindSafe(f) = f;
        let result = f();
        // SAFETY: the transaction that was begun above.
        unsafe {
            if pg_sys::ActiveSnapshotSet() {
                pg_sys::PopActiveSnapshot();
            }
            pg_sys::CommitTransactionCommand();
        }
        Ok(result)
    }))
    .catch_others(|error| {
        let text = describe(&error);
        // SAFETY: the state after an error is cleaned up as the main loop of a backend does; nobody else would release the locks.
        unsafe {
            pg_sys::AbortOutOfAnyTransaction();
            pg_sys::LWLockReleaseAll();
            pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        }
        Err(text)
    })
    .execute();
    // SAFETY: outside the transaction; background workers do not flush their statistics by themselves, and without them the table is
    // never vacuumed.
    unsafe {
        pg_sys::pgstat_report_stat(true);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    result
}

fn describe(error: &CaughtError) -> String {
    match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            format!("{} ({:?})", report.message(), report.sql_error_code())
        }
        CaughtError::RustPanic { ereport, .. } => format!("panic: {}", ereport.message()),
    }
}
