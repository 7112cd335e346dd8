//! `pg_task.register` and `pg_task.leave`.

use std::cell::RefCell;
use std::collections::HashMap;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::board::AssertedRow;
use pg_task_rules::board::Claim;
use pg_task_rules::board::Entry;
use pg_task_rules::board::MAX_KINDS;
use pg_task_rules::board::MAX_QUEUES_PER_WORKER;
use pg_task_rules::board::MAX_WEIGHT;
use pg_task_rules::board::QueueId;
use pg_task_rules::board::Registration;
use pg_task_rules::names::Kind;
use pg_task_rules::names::Label;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use rustc_hash::FxHashSet;

use super::Caller;
use super::find_worker;
use super::serving_slot;
use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::error::Error;
use crate::guc;
use crate::jsonb;
use crate::scheduler::unwrite;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::ElementType;
use crate::spi::Statement;
use crate::task_table::TaskTable;
use crate::uuid7;

const PROTOCOL: i32 = 1;
/// The longest name of a worker, in bytes.
const MAX_NAME: usize = 63;
const MICROS_PER_SECOND: Micros = 1_000_000;
const MICROS_PER_DAY: Micros = 86_400 * MICROS_PER_SECOND;

thread_local! {
    /// Workers that are given up when this connection ends.
    static BOUND: RefCell<Vec<WorkerId>> = const { RefCell::new(Vec::new()) };
    static HELD: Statement = const { Statement::new(
        c"SELECT t.id, t.fence, t.wakeup_at, t.queue, t.priority, t.locked_by IS NOT NULL, t.step, \
            t.locked_at OPERATOR(pg_catalog.=) t.updated_at FROM pg_task.task AS t \
          WHERE t.id OPERATOR(pg_catalog.=) ANY ($1) AND t.error IS NULL",
        &[pg_sys::UUIDARRAYOID],
    ) };
}

/// What a worker says that it still holds.
struct Held {
    claim: Claim,
    fence: i64,
}

fn register(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = serving_slot()?;
    let id = call.uuid(0, "worker")?;
    let protocol = call.int4(10, "protocol")?;
    if protocol != PROTOCOL {
        return Err(Error::Protocol { got: protocol });
    }
    let queues = queues(call)?;
    let weights = weights(call, queues.len())?;
    let kinds = kinds(call)?;
    let lease = lease(call)?;
    let name = call.text(5).unwrap_or_default();
    if name.len() > MAX_NAME {
        return Err(Error::WorkerName { limit: MAX_NAME, got: name.len() });
    }
    let bind = call.required(6, "bind")?.value() & 0xff != 0;
    // An older declaration does not have it.
    let gives_up = call.datum(12).is_some_and(|gives_up| gives_up.value() & 0xff != 0);
    let held = held(call)?;
    // SAFETY: plain reads of this process' state; the function runs as the extension's owner, the caller is the outer user.
    let (role, pid) = unsafe { (pg_sys::GetOuterUserId().to_u32(), pg_sys::MyProcPid) };
    let now = background::now();

    let (place, registration) = slot.with_board(|board| {
        find_worker(board, &id)?;
        let mut numbers: Vec<QueueId> = Vec::with_capacity(queues.len());
        if !board.intern_all(&queues, &mut numbers) {
            return Err(Error::QueuesFull);
        }
        let registration = Registration {
            id,
            name: Label::new(&name),
            queues: &numbers,
            weights: &weights,
            kinds: kinds.as_deref(),
            lease,
            role,
            pid: if bind { pid } else { 0 },
        };
        let limit = guc::MAX_WORKERS.get();
        let place = board.register(&registration, now).map_err(|_| Error::WorkersFull { limit })?;
        board.workers[place].gives_up = gives_up;
        Ok::<_, Error>((place, board.workers[place].generation))
    })?;
    if bind {
        bind_to_connection(id);
    }
    let refused = assert_held(slot, Caller { place, generation: registration }, &held, now);
    slot.wake_scheduler();

    let mut refused: Vec<Datum> = refused.iter().map(uuid7::datum).collect();
    let channel = spi::text(&uuid7::channel(&id));
    let registration = spi::int(registration);
    Ok(Some(call.record(&[channel, spi::array(&mut refused, ElementType::Uuid), registration])))
}
sql_function!(
    "register_wrapper",
    "pg_finfo_register_wrapper",
    register,
    "register(
        worker uuid, queues text[], steps text[], retry_limits integer[], lease interval, name text, bind boolean,
        held_ids uuid[], held_fences bigint[], held_tokens bigint[], protocol integer, weights integer[],
        gives_up boolean)
     RETURNS record (channel text, refused uuid[], registration bigint)"
);

/// Renews the claims that the worker says it holds, gives those back that it does not know of, and returns those that are not
/// its own any more.
fn assert_held(slot: Slot, caller: Caller, held: &[Held], now: Micros) -> Vec<TaskId> {
    let place = caller.place;
    let mut refused = Vec::new();
    spi::connected(|spi| {
        // Looked up, not searched for: a worker may hold thousands, and everyone waits for the board meanwhile.
        let named: FxHashSet<(TaskId, i64)> =
            held.iter().map(|held| (held.claim.id, held.claim.token)).collect();
        let forgotten: Vec<Entry> = slot.with_board(|board| {
            board
                .claims_of(place)
                .filter(|entry| !named.contains(&(entry.id, entry.token)))
                .copied()
                .collect()
        });
        // An answer that was lost on its way: the worker never saw these, so that no attempt was made.
        unwrite(spi, &forgotten);
        slot.with_board(|board| {
            for entry in &forgotten {
                board.give_back(&entry.id, entry.token);
            }
        });
        if held.is_empty() {
            return;
        }
        let arguments = [spi::uuid_array(held.iter().map(|held| &held.claim.id))];
        let rows = HELD.with(|statement| statement.run(spi, &arguments, false));
        let mut found: HashMap<TaskId, (QueueName, AssertedRow)> = HashMap::new();
        for row in 0..rows.len() {
            let queue = rows.text(row, 4).as_deref().and_then(QueueName::new);
            let (Some(id), Some(queue)) = (rows.uuid(row, 1), queue) else { continue };
            // SAFETY: the column is a jsonb.
            let name = rows.datum(row, 7).and_then(|step| unsafe { jsonb::step_name(step) });
            let asserted = AssertedRow {
                fence: rows.int8(row, 2).unwrap_or(0),
                due: rows.int8(row, 3).unwrap_or(0),
                queue: QueueId(0),
                priority: rows.int2(row, 5).unwrap_or(0),
                kind: name.map_or(Kind::ANY, |name| name.kind()),
                group: None,
                key: None,
                written: rows.bool(row, 6),
                // A claim in writing changes and locks the row at one moment; one that is written behind does not.
                counted: rows.bool(row, 8),
            };
            found.insert(id, (queue, asserted));
        }
        let mut table = TaskTable::to_read();
        for (id, (_, asserted)) in &mut found {
            if let Some(row) = table.row(id, Place::UNKNOWN) {
                (asserted.group, asserted.key) = (row.group(), row.key());
            }
        }
        table.close();
        let mut granted_now: Vec<&Held> = Vec::with_capacity(held.len());
        slot.with_board(|board| {
            // The number of a name is good until the next name is looked for.
            let mut last: Option<(QueueName, QueueId)> = None;
            for held in held {
                let granted = found.get(&held.claim.id).is_some_and(|(queue, row)| {
                    if last.is_none_or(|(name, _)| name != *queue) {
                        last = board.intern(queue).map(|number| (*queue, number));
                    }
                    let Some((_, queue)) = last else { return false };
                    row.fence == held.fence
                        // A row that was waited for may have taken longer than the lease.
                        && caller.is_current(board)
                        && board.assert_claim(place, &held.claim, &AssertedRow { queue, ..*row }, now)
                });
                if !granted {
                    let own =
                        board.claim_of(&held.claim.id).and_then(|entry| board.holder(entry)) == Some(place);
                    if own {
                        // The row has changed since: let it be read again, or nobody would ever be given it.
                        board.give_back(&held.claim.id, held.claim.token);
                    }
                    refused.push(held.claim.id);
                } else {
                    granted_now.push(held);
                }
            }
        });
        // A result may have been committed between the look at its row and the claim: by a step's own transaction, or by a call that the
        // worker gave up waiting for. The row shows it before memory hears of it, so that one of the two is seen here.
        let rows = HELD.with(|statement| statement.run(spi, &arguments, false));
        let fences: HashMap<TaskId, i64> =
            (0..rows.len()).filter_map(|row| Some((rows.uuid(row, 1)?, rows.int8(row, 2)?))).collect();
        slot.with_board(|board| {
            for held in granted_now {
                if fences.get(&held.claim.id) != Some(&held.fence) {
                    board.give_back(&held.claim.id, held.claim.token);
                    refused.push(held.claim.id);
                }
            }
        });
    });
    refused
}

/// From now on the end of this connection means that the worker is gone.
fn bind_to_connection(id: WorkerId) {
    BOUND.with_borrow_mut(|bound| {
        if bound.is_empty() {
            // SAFETY: the callback takes no argument and lives as long as the process.
            unsafe { pg_sys::before_shmem_exit(Some(at_exit), 0.into()) };
        }
        if !bound.contains(&id) {
            bound.push(id);
        }
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: Datum) {
    let Some(slot) = crate::shmem::my_slot() else { return };
    // SAFETY: a plain read of this process' own variable.
    let pid = unsafe { pg_sys::MyProcPid };
    let now = background::now();
    BOUND.with_borrow(|bound| {
        let gone = slot.with_board(|board| bound.iter().filter(|id| board.gone(id, pid, now)).count());
        if gone > 0 {
            slot.wake_scheduler();
        }
    });
}

/// The worker has left: the end of this connection says nothing about it any more.
fn unbind(id: &WorkerId) {
    BOUND.with_borrow_mut(|bound| {
        if let Some(at) = bound.iter().position(|bound| bound == id) {
            // One element stays as the mark that the callback is registered.
            bound[at] = [0; 16];
        }
    });
}

fn leave(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = serving_slot()?;
    let id = call.uuid(0, "worker")?;
    let claims: Option<(usize, Vec<Entry>)> = slot.with_board(|board| {
        Ok::<_, Error>(
            find_worker(board, &id)?.map(|worker| (worker, board.claims_of(worker).copied().collect())),
        )
    })?;
    unbind(&id);
    let Some((place, claims)) = claims else { return Ok(spi::int(0)) };
    spi::connected(|spi| unwrite(spi, &claims));
    let count = slot.with_board(|board| if board.workers[place].id == id { board.leave(place) } else { 0 });
    slot.wake_scheduler();
    Ok(spi::int(count))
}
sql_function!("leave_wrapper", "pg_finfo_leave_wrapper", leave, "leave(worker uuid) RETURNS integer");

fn queues(call: &Call) -> Result<Vec<QueueName>, Error> {
    let Some(queues) = call.array(1) else { return Ok(Vec::new()) };
    if queues.is_empty() {
        return Err(Error::Empty { name: "queues" });
    }
    if queues.len() > MAX_QUEUES_PER_WORKER {
        return Err(Error::TooMany { name: "queues", limit: MAX_QUEUES_PER_WORKER, got: queues.len() });
    }
    let name = |(index, queue): (usize, &Option<Datum>)| {
        let queue = queue.ok_or(Error::NullElement { name: "queues", position: index + 1 })?;
        // SAFETY: declared as text[].
        let queue = unsafe { spi::text_from(queue) };
        QueueName::new(&queue).ok_or(Error::QueueName { got: queue.len() })
    };
    queues.iter().enumerate().map(name).collect()
}

/// One weight for each of the queues; none when the worker named none.
fn weights(call: &Call, queues: usize) -> Result<Vec<u16>, Error> {
    let Some(weights) = call.array(11) else { return Ok(Vec::new()) };
    if weights.len() != queues {
        return Err(Error::LengthMismatch {
            name: "weights",
            got: weights.len(),
            other: "queues",
            want: queues,
        });
    }
    let weight =
        |(index, weight): (usize, &Option<Datum>)| {
            let missing = Error::NullElement { name: "weights", position: index + 1 };
            let got = i64::from(weight.ok_or(missing)?.value() as i32);
            let high = i64::from(MAX_WEIGHT);
            u16::try_from(got)
                .ok()
                .filter(|weight| (1..=MAX_WEIGHT).contains(weight))
                .ok_or(Error::OutOfRange { name: "weights", low: 1, high, got })
        };
    weights.iter().enumerate().map(weight).collect()
}

fn kinds(call: &Call) -> Result<Option<Vec<(Kind, i32)>>, Error> {
    let Some(steps) = call.array(2) else { return Ok(None) };
    if steps.len() > MAX_KINDS {
        return Err(Error::TooMany { name: "steps", limit: MAX_KINDS, got: steps.len() });
    }
    let limits = call.array(3);
    if let Some(limits) = limits.as_ref().filter(|limits| limits.len() != steps.len()) {
        return Err(Error::LengthMismatch {
            name: "retry_limits",
            got: limits.len(),
            other: "steps",
            want: steps.len(),
        });
    }
    let kind = |(index, step): (usize, &Option<Datum>)| {
        let step = step.ok_or(Error::NullElement { name: "steps", position: index + 1 })?;
        // SAFETY: declared as text[].
        let step = unsafe { spi::text_from(step) };
        let kind = Kind::parse(&step).ok_or(Error::StepName { got: step })?;
        let limit = limits.as_ref().and_then(|limits| limits[index]).map_or(0, |limit| limit.value() as i32);
        Ok((kind, limit))
    };
    steps.iter().enumerate().map(kind).collect::<Result<_, _>>().map(Some)
}

fn lease(call: &Call) -> Result<Micros, Error> {
    let lease = call.required(4, "lease")?;
    // SAFETY: declared as interval.
    let lease = unsafe { &*lease.cast_mut_ptr::<pg_sys::Interval>() };
    let lease = i64::from(lease.month)
        .saturating_mul(30 * MICROS_PER_DAY)
        .saturating_add(i64::from(lease.day).saturating_mul(MICROS_PER_DAY))
        .saturating_add(lease.time);
    if !(MICROS_PER_SECOND..=MICROS_PER_DAY).contains(&lease) {
        return Err(Error::OutOfRange {
            name: "lease (in seconds)",
            low: 1,
            high: MICROS_PER_DAY / MICROS_PER_SECOND,
            got: lease / MICROS_PER_SECOND,
        });
    }
    Ok(lease)
}

fn held(call: &Call) -> Result<Vec<Held>, Error> {
    let Some(ids) = call.array(7) else { return Ok(Vec::new()) };
    let column = |index: usize, name: &'static str| {
        let values = call.array(index).ok_or(Error::NullArgument { name })?;
        if values.len() != ids.len() {
            return Err(Error::LengthMismatch {
                name,
                got: values.len(),
                other: "held_ids",
                want: ids.len(),
            });
        }
        Ok(values)
    };
    let fences = column(8, "held_fences")?;
    let tokens = column(9, "held_tokens")?;
    let one = |index: usize| {
        let missing = |name| Error::NullElement { name, position: index + 1 };
        // SAFETY: declared as uuid[].
        let id = unsafe { spi::uuid_from(ids[index].ok_or(missing("held_ids"))?) };
        let token = tokens[index].ok_or(missing("held_tokens"))?.value() as i64;
        let fence = fences[index].ok_or(missing("held_fences"))?.value() as i64;
        Ok(Held { claim: Claim { id, token }, fence })
    };
    (0..ids.len()).map(one).collect()
}
