//! What steps say of how far they are: a few places beside the claims, taken by those that say anything.
//!
//! A place belongs to one claim, and is given back with its end. A claim that never says anything has none.

use super::Board;
use super::claim::Claim;
use super::layout::Entry;
use super::layout::NIL;
use crate::Micros;

/// Claims of which a progress is kept at a time, at most.
pub const MAX_PROGRESS: usize = 1024;

/// How far a step says that it is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Progress {
    /// When it said so.
    pub at: Micros,
    /// Not a number when it named none.
    value: f64,
    len: u8,
    bytes: [u8; Self::MAX_TEXT],
}

impl Progress {
    /// The place for a text, in bytes.
    pub const MAX_TEXT: usize = 200;

    const NOTHING: Self = Self { at: 0, value: f64::NAN, len: 0, bytes: [0; Self::MAX_TEXT] };

    /// What a step says: a value of 0 to 1, and a text, of which the first [`Progress::MAX_TEXT`] bytes are kept, cut between characters.
    pub fn new(value: Option<f64>, text: &str, at: Micros) -> Self {
        let mut len = text.len().min(Self::MAX_TEXT);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        let mut progress = Self { at, value: value.unwrap_or(f64::NAN), len: len as u8, ..Self::NOTHING };
        progress.bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        progress
    }

    /// The value, if it named one.
    pub fn value(&self) -> Option<f64> {
        (!self.value.is_nan()).then_some(self.value)
    }

    /// The text; empty when it said none.
    pub fn text(&self) -> &str {
        let len = usize::from(self.len).min(Self::MAX_TEXT);
        core::str::from_utf8(&self.bytes[..len]).unwrap_or("")
    }
}

/// A place for what one claim's step says.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProgressSlot {
    progress: Progress,
    /// The next free place.
    next: u32,
}

impl ProgressSlot {
    /// A place that is not in use.
    pub const EMPTY: Self = Self { progress: Progress::NOTHING, next: NIL };
}

impl Board<'_> {
    /// Keeps what the step of a claim says, in place of what it has said before. False when the worker does not hold the claim, or when all
    /// places are taken.
    pub fn set_progress(&mut self, worker: usize, claim: &Claim, progress: &Progress) -> bool {
        let Some(index) = self.find_claim(&claim.id, claim.token) else { return false };
        let entry = &mut self.entries[index as usize];
        if entry.owner as usize != worker {
            return false;
        }
        if entry.progress == NIL {
            let Some(slot) = self.progress.get(self.head.progress_free as usize) else { return false };
            entry.progress = self.head.progress_free;
            self.head.progress_free = slot.next;
        }
        self.progress[entry.progress as usize].progress = *progress;
        true
    }

    /// What the step of a claim has said.
    pub fn progress_of(&self, entry: &Entry) -> Option<&Progress> {
        self.progress.get(entry.progress as usize).map(|slot| &slot.progress)
    }

    /// The claim ends, or goes on with another step.
    pub(super) fn end_progress(&mut self, index: u32) {
        let at = std::mem::replace(&mut self.entries[index as usize].progress, NIL);
        if let Some(slot) = self.progress.get_mut(at as usize) {
            *slot = ProgressSlot { next: self.head.progress_free, ..ProgressSlot::EMPTY };
            self.head.progress_free = at;
        }
    }

    #[cfg(test)]
    pub(super) fn next_free_progress(&self, at: u32) -> u32 {
        self.progress[at as usize].next
    }

    /// Frees every place.
    pub(super) fn reset_progress(&mut self) {
        let last = self.progress.len().saturating_sub(1);
        for (at, slot) in self.progress.iter_mut().enumerate() {
            *slot =
                ProgressSlot { next: if at == last { NIL } else { at as u32 + 1 }, ..ProgressSlot::EMPTY };
        }
        self.head.progress_free = if self.progress.is_empty() { NIL } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Advance;
    use crate::board::OwnedBoard;
    use crate::board::Pushed;
    use crate::board::QueueId;
    use crate::board::Registration;
    use crate::board::Sizes;
    use crate::names::Label;
    use crate::names::QueueName;
    use crate::place::Place;
    use crate::token;

    /// A board with two workers, and the claims of the first.
    fn board_with(claims: u8) -> (OwnedBoard, Vec<Claim>) {
        let mut memory = OwnedBoard::new(&Sizes { entries: 8, lanes: 4, workers: 2, queues: 2 });
        let mut board = memory.board();
        for id in [1, 2] {
            let registration = Registration {
                id: [id; 16],
                name: Label::EMPTY,
                queues: &[],
                weights: &[],
                kinds: None,
                lease: 60,
                role: 10,
                pid: 0,
            };
            board.register(&registration, 0).expect("there is room");
        }
        let queue: QueueId = board.intern(&QueueName::new("q").expect("a name")).expect("there is room");
        for id in 0..claims {
            assert_eq!(board.push_ready([id; 16], 0, queue, 0, Place::UNKNOWN), Pushed::Added);
        }
        let mut taken = Vec::new();
        board.claim(0, claims.into(), 0, &mut taken);
        (memory, taken.iter().map(|taken| taken.claim).collect())
    }

    fn said(board: &Board<'_>, claim: &Claim) -> Option<(Option<f64>, String)> {
        let progress = board.progress_of(board.claim_of(&claim.id)?)?;
        Some((progress.value(), progress.text().to_owned()))
    }

    #[test]
    fn the_last_that_the_worker_says_of_its_claim_is_kept_until_the_claim_ends() {
        let (mut memory, claims) = board_with(1);
        let (mut board, claim) = (memory.board(), claims[0]);
        assert_eq!(said(&board, &claim), None);
        assert!(board.set_progress(0, &claim, &Progress::new(Some(0.5), "half", 1)));
        assert!(board.set_progress(0, &claim, &Progress::new(None, "nearly", 2)));
        assert_eq!(said(&board, &claim), Some((None, "nearly".to_owned())));
        // Neither another worker nor another attempt.
        let other = Claim { token: claim.token + token::STEP, ..claim };
        assert!(!board.set_progress(1, &claim, &Progress::new(Some(1.0), "", 3)));
        assert!(!board.set_progress(0, &other, &Progress::new(Some(1.0), "", 3)));
        assert_eq!(said(&board, &claim), Some((None, "nearly".to_owned())));
        board.give_back(&claim.id, claim.token);
        assert!(!board.set_progress(0, &claim, &Progress::new(Some(1.0), "", 3)));
        let mut again = Vec::new();
        board.claim(1, 1, 0, &mut again);
        assert_eq!(said(&board, &again[0].claim), None);
    }

    #[test]
    fn the_next_step_of_a_task_has_said_nothing() {
        let (mut memory, claims) = board_with(1);
        let (mut board, claim) = (memory.board(), claims[0]);
        assert!(board.set_progress(0, &claim, &Progress::new(Some(1.0), "all", 1)));
        let next = Advance {
            token: board.next_token(),
            fence: 1,
            place: Place::UNKNOWN,
            kind: crate::names::Kind::ANY,
        };
        assert!(board.advance(&claim.id, claim.token, &next, 2));
        assert_eq!(said(&board, &claim), None);
    }

    #[test]
    fn places_come_back_and_what_finds_none_is_not_kept() {
        let (mut memory, claims) = board_with(8);
        let mut board = memory.board();
        board.progress = &mut board.progress[..2];
        board.reset_progress();
        let half = Progress::new(Some(0.5), "half", 1);
        for round in 0..3 {
            let taken = claims.iter().filter(|claim| board.set_progress(0, claim, &half)).count();
            assert_eq!(taken, 2, "round {round}");
            // Those that have a place keep it.
            assert!(board.set_progress(0, &claims[0], &half));
            for index in 0..board.entries.len() as u32 {
                board.end_progress(index);
            }
        }
        board.leave(0);
        board.reset();
        assert_eq!(board.head.progress_free, 0);
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        let progress = Progress::new(None, &"é€".repeat(100), 0);
        assert_eq!(progress.text(), "é€".repeat(40));
        let progress = Progress::new(Some(0.0), &format!("{}é", "x".repeat(199)), 0);
        assert_eq!((progress.text(), progress.value()), (&*"x".repeat(199), Some(0.0)));
    }
}
