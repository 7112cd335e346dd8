//! The part of the check that is about what queues say for their tasks: a failure goes by the policy that holds when it is brought, and what a
//! queue leaves no history of is in none.

use std::collections::BTreeMap;

use super::Evidence;
use super::ROUNDING;
use super::Story;
use super::Violation;
use crate::ledger::End;
use crate::ledger::Entry;
use crate::ledger::Moment;
use crate::plan::Bond;
use crate::plan::Kind;

/// So many retries, and no other number, between these moments.
pub(super) struct Reign {
    limit: i32,
    from: Moment,
    to: Moment,
}

/// The settings of the ledger, while they held for certain.
pub(super) fn reigns(evidence: &Evidence) -> Vec<Reign> {
    let mut reigns: Vec<Reign> = Vec::new();
    for line in &evidence.lines {
        match &line.entry {
            Entry::Ruled(limit) => reigns.push(Reign { limit: *limit, from: line.at, to: Moment::MAX }),
            Entry::Ruling => reigns.iter_mut().for_each(|reign| reign.to = reign.to.min(line.at)),
            _ => {}
        }
    }
    reigns
}

/// Retries as the queue says; no history where it says so.
pub(super) fn hold(stories: &BTreeMap<u64, Story<'_>>, evidence: &Evidence, out: &mut Vec<Violation>) {
    let reigns = reigns(evidence);
    // A failure in the same hundredth of a second as a setting may have come before it.
    let reign = |from: Moment, to: Moment| {
        reigns.iter().find(|reign| reign.from.saturating_add(ROUNDING) <= from && to <= reign.to)
    };
    let is_disturbed = |from: Moment, to: Moment| evidence.faults_around(from, to).next().is_some();
    for (&key, story) in stories {
        let Some(plan) = story.plan.filter(|plan| plan.kind == Kind::Heir) else { continue };
        let mut complain = |text: String| out.push(Violation { key, text });
        if plan.bond == Bond::Forgotten && evidence.history.contains_key(&key) {
            complain("its queue leaves no history, and it is there".to_owned());
        }
        let failed = |attempt: i32| {
            let runs = story.runs.iter().filter(move |(run, _)| run.attempt == attempt);
            let ends = runs.filter_map(|(run, _)| story.ends.get(&run.token));
            ends.filter(|(end, _)| *end == End::Failed).map(|(_, at)| *at).min()
        };
        for &(tried, error, at) in &story.parked {
            let Some(since) = failed(tried).filter(|_| !error.contains(" was lost ")) else { continue };
            if let Some(reign) = reign(since, at).filter(|reign| tried <= reign.limit) {
                let limit = reign.limit;
                complain(format!("it was parked after {tried} attempts, and its queue said {limit} retries"));
            }
        }
        for pair in story.runs.windows(2) {
            let [(before, _), (after, began)] = pair else { continue };
            let Some((End::Failed, since)) = story.ends.get(&before.token) else { continue };
            // Resumed, or run again for another reason.
            if is_disturbed(*since, *began)
                || story.resumings.iter().any(|at| (*since..=*began).contains(at))
                || after.attempt != before.attempt + 1
            {
                continue;
            }
            if let Some(reign) = reign(*since, *began).filter(|reign| before.attempt > reign.limit) {
                let (attempt, limit) = (after.attempt, reign.limit);
                complain(format!("attempt {attempt} follows, and its queue said {limit} retries"));
            }
        }
    }
}
