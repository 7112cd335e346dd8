//! What becomes of the moments on a board when the server's clock is set.

use super::Board;
use super::layout::EntryState;
use crate::Micros;

impl Board<'_> {
    /// The clock was set back to this moment: rates go on from there, and what has been can have been no later.
    pub fn clock_went_back(&mut self, now: Micros) {
        self.settle_rates(now);
        for worker in self.workers.iter_mut() {
            let moments = [
                &mut worker.registered_at,
                &mut worker.heartbeat_at,
                &mut worker.gone_at,
                &mut worker.returns_at,
            ];
            for moment in moments {
                *moment = now.min(*moment);
            }
        }
        for entry in self.entries.iter_mut().filter(|entry| entry.state == EntryState::Claimed) {
            entry.since = now.min(entry.since);
        }
    }

    /// The clock was set forward by so much, to this moment: nobody was silent for that time.
    pub fn clock_went_forward(&mut self, by: Micros, now: Micros) {
        for worker in self.workers.iter_mut() {
            for moment in [&mut worker.heartbeat_at, &mut worker.gone_at] {
                *moment = now.min(moment.saturating_add(by));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::registration;
    use super::super::tests::small;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn a_worker_is_lost_as_soon_after_its_last_word_when_the_clock_was_set_back() {
        let mut memory = small();
        let mut board = memory.board();
        let worker = board.register(&registration(1), 5_000 * SECOND).expect("free");
        board.clock_went_back(1_000 * SECOND);
        assert_eq!(board.next_loss(2 * SECOND), Some(1_060 * SECOND));
        assert!(board.heard(worker, 1_030 * SECOND));
        assert_eq!(board.take_lost(2 * SECOND, 1_090 * SECOND - 1), None);
        assert_eq!(board.take_lost(2 * SECOND, 1_090 * SECOND), Some(worker));
    }

    #[test]
    fn no_worker_is_lost_because_the_clock_was_set_forward() {
        let mut memory = small();
        let mut board = memory.board();
        let worker = board.register(&registration(1), 1_000 * SECOND).expect("free");
        // It was silent for 40 seconds, in which the clock has gone by an hour more.
        board.clock_went_forward(3_600 * SECOND, 4_640 * SECOND);
        assert_eq!(board.take_lost(2 * SECOND, 4_660 * SECOND - 1), None);
        assert_eq!(board.take_lost(2 * SECOND, 4_660 * SECOND), Some(worker));
    }

    #[test]
    fn a_worker_that_was_heard_of_since_the_clock_was_set_forward_is_not_ahead_of_it() {
        let mut memory = small();
        let mut board = memory.board();
        let worker = board.register(&registration(1), 5_000 * SECOND).expect("free");
        board.clock_went_forward(3_600 * SECOND, 5_001 * SECOND);
        assert_eq!(board.take_lost(2 * SECOND, 5_061 * SECOND), Some(worker));
    }
}
