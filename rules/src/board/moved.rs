//! Tasks whose rows were changed while they are on the board: to another queue or priority, or to another step.
//!
//! A hint says where a task belongs, and so does what is on the board; which of the two is newer neither tells. So the row is read again, and
//! the task is brought to where the row says.

use super::Board;
use super::QueueId;
use super::layout::EntryState;
use crate::Micros;
use crate::TaskId;
use crate::names::Kind;
use crate::names::QueueName;

/// Where a task belongs, as its row says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Belongs {
    /// The task.
    pub id: TaskId,
    /// Its queue.
    pub queue: QueueName,
    /// Its priority.
    pub priority: i16,
    /// When it is due.
    pub due: Micros,
    /// Its step.
    pub kind: Kind,
}

impl Board<'_> {
    /// Whether an entry is where a task of this queue and priority belongs whose step is not known.
    pub(super) fn is_in(&self, index: u32, queue: QueueId, priority: i16) -> bool {
        let entry = &self.entries[index as usize];
        let is_misfit =
            entry.state == EntryState::Ready && self.lanes[entry.owner as usize].kind != Kind::ANY;
        entry.queue == queue && entry.priority == priority && !is_misfit
    }

    /// Whether a task is ready where one of this queue and priority belongs.
    pub fn is_ready_in(&self, id: &TaskId, queue: &QueueName, priority: i16) -> bool {
        self.find(id).map(|index| &self.entries[index as usize]).is_some_and(|entry| {
            let is_there = entry.priority == priority && self.queue_name(entry.queue) == *queue;
            is_there && entry.state == EntryState::Ready
        })
    }

    /// Brings a task that is ready to its lane. One that is claimed stays with its worker and counts in its queue from now on, and goes to its lane
    /// when it is given back. False when there is no room in its lane: it is off the board then, and to be offered again.
    pub fn relocate(&mut self, to: &Belongs) -> bool {
        // One that is not here any more has been read by whoever took it.
        if self.find(&to.id).is_none() {
            return true;
        }
        let queue = self.intern(&to.queue);
        let Some(index) = self.find(&to.id) else { return true };
        let entry = &self.entries[index as usize];
        if entry.state == EntryState::Claimed {
            if let Some(queue) = queue {
                self.count_in_other(index, queue);
                let entry = &mut self.entries[index as usize];
                entry.priority = to.priority;
                entry.due = to.due;
            }
            return true;
        }
        let lane = self.lanes[entry.owner as usize].kind;
        let fits = lane == Kind::ANY || lane == to.kind;
        if fits && queue == Some(entry.queue) && entry.priority == to.priority {
            return true;
        }
        self.unlink_ready(index);
        let Some((queue, lane)) =
            queue.and_then(|queue| Some((queue, self.lane_for(queue, to.priority, Kind::ANY)?)))
        else {
            self.put_free(index);
            return false;
        };
        let first = self.lanes[lane].first;
        let is_early = self.lanes[lane].len > 0 && to.due < self.entries[first as usize].due;
        let entry = &mut self.entries[index as usize];
        entry.queue = queue;
        entry.priority = to.priority;
        entry.due = to.due;
        self.head.ready += 1;
        self.link_ready(lane, index, is_early);
        true
    }

    /// A claimed entry counts in another queue from now on.
    fn count_in_other(&mut self, index: u32, queue: QueueId) {
        let was = self.entries[index as usize].queue;
        self.entries[index as usize].queue = queue;
        if self.head.gates > 0 && was != queue {
            self.count_out(was);
            self.count_in(queue);
        }
    }
}
