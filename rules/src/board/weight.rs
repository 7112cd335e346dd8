//! A worker that takes its queues by weight: each gets its share of what the worker takes, as long as there is something in it.
//!
//! Stride scheduling (Waldspurger and Weihl, 1995): every queue has a pass, which grows with each task by the inverse of its weight;
//! the queue with the smallest pass is next. A queue that was empty begins again at the pass of the others: it has saved nothing.

use super::Board;
use super::Leaving;
use super::QueueId;
use super::claim::Taken;
use super::layout::MAX_QUEUES_PER_WORKER;
use crate::Micros;
use crate::names::Kind;

/// The largest weight.
pub const MAX_WEIGHT: u16 = 1_000;

/// By how much a pass grows for a task of a queue with the weight 1.
const STRIDE: u64 = 1 << 20;

/// The weights of a worker's queues, and where their turns stand.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Weights {
    /// The pass of the queue that was served last.
    turn: u64,
    passes: [u64; MAX_QUEUES_PER_WORKER],
    weights: [u16; MAX_QUEUES_PER_WORKER],
    len: u16,
}

impl Weights {
    /// The worker takes what is first, of whichever queue.
    pub(super) const NONE: Self =
        Self { turn: 0, passes: [0; MAX_QUEUES_PER_WORKER], weights: [0; MAX_QUEUES_PER_WORKER], len: 0 };

    /// One weight for each queue; none for no weights.
    pub(super) fn new(weights: &[u16]) -> Self {
        let len = weights.len().min(MAX_QUEUES_PER_WORKER);
        let mut new = Self { len: len as u16, ..Self::NONE };
        new.weights[..len].copy_from_slice(&weights[..len]);
        new
    }

    pub(super) fn are_set(&self) -> bool {
        self.len > 0
    }

    /// The queue whose turn it is, of those that are open.
    fn next(&self, open: u32) -> Option<usize> {
        (0..usize::from(self.len))
            .filter(|&queue| open & (1 << queue) != 0)
            .min_by_key(|&queue| self.passes[queue].max(self.turn))
    }

    fn served(&mut self, queue: usize) {
        self.turn = self.passes[queue].max(self.turn);
        self.passes[queue] = self.turn + STRIDE / u64::from(self.weights[queue].clamp(1, MAX_WEIGHT));
    }
}

impl Board<'_> {
    /// As `take_ready`, by the weights of the worker's queues. Priorities order the tasks of each queue.
    pub(super) fn take_by_weight(
        &mut self,
        worker: usize,
        want: u32,
        now: Micros,
        leaving: &Leaving,
        out: &mut Vec<Taken>,
    ) -> u32 {
        let mut open = u32::MAX;
        let mut got = 0;
        while got < want {
            let slot = &self.workers[worker];
            let Some(choice) = slot.weights.next(open) else { break };
            let queue = slot.queues[choice];
            let Some(lane) = self.best_lane_of(worker, queue, now, leaving) else {
                open &= !(1 << choice);
                continue;
            };
            out.push(self.take_first(lane, worker, now));
            self.workers[worker].weights.served(choice);
            got += 1;
        }
        got
    }

    fn best_lane_of(&self, worker: usize, queue: QueueId, now: Micros, leaving: &Leaving) -> Option<usize> {
        let slot = &self.workers[worker];
        (0..usize::from(self.head.lanes))
            .filter(|&lane| {
                let lane = &self.lanes[lane];
                lane.queue == queue
                    && lane.len > 0
                    && (lane.kind == Kind::ANY || slot.knows(lane.kind))
                    && (self.head.gates == 0 || self.allowance_beside(lane, now, leaving) > 0)
            })
            .min_by_key(|&lane| self.lane_key::<true>(lane))
    }
}
