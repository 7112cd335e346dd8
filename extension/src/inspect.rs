//! What the views read from memory. Everything is copied under the lock and turned into rows after it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::WorkerId;
use pg_task_rules::board::Entry;
use pg_task_rules::board::Lane;
use pg_task_rules::board::Progress;
use pg_task_rules::board::WorkerSlot;
use pg_task_rules::board::WorkerState;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::call::sql_function;
use crate::error::Error;
use crate::shmem;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::ElementType;

/// The slot, if there is one: a view of a database without a scheduler is empty.
fn slot() -> Result<Option<Slot>, Error> {
    if shmem::ready() { Ok(shmem::my_slot()) } else { Err(Error::NotPreloaded) }
}

fn claims(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = slot()?;
    let mut rows = call.rows();
    let Some(slot) = slot else { return Ok(None) };
    let mut said: Vec<Progress> = Vec::new();
    let claims: Vec<(WorkerId, Entry, Option<usize>)> = slot.with_board(|board| {
        let with_progress = |(worker, entry): (usize, &Entry)| {
            said.extend(board.progress_of(entry));
            let last = board.progress_of(entry).map(|_| said.len() - 1);
            (board.workers[worker].id, *entry, last)
        };
        board.claims().map(with_progress).collect()
    });
    for (worker, claim, progress) in &claims {
        let progress = progress.map(|index| &said[index]);
        let text = progress.map(Progress::text).filter(|text| !text.is_empty());
        rows.push([
            Some(spi::uuid(&claim.id)),
            Some(spi::uuid(worker)),
            spi::int(claim.token),
            spi::int(claim.fence),
            spi::int(claim.since),
            progress.and_then(Progress::value).and_then(spi::float),
            text.and_then(spi::text),
            progress.and_then(|progress| spi::int(progress.at)),
        ]);
    }
    Ok(None)
}
sql_function!(
    "claims_wrapper",
    "pg_finfo_claims_wrapper",
    claims,
    "claims() RETURNS TABLE (
        id uuid, worker uuid, token bigint, fence bigint, claimed_at timestamptz,
        progress double precision, progress_text text, progress_at timestamptz)"
);

fn worker_states(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = slot()?;
    let mut rows = call.rows();
    let Some(slot) = slot else { return Ok(None) };
    let workers: Vec<(WorkerSlot, Vec<QueueName>)> = slot.with_board(|board| {
        let used = |slot: &&WorkerSlot| slot.state != WorkerState::Free;
        let queues = |slot: &WorkerSlot| slot.queues().iter().map(|queue| board.queue_name(*queue)).collect();
        board.workers.iter().filter(used).map(|slot| (*slot, queues(slot))).collect()
    });
    for (worker, queues) in &workers {
        let state = match worker.state {
            WorkerState::Gone => "gone",
            WorkerState::Lost => "lost",
            _ if worker.stop => "stopping",
            _ if worker.wanted > 0 => "idle",
            _ => "working",
        };
        let mut names: Vec<Datum> = queues.iter().filter_map(|queue| spi::text(queue.as_str())).collect();
        let mut lease = pg_sys::Interval { time: worker.lease, day: 0, month: 0 };
        rows.push([
            Some(spi::uuid(&worker.id)),
            spi::text(worker.name.as_str()),
            spi::int(worker.role),
            (worker.pid != 0).then(|| Datum::from(worker.pid)),
            spi::text(state),
            if names.is_empty() { None } else { spi::array(&mut names, ElementType::Text) },
            worker.kinds_len().map(|count| Datum::from(i32::from(count))),
            spi::int(worker.claimed),
            spi::int(worker.registered_at),
            spi::int(worker.heartbeat_at),
            Some(Datum::from(&raw mut lease)),
        ]);
    }
    Ok(None)
}
sql_function!(
    "worker_states_wrapper",
    "pg_finfo_worker_states_wrapper",
    worker_states,
    "worker_states() RETURNS TABLE (
        id uuid, name text, role oid, pid integer, state text, queues text[], steps integer, claimed integer,
        registered_at timestamptz, heartbeat_at timestamptz, lease interval)"
);

fn lanes(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = slot()?;
    let mut rows = call.rows();
    let Some(slot) = slot else { return Ok(None) };
    let lanes: Vec<(QueueName, Lane)> = slot
        .with_board(|board| board.lanes_in_use().map(|lane| (board.queue_name(lane.queue), *lane)).collect());
    for (queue, lane) in &lanes {
        let step = lane.label.as_str();
        rows.push([
            spi::text(queue.as_str()),
            spi::int(lane.priority),
            if step.is_empty() { None } else { spi::text(step) },
            spi::int(lane.len),
        ]);
    }
    Ok(None)
}
sql_function!(
    "lanes_wrapper",
    "pg_finfo_lanes_wrapper",
    lanes,
    "lanes() RETURNS TABLE (queue text, priority smallint, step text, ready integer)"
);

fn scheduler_state(call: &mut Call) -> Result<Option<Datum>, Error> {
    let Some(slot) = slot()? else {
        let mut columns = [None; 17];
        columns[0] = spi::text("absent");
        return Ok(Some(call.record(&columns)));
    };
    let control = slot.control();
    let (ready, claimed, workers) =
        slot.with_board(|board| (board.head.ready, board.head.claimed, board.head.workers));
    let pid = control.pid.load(SeqCst);
    let error = control.last_error();
    let moment = |moment: i64| (moment != 0).then(|| Datum::from(moment));
    let count = |counter: &std::sync::atomic::AtomicU64| spi::int(counter.load(Relaxed) as i64);
    Ok(Some(call.record(&[
        spi::text(control.state().name()),
        (pid != 0).then(|| Datum::from(pid)),
        moment(control.started_at.load(SeqCst)),
        spi::int(ready),
        spi::int(claimed),
        spi::int(workers),
        moment(control.next_wake.load(Relaxed)),
        error.as_ref().and_then(|(text, _)| spi::text(text)),
        error.as_ref().map(|(_, at)| Datum::from(*at)),
        count(&control.failures),
        count(&control.ticks),
        count(&control.wakeups_sent),
        count(&control.handed_out),
        count(&control.finished),
        count(&control.refused),
        count(&control.lost),
        count(&control.rescans),
    ])))
}
sql_function!(
    "scheduler_state_wrapper",
    "pg_finfo_scheduler_state_wrapper",
    scheduler_state,
    "scheduler_state() RETURNS record (
        state text, pid integer, started_at timestamptz, ready integer, claimed integer, workers integer,
        next_wake timestamptz, last_error text, last_error_at timestamptz, failures bigint, ticks bigint,
        wakeups_sent bigint, handed_out bigint, finished bigint, refused bigint, lost bigint, rescans bigint)"
);
