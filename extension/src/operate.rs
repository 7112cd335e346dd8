//! What an operator does: resume, cancel, stop workers, ask for the scheduler.

use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::handout;
use crate::produce;
use crate::shmem;
use crate::spi;
use crate::spi::Statement;

thread_local! {
    static RESUME: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET error = NULL WHERE t.id OPERATOR(pg_catalog.=) $1 AND t.error IS NOT NULL",
        &[pg_sys::UUIDOID],
    ) };
    static SET_RETRY: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET options = CASE WHEN $2 IS NULL THEN t.options OPERATOR(pg_catalog.-) 'retry'::pg_catalog.text \
            ELSE COALESCE(t.options, '{}') OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('retry', $2) END \
          WHERE t.id OPERATOR(pg_catalog.=) $1",
        &[pg_sys::UUIDOID, pg_sys::JSONBOID],
    ) };
    static CANCEL: Statement = const { Statement::new(
        c"DELETE FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) $1",
        &[pg_sys::UUIDOID],
    ) };
}

fn set_retry(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let id = call.uuid(0, "id")?;
    let arguments = [Some(spi::uuid(&id)), call.datum(1)];
    let count = spi::connected(|spi| SET_RETRY.with(|statement| statement.run(spi, &arguments, false)).len());
    Ok(Some(Datum::from(count > 0)))
}
sql_function!(
    "set_retry_wrapper",
    "pg_finfo_set_retry_wrapper",
    set_retry,
    "set_retry(id uuid, policy jsonb) RETURNS boolean"
);

fn resume(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let id = call.uuid(0, "id")?;
    let count = spi::connected(|spi| {
        RESUME.with(|statement| statement.run(spi, &[Some(spi::uuid(&id))], false)).len()
    });
    Ok(Some(Datum::from(count > 0)))
}
sql_function!("resume_wrapper", "pg_finfo_resume_wrapper", resume, "resume(id uuid) RETURNS boolean");

fn cancel(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let id = call.uuid(0, "id")?;
    let count = spi::connected(|spi| {
        CANCEL.with(|statement| statement.run(spi, &[Some(spi::uuid(&id))], false)).len()
    });
    // The table's trigger tells the worker that runs it.
    Ok(Some(Datum::from(count > 0)))
}
sql_function!("cancel_wrapper", "pg_finfo_cancel_wrapper", cancel, "cancel(id uuid) RETURNS boolean");

fn stop_workers(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = handout::serving_slot()?;
    // SAFETY: declared as uuid.
    let only = call.datum(0).map(|id| unsafe { spi::uuid_from(id) });
    let count = slot.with_board(|board| {
        let chosen: Vec<usize> = (0..board.workers.len())
            .filter(|&worker| board.is_live(worker) && only.is_none_or(|id| board.workers[worker].id == id))
            .collect();
        chosen.iter().for_each(|&worker| board.ask_stop(worker));
        chosen.len()
    });
    slot.wake_scheduler();
    Ok(spi::int(count as i64))
}
sql_function!(
    "stop_workers_wrapper",
    "pg_finfo_stop_workers_wrapper",
    stop_workers,
    "stop_workers(worker uuid) RETURNS integer"
);

fn start_scheduler(_call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    commit::note_start();
    Ok(Some(Datum::null()))
}
sql_function!(
    "start_scheduler_wrapper",
    "pg_finfo_start_scheduler_wrapper",
    start_scheduler,
    "start_scheduler() RETURNS void"
);

fn require_encoding(_call: &mut Call) -> Result<Option<Datum>, Error> {
    // SAFETY: plain reads of this process' state; the name is a constant string of the server.
    unsafe {
        if pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 {
            return Ok(Some(Datum::null()));
        }
        let name = std::ffi::CStr::from_ptr(pg_sys::GetDatabaseEncodingName());
        Err(Error::Encoding { got: name.to_string_lossy().into_owned() })
    }
}
sql_function!(
    "require_encoding_wrapper",
    "pg_finfo_require_encoding_wrapper",
    require_encoding,
    "require_encoding() RETURNS void"
);

fn require_preload(_call: &mut Call) -> Result<Option<Datum>, Error> {
    if shmem::ready() { Ok(Some(Datum::null())) } else { Err(Error::NotPreloaded) }
}
sql_function!(
    "require_preload_wrapper",
    "pg_finfo_require_preload_wrapper",
    require_preload,
    "require_preload() RETURNS void"
);
