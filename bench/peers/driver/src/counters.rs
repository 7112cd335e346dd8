//! What steps touch: a counter, a histogram, and the clock.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use hdrhistogram::Histogram;
use tokio::sync::Notify;

static RAN: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicU64 = AtomicU64::new(u64::MAX);
static MARK_EVERY: AtomicU64 = AtomicU64::new(u64::MAX);
static MARKS: Mutex<Vec<i64>> = Mutex::new(Vec::new());
static REACHED: Notify = Notify::const_new();
static LATENCY: Mutex<Option<Histogram<u64>>> = Mutex::new(None);

/// Microseconds since 1970. All measured processes share the machine, and so this clock, with the server too.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A step has run.
pub fn ran() {
    let ran = RAN.fetch_add(1, Relaxed) + 1;
    if ran.is_multiple_of(MARK_EVERY.load(Relaxed)) {
        MARKS.lock().expect("no holder of the lock panics").push(now_us());
    }
    if ran == TARGET.load(Relaxed) {
        REACHED.notify_one();
    }
}

/// A step has started that was asked for, or due, at `at_us`.
pub fn started(at_us: i64) {
    let late = u64::try_from(now_us() - at_us).unwrap_or(0);
    LATENCY
        .lock()
        .expect("no holder of the lock panics")
        .get_or_insert_with(histogram)
        .saturating_record(late);
    ran();
}

/// From one microsecond to an hour, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are valid")
}

/// Sets what is waited for.
pub(crate) fn expect(steps: u64, marks: u64) {
    MARK_EVERY.store((steps / marks.max(1)).max(1), Relaxed);
    TARGET.store(steps, Relaxed);
}

/// Sets one step more than have run as what is waited for.
pub(crate) fn expect_one() {
    TARGET.store(count() + 1, Relaxed);
}

/// Waits until the expected steps have run.
pub(crate) async fn reached() {
    if count() < TARGET.load(Relaxed) {
        REACHED.notified().await;
    }
}

/// Steps that have run.
pub fn count() -> u64 {
    RAN.load(Relaxed)
}

/// The moments noted.
pub(crate) fn marks() -> Vec<i64> {
    MARKS.lock().expect("no holder of the lock panics").clone()
}

/// The latencies so far; none are left.
pub(crate) fn take_latency() -> Option<Histogram<u64>> {
    LATENCY.lock().expect("no holder of the lock panics").take()
}
