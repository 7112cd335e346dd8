//! The launcher: one process for the whole server that starts a scheduler in every database that wants one.
//!
//! It is connected to no database. A database is looked at once after a server start: the scheduler that is started there ends
//! at once when the extension is missing. From then on databases ask for themselves, when the extension is created.

use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pg_task_rules::Micros;
use pgrx::IntoDatum;
use pgrx::bgworkers::BackgroundWorkerBuilder;
use pgrx::bgworkers::BgWorkerStartTime;
use pgrx::pg_sys;

use crate::background;
use crate::guc;
use crate::shmem;
use crate::shmem::Slot;
use crate::shmem::State;
use crate::utility_hook::HOLD;

const FIRST_RETRY: Micros = 1_000_000;
const LAST_RETRY: Micros = 60_000_000;
/// A start that has not led to a running scheduler by then has failed without a word.
const START_TIMEOUT: Micros = 30_000_000;

/// Registers the launcher with the postmaster. Called while the server preloads its libraries.
pub fn register() {
    BackgroundWorkerBuilder::new("pg_task launcher")
        .set_type("pg_task launcher")
        .set_library("pg_task")
        .set_function("pg_task_launcher_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_spi_access()
        .load();
}

#[pgrx::pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn pg_task_launcher_main(_argument: pg_sys::Datum) {
    background::take_signals();
    // SAFETY: a background worker that was registered with database access; no name means the shared catalogs only.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        shmem::set_launcher(pg_sys::MyProcPid, pg_sys::MyLatch);
        pg_sys::before_shmem_exit(Some(at_exit), 0.into());
    }
    shmem::open(background::now(), crash_mark::found_and_set());
    let mut launcher = Launcher { probed: HashSet::new(), look_at: 0, last_tick: 0, complained: false };
    loop {
        let wake = launcher.tick();
        background::sleep_until(wake);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    shmem::set_launcher(0, std::ptr::null_mut());
    crash_mark::clear();
}

/// A file in the data directory that is there while the server runs. Found at a start, it says that the last life of the
/// server did not end in good order, and that a task may have ended it.
mod crash_mark {
    use std::fs::File;
    use std::io;

    const PATH: &str = "pg_task.running";

    pub fn found_and_set() -> bool {
        // The working directory of every server process is the data directory.
        let found = std::path::Path::new(PATH).exists();
        if let Err(error) = set() {
            pgrx::warning!("pg_task launcher: failed to write {PATH}: {error}; a crash may go unnoticed");
        }
        found
    }

    fn set() -> io::Result<()> {
        File::create(PATH)?.sync_all()?;
        // The name, too, has to survive a power failure.
        File::open(".")?.sync_all()
    }

    pub fn clear() {
        // A file that stays makes the next start cautious; no harm is done.
        let _ = std::fs::remove_file(PATH);
    }
}

struct Launcher {
    /// Databases that were looked at since the server started.
    probed: HashSet<u32>,
    /// When to read the list of databases again.
    look_at: Micros,
    last_tick: Micros,
    complained: bool,
}

impl Launcher {
    fn tick(&mut self) -> Micros {
        let now = background::now();
        if now < self.last_tick {
            self.clock_went_back(now);
        }
        self.last_tick = now;
        // A database may be gone whose scheduler is about to be started again.
        if now >= self.look_at || shmem::slots().any(|slot| is_to_start(slot, now)) {
            self.look_at = now + guc::max_sleep().as_micros() as Micros;
            match background::transaction(databases) {
                Ok(databases) => self.reconcile(&databases, now),
                Err(error) => pgrx::log!("pg_task launcher: failed to read the databases: {error}"),
            }
        }
        shmem::slots()
            .filter(|slot| slot.control().database.load(SeqCst) != 0)
            .map(|slot| self.serve(slot, now))
            .fold(self.look_at, Micros::min)
    }

    /// The clock was set back to this moment: nothing waits for the old time.
    fn clock_went_back(&mut self, now: Micros) {
        self.look_at = now;
        for slot in shmem::slots() {
            let control = slot.control();
            for moment in [&control.retry_at, &control.started_at] {
                moment.fetch_min(now, SeqCst);
            }
            control.hold_until.fetch_min(now.saturating_add(HOLD), SeqCst);
        }
    }

    /// Gives up the slots of databases that are gone, then takes one for each database that was not looked at yet.
    fn reconcile(&mut self, databases: &[Database], now: Micros) {
        for slot in shmem::slots() {
            let oid = slot.control().database.load(SeqCst);
            let known = databases.iter().any(|database| database.oid.to_u32() == oid && database.is_wanted());
            if oid != 0 && !known && !slot.is_served() {
                // One that was wanted just now may be younger than the list: the next one has it.
                if slot.control().wanted.swap(false, SeqCst) {
                    self.look_at = now;
                }
                slot.free_unless_wanted();
            }
        }
        self.probed.retain(|oid| databases.iter().any(|database| database.oid.to_u32() == *oid));
        for database in databases.iter().filter(|database| database.is_wanted()) {
            if self.probed.contains(&database.oid.to_u32()) {
                continue;
            }
            if shmem::take_slot(database.oid).is_none() {
                if !std::mem::replace(&mut self.complained, true) {
                    pgrx::warning!(
                        "pg_task: no place for a scheduler in database \"{}\"; raise pg_task.max_databases",
                        database.name
                    );
                }
                return;
            }
            self.probed.insert(database.oid.to_u32());
        }
    }

    /// Starts the slot's scheduler if it is time; returns when to look at the slot again.
    fn serve(&self, slot: Slot, now: Micros) -> Micros {
        let control = slot.control();
        if slot.is_served() {
            return Micros::MAX;
        }
        let not_before = control.hold_until.load(SeqCst).max(control.retry_at.load(SeqCst));
        if now < not_before {
            return not_before;
        }
        if control.state() == State::Starting {
            let give_up = control.started_at.load(SeqCst) + START_TIMEOUT;
            if now < give_up {
                return give_up;
            }
        }
        control.set_state(State::Starting);
        control.started_at.store(now, SeqCst);
        // Set before the start: a scheduler that fails at once must not be started again at once. A healthy one resets it.
        control.retry_at.store(now + retry_delay(control.start_failures.fetch_add(1, SeqCst)), SeqCst);
        let oid = control.database.load(SeqCst);
        let started = BackgroundWorkerBuilder::new(&format!("pg_task scheduler {oid}"))
            .set_type("pg_task scheduler")
            .set_library("pg_task")
            .set_function("pg_task_scheduler_main")
            .set_argument(pg_sys::Oid::from(oid).into_datum())
            // SAFETY: a plain read of this process' own variable.
            .set_notify_pid(unsafe { pg_sys::MyProcPid })
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_restart_time(None)
            .enable_spi_access()
            .load_dynamic();
        if started.is_err() {
            control.set_state(State::BackingOff);
            if control.last_error().is_none_or(|(text, _)| text != NO_WORKER_SLOT) {
                pgrx::warning!("pg_task: {NO_WORKER_SLOT}");
            }
            control.set_error(NO_WORKER_SLOT, now);
            return control.retry_at.load(SeqCst);
        }
        now + START_TIMEOUT
    }
}

/// Whether it is time to start the slot's scheduler.
fn is_to_start(slot: Slot, now: Micros) -> bool {
    let control = slot.control();
    let starting =
        control.state() == State::Starting && now < control.started_at.load(SeqCst) + START_TIMEOUT;
    control.database.load(SeqCst) != 0
        && !slot.is_served()
        && !starting
        && now >= control.hold_until.load(SeqCst).max(control.retry_at.load(SeqCst))
}

const NO_WORKER_SLOT: &str = "no background worker is free for a scheduler; raise max_worker_processes (one for the launcher, one for each database)";

/// 1 s doubling to 60 s.
fn retry_delay(failures: u32) -> Micros {
    (FIRST_RETRY << failures.min(6)).min(LAST_RETRY)
}

struct Database {
    oid: pg_sys::Oid,
    name: String,
    connectable: bool,
}

impl Database {
    fn is_wanted(&self) -> bool {
        let list = guc::DATABASES.get();
        let list = list.as_deref().and_then(|list| list.to_str().ok()).unwrap_or("");
        self.connectable && (list.trim().is_empty() || list.split(',').any(|name| name.trim() == self.name))
    }
}

/// Every database, read from the shared catalog below SQL, which needs a database to run in.
fn databases() -> Vec<Database> {
    let mut databases = Vec::new();
    // SAFETY: inside a transaction of a worker that may read shared catalogs; the tuples are read while the scan is open, and
    // `FormData_pg_database` is the fixed part of their data.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let row = &*header.byte_add(usize::from((*header).t_hoff)).cast::<pg_sys::FormData_pg_database>();
            databases.push(Database {
                oid: row.oid,
                name: std::ffi::CStr::from_ptr(row.datname.data.as_ptr()).to_string_lossy().into_owned(),
                // -2: a DROP DATABASE that did not come to its end.
                connectable: row.datallowconn && !row.datistemplate && row.datconnlimit != -2,
            });
        }
        pg_sys::table_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
    databases
}
