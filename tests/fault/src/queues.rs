//! The queues that have settings, and what these are.

use crate::ledger::Moment;

/// The queue whose keys have a limit.
pub const TENANTS: &str = "tenants";

/// The limit of each key.
pub const TENANT_LIMIT: usize = 2;

/// The queue that has a rate, and one for each of its keys.
pub const METERED: &str = "metered";

/// The queue that says what becomes of its tasks' failures.
pub const HEIRS: &str = "heirs";

/// The same, and its tasks leave no history.
pub const FORGETFUL: &str = "forgetful";

/// The retries that these two say, by turns: fewer than their tasks may need, and enough.
pub const HEIR_LIMITS: &[i32] = &[0, 5];

/// So many hand-outs in a second, and so many at once.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    /// Each second brings so many.
    pub rate: u32,
    /// So many gather.
    pub burst: u32,
}

/// The rate of the queue.
pub const QUEUE_METER: Meter = Meter { rate: 12, burst: 4 };

/// The rate of each of its keys.
pub const KEY_METER: Meter = Meter { rate: 4, burst: 2 };

impl Meter {
    /// How many hand-outs there may be in a stretch of time, in hundredths of a second.
    pub fn most(&self, time: Moment) -> f64 {
        f64::from(self.burst) + f64::from(self.rate) * time as f64 / 100.0
    }
}

/// The statements that set what stays as it is. Whoever runs them again changes nothing.
pub fn lasting() -> [String; 2] {
    let (queue, key) = (QUEUE_METER, KEY_METER);
    [
        format!("SELECT pg_task.set_queue('{TENANTS}', key_concurrency => {TENANT_LIMIT})"),
        format!(
            "SELECT pg_task.set_queue('{METERED}', rate => {}, burst => {}, key_rate => {}, key_burst => {})",
            queue.rate, queue.burst, key.rate, key.burst
        ),
    ]
}

/// The statement that lets heirs have so many retries, and so many milliseconds for an attempt.
pub fn for_heirs(limit: i32, timeout: u32) -> String {
    let set = |queue: &str, retention: &str| {
        format!(
            "pg_task.set_queue('{queue}', retry => '{{\"limit\": {limit}, \"delay\": \"40 ms\"}}', timeout => '{timeout} ms',
                retention => '{retention}')"
        )
    };
    format!("SELECT {}, {}", set(HEIRS, "1 day"), set(FORGETFUL, "0"))
}
