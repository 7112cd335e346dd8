//! `pg_task.exchange` and `pg_task.heartbeat`.

use pg_task_rules::TaskId;
use pgrx::pg_sys::Datum;

use super::check_transaction;
use super::claim;
use super::find_worker;
use super::results;
use super::results::Answer;
use super::serving_slot;
use crate::background;
use crate::call::Call;
use crate::call::SetWriter;
use crate::call::sql_function;
use crate::error::Error;
use crate::guc;
use crate::spi;
use crate::uuid7;

/// Tasks that one call hands out at most.
const MAX_WANT: i64 = 10_000;

/// Rows that come back. The numbers are those of the protocol.
#[derive(Clone, Copy)]
enum Event {
    Task = 0,
    Continue = 1,
    Refused = 2,
    Cancelled = 3,
    Stop = 4,
    Unregistered = 5,
    Work = 6,
}

fn exchange(call: &mut Call) -> Result<Option<Datum>, Error> {
    check_transaction()?;
    let slot = serving_slot()?;
    let worker_id = call.uuid(0, "worker")?;
    let want = i64::from(call.int4(1, "want")?);
    if !(0..=MAX_WANT).contains(&want) {
        return Err(Error::OutOfRange { name: "want", low: 0, high: MAX_WANT, got: want });
    }
    let results = results::read(call)?;
    let mut rows = call.rows();

    let now = background::now();
    let mut cancelled: Vec<TaskId> = Vec::new();
    let place = slot.with_board(|board| {
        let place = find_worker(board, &worker_id)?.filter(|&worker| board.heard(worker, now));
        if let Some(worker) = place {
            board.take_cancels(worker, &mut cancelled);
        }
        Ok::<_, Error>(place.map(|worker| (worker, board.workers[worker].stop)))
    })?;
    let room = if guc::ENABLED.get() && place.is_some_and(|(_, stop)| !stop) { want as u32 } else { 0 };

    let mut answers: Vec<Answer> = Vec::new();
    spi::connected(|spi| {
        let left = results::write(slot, spi, &results, room, &mut answers);
        for answer in &answers {
            match answer {
                Answer::Continue(id, fence, token) => {
                    rows.push(row(Event::Continue, id, *token).with_fence(*fence))
                }
                Answer::Refused(id, token) => rows.push(row(Event::Refused, id, *token).columns),
            }
        }
        if let Some((worker, _)) = place.filter(|_| room > 0) {
            for task in claim::claim(slot, spi, worker, left) {
                rows.push([
                    spi::int(Event::Task as i16),
                    Some(spi::uuid(&task.claim.id)),
                    spi::int(task.fence),
                    spi::int(task.claim.token),
                    spi::int(task.tried),
                    spi::int(task.wakeup_at),
                    Some(task.queue),
                    Some(task.step),
                ]);
            }
        }
    });
    let refused = answers.iter().filter(|answer| matches!(answer, Answer::Refused(..))).count();
    slot.control().refused.fetch_add(refused as u64, std::sync::atomic::Ordering::Relaxed);
    for id in &cancelled {
        rows.push([
            spi::int(Event::Cancelled as i16),
            Some(spi::uuid(id)),
            None,
            None,
            None,
            None,
            None,
            None,
        ]);
    }
    match place {
        None => event(&mut rows, Event::Unregistered),
        Some((_, true)) => event(&mut rows, Event::Stop),
        Some(_) => {}
    }
    Ok(None)
}
sql_function!("exchange_wrapper", "pg_finfo_exchange_wrapper", exchange);

struct Row {
    columns: [Option<Datum>; 8],
}

impl Row {
    fn with_fence(mut self, fence: i64) -> [Option<Datum>; 8] {
        self.columns[2] = spi::int(fence);
        self.columns[4] = spi::int(0);
        self.columns
    }
}

fn row(event: Event, id: &TaskId, token: i64) -> Row {
    Row {
        columns: [
            spi::int(event as i16),
            Some(uuid7::datum(id)),
            None,
            spi::int(token),
            None,
            None,
            None,
            None,
        ],
    }
}

fn event(rows: &mut SetWriter, event: Event) {
    rows.push([spi::int(event as i16), None, None, None, None, None, None, None]);
}

fn heartbeat(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = serving_slot()?;
    let worker_id = call.uuid(0, "worker")?;
    let mut rows = call.rows();
    let now = background::now();
    let mut cancelled: Vec<TaskId> = Vec::new();
    let state = slot.with_board(|board| {
        let place = find_worker(board, &worker_id)?.filter(|&worker| board.heard(worker, now));
        Ok::<_, Error>(place.map(|worker| {
            board.take_cancels(worker, &mut cancelled);
            (board.workers[worker].stop, board.has_work_for(worker))
        }))
    })?;
    for id in &cancelled {
        rows.push([spi::int(Event::Cancelled as i16), Some(spi::uuid(id))]);
    }
    match state {
        None => rows.push([spi::int(Event::Unregistered as i16), None]),
        Some((true, _)) => rows.push([spi::int(Event::Stop as i16), None]),
        // Heals a notification that was lost on its way.
        Some((_, true)) if guc::ENABLED.get() => rows.push([spi::int(Event::Work as i16), None]),
        Some(_) => {}
    }
    Ok(None)
}
sql_function!("heartbeat_wrapper", "pg_finfo_heartbeat_wrapper", heartbeat);
