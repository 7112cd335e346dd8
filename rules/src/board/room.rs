//! Room: which tasks give way when the board is full, so that nobody's queues keep others from being served.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::Board;
use super::Pushed;
use super::QueueId;
use crate::Micros;
use crate::TaskId;
use crate::due::LaneKey;
use crate::names::Kind;
use crate::names::QueueName;
use crate::place::Place;

/// How long a lane's tasks can wait: the greatest gives way to others.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rank {
    /// No worker that is there takes them.
    pub unwanted: bool,
    /// Their priority.
    pub priority: i16,
    /// When the first of them was due.
    pub due: Micros,
}

impl Rank {
    /// Before every other.
    pub const FIRST: Self = Self { unwanted: false, priority: i16::MIN, due: Micros::MIN };
}

/// Queues from which workers that are there take tasks; not those that are paused.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    all: bool,
    queues: BTreeSet<QueueName>,
    paused: BTreeSet<QueueName>,
    all_paused: bool,
}

impl Wanted {
    /// Whether someone takes tasks from the queue.
    pub fn has(&self, queue: &QueueName) -> bool {
        (self.all || self.queues.contains(queue)) && !self.all_paused && !self.paused.contains(queue)
    }
}

/// A task that had to give way: it is to be offered again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Displaced {
    /// The task.
    pub id: TaskId,
    /// Its queue.
    pub queue: QueueName,
    /// Its priority.
    pub priority: i16,
    /// When it was due.
    pub due: Micros,
}

impl Board<'_> {
    /// The queues from which workers that are there take tasks.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        if self.head.workers > 0 {
            for slot in self.workers.iter().filter(|slot| slot.is_there()) {
                wanted.all |= slot.queues().is_empty();
                wanted.queues.extend(slot.queues().iter().map(|queue| self.queue_name(*queue)));
            }
        }
        if self.head.gates > 0 {
            wanted.all_paused = self.gates[self.queues.len()].is_paused();
            let paused = self.queues.iter().zip(self.gates.iter()).filter(|(_, gate)| gate.is_paused());
            wanted.paused.extend(paused.map(|(queue, _)| *queue));
        }
        wanted
    }

    /// Whether there is room for one more task that no worker takes, in a lane of its own if need be: half of the board is kept from them.
    pub fn has_room_for_unwanted(&self, in_new_lane: bool) -> bool {
        ((self.head.ready + self.head.claimed) as usize) < self.entries.len() / 2
            && !(in_new_lane && self.lanes_in_use().count() >= self.lanes.len() / 2)
    }

    /// Whether there is room for one more task, in a lane of its own if need be.
    pub fn has_room(&self, in_new_lane: bool) -> bool {
        self.room() > 0 && !(in_new_lane && self.lanes_in_use().count() >= self.lanes.len())
    }

    /// How many tasks of each queue and priority are ready for any worker.
    pub fn lane_lengths(&self) -> BTreeMap<LaneKey, u32> {
        let any = self.lanes_in_use().filter(|lane| lane.kind == Kind::ANY);
        any.map(|lane| (LaneKey { priority: lane.priority, queue: self.queue_name(lane.queue) }, lane.len))
            .collect()
    }

    /// Makes a task of a queue ready. The queue's name is numbered if that makes sense: there is a lane for it.
    pub fn push_due(
        &mut self,
        queue: &QueueName,
        priority: i16,
        due: Micros,
        id: TaskId,
        place: Place,
    ) -> Pushed {
        let number = self.number_of(queue);
        let has_lane = number.is_some_and(|number| self.lane_of(number, priority).is_some())
            || self.lanes_in_use().count() < self.lanes.len();
        match number.or_else(|| has_lane.then(|| self.intern(queue)).flatten()) {
            Some(number) => self.push_ready(id, due, number, priority, place),
            None => Pushed::Full,
        }
    }

    /// Takes the lane off the board that can wait longest, if it can wait longer than one of this rank. Its tasks go to `out`.
    pub fn displace(&mut self, rank: Rank, out: &mut Vec<Displaced>) -> bool {
        let worst = (0..usize::from(self.head.lanes))
            .filter(|&lane| self.lanes[lane].len > 0 && self.lanes[lane].kind == Kind::ANY)
            .map(|lane| (self.rank_of(lane), lane))
            .max();
        let Some((_, lane)) = worst.filter(|(worst, _)| *worst > rank) else { return false };
        let queue = self.queue_name(self.lanes[lane].queue);
        while self.lanes[lane].len > 0 {
            let index = self.lanes[lane].first;
            let entry = &self.entries[index as usize];
            out.push(Displaced { id: entry.id, queue, priority: entry.priority, due: entry.due });
            self.unlink_ready(index);
            self.put_free(index);
        }
        true
    }

    /// Steps that nobody knows may be of any number: they leave half of the board to what can be run.
    pub(super) fn is_crowded_by_misfits(&self) -> bool {
        let (mut lanes, mut tasks) = (0, 0);
        for lane in self.lanes_in_use().filter(|lane| lane.kind != Kind::ANY) {
            lanes += 1;
            tasks += lane.len as usize;
        }
        lanes >= self.lanes.len() / 2 || tasks >= self.entries.len() / 2
    }

    fn rank_of(&self, lane: usize) -> Rank {
        let lane = &self.lanes[lane];
        Rank {
            unwanted: self.is_paused(lane.queue)
                || !self.workers.iter().any(|slot| slot.is_there() && slot.takes(lane.queue)),
            priority: lane.priority,
            due: self.entries[lane.first as usize].due,
        }
    }

    fn lane_of(&self, queue: QueueId, priority: i16) -> Option<usize> {
        (0..usize::from(self.head.lanes)).find(|&lane| {
            let lane = &self.lanes[lane];
            lane.len > 0 && lane.queue == queue && lane.priority == priority && lane.kind == Kind::ANY
        })
    }
}
