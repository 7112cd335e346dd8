//! Who waits for the end of a task: sessions, and the scheduler for ticks that wait for a run. In shared memory, so that the commit that ends it can wake
//! them.
//!
//! Who waits takes a place first and looks at the row then; whoever ends a task makes that visible first and looks for waiters then. So one of
//! the two sees the other.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::TaskId;
use pgrx::pg_sys;

/// Sessions that can wait at a time, in each database.
pub const MAX_WAITERS: usize = 256;

/// Tasks that the scheduler can watch at a time, in each database.
const MAX_WATCHED: usize = 64;

/// Places of those who wait. All zero when nobody does.
#[repr(C)]
pub struct Waiters {
    count: AtomicU32,
    /// How many wait for an id that ends in this byte: most ends need look no further.
    by_last_byte: [AtomicU32; 256],
    /// Sessions' places, then the scheduler's.
    places: [Place; MAX_WAITERS + MAX_WATCHED],
    /// A task that the scheduler watches has ended since it last asked.
    watched_ended: AtomicBool,
}

#[repr(C)]
struct Place {
    /// The process that has the place; 0 when it is free.
    pid: AtomicI32,
    latch: AtomicPtr<pg_sys::Latch>,
    id: [AtomicU64; 2],
}

impl Waiters {
    /// Takes a place for a session, if there is one.
    pub fn enter(&self, id: &TaskId, pid: i32, latch: *mut pg_sys::Latch) -> Option<usize> {
        self.enter_among(0..MAX_WAITERS, id, pid, latch)
    }

    /// Lets the scheduler watch for the ends of these tasks, instead of those that it has watched before. False when there are not places for
    /// all of them.
    pub fn watch(&self, ids: &[TaskId], pid: i32, latch: *mut pg_sys::Latch) -> bool {
        let places = MAX_WAITERS..self.places.len();
        for index in places.clone().filter(|&index| self.places[index].pid.load(SeqCst) != 0) {
            self.leave(index);
        }
        ids.iter().all(|id| self.enter_among(places.clone(), id, pid, latch).is_some())
    }

    /// Whether one of the tasks that the scheduler watches has ended since this was asked last.
    pub fn take_watched_end(&self) -> bool {
        self.watched_ended.load(SeqCst) && self.watched_ended.swap(false, SeqCst)
    }

    fn enter_among(
        &self,
        places: Range<usize>,
        id: &TaskId,
        pid: i32,
        latch: *mut pg_sys::Latch,
    ) -> Option<usize> {
        let first = places.start;
        let index = first
            + self.places[places]
                .iter()
                .position(|place| place.pid.compare_exchange(0, pid, SeqCst, SeqCst).is_ok())?;
        let place = &self.places[index];
        for (half, value) in place.id.iter().zip(halves(id)) {
            half.store(value, SeqCst);
        }
        place.latch.store(latch, SeqCst);
        self.by_last_byte[usize::from(id[15])].fetch_add(1, SeqCst);
        self.count.fetch_add(1, SeqCst);
        Some(index)
    }

    /// Gives a place back.
    pub fn leave(&self, index: usize) {
        let place = &self.places[index];
        let last_byte = (place.id[1].load(SeqCst) & 0xff) as usize;
        place.latch.store(std::ptr::null_mut(), SeqCst);
        self.by_last_byte[last_byte].fetch_sub(1, SeqCst);
        self.count.fetch_sub(1, SeqCst);
        place.pid.store(0, SeqCst);
    }

    /// Gives back the place that a session has that ends while it waits. It has one at most.
    pub fn leave_all_of(&self, pid: i32) {
        let owned = |place: &Place| place.pid.load(SeqCst) == pid && !place.latch.load(SeqCst).is_null();
        if let Some(index) = self.places[..MAX_WAITERS].iter().position(owned) {
            self.leave(index);
        }
    }

    /// Wakes those who wait for one of these tasks. For a commit callback: nothing here can fail.
    pub fn wake<'a>(&self, ids: impl Iterator<Item = &'a TaskId>) {
        if self.count.load(SeqCst) == 0 {
            return;
        }
        for id in ids.filter(|id| self.by_last_byte[usize::from(id[15])].load(SeqCst) > 0) {
            self.wake_where(|place| {
                halves(id).into_iter().zip(&place.id).all(|(value, half)| half.load(SeqCst) == value)
            });
        }
    }

    /// Wakes everybody: they look themselves.
    pub fn wake_all(&self) {
        if self.count.load(SeqCst) > 0 {
            self.wake_where(|_| true);
        }
    }

    fn wake_where(&self, chosen: impl Fn(&Place) -> bool) {
        for (index, place) in self.places.iter().enumerate().filter(|(_, place)| chosen(place)) {
            let latch = place.latch.load(SeqCst);
            if !latch.is_null() {
                if index >= MAX_WAITERS {
                    self.watched_ended.store(true, SeqCst);
                }
                // SAFETY: latches lie in the array of process structures, which lives as long as shared memory. If its owner has just
                // ended its wait, a stranger is woken once, which every waiter expects.
                unsafe { pg_sys::SetLatch(latch) };
            }
        }
    }
}

fn halves(id: &TaskId) -> [u64; 2] {
    let half = |from: usize| u64::from_be_bytes(id[from..from + 8].try_into().expect("eight bytes"));
    [half(0), half(8)]
}
