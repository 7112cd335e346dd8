//! What queues say for those of their tasks that do not say it themselves: the policy of retries, the time limit, how long the history keeps them.
//!
//! The table `pg_task.queue` is the truth. A process that hands out tasks or takes results keeps a copy, and a number in shared memory says whether
//! it is still the right one; 0 says that no queue has such settings, and then nothing is looked at or kept.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pg_task_rules::board::ALL_QUEUES;
use pg_task_rules::retry::Policy;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use rustc_hash::FxHashMap;
use serde_json::Map;
use serde_json::Value;

use crate::commit;
use crate::jsonb;
use crate::options;
use crate::queues;
use crate::scheduler::Queues;
use crate::shmem;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Statement;

thread_local! {
    static READ: Statement = const { Statement::new(
        c"SELECT q.name, q.retry, q.timeout, q.retention FROM pg_task.queue AS q \
          WHERE q.retry IS NOT NULL OR q.timeout IS NOT NULL OR q.retention IS NOT NULL",
        &[],
    ) };
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// The copy of this process, and of what it is one.
struct Kept {
    slot: Slot,
    version: u64,
    defaults: Rc<Defaults>,
}

/// The settings of all queues that have some.
pub struct Defaults {
    queues: FxHashMap<String, OfQueue>,
    /// Of every other queue: what is set for all together.
    all: OfQueue,
}

/// What one queue says, or all together where it says nothing.
#[derive(Clone, Default)]
struct OfQueue {
    retry: Option<Value>,
    timeout: Option<Micros>,
    retention: Option<Micros>,
    policy: Option<Policy>,
    /// Retry and timeout as a task would have them in its options: a `jsonb` object, in words so that it is aligned.
    options: Option<Rc<[u64]>>,
}

/// What holds in a database at this moment; none when no queue has such settings.
pub fn of(slot: Slot) -> Option<Rc<Defaults>> {
    let version = slot.control().defaults_version.load(SeqCst);
    if version == 0 {
        return None;
    }
    let kept = KEPT.with_borrow(|kept| {
        let kept = kept.as_ref().filter(|kept| kept.slot == slot && kept.version == version);
        kept.map(|kept| kept.defaults.clone())
    });
    if kept.is_some() {
        return kept;
    }
    let defaults = Rc::new(read());
    // What was read in an old snapshot, or beside changes of this transaction's own, is not what others see.
    // SAFETY: a plain read of this process' transaction state.
    let is_current = unsafe { pg_sys::XactIsoLevel } < pg_sys::XACT_REPEATABLE_READ as i32;
    if is_current && !commit::has_touched_queues() {
        let kept = Kept { slot, version, defaults: defaults.clone() };
        KEPT.set(Some(kept));
    }
    Some(defaults)
}

/// As [`of`], for the database of this process.
pub fn mine() -> Option<Rc<Defaults>> {
    shmem::my_slot().and_then(of)
}

fn read() -> Defaults {
    let mut queues: FxHashMap<String, OfQueue> = FxHashMap::default();
    // Also for those who delete a task and may not read the settings.
    spi::as_owner_of(c"queue", || {
        spi::connected(|spi| {
            let rows = READ.with(|statement| statement.run(spi, &[], false));
            for row in 0..rows.len() {
                let Some(name) = rows.text(row, 1) else { continue };
                // SAFETY: the column is a jsonb.
                let retry = rows.datum(row, 2).and_then(|retry| unsafe { options::read(retry) });
                let (timeout, retention) =
                    (rows.datum(row, 3).map(queues::micros), rows.datum(row, 4).map(queues::micros));
                queues.insert(name, OfQueue { retry, timeout, retention, ..OfQueue::default() });
            }
        });
    });
    let mut all = queues.remove(ALL_QUEUES).unwrap_or_default();
    for queue in queues.values_mut() {
        queue.retry = queue.retry.take().or_else(|| all.retry.clone());
        queue.timeout = queue.timeout.or(all.timeout);
        queue.retention = queue.retention.or(all.retention);
        queue.prepare();
    }
    all.prepare();
    Defaults { queues, all }
}

impl OfQueue {
    fn prepare(&mut self) {
        self.policy = self.retry.as_ref().and_then(|retry| options::policy(retry).ok());
        let mut object = Map::new();
        if let Some(retry) = &self.retry {
            object.insert("retry".to_owned(), retry.clone());
        }
        if let Some(timeout) = self.timeout {
            object.insert("timeout".to_owned(), Value::from(timeout as f64 / 1e6));
        }
        self.options = (!object.is_empty()).then(|| stored(&Value::Object(object)));
    }
}

/// A value as PostgreSQL stores it, in this process' own memory.
fn stored(value: &Value) -> Rc<[u64]> {
    let text = CString::new(value.to_string()).expect("JSON has no zero byte");
    // SAFETY: jsonb_in takes a C string; as many bytes are copied as the header says.
    unsafe {
        let datum =
            pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(Datum::from(text.as_ptr()))]);
        let datum = datum.expect("jsonb_in returns a value").cast_mut_ptr::<pg_sys::varlena>();
        let size = pgrx::varlena::varsize_any(datum);
        let mut words = vec![0_u64; size.div_ceil(size_of::<u64>())];
        std::ptr::copy_nonoverlapping(datum.cast::<u8>(), words.as_mut_ptr().cast::<u8>(), size);
        words.into()
    }
}

impl Defaults {
    fn of(&self, queue: Datum) -> &OfQueue {
        // SAFETY: callers pass a text that stays where it is meanwhile.
        let name = std::str::from_utf8(unsafe { spi::bytes_from(queue) });
        name.ok().and_then(|name| self.queues.get(name)).unwrap_or(&self.all)
    }

    /// The options that a task of a queue, a `text`, is handed out with: its own, a `jsonb`, and what the queue says beside them. They may lie in
    /// this value.
    pub fn options(&self, queue: Datum, own: Option<Datum>) -> Option<Datum> {
        let Some(stored) = &self.of(queue).options else { return own };
        let stored = Datum::from(stored.as_ptr());
        match own {
            None => Some(stored),
            // SAFETY: both are a jsonb object; of a key that both have the second one's value stays.
            Some(own) => unsafe { jsonb::concat(stored, own) },
        }
    }

    /// The policy of a queue's tasks.
    pub fn policy(&self, queue: Datum) -> Option<&Policy> {
        self.of(queue).policy.as_ref()
    }

    /// Which queues keep their history for their own time, by that time.
    pub fn retentions(&self) -> BTreeMap<Micros, Queues> {
        let mut found: BTreeMap<Micros, Queues> = BTreeMap::new();
        let mut named: Vec<(&String, Micros)> =
            self.queues.iter().filter_map(|(name, queue)| Some((name, queue.retention?))).collect();
        named.sort_unstable();
        for (name, retention) in &named {
            found.entry(*retention).or_default().names.push((*name).clone());
        }
        if let Some(retention) = self.all.retention {
            let names = named.iter().map(|(name, _)| (*name).clone()).collect();
            found.entry(retention).or_default().beside = Some(names);
        }
        found
    }

    /// Whether tasks of a queue leave nothing in the history.
    pub fn leaves_no_history(&self, queue: Datum) -> bool {
        self.of(queue).retention == Some(0)
    }
}
