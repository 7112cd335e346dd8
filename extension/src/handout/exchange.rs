//! `pg_task.exchange`, `pg_task.exchange_packed`, `pg_task.finish` and `pg_task.heartbeat`.

use pg_task_rules::WorkerId;
use pg_task_rules::board::Board;
use pg_task_rules::board::Claim;
use pg_task_rules::board::Entry;
use pgrx::pg_sys::Datum;

use super::Caller;
use super::check_transaction;
use super::claim;
use super::find_worker;
use super::output::Event;
use super::output::Output;
use super::output::Packed;
use super::results;
use super::results::StepResult;
use super::serving_slot;
use super::unsettled;
use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::error::Error;
use crate::guc;
use crate::shmem::Slot;
use crate::spi;

/// Tasks that one call hands out at most.
const MAX_WANT: i64 = 10_000;

fn exchange(call: &mut Call) -> Result<Option<Datum>, Error> {
    serve(call, |call| Output::Rows(call.rows()))
}
sql_function!(
    "exchange_wrapper",
    "pg_finfo_exchange_wrapper",
    exchange,
    "exchange(
        worker uuid, want integer, ids uuid[], fences bigint[], tokens bigint[], outcomes smallint[], steps jsonb[],
        delays bigint[], errors text[], registration bigint)
     RETURNS TABLE (
        event smallint, id uuid, fence bigint, token bigint, tried integer, wakeup_at timestamptz, queue text, step jsonb,
        options jsonb)"
);

fn exchange_packed(call: &mut Call) -> Result<Option<Datum>, Error> {
    serve(call, |_| Output::Packed(Packed::new()))
}
sql_function!(
    "exchange_packed_wrapper",
    "pg_finfo_exchange_packed_wrapper",
    exchange_packed,
    "exchange_packed(
        worker uuid, want integer, ids uuid[], fences bigint[], tokens bigint[], outcomes smallint[], steps jsonb[],
        delays bigint[], errors text[], registration bigint)
     RETURNS bytea"
);

fn serve(call: &mut Call, output: impl FnOnce(&mut Call) -> Output) -> Result<Option<Datum>, Error> {
    check_transaction()?;
    let slot = serving_slot()?;
    let worker_id = call.uuid(0, "worker")?;
    let want = i64::from(call.int4(1, "want")?);
    if !(0..=MAX_WANT).contains(&want) {
        return Err(Error::OutOfRange { name: "want", low: 0, high: MAX_WANT, got: want });
    }
    let mut results = results::read(call)?;
    let registration = call.datum(9).map(|datum| datum.value() as i64);
    let mut output = output(call);

    let now = background::now();
    let mut cancelled: Vec<Claim> = Vec::new();
    // Memory may know better than the rows: a task may have been handed out again since.
    let mut held: Vec<Option<Entry>> = Vec::with_capacity(results.len());
    let caller = slot.with_board(|board| {
        held.extend(results.iter().map(|result| held_claim(board, result, &worker_id)));
        let place = find_worker(board, &worker_id)?
            .filter(|&place| registration.is_none_or(|got| got == i64::from(board.workers[place].generation)))
            .filter(|&place| board.heard(place, now));
        Ok::<_, Error>(place.map(|place| {
            board.take_cancels(place, &mut cancelled);
            let worker = &board.workers[place];
            (Caller { place, generation: worker.generation }, worker.stop)
        }))
    })?;
    unsettled(slot, |unsettled| {
        unsettled.caller = caller.map(|(caller, _)| caller);
        unsettled.told.extend(cancelled.iter().map(|claim| claim.id));
    });
    let room = if guc::ENABLED.get() && caller.is_some_and(|(_, stop)| !stop) { want as u32 } else { 0 };

    spi::connected(|spi| {
        let (left, _) = results::write(slot, &worker_id, spi, &mut results, &held, room, &mut output);
        if let Some((caller, _)) = caller.filter(|_| room > 0) {
            let claimed = claim::claim(slot, spi, &caller, left, &mut output);
            if claimed.more {
                output.event(Event::Work);
            }
        }
    });
    for claim in &cancelled {
        output.cancelled(claim);
    }
    match caller {
        None => output.event(Event::Unregistered),
        Some((_, true)) => output.event(Event::Stop),
        Some(_) => {}
    }
    Ok(output.finish())
}

/// One result inside the step's own transaction: memory learns of it when that commits, and nothing else is done for the worker.
fn finish(call: &mut Call) -> Result<Option<Datum>, Error> {
    check_transaction()?;
    let slot = serving_slot()?;
    let worker_id = call.uuid(0, "worker")?;
    let result = results::read_one(call)?;
    let held = slot.with_board(|board| {
        // For the check of the role.
        find_worker(board, &worker_id)?;
        Ok::<_, Error>(held_claim(board, &result, &worker_id))
    })?;
    let mut output = Output::Packed(Packed::new());
    let (_, refused) =
        spi::connected(|spi| results::write(slot, &worker_id, spi, &mut [result], &[held], 0, &mut output));
    Ok(Some(Datum::from(refused == 0)))
}
sql_function!(
    "finish_wrapper",
    "pg_finfo_finish_wrapper",
    finish,
    "finish(worker uuid, id uuid, fence bigint, token bigint, outcome integer, step jsonb, delay bigint) RETURNS boolean"
);

/// What memory knows of a result's task. A claim of another worker is as stale for this one as a claim under another token,
/// whatever token it names.
fn held_claim(board: &Board<'_>, result: &StepResult, worker: &WorkerId) -> Option<Entry> {
    let mut entry = *board.claim_of(&result.id)?;
    let own = board.holder(&entry).is_some_and(|place| board.workers[place].id == *worker);
    if !own && entry.token == result.token {
        entry.token = entry.token.wrapping_add(1);
    }
    Some(entry)
}

fn heartbeat(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = serving_slot()?;
    let worker_id = call.uuid(0, "worker")?;
    beat(call, slot, &worker_id)
}

/// The worker is there; what it is told then.
pub(super) fn beat(call: &mut Call, slot: Slot, worker_id: &WorkerId) -> Result<Option<Datum>, Error> {
    let mut rows = call.rows();
    let now = background::now();
    let mut cancelled: Vec<Claim> = Vec::new();
    let state = slot.with_board(|board| {
        let place = find_worker(board, worker_id)?.filter(|&worker| board.heard(worker, now));
        Ok::<_, Error>(place.map(|worker| {
            board.take_cancels(worker, &mut cancelled);
            (board.workers[worker].stop, board.has_work_for(worker, now))
        }))
    })?;
    for Claim { id, token } in &cancelled {
        rows.push([spi::int(Event::Cancelled as i16), Some(spi::uuid(id)), spi::int(*token)]);
    }
    let event = match state {
        None => Some(Event::Unregistered),
        Some((true, _)) => Some(Event::Stop),
        // Heals a notification that was lost on its way.
        Some((_, true)) => guc::ENABLED.get().then_some(Event::Work),
        Some(_) => None,
    };
    if let Some(event) = event {
        rows.push([spi::int(event as i16), None, None]);
    }
    Ok(None)
}
sql_function!(
    "heartbeat_wrapper",
    "pg_finfo_heartbeat_wrapper",
    heartbeat,
    "heartbeat(worker uuid) RETURNS TABLE (event smallint, id uuid, token bigint)"
);
