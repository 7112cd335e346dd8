//! Keys of unique tasks that hold nothing any more are removed here, not by those who use keys: their transactions may be long, and would keep
//! the keys of others locked.

use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::background;
use crate::catalog;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::ElementType;
use crate::spi::Statement;

/// Keys that are looked at in one transaction: some milliseconds.
const BATCH: usize = 1_000;

/// The first look after a start, and after the first key was taken.
const FIRST_LOOK: Micros = 5_000_000;

/// Looks keep this distance when all is done, and after an error.
const GAP: Micros = 30_000_000;

/// While there is more, a look may take one part in so many of the scheduler's time.
const SHARE: Micros = 10;

/// Looks begin where the last one ended. What was passed over, or came late, is found this much later.
const FROM_THE_START: Micros = 3_600_000_000;

thread_local! {
    static DUE: Statement = const { Statement::new(
        c"SELECT k.key, k.check_at FROM pg_task.unique_key AS k \
          WHERE k.check_at OPERATOR(pg_catalog.>=) $1 AND k.check_at OPERATOR(pg_catalog.<=) $2 \
          ORDER BY k.check_at LIMIT $3 FOR UPDATE SKIP LOCKED",
        &[pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPTZOID, pg_sys::INT8OID],
    ) };
    // In a snapshot after the locks: what a key stands for is what it stands for now.
    static REMOVE: Statement = const { Statement::new(
        c"DELETE FROM pg_task.unique_key AS k WHERE k.key OPERATOR(pg_catalog.=) ANY ($1) \
            AND (k.expires_at IS NULL OR k.expires_at OPERATOR(pg_catalog.<=) $2) \
            AND (k.scope OPERATOR(pg_catalog.=) 'period' \
                OR NOT EXISTS (SELECT FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) k.task_id))",
        &[pg_sys::TEXTARRAYOID, pg_sys::TIMESTAMPTZOID],
    ) };
    // Seldom for what lives long.
    static KEEP: Statement = const { Statement::new(
        c"UPDATE pg_task.unique_key AS k SET check_at = GREATEST(k.expires_at, $2 OPERATOR(pg_catalog.+) \
              LEAST(GREATEST($2 OPERATOR(pg_catalog.-) k.taken_at, '1 min'::pg_catalog.interval), '1 hour'::pg_catalog.interval)) \
          WHERE k.key OPERATOR(pg_catalog.=) ANY ($1)",
        &[pg_sys::TEXTARRAYOID, pg_sys::TIMESTAMPTZOID],
    ) };
    static NEXT: Statement = const { Statement::new(
        c"SELECT k.check_at FROM pg_task.unique_key AS k WHERE k.check_at OPERATOR(pg_catalog.>=) $1 ORDER BY k.check_at LIMIT 1",
        &[pg_sys::TIMESTAMPTZOID],
    ) };
}

/// When keys are looked at, and from where on.
pub struct Keys {
    /// None while there are no keys.
    at: Option<Micros>,
    /// What was to be checked before this has been.
    mark: Micros,
    from_the_start_at: Micros,
    last_error: String,
}

/// What a look came to.
struct Looked {
    count: usize,
    last: Option<Micros>,
    next: Option<Micros>,
}

impl Keys {
    /// A scheduler that does not know whether there are keys.
    pub fn new(now: Micros) -> Self {
        Self {
            at: Some(now + FIRST_LOOK),
            mark: 0,
            from_the_start_at: now + FROM_THE_START,
            last_error: String::new(),
        }
    }

    /// When there will be something to look at.
    pub fn again_at(&self) -> Option<Micros> {
        self.at
    }

    /// Removes keys that hold nothing any more, if it is time. An error is told once; the keys stay.
    pub fn sweep(&mut self, slot: Slot) {
        let now = background::now();
        if self.at.is_none() && slot.control().has_keys.swap(false, SeqCst) {
            self.at = Some(now + FIRST_LOOK);
        }
        if self.at.is_none_or(|at| at > now) {
            return;
        }
        slot.control().has_keys.store(false, SeqCst);
        if now >= self.from_the_start_at {
            (self.mark, self.from_the_start_at) = (0, now + FROM_THE_START);
        }
        let mark = self.mark;
        match background::transaction(|| look(mark, now)) {
            Ok(looked) => {
                self.last_error.clear();
                self.mark = looked.last.unwrap_or(mark);
                let cost = background::now() - now;
                self.at = if looked.count == BATCH {
                    Some(now + (cost * SHARE).max(100_000))
                } else {
                    // What was passed over is found when it is looked at from the start.
                    let next = looked.next.or((looked.count > 0).then_some(self.from_the_start_at));
                    next.map(|next| next.max(now + GAP))
                };
            }
            Err(error) => {
                self.at = Some(now + GAP);
                if error != self.last_error {
                    pgrx::warning!("pg_task scheduler: keys of unique tasks could not be removed: {error}");
                    slot.control().set_error(&error, now);
                    self.last_error = error;
                }
            }
        }
    }
}

fn look(mark: Micros, now: Micros) -> Looked {
    // An extension of an older version than the library has no such table.
    if catalog::find(c"unique_key").is_none() {
        return Looked { count: 0, last: None, next: None };
    }
    spi::connected(|spi| {
        let arguments = [spi::int(mark), spi::int(now), spi::int(BATCH as i64)];
        let rows = DUE.with(|statement| statement.run(spi, &arguments, false));
        let mut keys: Vec<Datum> = (0..rows.len()).filter_map(|row| rows.datum(row, 1)).collect();
        let last = (0..rows.len()).filter_map(|row| rows.int8(row, 2)).max();
        if !keys.is_empty() {
            remove(spi, &mut keys, now);
        }
        let from = spi::int(last.unwrap_or(mark));
        let next = NEXT.with(|statement| statement.run(spi, &[from], false));
        Looked { count: keys.len(), last, next: if !next.is_empty() { next.int8(0, 1) } else { None } }
    })
}

fn remove(spi: &Connected, keys: &mut [Datum], now: Micros) {
    let arguments = [spi::array(keys, ElementType::Text), spi::int(now)];
    REMOVE.with(|statement| statement.run(spi, &arguments, false));
    KEEP.with(|statement| statement.run(spi, &arguments, false));
}
