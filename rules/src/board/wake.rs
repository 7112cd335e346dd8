//! Whom to wake: idle workers, as many as the ready tasks need.

use super::Board;
use super::layout::WorkerState;
use crate::Micros;
use crate::WorkerId;
use crate::names::Kind;

impl Board<'_> {
    /// Chooses idle workers for the ready tasks and counts them as woken: each is named once until it asks for tasks again.
    ///
    /// Workers take turns, so that a slow machine is not always the first to be asked. One that was given tasks a moment ago is left alone until
    /// [`Board::next_return`]: most steps have ended by then, and their results bring it here.
    pub fn take_idle(&mut self, now: Micros, out: &mut Vec<WorkerId>) {
        let places = self.workers.len();
        if places == 0 || self.head.ready == 0 {
            return;
        }
        for lane in 0..usize::from(self.head.lanes) {
            let mut need = self.lanes[lane].len;
            if self.head.gates > 0 && need > 0 {
                need = need.min(self.allowance(&self.lanes[lane], now));
            }
            let start = self.head.next_to_wake as usize;
            for offset in 0..places {
                if need == 0 {
                    break;
                }
                let worker = (start + offset) % places;
                if self.is_idle_for(worker, lane) && self.workers[worker].returns_at <= now {
                    let slot = &mut self.workers[worker];
                    need = need.saturating_sub(slot.wanted);
                    slot.wanted = 0;
                    out.push(slot.id);
                    self.head.next_to_wake = (worker as u32 + 1) % places as u32;
                }
            }
        }
    }

    /// When the next idle worker that was left alone is to be woken, if it has not called until then.
    pub fn next_return(&self, now: Micros) -> Option<Micros> {
        if self.head.ready == 0 {
            return None;
        }
        let idle = self.workers.iter().filter(|slot| slot.state == WorkerState::Live && slot.wanted > 0);
        idle.map(|slot| slot.returns_at).filter(|&at| at > now).min()
    }

    /// Workers that have to be told of a stop or of a cancelled task, idle or not: each once until it is heard of.
    pub fn take_told(&mut self, out: &mut Vec<WorkerId>) {
        if self.head.workers == 0 {
            return;
        }
        for slot in self.workers.iter_mut() {
            if slot.state == WorkerState::Live && (slot.stop || slot.cancels > 0) && !slot.nudged {
                slot.nudged = true;
                if !out.contains(&slot.id) {
                    out.push(slot.id);
                }
            }
        }
    }

    /// The notification to a worker was not sent.
    pub fn not_woken(&mut self, id: &WorkerId) {
        if let Some(worker) = self.find_worker(id) {
            let slot = &mut self.workers[worker];
            slot.nudged = false;
            slot.wanted = slot.wanted.max(1);
        }
    }

    /// Whether a ready task fits the worker: what a wake-up that was lost on its way looks like.
    pub fn has_work_for(&self, worker: usize, now: Micros) -> bool {
        let slot = &self.workers[worker];
        !slot.stop
            && self.lanes_in_use().any(|lane| {
                slot.takes(lane.queue)
                    && (lane.kind == Kind::ANY || slot.knows(lane.kind))
                    && (self.head.gates == 0 || self.allowance(lane, now) > 0)
            })
    }

    fn is_idle_for(&self, worker: usize, lane: usize) -> bool {
        let (slot, lane) = (&self.workers[worker], &self.lanes[lane]);
        slot.state == WorkerState::Live
            && slot.wanted > 0
            && slot.takes(lane.queue)
            && (lane.kind == Kind::ANY || slot.knows(lane.kind))
    }
}
