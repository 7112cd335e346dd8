//! `pg_task.set_progress` and `pg_task.set_progress_many`: what steps say of how far they are. Kept in memory with the claim; nothing is written.

use pg_task_rules::Micros;
use pg_task_rules::WorkerId;
use pg_task_rules::board::Claim;
use pg_task_rules::board::Progress;
use pgrx::pg_sys::Datum;

use super::exchange;
use super::find_worker;
use super::serving_slot;
use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::error::Error;
use crate::shmem::Slot;
use crate::spi;

/// How much is kept while the board is locked: everybody waits for it.
const CHUNK: usize = 256;

fn set_progress(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = serving_slot()?;
    let worker_id = call.uuid(0, "worker")?;
    let claim = Claim { id: call.uuid(1, "id")?, token: call.required(2, "token")?.value() as i64 };
    let progress = progress(call.datum(3), call.datum(4), background::now())?;
    Ok(spi::bool(keep(slot, &worker_id, &[(claim, progress)])?))
}
sql_function!(
    "set_progress_wrapper",
    "pg_finfo_set_progress_wrapper",
    set_progress,
    "set_progress(worker uuid, id uuid, token bigint, progress double precision, text text) RETURNS boolean"
);

fn set_progress_many(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = serving_slot()?;
    let worker_id = call.uuid(0, "worker")?;
    let said = read(call, background::now())?;
    for chunk in said.chunks(CHUNK) {
        keep(slot, &worker_id, chunk)?;
    }
    exchange::beat(call, slot, &worker_id)
}
sql_function!(
    "set_progress_many_wrapper",
    "pg_finfo_set_progress_many_wrapper",
    set_progress_many,
    "set_progress_many(
        worker uuid, ids uuid[], tokens bigint[], progress double precision[], texts text[])
     RETURNS TABLE (event smallint, id uuid, token bigint)"
);

/// Keeps what was said of claims that the worker still holds; whether it was kept of all.
fn keep(slot: Slot, worker: &WorkerId, said: &[(Claim, Progress)]) -> Result<bool, Error> {
    let now = background::now();
    slot.with_board(|board| {
        let place = find_worker(board, worker)?.filter(|&place| board.heard(place, now));
        let Some(place) = place else { return Ok(false) };
        Ok(said.iter().fold(true, |all, (claim, progress)| board.set_progress(place, claim, progress) && all))
    })
}

/// Reads the arrays of a call.
fn read(call: &Call, now: Micros) -> Result<Vec<(Claim, Progress)>, Error> {
    let ids = call.array(1).ok_or(Error::NullArgument { name: "ids" })?;
    let column = |index: usize, name: &'static str| match call.array(index) {
        Some(values) if values.len() != ids.len() => {
            Err(Error::LengthMismatch { name, got: values.len(), other: "ids", want: ids.len() })
        }
        values => Ok(values),
    };
    let tokens = column(2, "tokens")?.ok_or(Error::NullArgument { name: "tokens" })?;
    let (values, texts) = (column(3, "progress")?, column(4, "texts")?);
    let needed = |value: Option<Datum>, name: &'static str, index: usize| {
        value.ok_or(Error::NullElement { name, position: index + 1 })
    };
    let at =
        |values: &Option<Vec<Option<Datum>>>, index: usize| values.as_ref().and_then(|values| values[index]);
    let mut said = Vec::with_capacity(ids.len());
    for (index, id) in ids.iter().enumerate() {
        // SAFETY: declared as uuid[].
        let id = unsafe { spi::uuid_from(needed(*id, "ids", index)?) };
        let token = needed(tokens[index], "tokens", index)?.value() as i64;
        said.push((Claim { id, token }, progress(at(&values, index), at(&texts, index), now)?));
    }
    Ok(said)
}

/// A `double precision` and a `text`, each of which may be missing.
fn progress(value: Option<Datum>, text: Option<Datum>, now: Micros) -> Result<Progress, Error> {
    let value = value.map(spi::float_from);
    if let Some(got) = value.filter(|value| !(0.0..=1.0).contains(value)) {
        return Err(Error::Progress { got });
    }
    // SAFETY: declared as text.
    let text = text.map(|text| unsafe { spi::text_from(text) });
    Ok(Progress::new(value, text.as_deref().unwrap_or_default(), now))
}
