//! Which partition of the history is in use, and when the next one takes its place: after a seventh of the retention, or when an eighth of the
//! size is reached. The next one is emptied before, so that it holds the oldest rows at any time.
//!
//! Nothing here holds anybody up or stops the scheduler: a partition that somebody reads is left for later, and so is whatever fails.

use std::ffi::CString;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pgrx::pg_sys;

use crate::background;
use crate::catalog;
use crate::catalog::Lock;
use crate::guc;
use crate::history::PARTS;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Statement;

/// While rows are written the size is looked at so often; so long waits what could not be done.
const LOOK_EVERY: Micros = 2_000_000;

const SECOND: Micros = 1_000_000;

thread_local! {
    static KEPT: Statement = const { Statement::new(c"SELECT s.last_value FROM pg_task.history_part AS s", &[]) };
    static KEEP: Statement = const { Statement::new(
        c"SELECT pg_catalog.setval('pg_task.history_part'::pg_catalog.regclass, $1)", &[pg_sys::INT8OID],
    ) };
    static SIZE: Statement = const { Statement::new(
        c"SELECT pg_catalog.pg_total_relation_size(c.oid) FROM pg_catalog.pg_class AS c \
          WHERE c.relname OPERATOR(pg_catalog.=) $1::pg_catalog.name AND c.relnamespace OPERATOR(pg_catalog.=) 'pg_task'::pg_catalog.regnamespace",
        &[pg_sys::TEXTOID],
    ) };
    static IS_EMPTY: Statement = const { Statement::new(
        c"SELECT COALESCE(pg_catalog.sum(pg_catalog.pg_relation_size(i.inhrelid)), 0) OPERATOR(pg_catalog.=) 0::pg_catalog.numeric \
          FROM pg_catalog.pg_inherits AS i WHERE i.inhparent OPERATOR(pg_catalog.=) 'pg_task.history'::pg_catalog.regclass",
        &[],
    ) };
}

/// What the scheduler knows of the history.
#[derive(Default)]
pub struct Retention {
    /// Nothing until it was read.
    current: Option<Current>,
    look_at: Micros,
    /// `history_written` at the last look.
    seen: u64,
    last_error: String,
}

#[derive(Clone, Copy)]
struct Current {
    part: usize,
    since: Micros,
}

impl Current {
    /// As the sequence has it.
    fn from_kept(kept: i64) -> Self {
        Self { part: (kept & 7) as usize, since: (kept >> 3).saturating_mul(SECOND) }
    }

    fn to_kept(self) -> i64 {
        (self.since / SECOND) << 3 | self.part as i64
    }
}

impl Retention {
    /// Goes on to the next partition if it is time. An error is told once.
    pub fn tend(&mut self, slot: Slot) {
        let now = background::now();
        if now < self.next_look(slot).unwrap_or(Micros::MAX) {
            return;
        }
        self.seen = slot.control().history_written.load(Relaxed);
        self.look_at = now + LOOK_EVERY;
        let known = self.current;
        match background::transaction(|| look(known, now)) {
            Ok(current) => {
                self.last_error.clear();
                self.current = current;
                match current {
                    Some(current) => slot.control().history_part.store(current.part as u32, SeqCst),
                    // Until the extension is another one.
                    None => self.look_at = Micros::MAX,
                }
            }
            Err(error) if error != self.last_error => {
                pgrx::warning!(
                    "pg_task scheduler: the history was not tidied up, tried again later: {error}"
                );
                slot.control().set_error(&error, now);
                self.last_error = error;
            }
            Err(_) => {}
        }
    }

    /// When there may be something to do.
    pub fn next_look(&self, slot: Slot) -> Option<Micros> {
        let Some(current) = self.current else { return Some(self.look_at) };
        let written = slot.control().history_written.load(Relaxed) != self.seen;
        let by_size = (written && guc::HISTORY_MAX_SIZE.get() > 0).then_some(self.look_at);
        let by_age = period().map(|period| (current.since + period).max(self.look_at));
        by_size.into_iter().chain(by_age).min()
    }

    /// The extension may be another one.
    pub fn forget(&mut self) {
        self.current = None;
        self.look_at = 0;
    }
}

/// How long a partition is in use.
fn period() -> Option<Micros> {
    let retention = Micros::from(guc::HISTORY_RETENTION.get()) * SECOND;
    (retention > 0).then_some(retention / (PARTS.len() as Micros - 1))
}

/// Which partition is in use from now on; none when the extension is of an older version and has no history.
fn look(known: Option<Current>, now: Micros) -> Option<Current> {
    catalog::find(PARTS[0])?;
    spi::connected(|spi| {
        let mut current = known.unwrap_or_else(|| {
            Current::from_kept(KEPT.with(|statement| statement.run(spi, &[], true)).int8(0, 1).unwrap_or(0))
        });
        if current.since == 0 || current.since > now + SECOND {
            // A new one, or a clock that was set back.
            current.since = now;
            keep(spi, current);
        }
        let mut turns = period().map_or(0, |period| (now - current.since) / period);
        if turns > 0 && IS_EMPTY.with(|statement| statement.run(spi, &[], true)).bool(0, 1) {
            // Nothing is written when there is nothing to forget.
            return Some(Current { since: now, ..current });
        }
        let limit = i64::from(guc::HISTORY_MAX_SIZE.get()) * (1 << 20) / PARTS.len() as i64;
        if turns == 0 && limit > 0 && size(spi, current.part) >= limit {
            turns = 1;
        }
        for _ in 0..turns.min(PARTS.len() as i64) {
            let next = (current.part + 1) % PARTS.len();
            if !empty(next) {
                break;
            }
            current = Current { part: next, since: now };
            keep(spi, current);
        }
        Some(current)
    })
}

fn keep(spi: &Connected, current: Current) {
    KEEP.with(|statement| statement.run(spi, &[spi::int(current.to_kept())], false));
}

fn size(spi: &Connected, part: usize) -> i64 {
    let name = spi::text(PARTS[part].to_str().unwrap_or_default());
    SIZE.with(|statement| statement.run(spi, &[name], true)).int8(0, 1).unwrap_or(0)
}

/// Empties a partition; not when somebody else has a lock of it, for whom nobody else is to wait.
fn empty(part: usize) -> bool {
    if catalog::try_lock(PARTS[part], pg_sys::AccessExclusiveLock) != Lock::Taken {
        return false;
    }
    let statement = CString::new(format!("TRUNCATE pg_task.history_{part}")).expect("no zero byte");
    // SAFETY: connected to SPI.
    let code = unsafe { pg_sys::SPI_execute(statement.as_ptr(), false, 0) };
    assert!(code >= 0, "SPI_execute failed: {code}");
    true
}
