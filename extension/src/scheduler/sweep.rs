//! Rows of the history that their queues keep for a shorter time than the partitions stay: deleted before, some at a time, out of one partition at
//! a time. Where no queue says so nothing is looked at.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pgrx::pg_sys;

use crate::background;
use crate::catalog;
use crate::catalog::Lock;
use crate::defaults;
use crate::history::PARTS;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::ElementType;

/// Rows that are deleted in one transaction.
const BATCH: usize = 5_000;

/// What is left over comes soon: the scheduler does its other work first.
const SOON: Micros = 10_000;

/// Rows may become visible so long after the time that they bear, or for the length of a pace; later ones go with their partition.
const SLACK: Micros = 10_000_000;

/// So long waits what somebody has locked, or what failed.
const AGAIN: Micros = 2_000_000;

/// A group is looked at after a tenth of its time, within these bounds.
const PACE: std::ops::RangeInclusive<Micros> = 1_000_000..=600_000_000;

const TYPES: [pg_sys::Oid; 6] = [
    pg_sys::TEXTARRAYOID,
    pg_sys::BOOLOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::INT8OID,
];

/// Which queues keep their rows for one time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Queues {
    /// Their names.
    pub names: Vec<String>,
    /// And all that are not among these: what is set for all queues together.
    pub beside: Option<Vec<String>>,
}

/// What the scheduler knows of the history of queues.
#[derive(Default)]
pub struct Sweep {
    /// Of the settings.
    version: u64,
    groups: BTreeMap<Micros, Group>,
    /// `history_written` at the last look, and when it was found changed.
    seen: u64,
    written_at: Micros,
    last_error: String,
}

/// Queues with the same retention.
struct Group {
    queues: Queues,
    /// Rows up to here are gone.
    mark: Micros,
    /// Rows up to here go now.
    until: Micros,
    /// The next partition.
    part: usize,
    next_at: Micros,
}

impl Sweep {
    /// Deletes some rows if it is time. An error is told once.
    pub fn tend(&mut self, slot: Slot) {
        let version = slot.control().defaults_version.load(SeqCst);
        if version == 0 && self.version == 0 {
            return;
        }
        let now = background::now();
        let written = slot.control().history_written.load(Relaxed);
        if written != self.seen || self.written_at == 0 {
            (self.seen, self.written_at) = (written, now);
            // Of a queue that keeps nothing none is written any more.
            for (retention, group) in self.groups.iter_mut().filter(|(retention, _)| **retention > 0) {
                group.next_at = group.next_at.min(now + pace(*retention));
            }
        }
        let result = if version == self.version {
            let Some((&retention, group)) = self.groups.iter_mut().find(|(_, group)| group.next_at <= now)
            else {
                return;
            };
            let result = group.go_on(retention, now, self.written_at);
            if result.is_err() {
                group.next_at = now + AGAIN;
            }
            result
        } else {
            self.read(slot, version)
        };
        match result {
            Ok(()) => self.last_error.clear(),
            Err(error) if error != self.last_error => {
                pgrx::warning!(
                    "pg_task scheduler: the history of a queue was not tidied up, tried again later: {error}"
                );
                slot.control().set_error(&error, now);
                self.last_error = error;
            }
            Err(_) => {}
        }
    }

    /// When there may be something to do.
    pub fn next_look(&self) -> Option<Micros> {
        self.groups.values().map(|group| group.next_at).min()
    }

    /// The settings have changed. What they leave as it was goes on.
    fn read(&mut self, slot: Slot, version: u64) -> Result<(), String> {
        let queues = background::transaction(|| defaults::of(slot).map(|defaults| defaults.retentions()))?;
        self.version = version;
        let mut before = std::mem::take(&mut self.groups);
        for (retention, queues) in queues.unwrap_or_default() {
            let group = before.remove(&retention).filter(|group| group.queues == queues);
            let new = || Group { queues, mark: Micros::MIN, until: 0, part: 0, next_at: 0 };
            self.groups.insert(retention, group.unwrap_or_else(new));
        }
        Ok(())
    }
}

fn pace(retention: Micros) -> Micros {
    (retention / 10).clamp(*PACE.start(), *PACE.end())
}

impl Group {
    fn go_on(&mut self, retention: Micros, now: Micros, written_at: Micros) -> Result<(), String> {
        if self.part == 0 {
            self.until = now - retention;
        }
        let (queues, part, after, until) = (&self.queues, self.part, self.mark, self.until);
        let deleted = background::transaction(|| delete(part, queues, after, until))?;
        self.next_at = match deleted {
            None => now + AGAIN,
            Some(BATCH) => now + SOON,
            Some(_) if part + 1 < PARTS.len() => {
                self.part += 1;
                now + SOON
            }
            Some(_) => {
                self.part = 0;
                self.mark = until - pace(retention).max(SLACK);
                // When there are no younger rows either, the next one that is written begins anew.
                let is_done = retention == 0 || until >= written_at;
                if is_done { Micros::MAX } else { now + pace(retention) }
            }
        };
        Ok(())
    }
}

/// Deletes rows of a partition; none of those that somebody else has locked. None when somebody has locked the whole partition, for whom nobody
/// else is to wait.
fn delete(part: usize, queues: &Queues, after: Micros, until: Micros) -> Option<usize> {
    if catalog::try_lock(PARTS[part], pg_sys::RowExclusiveLock) != Lock::Taken {
        return None;
    }
    let statement = CString::new(format!(
        "DELETE FROM pg_task.history_{part} AS h WHERE h.ctid OPERATOR(pg_catalog.=) ANY (ARRAY( \
            SELECT x.ctid FROM pg_task.history_{part} AS x \
            WHERE x.ended_at OPERATOR(pg_catalog.>) $4 AND x.ended_at OPERATOR(pg_catalog.<=) $5 \
              AND (x.queue OPERATOR(pg_catalog.=) ANY ($1) OR ($2 AND x.queue OPERATOR(pg_catalog.<>) ALL ($3))) \
            LIMIT $6 FOR UPDATE SKIP LOCKED))"
    ));
    let texts =
        |names: &[String]| spi::nullable_array(names.iter().map(|name| spi::text(name)), ElementType::Text);
    let arguments = [
        texts(&queues.names),
        spi::bool(queues.beside.is_some()),
        texts(queues.beside.as_deref().unwrap_or_default()),
        spi::int(after),
        spi::int(until),
        spi::int(BATCH as i64),
    ];
    let statement = statement.expect("no zero byte");
    Some(spi::connected(|spi| spi::run_once(spi, &statement, &TYPES, &arguments, false).len()))
}
