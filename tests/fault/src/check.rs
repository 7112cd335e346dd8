//! The check: what the ledger and the rows that are left say about the promises.
//!
//! What must hold of every task:
//! - one that was committed ends once (its last step noted that it is done, or its user cancelled it, and the row is gone), or its row is
//!   still there for a reason that its plan knows;
//! - one that was rolled back never runs, and nothing runs that nobody enqueued;
//! - no token is given out twice; in the order of the tokens a task never goes back to an earlier step;
//! - every step that runs was led to by exactly one run of the step before it: a doubled transition would lead there twice;
//! - attempts are counted: never fewer than before, one more after an error, no more than runs and faults explain; a parked task has had
//!   exactly as many as its reason says;
//! - what a step writes with its token as a fence never goes back;
//! - what a step writes in the transaction of its transition is there once if it led on, by the run that did, and never twice;
//! - a task whose deadline is over does not begin, and no attempt is counted;
//! - tasks of one group run one at a time, in the order in which they were enqueued; of a key no more at once than its queue allows;
//! - of a queue with a rate, and of each of its keys, no more is handed out in any stretch of time than the burst and the rate allow;
//! - nothing of a queue is handed out while it is paused, and no parked task before the time for which it was resumed;
//! - what a queue says for its tasks of retries holds from its commit on; a queue that keeps no history has none;
//! - a copy of a task is a task of its own;
//! - the key of unique tasks stands for one at a time, and who meets it while it is queued gets a run that begins later;
//! - what an operator has put into a payload is there until the end; a call that changes many says how many;
//! - each tick of a schedule has its task once, or is counted as left out by the schedule's policies; none is forgotten, none comes in a pause;
//! - the history has one row of each task that has ended, with the outcome and the attempts that the ledger knows, and none of another.

mod bonds;
mod clones;
mod defaults;
mod hand_outs;
mod history;
mod pauses;
mod rates;
mod runs;
mod tally;
mod ticks;
mod unique;

use std::collections::BTreeMap;
use std::collections::HashMap;

use uuid::Uuid;

use crate::ledger::End;
use crate::ledger::Entry;
use crate::ledger::Line;
use crate::ledger::Moment;
use crate::ledger::Run;
use crate::plan::Answer;
use crate::plan::Bond;
use crate::plan::Kind;
use crate::plan::Plan;

/// A worker that was stopped may begin a step that it was given before so much later; in centiseconds.
const LATE_BEGIN: Moment = 6_000;

/// A fault has its effects a little before its note and after it, in centiseconds: a lost worker is counted after its grace.
const AROUND: Moment = 300;

/// Both ends of a stretch are known to a hundredth of a second.
const ROUNDING: Moment = 1;

/// What is known at the end.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The ledger.
    pub lines: Vec<Line>,
    /// The rows that are left in the table.
    pub rows: Vec<Row>,
    /// What the history says, by the task's key.
    pub history: HashMap<u64, Vec<Past>>,
    /// Wishes of unique tasks that nobody has taken away: the keys of those who made them.
    pub wishes: Vec<u64>,
    /// What the fenced steps wrote: the token by the task's key.
    pub effects: HashMap<u64, i64>,
    /// What steps wrote in the transaction of their transition: step and token by the task's key.
    pub exactly: HashMap<u64, Vec<(u32, i64)>>,
    /// The faults.
    pub faults: Vec<Span>,
    /// What copies of tasks, and the tasks, have written: their ids by the task's key.
    pub twins: HashMap<u64, Vec<Uuid>>,
    /// What the schedules have done.
    pub schedules: Vec<crate::ticks::Past>,
    /// `pg_task.lost_limit`.
    pub lost_limit: i32,
}

/// A row that is left.
#[derive(Clone, Debug)]
pub struct Row {
    /// The task's key.
    pub key: u64,
    /// All of it, for people.
    pub text: String,
}

/// What the history says of a task that has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Past {
    /// How it ended.
    pub outcome: Outcome,
    /// The number of its last step.
    pub seq: u32,
    /// The attempts of its last step.
    pub attempts: i32,
    /// The task.
    pub id: Uuid,
    /// The last mark in its payload.
    pub mark: u64,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A user deleted it.
    Cancelled,
    /// Its last step was done.
    Done,
}

/// A fault, from its first effect to its last.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its name and what it did.
    pub name: String,
    /// When it began.
    pub from: Moment,
    /// When it was over.
    pub to: Moment,
}

/// A broken promise.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// The task.
    pub key: u64,
    /// What is wrong.
    pub text: String,
}

/// What the ledger says of one task.
#[derive(Default)]
struct Story<'a> {
    lines: Vec<&'a Line>,
    plan: Option<Plan>,
    intended_at: Moment,
    committed_at: Option<Moment>,
    rolled_back: bool,
    cancelling: bool,
    cancelled_at: Option<Moment>,
    /// A user has changed it: its attempts begin anew, or a run was refused for it.
    changed: bool,
    /// A user has moved it to another queue.
    moved: bool,
    /// Runs in the order of their tokens, with the moment at which they began.
    runs: Vec<(Run, Moment)>,
    ends: HashMap<i64, (End, Moment)>,
    /// Each time: attempts, the reason, when it was found.
    parked: Vec<(i32, &'a str, Moment)>,
    /// What `enqueue_unique` failed for: this task holds the key.
    refused: Option<Uuid>,
    /// How often it was about to be copied.
    copyings: usize,
    /// Copies whose commits are known.
    copies: Vec<Uuid>,
    /// What `enqueue_unique` said of it.
    answer: Option<(Answer, Uuid)>,
    /// The marks that an operator was about to put into it, and whether the commit is known.
    marks: Vec<(u64, bool)>,
    /// When it was about to be resumed.
    resumings: Vec<Moment>,
    /// When it was known to be resumed, and when it is due then, at the earliest.
    due_later: Vec<(Moment, Moment)>,
}

impl Evidence {
    /// The faults that may have had effects between these moments.
    fn faults_around(&self, from: Moment, to: Moment) -> impl Iterator<Item = &Span> {
        let overlaps =
            move |fault: &&Span| fault.from <= to.saturating_add(AROUND) && fault.to + AROUND >= from;
        self.faults.iter().filter(overlaps)
    }
}

/// What the ledger says of each task.
fn stories(evidence: &Evidence) -> BTreeMap<u64, Story<'_>> {
    let mut stories: BTreeMap<u64, Story<'_>> = BTreeMap::new();
    for line in &evidence.lines {
        stories.entry(line.key).or_default().add(line);
    }
    stories.values_mut().for_each(|story| story.runs.sort_by_key(|(run, _)| run.token));
    stories
}

/// Every broken promise, in the order of the keys.
pub fn check(evidence: &Evidence) -> Vec<Violation> {
    let stories = stories(evidence);
    let mut rows: HashMap<u64, Vec<&Row>> = HashMap::new();
    for row in &evidence.rows {
        rows.entry(row.key).or_default().push(row);
    }
    let mut out = Vec::new();
    for line in &evidence.lines {
        if let Entry::Wrong(text) = &line.entry {
            out.push(Violation { key: line.key, text: text.clone() });
        }
    }
    runs::tokens_are_given_once(&stories, &mut out);
    for (&key, story) in &stories {
        let rows = rows.remove(&key).unwrap_or_default();
        let mut complain = |text: String| out.push(Violation { key, text });
        story.enqueued(&rows, &mut complain);
        if let Some(plan) = story.plan {
            let past = evidence.history.get(&key).map_or(&[][..], Vec::as_slice);
            if plan.kind == Kind::Twin {
                let written = evidence.twins.get(&key).map_or(&[][..], Vec::as_slice);
                story.copies(&rows, written, past, &mut complain);
                continue;
            }
            if !matches!(plan.bond, Bond::Unique(_)) {
                story.ended(plan, &rows, &mut complain);
            }
            if !matches!(plan.bond, Bond::Forgotten | Bond::Unique(_)) {
                story.history(plan, &rows, past, &mut complain);
            }
            story.transitions(plan, &mut complain);
            story.attempts(plan, evidence, &mut complain);
            let written = evidence.exactly.get(&key).map_or(&[][..], Vec::as_slice);
            story.exactly(plan, written, past, &mut complain);
            story.effect(plan, evidence.effects.get(&key).copied(), &mut complain);
        }
    }
    bonds::groups_go_in_order(&stories, &mut out);
    unique::keys_stand_for_one_task(&stories, evidence, &mut out);
    bonds::keys_keep_their_limit(&stories, &mut out);
    let hand_outs = hand_outs::in_order(&stories);
    rates::are_kept(&hand_outs, &mut out);
    pauses::hold(evidence, &hand_outs, &mut out);
    pauses::resumed_later(&stories, &hand_outs, &mut out);
    defaults::hold(&stories, evidence, &mut out);
    ticks::each_tick_has_its_task_once(evidence, &mut out);
    for key in evidence.history.keys().filter(|key| !stories.contains_key(key)) {
        out.push(Violation { key: *key, text: "the history knows of it, and nobody enqueued it".to_owned() });
    }
    for key in rows.into_keys() {
        out.push(Violation { key, text: "there is a row that nobody enqueued".to_owned() });
    }
    out.sort_by_key(|violation| violation.key);
    out
}

impl<'a> Story<'a> {
    fn add(&mut self, line: &'a Line) {
        self.lines.push(line);
        match &line.entry {
            Entry::Answered(answer, id) => self.answer = Some((*answer, *id)),
            Entry::Began(run) => self.runs.push((*run, line.at)),
            Entry::Cancelled => self.cancelled_at = Some(line.at),
            Entry::Cancelling => self.cancelling = true,
            Entry::Committed => self.committed_at = Some(line.at),
            Entry::Edited(mark) => self.marks.push((*mark, true)),
            Entry::Editing(mark) => {
                self.changed = true;
                self.marks.push((*mark, false));
            }
            Entry::Ended(_, token, end) => _ = self.ends.insert(*token, (*end, line.at)),
            Entry::Intended(plan) => {
                self.plan = Some(*plan);
                // Another call for the same task changes it.
                self.changed |= matches!(plan.bond, Bond::Unique(_));
                self.intended_at = line.at;
            }
            Entry::Copied(id) => self.copies.push(*id),
            Entry::Copying => self.copyings += 1,
            Entry::Parked(tried, error) => self.parked.push((*tried, error, line.at)),
            Entry::Refused(id) => self.refused = Some(*id),
            Entry::Changing => (self.changed, self.moved) = (true, true),
            Entry::Resumed(millis) => {
                let asked = self.resumings.last().copied().unwrap_or(line.at);
                self.due_later.push((line.at, asked + millis / 10));
            }
            Entry::Resuming => {
                self.changed = true;
                self.resumings.push(line.at);
            }
            Entry::RolledBack => self.rolled_back = true,
            Entry::Paused(_)
            | Entry::Rested(_)
            | Entry::Ruled(_)
            | Entry::Ruling
            | Entry::Ticked(_)
            | Entry::Unpausing(_)
            | Entry::Watched(_)
            | Entry::Wrong(_) => {}
        }
    }

    /// What a run noted that it ends in.
    fn end(&self, run: &Run) -> Option<End> {
        self.ends.get(&run.token).map(|(end, _)| *end)
    }

    /// What is there was enqueued; what was rolled back is not there.
    fn enqueued(&self, rows: &[&Row], complain: &mut impl FnMut(String)) {
        if self.plan.is_none() && !self.runs.is_empty() {
            complain("it ran, and nobody enqueued it".to_owned());
        }
        if self.rolled_back && !self.runs.is_empty() {
            complain("its enqueueing was rolled back, and it ran".to_owned());
        }
        if self.rolled_back && !rows.is_empty() {
            complain("its enqueueing was rolled back, and there is a row".to_owned());
        }
        if rows.len() > 1 {
            complain(format!("it was enqueued once, and there are {} rows", rows.len()));
        }
    }

    /// It came to its end, or waits for a reason.
    fn ended(&self, plan: Plan, rows: &[&Row], complain: &mut impl FnMut(String)) {
        if plan.kind == Kind::Future {
            if !self.runs.is_empty() {
                complain("it is due in a day, and it ran".to_owned());
            }
            if self.committed_at.is_some() && rows.is_empty() && !self.cancelling {
                complain("lost: it is due in a day, and its row is gone".to_owned());
            }
            return;
        }
        if plan.kind == Kind::Expired
            && self.runs.iter().any(|(_, began)| self.resumings.first().is_none_or(|resumed| began < resumed))
        {
            complain("its deadline was over, and it began".to_owned());
        }
        if !rows.is_empty() {
            if self.cancelled_at.is_some() {
                complain("it was cancelled, and there is a row".to_owned());
            }
            complain(
                "it waits for no reason: the load has ended, workers are there, and so is its row".to_owned(),
            );
            return;
        }
        if let Some(at) = self.cancelled_at
            && self.runs.iter().any(|(_, began)| *began > at + LATE_BEGIN)
        {
            complain("it began long after it was cancelled".to_owned());
        }
        let enqueued = self.committed_at.is_some() || !self.runs.is_empty();
        let done =
            self.runs.iter().any(|(run, _)| run.seq == plan.last_step() && self.end(run) == Some(End::Done));
        // A deletion whose commit is not known explains a row that is gone.
        if enqueued && !done && !self.cancelling && !self.rolled_back {
            complain("lost: its row is gone, and its last step never ended".to_owned());
        }
    }

    /// What steps wrote in the transaction of their transition.
    fn exactly(&self, plan: Plan, written: &[(u32, i64)], past: &[Past], complain: &mut impl FnMut(String)) {
        if plan.kind != Kind::Exact {
            return;
        }
        for seq in 0..=plan.last_step() {
            let tokens: Vec<i64> =
                written.iter().filter(|(other, _)| *other == seq).map(|(_, token)| *token).collect();
            if tokens.len() > 1 {
                complain(format!("step {seq} has written {} times: {tokens:?}", tokens.len()));
            }
            // The next step names the run that led to it.
            let next = self.runs.iter().find(|(run, _)| run.seq == seq + 1).map(|(run, _)| run.via);
            if let Some(via) = next
                && tokens != [via]
            {
                complain(format!("step {seq} went on with token {via}, and what was written is {tokens:?}"));
            }
            let ended = seq == plan.last_step() && past.iter().any(|past| past.outcome == Outcome::Done);
            if ended && tokens.is_empty() {
                complain(format!("the last step {seq} has ended, and nothing was written"));
            }
            for token in &tokens {
                if !self.runs.iter().any(|(run, _)| run.seq == seq && run.token == *token) {
                    complain(format!(
                        "the token {token} has written for step {seq}, and no run of it had it"
                    ));
                }
            }
        }
    }

    /// What a step wrote with its token as a fence.
    fn effect(&self, plan: Plan, effect: Option<i64>, complain: &mut impl FnMut(String)) {
        if plan.kind != Kind::Fenced {
            return;
        }
        let done = self.runs.iter().filter(|(run, _)| self.end(run) == Some(End::Done));
        let last = done.map(|(run, _)| run.token).max();
        match (last, effect) {
            (Some(last), Some(effect)) if effect < last => {
                complain(format!("attempt {last} has written, and the token that is left is {effect}"));
            }
            (Some(last), None) => complain(format!("attempt {last} has written, and nothing is there")),
            (_, Some(effect)) if !self.runs.iter().any(|(run, _)| run.token == effect) => {
                complain(format!("the token {effect} has written, and no run had it"));
            }
            _ => {}
        }
    }
}

impl Evidence {
    /// The whole story of a violation, for people: the task's lines, its row, the faults around it.
    pub fn account(&self, violation: &Violation) -> String {
        let of_it = |line: &&Line| {
            line.key == violation.key && (line.key > 0 || matches!(line.entry, Entry::Wrong(_)))
        };
        let lines: Vec<&Line> = self.lines.iter().filter(of_it).collect();
        let mut text = format!("task {}: {}\n", violation.key, violation.text);
        let start = lines.first().map_or(0, |line| line.at);
        let end = lines.last().map_or(Moment::MAX, |line| line.at);
        let mut events: Vec<(Moment, String)> =
            lines.iter().map(|line| (line.at, line.to_string())).collect();
        events.extend(
            self.faults
                .iter()
                .filter(|fault| fault.to + 500 >= start && fault.from <= end.saturating_add(500))
                .map(|fault| (fault.from, format!("{} … {} FAULT {}", fault.from, fault.to, fault.name))),
        );
        events.sort_by_key(|event| event.0);
        for (_, event) in events {
            text += &format!("    {event}\n");
        }
        for row in self.rows.iter().filter(|row| row.key == violation.key) {
            text += &format!("    row: {}\n", row.text);
        }
        for past in self.history.get(&violation.key).into_iter().flatten() {
            text += &format!("    in the history: {past:?}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests;
