//! The part of the check that is about schedules: each tick has its task once, none is forgotten, and policies are kept.
//!
//! It needs to know of no fault. The tick and the schedule's step to the next one are one transaction: what a schedule has dealt with by the
//! moment of the check is there, with the ticks that it has counted as left out.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use uuid::Uuid;

use super::Evidence;
use super::Violation;
use crate::ledger::Entry;
use crate::ledger::Line;
use crate::ledger::Moment;
use crate::ledger::Rest;
use crate::ledger::Tick;
use crate::ticks::Overlap;
use crate::ticks::Past;
use crate::ticks::Second;

/// What runs of one task of a tick have noted.
struct Work {
    began: Moment,
    ended: Option<Moment>,
}

/// Each tick once, or left out for a reason.
pub(super) fn each_tick_has_its_task_once(evidence: &Evidence, out: &mut Vec<Violation>) {
    let mut complain = |text: String| out.push(Violation { key: 0, text });
    for past in &evidence.schedules {
        let name = past.schedule.name;
        let rests: Vec<&Rest> = evidence
            .lines
            .iter()
            .filter_map(|line| match &line.entry {
                Entry::Rested(rest) if rest.schedule == name => Some(rest),
                _ => None,
            })
            .collect();
        past.ticks(&rests, &mut complain);
        past.tasks(&evidence.lines, &mut complain);
    }
}

impl Past {
    fn ticks(&self, rests: &[&Rest], complain: &mut impl FnMut(String)) {
        let Self { schedule, from, to, done } = self;
        let name = schedule.name;
        let mut times: BTreeMap<Second, u32> = BTreeMap::new();
        for (at, _) in done {
            *times.entry(*at).or_default() += 1;
        }
        for (at, count) in &times {
            if *count > 1 {
                complain(format!("schedule {name}: the tick {at} has had its task {count} times"));
            }
            if at % schedule.every != 0 || *at <= from.last || *at > to.last {
                complain(format!("schedule {name}: there is no tick {at}"));
            }
            if rests.iter().any(|rest| rest.covers(*at)) {
                complain(format!("schedule {name}: it was paused, and ticked at {at}"));
            }
        }
        let first = from.last - from.last.rem_euclid(schedule.every) + schedule.every;
        let due: BTreeSet<Second> = (first..=to.last).step_by(schedule.every as usize).collect();
        let missing: Vec<Second> = due
            .into_iter()
            .filter(|at| !times.contains_key(at) && !rests.iter().any(|rest| rest.may_leave_out(*at)))
            .collect();
        let skipped = to.skipped - from.skipped;
        if schedule.leaves_none_out() && !missing.is_empty() {
            complain(format!("schedule {name}: forgotten: {missing:?}"));
        } else if missing.len() as i64 != skipped {
            complain(format!(
                "schedule {name}: it has counted {skipped} skipped ticks, and these are: {missing:?}"
            ));
        }
        let fired = to.fired - from.fired;
        if fired != done.len() as i64 {
            complain(format!("schedule {name}: it has counted {fired} tasks, and there were {}", done.len()));
        }
    }

    fn tasks(&self, lines: &[Line], complain: &mut impl FnMut(String)) {
        let name = self.schedule.name;
        let mut works: BTreeMap<(Second, Uuid), Work> = BTreeMap::new();
        for line in lines {
            let Entry::Ticked(Tick { schedule, at, task, ends }) = &line.entry else { continue };
            if schedule != name || *at <= self.from.noted || *at > self.to.last {
                continue;
            }
            let work = works.entry((*at, *task)).or_insert(Work { began: line.at, ended: None });
            if *ends {
                work.ended.get_or_insert(line.at);
            }
        }
        let mut tasks: BTreeMap<Second, Vec<Uuid>> = BTreeMap::new();
        for (at, task) in works.keys() {
            tasks.entry(*at).or_default().push(*task);
        }
        for (at, tasks) in tasks.iter().filter(|(_, tasks)| tasks.len() > 1) {
            complain(format!("schedule {name}: the tick {at} has had several tasks: {tasks:?}"));
        }
        for (at, task) in self.done.iter().filter(|(at, _)| *at > self.from.noted) {
            if works.get(&(*at, *task)).is_none_or(|work| work.ended.is_none()) {
                complain(format!(
                    "schedule {name}: the task of the tick {at} is done, and no run of it ended"
                ));
            }
        }
        if self.schedule.overlap == Overlap::Allow {
            return;
        }
        // A task is enqueued when the one before is gone, and that has noted its end before.
        let mut last: Option<(Second, Moment)> = None;
        for ((at, _), work) in &works {
            if let Some((before, ended)) = last
                && work.began < ended
            {
                complain(format!(
                    "schedule {name}: the task of the tick {at} began before that of {before} had ended"
                ));
            }
            last = Some((*at, work.ended.unwrap_or(Moment::MAX)));
        }
    }
}

impl Rest {
    /// Whether a tick lies within the pause for certain.
    fn covers(&self, at: Second) -> bool {
        (self.since..=self.until).contains(&at)
    }

    /// Whether a tick may have been left out: one that was not dealt with before the pause, and none after it.
    fn may_leave_out(&self, at: Second) -> bool {
        at > self.dealt && at <= self.over
    }
}
