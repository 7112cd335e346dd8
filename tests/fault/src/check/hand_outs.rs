//! When tasks were handed out, as closely as the ledger tells, which knows when they were enqueued and when runs began.
//!
//! Attempt tokens are given out in the order of the hand-outs. So one was handed out after whatever was enqueued, or led on, of those with
//! smaller tokens, and before any run with a larger token began. Under a load that never rests the two are close to each other, even when a
//! worker gets its task late or begins it late.

use std::collections::BTreeMap;

use super::Story;
use crate::ledger::Moment;
use crate::plan::Bond;

/// A hand-out.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandOut {
    /// The task.
    pub key: u64,
    /// What ties it to others.
    pub bond: Bond,
    /// Whether a user has moved it to another queue, or may have.
    pub moved: bool,
    /// It was not before this.
    pub from: Moment,
    /// It was not after this.
    pub to: Moment,
    /// When its run began.
    pub began: Moment,
}

/// All that is known, in their order.
pub(super) fn in_order(stories: &BTreeMap<u64, Story<'_>>) -> Vec<HandOut> {
    let mut by_token: Vec<(i64, HandOut)> = Vec::new();
    for (&key, story) in stories {
        let Some(plan) = story.plan else { continue };
        for (run, began) in &story.runs {
            // A step that was led to is there since then.
            let from = match run.seq {
                0 => story.intended_at,
                _ => story.ends.get(&run.via).map_or(story.intended_at, |(_, at)| *at),
            };
            by_token.push((
                run.token,
                HandOut { key, bond: plan.bond, moved: story.moved, from, to: *began, began: *began },
            ));
        }
    }
    by_token.sort_by_key(|(token, _)| *token);
    let mut all: Vec<HandOut> = by_token.into_iter().map(|(_, hand_out)| hand_out).collect();
    let mut latest = 0;
    for hand_out in &mut all {
        latest = hand_out.from.max(latest);
        hand_out.from = latest;
    }
    let mut earliest = Moment::MAX;
    for hand_out in all.iter_mut().rev() {
        earliest = hand_out.to.min(earliest);
        hand_out.to = earliest;
    }
    all
}
