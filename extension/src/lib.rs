//! pg_task: durable background work in PostgreSQL, with the scheduler inside the database.
//!
//! The SQL objects are written by hand in `sql/`; this library holds the functions that they name, the launcher, and one
//! scheduler for each database that has the extension. `ARCHITECTURE.md` is the map.

use pgrx::prelude::*;

mod background;
mod bulk;
mod call;
mod catalog;
mod commit;
mod defaults;
mod edit;
mod error;
mod failure;
mod guc;
mod handout;
mod history;
mod inspect;
mod jsonb;
mod launcher;
mod memory;
mod operate;
mod options;
mod produce;
mod queues;
mod scheduler;
mod schedules;
mod shmem;
mod spi;
mod task_table;
#[cfg(any(test, feature = "pg_test"))]
mod tests;
mod triggers;
mod unique;
mod utility_hook;
mod uuid7;
mod version;
mod wait;
mod waiters;
mod zone;

pg_module_magic!(name = c"pg_task", version = c"0.1.0");

extension_sql_file!("../../sql/10_schema.sql", name = "schema", bootstrap);
extension_sql_file!("../../sql/20_task.sql", name = "task", requires = ["schema"]);
extension_sql_file!("../../sql/25_queue.sql", name = "queue", requires = ["task"]);
extension_sql_file!("../../sql/27_step_limit.sql", name = "step_limit", requires = ["queue"]);
extension_sql_file!("../../sql/28_history.sql", name = "history", requires = ["step_limit"]);
extension_sql_file!("../../sql/29_wait.sql", name = "wait", requires = ["history"]);
extension_sql_file!("../../sql/29_unique.sql", name = "unique", requires = ["wait"]);
extension_sql_file!("../../sql/29_schedule.sql", name = "schedule", requires = ["unique"]);
extension_sql_file!("../../sql/30_produce.sql", name = "produce", requires = ["schedule"]);
extension_sql_file!("../../sql/40_work.sql", name = "work", requires = ["produce"]);
extension_sql_file!("../../sql/50_operate.sql", name = "operate", requires = ["work"]);
extension_sql_file!("../../sql/55_bulk.sql", name = "bulk", requires = ["operate"]);
extension_sql_file!("../../sql/60_views.sql", name = "views", requires = ["bulk"]);
extension_sql_file!("../../sql/65_problems.sql", name = "problems", requires = ["views"]);
extension_sql_file!("../../sql/70_grants.sql", name = "grants", requires = ["problems"]);

/// Called when the library is loaded: by the postmaster at its start if it is preloaded, else by the first session that uses it.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: plain reads of the server's state, in the only thread of the process.
    let (preloading, upgrading) =
        unsafe { (pg_sys::process_shared_preload_libraries_in_progress, pg_sys::IsBinaryUpgrade) };
    if upgrading {
        // pg_upgrade restores the schema with CREATE SCHEMA pg_task, which the prefix pg_ otherwise forbids.
        // SAFETY: a variable of the server, set before any statement runs.
        unsafe { pg_sys::allowSystemTableMods = true };
        return;
    }
    if preloading {
        guc::define_preloaded();
        shmem::init();
        launcher::register();
        utility_hook::init();
    }
    guc::define();
}

/// The settings of the server in which `cargo pgrx test` runs the tests.
#[cfg(test)]
pub mod pg_test {
    /// Nothing to set up.
    pub fn setup(_options: Vec<&str>) {}

    /// Lines for postgresql.conf.
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'pg_task'", "max_prepared_transactions = 10"]
    }
}
