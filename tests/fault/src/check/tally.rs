//! What a check had before it, in numbers: a promise about something that never happened would be kept for nothing.

use super::Evidence;
use super::Story;
use super::defaults;
use super::hand_outs;
use super::pauses;
use super::rates;
use super::rates::Fullest;
use super::stories;
use crate::ledger::Entry;
use crate::plan::Answer;
use crate::plan::Bond;
use crate::plan::Kind;
use crate::plan::Scope;
use crate::plan::Unique;

impl Evidence {
    /// One line.
    pub fn tally(&self) -> String {
        let ticks: usize = self.schedules.iter().map(|past| past.done.len()).sum();
        let left_out: i64 = self.schedules.iter().map(|past| past.to.skipped - past.from.skipped).sum();
        let stories = stories(self);
        let hand_outs = hand_outs::in_order(&stories);
        let (queue, keys) = rates::fullest(&hand_outs);
        let share = |fullest: &Fullest| fullest.count as f64 / fullest.most;
        let key = keys.values().map(share).fold(0.0, f64::max);
        let heirs: Vec<&Story<'_>> =
            stories.values().filter(|story| story.plan.is_some_and(|plan| plan.kind == Kind::Heir)).collect();
        let periods = stories.values().filter(|story| {
            matches!(
                story.plan.map(|plan| plan.bond),
                Some(Bond::Unique(Unique { scope: Scope::Period, .. }))
            )
        });
        let (again, new): (Vec<_>, Vec<_>) =
            periods.filter_map(|story| story.answer).partition(|(answer, _)| *answer != Answer::Enqueued);
        let seen: u32 = self
            .lines
            .iter()
            .map(|line| if let Entry::Watched(count) = line.entry { count } else { 0 })
            .sum();
        let count = |of: fn(&Entry) -> bool| self.lines.iter().filter(|line| of(&line.entry)).count();
        let metered = hand_outs.iter().filter(|hand_out| matches!(hand_out.bond, Bond::Metered(_))).count();
        format!(
            "{ticks} ticks and {left_out} left out, {} rests; {metered} metered hand-outs, at most {:.0} % of the queue's rate and {:.0} % of a key's; \
             {} pauses, {} resumed for later; {} new tasks for a period and {} calls within it, {} calls refused; {} heirs parked of {}, {} settings; {} copies; \
             {seen} times progress",
            count(|entry| matches!(entry, Entry::Rested(_))),
            100.0 * share(&queue),
            100.0 * key,
            pauses::all(self).len(),
            count(|entry| matches!(entry, Entry::Resumed(_))),
            new.len(),
            again.len(),
            count(|entry| matches!(entry, Entry::Refused(_))),
            heirs.iter().filter(|story| !story.parked.is_empty()).count(),
            heirs.len(),
            defaults::reigns(self).len(),
            count(|entry| matches!(entry, Entry::Copied(_))),
        )
    }
}
