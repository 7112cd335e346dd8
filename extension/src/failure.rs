//! Failures of steps: what the task's own policy makes of one, and the entry that it leaves in the row.

use std::ffi::CStr;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::place::Place;
use pg_task_rules::retry::Policy;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use serde_json::Value;
use serde_json::json;

use crate::defaults::Defaults;
use crate::guc;
use crate::jsonb;
use crate::options;
use crate::spi;
use crate::task_table::Column;
use crate::task_table::TaskTable;
use crate::uuid7;

/// What is kept of an error's text in the history, in characters. The column `error` of a parked task has the whole.
const ERROR_CHARS: usize = 1_000;

/// A row as it was before the failure.
pub struct Failing {
    /// The task's own policy, or its queue's.
    pub policy: Policy,
    /// Attempts that were counted before.
    pub tried: i32,
    /// Whether this attempt was counted when it was claimed, and memory has forgotten it.
    pub is_counted: bool,
    step: String,
    /// JSON.
    errors: Option<String>,
    /// The table is that of an older version.
    keeps_errors: bool,
}

impl Failing {
    /// Reads the row, if it is still the one that was handed out.
    pub fn read(
        table: &mut TaskTable,
        id: &TaskId,
        place: Place,
        fence: i64,
        defaults: Option<&Defaults>,
    ) -> Option<Self> {
        let keeps_errors = table.has_all_columns();
        let row = table.row(id, place)?;
        if row.int8(Column::Fence) != Some(fence) {
            return None;
        }
        let of_queue = || defaults?.policy(row.datum(Column::Queue)?).cloned();
        // SAFETY: the columns are a jsonb each; what is read of them is copied.
        let (step, errors, own) = unsafe {
            let name = row.datum(Column::Step).and_then(|step| jsonb::step_name(step));
            (
                name.map(|name| name.label().as_str().to_owned()).unwrap_or_default(),
                row.datum(Column::Errors).map(|errors| jsonb::text(errors)),
                row.datum(Column::Options).and_then(|options| options::policy_of(options)),
            )
        };
        Some(Self {
            policy: own.or_else(of_queue).unwrap_or(Policy::NONE),
            tried: row.int4(Column::Tried).unwrap_or(0),
            is_counted: row.int8(Column::LockedAt).is_some_and(|at| row.int8(Column::UpdatedAt) == Some(at)),
            step,
            errors,
            keeps_errors,
        })
    }

    /// The column `errors` after the failure of an attempt; none when it stays as it is.
    pub fn errors_after(&self, attempt: i32, error: Option<&str>, worker: &WorkerId) -> Option<String> {
        let most = guc::ERROR_HISTORY.get() as usize;
        if most == 0 || !self.keeps_errors {
            return None;
        }
        let kept = self.errors.as_deref().map(serde_json::from_str);
        let mut kept: Vec<Value> = kept.and_then(Result::ok).unwrap_or_default();
        kept.push(json!({
            "at": timestamp(spi::transaction_time()),
            "attempt": attempt,
            "step": self.step,
            "error": error.map(shortened),
            "worker": uuid7::text(worker),
        }));
        kept.drain(..kept.len().saturating_sub(most));
        Some(Value::from(kept).to_string())
    }
}

/// A moment as JSON has it, in UTC.
fn timestamp(moment: Micros) -> String {
    const LEN: usize = pg_sys::MAXDATELEN as usize + 1;
    let mut buffer = [0; LEN];
    let utc = 0;
    // SAFETY: the buffer has the length that the function asks for, and what it writes ends in a zero byte.
    unsafe {
        pg_sys::JsonEncodeDateTime(buffer.as_mut_ptr(), Datum::from(moment), pg_sys::TIMESTAMPTZOID, &utc);
        CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned()
    }
}

fn shortened(error: &str) -> String {
    match error.char_indices().nth(ERROR_CHARS) {
        // jsonb has no zero bytes.
        Some((at, _)) => format!("{}…", &error[..at]),
        None => error.to_owned(),
    }
}

/// A number from 0 to 1, for jitter.
pub fn random() -> f64 {
    let id = uuid7::new();
    f64::from(u32::from_be_bytes([id[12], id[13], id[14], id[15]])) / (f64::from(u32::MAX) + 1.0)
}
