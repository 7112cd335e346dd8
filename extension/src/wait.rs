//! `pg_task.wait`: until a task has ended, without asking again and again.

use std::cell::Cell;
use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::call::sql_function;
use crate::catalog;
use crate::error::Error;
use crate::history;
use crate::produce;
use crate::queues;
use crate::shmem;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Statement;
use crate::waiters::MAX_WAITERS;

/// The longest timeout.
const MAX_TIMEOUT: Micros = 86_400_000_000;

/// Everybody who waits looks again after this time: a row may go without a word, as with TRUNCATE.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A look at the last pages of a partition.
macro_rules! recent {
    ($part:literal) => {
        Statement::new(
            match CStr::from_bytes_with_nul(
                concat!(
                    "SELECT h.outcome, h.result FROM pg_task.",
                    $part,
                    " AS h WHERE h.id OPERATOR(pg_catalog.=) $1 AND h.ctid OPERATOR(pg_catalog.>=) (SELECT pg_catalog.format('(%s,0)', \
                       GREATEST(pg_catalog.pg_relation_size('pg_task.",
                    $part,
                    "'::pg_catalog.regclass) OPERATOR(pg_catalog./) 8192 OPERATOR(pg_catalog.-) 32, 0))::pg_catalog.tid) \
                       ORDER BY h.ended_at DESC LIMIT 1\0"
                )
                .as_bytes(),
            ) {
                Ok(sql) => sql,
                Err(_) => panic!("one zero byte, at the end"),
            },
            &[pg_sys::UUIDOID],
        )
    };
}

thread_local! {
    // A row that this very transaction has written cannot end before the transaction does.
    static TASK: Statement = const { Statement::new(
        c"SELECT t.error, t.xmin OPERATOR(pg_catalog.=) pg_catalog.xid(pg_catalog.pg_current_xact_id_if_assigned()) \
          FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) $1",
        &[pg_sys::UUIDOID],
    ) };
    static HISTORY: Statement = const { Statement::new(
        c"SELECT h.outcome, h.result FROM pg_task.history AS h WHERE h.id OPERATOR(pg_catalog.=) $1 \
          ORDER BY h.ended_at DESC LIMIT 1",
        &[pg_sys::UUIDOID],
    ) };
    // What has ended just now lies in the last pages: they have no bounds in the index yet.
    static RECENT: [Statement; history::PARTS.len()] = const { [
        recent!("history_0"), recent!("history_1"), recent!("history_2"), recent!("history_3"),
        recent!("history_4"), recent!("history_5"), recent!("history_6"), recent!("history_7"),
    ] };
    static LEAVES_AT_EXIT: Cell<bool> = const { Cell::new(false) };
}

/// What became of a task.
struct Found {
    outcome: &'static str,
    result: Option<Datum>,
    error: Option<Datum>,
}

impl Found {
    fn plain(outcome: &'static str) -> Self {
        Self { outcome, result: None, error: None }
    }
}

fn wait(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let id = call.uuid(0, "id")?;
    let timeout = queues::micros(call.required(1, "timeout")?);
    if !(0..=MAX_TIMEOUT).contains(&timeout) {
        let (high, got) = (MAX_TIMEOUT / 1_000_000, timeout.div_euclid(1_000_000));
        return Err(Error::OutOfRange { name: "timeout", low: 0, high, got });
    }
    // SAFETY: a plain read of this process' transaction state.
    if unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ as i32 {
        return Err(Error::WaitTransaction(
            "in a REPEATABLE READ or SERIALIZABLE transaction, which would not see it",
        ));
    }
    // By a clock that nobody sets.
    let (began, timeout) = (Instant::now(), Duration::from_micros(timeout as u64));
    let slot = shmem::my_slot().ok_or(Error::NoScheduler)?;
    let _place = PlaceGuard::enter(slot, &id)?;
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        let found = spi::connected(|spi| look(slot, spi, &id))?;
        if let Some(found) = found.or_else(|| left.is_zero().then(|| Found::plain("timed out"))) {
            return Ok(Some(call.record(&[spi::text(found.outcome), found.result, found.error])));
        }
        // SAFETY: the process' own latch; interrupts are served outside any lock, and an error lets the guard give the place back.
        unsafe {
            pg_sys::WaitLatch(
                pg_sys::MyLatch,
                (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
                left.min(LOOK_AGAIN).as_millis() as i64 + 1,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        pgrx::check_for_interrupts!();
    }
}
sql_function!(
    "wait_wrapper",
    "pg_finfo_wait_wrapper",
    wait,
    "wait(id uuid, timeout interval) RETURNS record (outcome text, result jsonb, error text)"
);

/// Looks at the row as it is now, and at the history if there is none. Nothing when the task has not ended.
fn look(slot: Slot, spi: &Connected, id: &TaskId) -> Result<Option<Found>, Error> {
    let argument = [Some(spi::uuid(id))];
    let task = TASK.with(|statement| statement.run(spi, &argument, false));
    if !task.is_empty() {
        if task.bool(0, 2) {
            return Err(Error::WaitTransaction(
                "for a task that this transaction has written, and not committed",
            ));
        }
        let error = task.datum(0, 1).map(kept);
        return Ok(error.map(|error| Found { outcome: "parked", result: None, error: Some(error) }));
    }
    if catalog::find(history::PARTS[0]).is_none() {
        return Ok(Some(Found::plain("unknown")));
    }
    let part = slot.control().history_part.load(Relaxed) as usize % history::PARTS.len();
    let mut row = RECENT.with(|statements| statements[part].run(spi, &argument, false));
    if row.is_empty() {
        row = HISTORY.with(|statement| statement.run(spi, &argument, false));
    }
    if row.is_empty() {
        return Ok(Some(Found::plain("unknown")));
    }
    let outcome = if row.text(0, 1).as_deref() == Some("done") { "done" } else { "cancelled" };
    Ok(Some(Found { outcome, result: row.datum(0, 2).map(kept), error: None }))
}

/// A value with a length that outlives SPI.
fn kept(value: Datum) -> Datum {
    // SAFETY: the value is a text or a jsonb; it is unpacked first and copied into the memory of the caller of SPI.
    unsafe {
        let value = Datum::from(pg_sys::pg_detoast_datum(value.cast_mut_ptr()));
        pg_sys::SPI_datumTransfer(value, false, -1)
    }
}

/// A place among those who wait, given back when this is dropped or the process ends.
struct PlaceGuard {
    slot: Slot,
    index: usize,
}

impl PlaceGuard {
    fn enter(slot: Slot, id: &TaskId) -> Result<Self, Error> {
        // SAFETY: plain reads of this process' own variables; the callback takes no argument.
        let (pid, latch) = unsafe {
            if !LEAVES_AT_EXIT.replace(true) {
                pg_sys::before_shmem_exit(Some(at_exit), 0.into());
            }
            (pg_sys::MyProcPid, pg_sys::MyLatch)
        };
        let index = slot.control().waiters.enter(id, pid, latch);
        index.map(|index| Self { slot, index }).ok_or(Error::WaitersFull { limit: MAX_WAITERS })
    }
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        self.slot.control().waiters.leave(self.index);
    }
}

/// The end of the process, which lets no guard run.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: Datum) {
    // SAFETY: a plain read of this process' own variable.
    let pid = unsafe { pg_sys::MyProcPid };
    shmem::slots().for_each(|slot| slot.control().waiters.leave_all_of(pid));
}
