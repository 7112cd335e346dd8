//! The part of the check that is about unique tasks. Several calls can have made one task, each with a payload and a key in the ledger of its
//! own: the last payload is what must have ended, and the history says which that is.

use std::collections::BTreeMap;
use std::collections::HashMap;

use uuid::Uuid;

use super::Evidence;
use super::Outcome;
use super::Past;
use super::ROUNDING;
use super::Row;
use super::Story;
use super::Violation;
use crate::ledger::Moment;
use crate::plan::Answer;
use crate::plan::Bond;
use crate::plan::PERIOD;
use crate::plan::Plan;
use crate::plan::Scope;
use crate::plan::Unique;

/// Of each key one task at a time; each wish fulfilled; what was said to each caller is true.
pub(super) fn keys_stand_for_one_task(
    stories: &BTreeMap<u64, Story<'_>>,
    evidence: &Evidence,
    out: &mut Vec<Violation>,
) {
    let mut ended: HashMap<Uuid, (u64, Past)> = HashMap::new();
    for (&key, past) in &evidence.history {
        for past in past {
            if let Some((other, _)) = ended.insert(past.id, (key, *past)) {
                let text = format!("the task {} ended twice, also as task {other} of the ledger", past.id);
                out.push(Violation { key, text });
            }
        }
    }
    for &key in &evidence.wishes {
        let text = "it was committed with a wish, and no run of its key has taken that away since".to_owned();
        out.push(Violation { key, text });
    }
    periods_are_kept(stories, &ended, out);
    let mut by_name: BTreeMap<u32, Vec<Life>> = BTreeMap::new();
    for (&key, story) in stories {
        let Some((plan, unique)) = story.unique() else { continue };
        let rows: Vec<&Row> = evidence.rows.iter().filter(|row| row.key == key).collect();
        let past = evidence.history.get(&key).map_or(&[][..], Vec::as_slice);
        let mut complain = |text: String| out.push(Violation { key, text });
        if !rows.is_empty() || !past.is_empty() {
            story.history(plan, &rows, past, &mut complain);
        }
        if !rows.is_empty() {
            complain(
                "it waits for no reason: the load has ended, workers are there, and so is its row".to_owned(),
            );
            continue;
        }
        let Some((answer, id)) = story.answer else { continue };
        let Some((last, past)) = ended.get(&id).copied() else {
            complain(format!("lost: its row is gone, and the history does not know of {id}"));
            continue;
        };
        let Some(last_story) = stories.get(&last) else { continue };
        if last_story.unique().is_none_or(|(_, other)| other.name != unique.name) {
            complain(format!("it is one task with {last}, which has another key"));
        }
        if matches!(answer, Answer::Moved | Answer::Skipped) {
            if !story.runs.is_empty() {
                complain(format!("its caller was told that it was {}, and it ran", answer.word()));
            }
            continue;
        }
        if last != key && last_story.there_at().is_some_and(|there| there < story.intended_at) {
            complain(format!("it was to take the place of {last}, and that is what ended"));
        }
        if last != key && last_story.answer.is_some_and(|(answer, _)| answer != Answer::Replaced) {
            complain(format!("{last} took its place, and its caller was told something else"));
        }
        // A task that was cancelled held its key no longer, and when that was is not known; one that was parked may have held none.
        let unclear = past.outcome == Outcome::Cancelled
            || story.cancelling
            || !last_story.parked.is_empty()
            || !story.parked.is_empty();
        if answer == Answer::Enqueued
            && matches!(unique.scope, Scope::Done | Scope::Running)
            && !unclear
            && let (Some(there), Some(ended)) = (story.committed_at, last_story.done_at())
        {
            by_name.entry(unique.name).or_default().push(Life { key, there, ended });
        }
    }
    for lives in by_name.values() {
        for (index, one) in lives.iter().enumerate() {
            for other in &lives[index + 1..] {
                if one.ended > other.there && other.ended > one.there {
                    let text = format!("its key stood for two tasks at once, also for {}", one.key);
                    out.push(Violation { key: other.key, text });
                }
            }
        }
    }
}

/// A key that is held for a period is held so long and no longer; and a call that fails for a key names a task that has it.
fn periods_are_kept(
    stories: &BTreeMap<u64, Story<'_>>,
    ended: &HashMap<Uuid, (u64, Past)>,
    out: &mut Vec<Violation>,
) {
    let mut calls: BTreeMap<u32, Vec<(u64, &Story<'_>)>> = BTreeMap::new();
    let mut made: HashMap<Uuid, &Story<'_>> = HashMap::new();
    for (&key, story) in stories {
        let (Some((_, unique)), Some((Answer::Enqueued, id))) = (story.unique(), story.answer) else {
            continue;
        };
        made.insert(id, story);
        if unique.scope == Scope::Period {
            calls.entry(unique.name).or_default().push((key, story));
        }
    }
    for calls in calls.values() {
        for (index, (key, one)) in calls.iter().enumerate() {
            for (other_key, other) in &calls[index + 1..] {
                // Both calls were between these.
                let (Some(one_there), Some(other_there)) = (one.committed_at, other.committed_at) else {
                    continue;
                };
                let time = one_there.max(other_there) - one.intended_at.min(other.intended_at);
                if time < PERIOD {
                    let text =
                        format!("within {time} hundredths of a second its key has given another task, {key}");
                    out.push(Violation { key: *other_key, text });
                }
            }
        }
    }
    for (&key, story) in stories {
        let Some((_, unique)) = story.unique() else { continue };
        let met = story.answer.filter(|(answer, _)| *answer != Answer::Enqueued).map(|(_, id)| id);
        let Some(holder) = story.refused.or(met) else { continue };
        let mut complain = |text: String| out.push(Violation { key, text });
        if story.refused.is_some() {
            let name = ended
                .get(&holder)
                .and_then(|(last, _)| stories.get(last)?.unique())
                .map(|(_, other)| other.name);
            match name {
                None => complain(format!(
                    "its call was refused for {holder}, which has not ended and is not there"
                )),
                Some(name) if name != unique.name => {
                    complain(format!("its call was refused for {holder}, which has another key"));
                }
                Some(_) => {}
            }
        }
        let there = made.get(&holder).and_then(|holder| holder.committed_at);
        if unique.scope == Scope::Period
            && let Some(there) = there
            && story.intended_at > there + PERIOD + ROUNDING
        {
            complain(format!("its key was held by {holder} longer than its period"));
        }
    }
}

/// From when to when a task was there: it was enqueued no later than that, and had not ended before.
struct Life {
    key: u64,
    there: Moment,
    ended: Moment,
}

impl Story<'_> {
    fn unique(&self) -> Option<(Plan, Unique)> {
        let plan = self.plan?;
        let Bond::Unique(unique) = plan.bond else { return None };
        Some((plan, unique))
    }
}
