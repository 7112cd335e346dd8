//! The inbox: what committed transactions tell the scheduler about rows that became due or will.
//!
//! A ring of hints, each a few words about one row. It may overflow: then it keeps the earliest due time of what it could not
//! take, and the scheduler reads the table again from there. A hint that is lost or wrong costs a read, never a task.

use crate::Micros;
use crate::TaskId;
use crate::names::QueueName;

/// "This row may be run from this moment on."
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Hint {
    /// When the row is due.
    pub due: Micros,
    /// The row.
    pub id: TaskId,
    /// Its priority.
    pub priority: i16,
    /// Its queue.
    pub queue: QueueName,
}

impl Hint {
    /// What a place that is not in use holds.
    pub const EMPTY: Self = Self { due: 0, id: [0; 16], priority: 0, queue: QueueName::EMPTY };
}

/// The ring's header. The places are a slice beside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct InboxHead {
    first: u32,
    len: u32,
    rescan_from: Micros,
}

impl InboxHead {
    /// An empty ring from which nothing was lost.
    pub const EMPTY: Self = Self { first: 0, len: 0, rescan_from: Micros::MAX };
}

/// The inbox over its memory.
pub struct Inbox<'a> {
    /// The header.
    pub head: &'a mut InboxHead,
    /// The places.
    pub ring: &'a mut [Hint],
}

impl Inbox<'_> {
    /// Puts a hint in. Returns whether the inbox was empty before, that is whether the scheduler must be woken: otherwise
    /// whoever filled it first has done so.
    pub fn push(&mut self, hint: &Hint) -> bool {
        let was_empty = self.is_empty();
        let (len, capacity) = (self.head.len as usize, self.ring.len());
        if len >= capacity {
            self.head.rescan_from = self.head.rescan_from.min(hint.due);
        } else {
            let place = (self.head.first as usize + len) % capacity;
            self.ring[place] = *hint;
            self.head.len += 1;
        }
        was_empty
    }

    /// Asks for a read of the table from a due time on; `Micros::MIN` for all of it. Returns as [`Inbox::push`] does.
    pub fn ask_rescan(&mut self, from: Micros) -> bool {
        let was_empty = self.is_empty();
        self.head.rescan_from = self.head.rescan_from.min(from);
        was_empty
    }

    /// Moves what is there to `out`, at most `limit` hints, and returns the due time to read the table again from, if hints were
    /// lost.
    pub fn drain(&mut self, out: &mut Vec<Hint>, limit: usize) -> Option<Micros> {
        let capacity = self.ring.len();
        let count = (self.head.len as usize).min(limit);
        for offset in 0..count {
            out.push(self.ring[(self.head.first as usize + offset) % capacity]);
        }
        if capacity > 0 {
            self.head.first = ((self.head.first as usize + count) % capacity) as u32;
        }
        self.head.len -= count as u32;
        let from = self.head.rescan_from;
        self.head.rescan_from = Micros::MAX;
        (from != Micros::MAX).then_some(from)
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.head.len == 0 && self.head.rescan_from == Micros::MAX
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hint(due: Micros) -> Hint {
        Hint { due, ..Hint::EMPTY }
    }

    proptest! {
        #[test]
        fn every_hint_comes_out_in_order_or_is_covered_by_the_rescan(
            pushes in prop::collection::vec((0..1000_i64, any::<bool>()), 0..crate::up_to(200)),
            capacity in 1..16_usize,
        ) {
            let mut head = InboxHead::EMPTY;
            let mut ring = vec![Hint::EMPTY; capacity];
            let mut expected = Vec::new();
            for (due, drain) in pushes {
                let mut inbox = Inbox { head: &mut head, ring: &mut ring };
                prop_assert_eq!(inbox.push(&hint(due)), expected.is_empty());
                expected.push(due);
                if drain {
                    let mut out = Vec::new();
                    let from = inbox.drain(&mut out, usize::MAX);
                    let seen: Vec<_> = out.iter().map(|hint| hint.due).collect();
                    prop_assert_eq!(&seen[..], &expected[..seen.len()]);
                    let lost = expected[seen.len()..].iter().min().copied();
                    prop_assert_eq!(from, lost);
                    prop_assert!(inbox.is_empty());
                    expected.clear();
                }
            }
        }
    }

    #[test]
    fn a_limited_drain_leaves_the_rest_in_place() {
        let (mut head, mut ring) = (InboxHead::EMPTY, vec![Hint::EMPTY; 4]);
        let mut inbox = Inbox { head: &mut head, ring: &mut ring };
        for due in 1..=4 {
            inbox.push(&hint(due));
        }
        let mut out = Vec::new();
        assert_eq!(inbox.drain(&mut out, 3), None);
        assert_eq!(out.len(), 3);
        assert!(!inbox.is_empty());
        out.clear();
        inbox.drain(&mut out, 3);
        assert_eq!(out, [hint(4)]);
    }
}
