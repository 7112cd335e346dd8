//! The settings of queues, as the scheduler holds them: read at its start before anything is handed out, and after each change.
//!
//! A change reaches the board with the commit that makes it; reading afterwards brings what no commit callback could: a name for which there was
//! no place, a transaction that was prepared, a table that was emptied. When the table cannot be read the last settings go on.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::ALL_QUEUES;
use pg_task_rules::board::KEY_WINDOW;
use pg_task_rules::board::MAX_KEY_WEIGHT;
use pg_task_rules::board::QueueRule;
use pg_task_rules::board::turn_beside;
use pg_task_rules::names::Key;
use pg_task_rules::names::Kind;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;

use crate::background;
use crate::catalog;
use crate::queues;
use crate::shmem;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Statement;

/// After this time settings are read again that could not be read, or for which there was no place.
const AGAIN: Micros = 1_000_000;

/// Tasks of one queue that count as running, after a start, because their rows say so.
const MAX_HELD: i32 = 100_000;

thread_local! {
    static RULES: Statement = const { Statement::new(
        c"SELECT q.name, q.paused_at IS NOT NULL, q.concurrency, q.rate, q.rate_interval, q.burst, \
            q.key_concurrency, q.key_rate, q.key_rate_interval, q.key_burst, \
            q.retry IS NOT NULL OR q.timeout IS NOT NULL OR q.retention IS NOT NULL FROM pg_task.queue AS q",
        &[],
    ) };
    static HELD: Statement = const { Statement::new(
        c"SELECT t.id FROM pg_task.task AS t WHERE t.error IS NULL AND t.locked_by IS NOT NULL \
            AND t.queue OPERATOR(pg_catalog.=) $1 AND t.wakeup_at OPERATOR(pg_catalog.<=) pg_catalog.now() LIMIT $2",
        &[pg_sys::TEXTOID, pg_sys::INT4OID],
    ) };
    static HELD_BY_KEY: Statement = const { Statement::new(
        c"SELECT t.id, pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'key') COLLATE \"C\", \
            pg_catalog.hashtextextended(t.queue, 0)) FROM pg_task.task AS t \
          WHERE t.error IS NULL AND t.locked_by IS NOT NULL AND t.options OPERATOR(pg_catalog.?) 'key' \
            AND t.queue OPERATOR(pg_catalog.=) $1 AND t.wakeup_at OPERATOR(pg_catalog.<=) pg_catalog.now() LIMIT $2",
        &[pg_sys::TEXTOID, pg_sys::INT4OID],
    ) };
    static WEIGHTS: Statement = const { Statement::new(
        c"SELECT q.name, pg_catalog.hashtextextended(w.key COLLATE \"C\", pg_catalog.hashtextextended(q.name, 0)), \
            CASE WHEN pg_catalog.jsonb_typeof(w.value) OPERATOR(pg_catalog.=) 'number' \
                THEN LEAST(GREATEST(w.value::pg_catalog.numeric, 1), 1000)::pg_catalog.int4 END \
          FROM pg_task.queue AS q CROSS JOIN LATERAL pg_catalog.jsonb_each(q.key_weights) AS w \
          WHERE pg_catalog.jsonb_typeof(q.key_weights) OPERATOR(pg_catalog.=) 'object'",
        &[],
    ) };
    static STEP_LIMITS: Statement = const { Statement::new(
        c"SELECT s.step, s.concurrency FROM pg_task.step_limit AS s", &[],
    ) };
    static HELD_AT_STEP: Statement = const { Statement::new(
        c"SELECT t.id FROM pg_task.task AS t WHERE t.error IS NULL AND t.locked_by IS NOT NULL \
            AND t.wakeup_at OPERATOR(pg_catalog.<=) pg_catalog.now() \
            AND t.step OPERATOR(pg_catalog.->) $1 OPERATOR(pg_catalog.?) $2 LIMIT $3",
        &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::INT4OID],
    ) };
    static HELD_BY_ANY: Statement = const { Statement::new(
        c"SELECT t.id FROM pg_task.task AS t WHERE t.error IS NULL AND t.locked_by IS NOT NULL \
            AND t.wakeup_at OPERATOR(pg_catalog.<=) pg_catalog.now() LIMIT $1",
        &[pg_sys::INT4OID],
    ) };
}

/// How long the turns of keys are, in queues in which keys have weights.
#[derive(Default)]
pub struct Turns {
    queues: BTreeMap<QueueName, u32>,
    keys: HashMap<Key, u32>,
}

impl Turns {
    fn new(weights: &[(QueueName, Key, u32)]) -> Self {
        let mut turns = Self::default();
        for (queue, _, weight) in weights {
            let largest = turns.queues.entry(*queue).or_insert(1);
            *largest = (*largest).max(*weight);
        }
        turns.queues.values_mut().for_each(|largest| *largest = turn_beside(*largest));
        for (queue, key, weight) in weights {
            turns.keys.insert(*key, turns.queues[queue] * weight);
        }
        turns
    }

    /// Of a key of this queue.
    pub fn of(&self, key: Key, queue: &QueueName) -> u32 {
        if self.queues.is_empty() {
            return KEY_WINDOW;
        }
        let own = self.keys.get(&key).copied();
        own.unwrap_or_else(|| self.queues.get(queue).copied().unwrap_or(KEY_WINDOW))
    }

    /// Of a key of any queue, or longer.
    pub fn at_most(&self, key: Key) -> u32 {
        self.keys.get(&key).copied().unwrap_or(KEY_WINDOW)
    }
}

/// What is set, and what of it is not on the board.
#[derive(Default)]
pub struct Rules {
    /// How long the turns of keys are.
    pub turns: Turns,
    unplaced: BTreeSet<QueueName>,
    again_at: Option<Micros>,
    last_error: String,
}

/// What the table says.
struct Found {
    rules: BTreeMap<QueueName, QueueRule>,
    /// Whether some queue says something for its tasks.
    has_defaults: bool,
    /// Tasks of limited queues that run as their rows say.
    held: Vec<(QueueName, Vec<TaskId>)>,
    steps: Vec<(Kind, u32, Vec<TaskId>)>,
    held_by_key: BTreeMap<Key, Vec<TaskId>>,
    /// Of keys, in their queues.
    weights: Vec<(QueueName, Key, u32)>,
}

impl Rules {
    /// Reads the settings and puts them on the board.
    pub fn load(&mut self, slot: Slot) -> Result<(), String> {
        let version = || slot.control().rules_version.load(SeqCst);
        loop {
            slot.control().rules_stale.store(false, SeqCst);
            let before = version();
            let found = background::transaction(read)?;
            let now = background::now();
            let unplaced = slot.with_board(|board| {
                // A commit since has put more recent settings on the board than those that were read.
                if version() != before {
                    return None;
                }
                board.set_settling(shmem::settled_at(), shmem::trust_locks_until());
                let gone: Vec<QueueName> =
                    board.ruled().filter(|name| !found.rules.contains_key(name)).collect();
                for name in gone {
                    board.set_rule(&name, None, now);
                }
                let rules = found.rules.iter();
                let unplaced: BTreeSet<QueueName> = rules
                    .filter(|(name, rule)| !board.set_rule(name, Some(rule), now))
                    .map(|(name, _)| *name)
                    .collect();
                for (name, ids) in &found.held {
                    board.set_held(name, ids);
                }
                for (key, ids) in &found.held_by_key {
                    board.set_held_of_key(*key, ids);
                }
                let kinds: Vec<Kind> = found.steps.iter().map(|(kind, ..)| *kind).collect();
                board.keep_kind_limits(&kinds);
                for (kind, limit, held) in &found.steps {
                    board.set_kind_limit(*kind, Some(*limit));
                    board.set_held_of_kind(*kind, held);
                }
                slot.control().limits_steps.store(!kinds.is_empty(), SeqCst);
                let of_defaults = if found.has_defaults {
                    slot.control().rules_version.fetch_add(1, SeqCst) + 1
                } else {
                    0
                };
                slot.control().defaults_version.store(of_defaults, SeqCst);
                Some(unplaced)
            });
            if let Some(unplaced) = unplaced {
                self.again_at = (!unplaced.is_empty()).then_some(now + AGAIN);
                if !unplaced.is_empty() && self.unplaced.is_empty() {
                    let count = unplaced.len();
                    pgrx::warning!(
                        "pg_task scheduler: {count} queues have settings for which memory has no place; their tasks wait"
                    );
                }
                self.unplaced = unplaced;
                self.turns = Turns::new(&found.weights);
                return Ok(());
            }
        }
    }

    /// Reads the settings again if something has changed; whether it did. An error is told once; the last settings stay.
    pub fn refresh(&mut self, slot: Slot) -> bool {
        let now = background::now();
        let stale = slot.control().rules_stale.load(SeqCst);
        if !stale && self.again_at.is_none_or(|at| at > now) {
            return false;
        }
        match self.load(slot) {
            Ok(()) => {
                self.last_error.clear();
                true
            }
            Err(error) => {
                self.again_at = Some(now + AGAIN);
                if error != self.last_error {
                    pgrx::warning!(
                        "pg_task scheduler: the settings of queues could not be read, the last ones go on: {error}"
                    );
                    slot.control().set_error(&error, now);
                    self.last_error = error;
                }
                stale
            }
        }
    }

    /// What is to be tried again is tried at once.
    pub fn look_again(&mut self) {
        self.again_at = self.again_at.map(|_| Micros::MIN);
    }

    /// When the settings are read again, although nothing has changed.
    pub fn again_at(&self) -> Option<Micros> {
        self.again_at
    }

    /// Whether the queue has settings for which the board has no place: nothing of it is made ready.
    pub fn is_unplaced(&self, queue: &QueueName) -> bool {
        !self.unplaced.is_empty() && self.unplaced.contains(queue)
    }
}

fn read() -> Found {
    let mut found = Found {
        rules: BTreeMap::new(),
        has_defaults: false,
        held: Vec::new(),
        steps: Vec::new(),
        held_by_key: BTreeMap::new(),
        weights: Vec::new(),
    };
    // An extension of an older version than the library has no such table.
    if catalog::find(c"queue").is_none() {
        return found;
    }
    spi::connected(|spi| {
        let rows = RULES.with(|statement| statement.run(spi, &[], true));
        for row in 0..rows.len() {
            let Some(name) = rows.text(row, 1).as_deref().and_then(QueueName::new) else { continue };
            let rule = queues::rule(
                rows.bool(row, 2),
                rows.int4(row, 3),
                queues::rate(rows.int4(row, 4), rows.datum(row, 5), rows.int4(row, 6)),
                rows.int4(row, 7),
                queues::rate(rows.int4(row, 8), rows.datum(row, 9), rows.int4(row, 10)),
            );
            found.has_defaults |= rows.bool(row, 11);
            // What only says something for its tasks needs no gate.
            if rule != QueueRule::default() {
                found.rules.insert(name, rule);
            }
        }
        let rows = WEIGHTS.with(|statement| statement.run(spi, &[], true));
        for row in 0..rows.len() {
            let Some(name) = rows.text(row, 1).as_deref().and_then(QueueName::new) else { continue };
            if let (Some(hash), Some(weight)) = (rows.int8(row, 2), rows.int4(row, 3)) {
                let weight = (weight.max(1) as u32).min(MAX_KEY_WEIGHT);
                found.weights.push((name, Key(hash), weight));
            }
        }
        let are_trusted = background::now() < shmem::trust_locks_until();
        if catalog::find(c"step_limit").is_some() {
            let rows = STEP_LIMITS.with(|statement| statement.run(spi, &[], true));
            let limits = (0..rows.len()).filter_map(|row| Some((rows.text(row, 1)?, rows.int4(row, 2)?)));
            for (step, limit) in limits.collect::<Vec<_>>() {
                let Some(kind) = Kind::parse(&step) else { continue };
                let held = if are_trusted { held_at_step(spi, &step) } else { Vec::new() };
                found.steps.push((kind, limit.max(1) as u32, held));
            }
        }
        if are_trusted {
            let limited = found.rules.iter().filter(|(_, rule)| rule.concurrency.is_some());
            found.held = limited.map(|(name, _)| (*name, held(spi, name))).collect();
            for (name, _) in found.rules.iter().filter(|(_, rule)| rule.key_concurrency.is_some()) {
                let arguments = [spi::text(name.as_str()), spi::int(MAX_HELD)];
                let rows = HELD_BY_KEY.with(|statement| statement.run(spi, &arguments, true));
                for row in 0..rows.len() {
                    if let (Some(id), Some(hash)) = (rows.uuid(row, 1), rows.int8(row, 2)) {
                        found.held_by_key.entry(Key(hash)).or_default().push(id);
                    }
                }
            }
        }
    });
    found
}

fn held_at_step(spi: &Connected, step: &str) -> Vec<TaskId> {
    let Some((task, step)) = step.split_once('/') else { return Vec::new() };
    let arguments = [spi::text(task), spi::text(step), spi::int(MAX_HELD)];
    let rows = HELD_AT_STEP.with(|statement| statement.run(spi, &arguments, true));
    (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect()
}

fn held(spi: &Connected, queue: &QueueName) -> Vec<TaskId> {
    let limit = spi::int(MAX_HELD);
    let rows = if queue.as_str() == ALL_QUEUES {
        HELD_BY_ANY.with(|statement| statement.run(spi, &[limit], true))
    } else {
        HELD.with(|statement| statement.run(spi, &[spi::text(queue.as_str()), limit], true))
    };
    (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect()
}
