//! The part of the check that is about runs: tokens, transitions, attempts.

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::Evidence;
use super::Story;
use super::Violation;
use crate::fault::Fault;
use crate::ledger::End;
use crate::ledger::Moment;
use crate::ledger::Run;
use crate::plan::Kind;
use crate::plan::Plan;

/// How the error of a task begins that was not begun before its deadline.
const DEADLINE: &str = "the task was not begun before its deadline";

/// Every hand-out has a token of its own.
pub(super) fn tokens_are_given_once(stories: &BTreeMap<u64, Story<'_>>, out: &mut Vec<Violation>) {
    let mut seen: HashMap<i64, u64> = HashMap::new();
    for (&key, story) in stories {
        for (run, _) in &story.runs {
            if let Some(other) = seen.insert(run.token, key) {
                let text = format!("the token {} was given out twice, also to task {other}", run.token);
                out.push(Violation { key, text });
            }
        }
    }
}

impl Story<'_> {
    /// From each step to the next exactly once, and never back.
    pub(super) fn transitions(&self, plan: Plan, complain: &mut impl FnMut(String)) {
        for pair in self.runs.windows(2) {
            let [(before, _), (after, _)] = pair else { continue };
            if after.seq < before.seq {
                complain(format!("it went back: step {} after step {}", after.seq, before.seq));
            }
        }
        if self.runs.iter().any(|(run, _)| run.seq > plan.last_step()) {
            complain("it went on beyond its last step".to_owned());
        }
        let mut led_by: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
        for (run, _) in &self.runs {
            let by = led_by.entry(run.seq).or_default();
            if !by.contains(&run.via) {
                by.push(run.via);
            }
        }
        for (seq, by) in &led_by {
            if by.len() > 1 {
                complain(format!("the transition to step {seq} was made {} times: by {by:?}", by.len()));
            }
            for via in by {
                let right = match seq.checked_sub(1) {
                    None => *via == 0,
                    Some(last) => {
                        self.runs.iter().any(|(run, _)| run.seq == last && run.token == *via)
                            && self.ends.get(via).is_some_and(|(end, _)| *end == End::Next)
                    }
                };
                if !right {
                    complain(format!(
                        "the transition to step {seq} was made by no run of the step before: {via}"
                    ));
                }
            }
        }
        let highest = self.runs.iter().map(|(run, _)| run.seq).max();
        if let Some(missing) = highest.and_then(|highest| (0..highest).find(|seq| !led_by.contains_key(seq)))
        {
            complain(format!("step {missing} was skipped"));
        }
    }

    /// Attempts are counted.
    pub(super) fn attempts(&self, plan: Plan, evidence: &Evidence, complain: &mut impl FnMut(String)) {
        let faults_in = |from: Moment, to: Moment| evidence.faults_around(from, to).count();
        let promotion = Fault::Promote.name();
        let promoted_in =
            |from: Moment, to: Moment| evidence.faults_around(from, to).any(|fault| fault.name == promotion);
        for (index, (run, began)) in self.runs.iter().enumerate() {
            let earlier = self.runs[..index].iter().filter(|(other, _)| other.seq == run.seq).count() as i32;
            let excess = run.attempt - 1 - earlier;
            let since =
                self.runs[..index].first().map_or(self.intended_at, |(_, at)| self.intended_at.min(*at));
            if excess > faults_in(since, *began) as i32 {
                complain(format!(
                    "{} runs and {} faults do not make it attempt {}",
                    earlier,
                    faults_in(since, *began),
                    run.attempt
                ));
            }
            let Some((last, last_began)) =
                self.runs[..index].last().filter(|(last, _)| last.seq == run.seq && !self.changed)
            else {
                continue;
            };
            // The scheduler waits for its own disk, not for a standby: one that takes over may not know of the last loss.
            if promoted_in(*last_began, *began) {
                continue;
            }
            let disturbed = faults_in(*last_began, *began) > 0;
            let least = last.attempt + i32::from(self.failed(last) && !disturbed);
            if run.attempt < least {
                complain(format!(
                    "attempt {} follows attempt {} of step {}",
                    run.attempt, last.attempt, run.seq
                ));
            }
        }
        for &(tried, error, _) in &self.parked {
            if !error.starts_with(DEADLINE) {
                self.parked_rightly(plan, evidence.lost_limit, tried, error, complain);
                continue;
            }
            // Lost workers count, also those that had not begun. One that is only asked what to do instead does not.
            let most = if plan.kind == Kind::Expired { 0 } else { faults_in(self.intended_at, Moment::MAX) };
            if !matches!(plan.kind, Kind::Expired | Kind::Hasty) {
                complain(format!("it has no deadline, and was parked for it: {error}"));
            } else if tried > most as i32 {
                complain(format!("its deadline was over, and {tried} attempts are counted"));
            }
        }
    }

    fn failed(&self, run: &Run) -> bool {
        self.end(run) == Some(End::Failed)
    }

    fn parked_rightly(
        &self,
        plan: Plan,
        lost_limit: i32,
        tried: i32,
        error: &str,
        complain: &mut impl FnMut(String),
    ) {
        let limit = plan.kind.retry_limit();
        let lost = error.starts_with("the worker was lost")
            || error.starts_with("the worker or the server was lost");
        if lost {
            // Of some kinds the limit is another one from time to time.
            let wanted = limit.max(lost_limit) + 1..=plan.kind.highest_retry_limit().max(lost_limit) + 1;
            if !wanted.contains(&tried) {
                complain(format!("parked for lost workers after {tried} attempts, not {wanted:?}"));
            }
            return;
        }
        if tried <= limit {
            complain(format!("parked after {tried} attempts, though {limit} retries are allowed"));
        }
        if !self.runs.iter().any(|(run, _)| run.attempt == tried && self.failed(run)) {
            complain(format!("parked by attempt {tried}, and no such attempt failed: {error}"));
        }
    }
}
