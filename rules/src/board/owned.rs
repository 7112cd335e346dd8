//! A board in memory of its own: for tests, the simulator and measurements. The server's boards lie in shared memory.

use super::Board;
use super::Entry;
use super::Gate;
use super::Head;
use super::KeySlot;
use super::Lane;
use super::Look;
use super::ProgressSlot;
use super::Sizes;
use super::WorkerSlot;
use crate::names::Group;
use crate::names::QueueName;

/// The memory of a board.
pub struct OwnedBoard {
    head: Head,
    entries: Vec<Entry>,
    buckets: Vec<u32>,
    lanes: Vec<Lane>,
    workers: Vec<WorkerSlot>,
    queues: Vec<QueueName>,
    gates: Vec<Gate>,
    group_buckets: Vec<u32>,
    keys: Vec<KeySlot>,
    key_buckets: Vec<u32>,
    looks: Vec<Look>,
    progress: Vec<ProgressSlot>,
}

impl OwnedBoard {
    /// An empty board.
    pub fn new(sizes: &Sizes) -> Self {
        let mut owned = Self {
            head: Head::EMPTY,
            entries: vec![Entry::EMPTY; sizes.entries],
            buckets: vec![0; sizes.buckets()],
            lanes: vec![Lane::EMPTY; sizes.lanes],
            workers: vec![WorkerSlot::EMPTY; sizes.workers],
            queues: vec![QueueName::EMPTY; sizes.queues],
            gates: vec![Gate::OPEN; sizes.gates()],
            group_buckets: vec![0; sizes.group_buckets()],
            keys: vec![KeySlot::EMPTY; sizes.keys()],
            key_buckets: vec![0; sizes.group_buckets()],
            looks: vec![Look::Group(Group(0)); sizes.looks()],
            progress: vec![ProgressSlot::EMPTY; sizes.progress()],
        };
        owned.board().reset();
        owned
    }

    /// The board.
    pub fn board(&mut self) -> Board<'_> {
        Board {
            head: &mut self.head,
            entries: &mut self.entries,
            buckets: &mut self.buckets,
            lanes: &mut self.lanes,
            workers: &mut self.workers,
            queues: &mut self.queues,
            gates: &mut self.gates,
            group_buckets: &mut self.group_buckets,
            keys: &mut self.keys,
            key_buckets: &mut self.key_buckets,
            looks: &mut self.looks,
            progress: &mut self.progress,
        }
    }
}
