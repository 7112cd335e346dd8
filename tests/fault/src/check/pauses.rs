//! The part of the check that is about pauses of queues: nothing is handed out between the commit that pauses and the call that resumes; and
//! about parked tasks that are resumed for a later time.

use std::collections::BTreeMap;

use super::Evidence;
use super::Story;
use super::Violation;
use super::hand_outs::HandOut;
use crate::ledger::Entry;
use crate::ledger::Moment;
use crate::plan::Kind;
use crate::plan::Plan;

/// A pause, while it held for certain.
pub(super) struct Pause<'a> {
    queue: &'a str,
    from: Moment,
    to: Moment,
}

/// The pauses of the ledger.
pub(super) fn all(evidence: &Evidence) -> Vec<Pause<'_>> {
    let mut pauses: Vec<Pause<'_>> = Vec::new();
    for line in &evidence.lines {
        match &line.entry {
            Entry::Paused(queue) => pauses.push(Pause { queue, from: line.at, to: Moment::MAX }),
            Entry::Unpausing(queue) => {
                if let Some(pause) = pauses.iter_mut().rev().find(|pause| pause.queue == queue) {
                    pause.to = pause.to.min(line.at);
                }
            }
            _ => {}
        }
    }
    pauses
}

/// Nothing of a queue while it is paused.
pub(super) fn hold(evidence: &Evidence, hand_outs: &[HandOut], out: &mut Vec<Violation>) {
    for Pause { queue, from, to } in all(evidence) {
        // What was handed out before may begin late.
        for hand_out in hand_outs.iter().filter(|hand_out| hand_out.from > from && hand_out.to < to) {
            let own = (!hand_out.moved).then(|| Plan::queue_of(hand_out.bond)).flatten();
            if queue == "*" || own == Some(queue) {
                let text = format!(
                    "it was handed out between {} and {}, and the queue {queue} was paused from {from} to {to}",
                    hand_out.from, hand_out.to
                );
                out.push(Violation { key: hand_out.key, text });
            }
        }
    }
}

/// What was parked and resumed for a later time is not handed out before. Nothing else changes when a doomed task is due, but a move.
pub(super) fn resumed_later(
    stories: &BTreeMap<u64, Story<'_>>,
    hand_outs: &[HandOut],
    out: &mut Vec<Violation>,
) {
    for (&key, story) in stories {
        if story.moved || story.plan.is_none_or(|plan| plan.kind != Kind::Doomed) {
            continue;
        }
        for &(resumed, due) in &story.due_later {
            let early =
                |hand_out: &&HandOut| hand_out.key == key && hand_out.from > resumed && hand_out.to + 1 < due;
            if let Some(hand_out) = hand_outs.iter().find(early) {
                let text = format!(
                    "it was resumed for {due}, and handed out between {} and {}",
                    hand_out.from, hand_out.to
                );
                out.push(Violation { key, text });
            }
        }
    }
}
