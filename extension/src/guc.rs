//! The settings, with their units and what it takes to change them.

use std::ffi::CString;
use std::time::Duration;

use pgrx::GucContext;
use pgrx::GucFlags;
use pgrx::GucRegistry;
use pgrx::GucSetting;
use pgrx::pg_sys;

pub static MAX_DATABASES: GucSetting<i32> = GucSetting::<i32>::new(8);
pub static MAX_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(128);
pub static READY_CAPACITY: GucSetting<i32> = GucSetting::<i32>::new(32_768);
pub static INBOX_CAPACITY: GucSetting<i32> = GucSetting::<i32>::new(8_192);
pub static DATABASES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
pub static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
pub static WORKER_GRACE: GucSetting<i32> = GucSetting::<i32>::new(2_000);
pub static SETTLE_TIME: GucSetting<i32> = GucSetting::<i32>::new(1_000);
pub static WRITE_BEHIND_AFTER: GucSetting<i32> = GucSetting::<i32>::new(1_000);
pub static WAKE_GAP: GucSetting<i32> = GucSetting::<i32>::new(1);
pub static MAX_SLEEP: GucSetting<i32> = GucSetting::<i32>::new(60);
pub static PRIORITY_AGEING: GucSetting<i32> = GucSetting::<i32>::new(0);
pub static LOST_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(3);
pub static HISTORY: GucSetting<bool> = GucSetting::<bool>::new(true);
pub static HISTORY_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(7 * 86_400);
pub static HISTORY_MAX_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1_024);
pub static ERROR_HISTORY: GucSetting<i32> = GucSetting::<i32>::new(5);
pub static MAX_STEP_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1_024);

/// The largest step, in bytes of its stored form, with numbers and escapes as long as they are written.
pub fn max_step_size() -> usize {
    MAX_STEP_SIZE.get() as usize * 1024
}

/// A setting in milliseconds as microseconds.
pub fn micros(setting: &GucSetting<i32>) -> i64 {
    i64::from(setting.get()) * 1_000
}

/// The longest sleep of the scheduler and the launcher.
pub fn max_sleep() -> Duration {
    Duration::from_secs(MAX_SLEEP.get() as u64)
}

/// Defines the settings that size shared memory. PostgreSQL allows it only while it preloads libraries.
pub fn define_preloaded() {
    let postmaster = |name, short, long, setting, min, max| {
        GucRegistry::define_int_guc(
            name,
            short,
            long,
            setting,
            min,
            max,
            GucContext::Postmaster,
            GucFlags::default(),
        );
    };
    postmaster(
        c"pg_task.max_databases",
        c"Databases that can have a scheduler at a time.",
        c"Each takes one background worker (see max_worker_processes) and its share of shared memory. Needs a restart.",
        &MAX_DATABASES,
        1,
        64,
    );
    postmaster(
        c"pg_task.max_workers",
        c"Workers that can be registered at a time, in each database.",
        c"About 7 kB of shared memory each. Needs a restart.",
        &MAX_WORKERS,
        1,
        4096,
    );
    postmaster(
        c"pg_task.ready_capacity",
        c"Tasks that are ready or claimed in memory, in each database.",
        c"About 100 bytes of shared memory each; more tasks than this wait in the table. Needs a restart.",
        &READY_CAPACITY,
        1_024,
        4_194_304,
    );
    postmaster(
        c"pg_task.inbox_capacity",
        c"Commits that the scheduler can lag behind before it reads the table instead, in each database.",
        c"96 bytes of shared memory each. Needs a restart.",
        &INBOX_CAPACITY,
        64,
        1_048_576,
    );
}

/// Defines the settings that can be changed at run time.
pub fn define() {
    let flags = GucFlags::default;
    GucRegistry::define_string_guc(
        c"pg_task.databases",
        c"Databases to run a scheduler in, separated by commas.",
        c"Empty: every database that has the extension. Takes effect on reload.",
        &DATABASES,
        GucContext::Sighup,
        flags(),
    );
    GucRegistry::define_bool_guc(
        c"pg_task.enabled",
        c"Whether tasks are handed out.",
        c"When off, tasks can be enqueued and results of running steps are taken, but no step is begun. Takes effect on reload.",
        &ENABLED,
        GucContext::Sighup,
        flags(),
    );
    let sighup_ms = |name, short, long, setting, min, max| {
        GucRegistry::define_int_guc(
            name,
            short,
            long,
            setting,
            min,
            max,
            GucContext::Sighup,
            GucFlags::UNIT_MS,
        );
    };
    sighup_ms(
        c"pg_task.worker_grace",
        c"How long a worker may stay away after its connection ended, in milliseconds.",
        c"After that its tasks are given to others and the attempt is counted. Takes effect on reload.",
        &WORKER_GRACE,
        0,
        3_600_000,
    );
    sighup_ms(
        c"pg_task.settle_time",
        c"How long after a server start workers may re-assert what they run before old tasks are handed out, in milliseconds.",
        c"Tasks enqueued after the start do not wait. Takes effect at the next start of a scheduler.",
        &SETTLE_TIME,
        0,
        600_000,
    );
    sighup_ms(
        c"pg_task.write_behind_after",
        c"A step that runs longer than this is written down in its row (locked_by, locked_at), in milliseconds.",
        c"Steps that end sooner are never written down. Takes effect on reload.",
        &WRITE_BEHIND_AFTER,
        1,
        3_600_000,
    );
    sighup_ms(
        c"pg_task.wake_gap",
        c"The least time between two ticks of the scheduler under load, in milliseconds.",
        c"The first wake-up after a quiet moment is served at once. A worker that was given tasks is not woken within this time either: it comes back by itself. Takes effect on reload.",
        &WAKE_GAP,
        0,
        1_000,
    );
    sighup_ms(
        c"pg_task.priority_ageing",
        c"A task that waits for so long gains one step of priority, in milliseconds; 0 for none.",
        c"With 0 a task of a better priority always runs first, and one of the worst may never run. Takes effect on reload.",
        &PRIORITY_AGEING,
        0,
        86_400_000,
    );
    GucRegistry::define_int_guc(
        c"pg_task.max_sleep",
        c"The longest sleep of the scheduler, in seconds.",
        c"After it the table is looked at again for rows that arrived without a trigger. Takes effect on reload.",
        &MAX_SLEEP,
        1,
        3_600,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"pg_task.lost_limit",
        c"A task whose worker was lost is tried again so many times, even if its step allows fewer retries.",
        c"When tried exceeds the larger of the two the task is parked. Takes effect on reload.",
        &LOST_LIMIT,
        0,
        1_000_000,
        GucContext::Sighup,
        flags(),
    );
    GucRegistry::define_bool_guc(
        c"pg_task.history",
        c"Whether a task that ends leaves a row in pg_task.history.",
        c"It is the setting of the session in which the task ends, that of the worker or of whoever deletes it. Only a superuser can change it.",
        &HISTORY,
        GucContext::Suset,
        flags(),
    );
    GucRegistry::define_int_guc(
        c"pg_task.history_retention",
        c"How long rows of pg_task.history are kept at least, in seconds; 0 for as long as pg_task.history_max_size allows.",
        c"A row goes with its partition, at most one seventh of this time later. Takes effect on reload.",
        &HISTORY_RETENTION,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"pg_task.history_max_size",
        c"How large pg_task.history may become in each database, in megabytes; 0 for any size.",
        c"When it would become larger its oldest eighth goes, however young it is. Takes effect on reload.",
        &HISTORY_MAX_SIZE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    GucRegistry::define_int_guc(
        c"pg_task.error_history",
        c"How many failures of a task are kept in its row, the last ones; 0 for none.",
        c"See pg_task.task_errors. Takes effect on reload.",
        &ERROR_HISTORY,
        0,
        100,
        GucContext::Sighup,
        flags(),
    );
    GucRegistry::define_int_guc(
        c"pg_task.max_step_size",
        c"The largest step, in kilobytes of its stored form, with numbers and escapes as long as they are written.",
        c"A larger one is refused with SQLSTATE 54000. Only a superuser can change it.",
        &MAX_STEP_SIZE,
        1,
        262_144,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    // SAFETY: called from _PG_init, in the main thread of the process, with a constant string.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"pg_task".as_ptr()) };
}
