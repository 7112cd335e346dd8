//! The part of the check that is about what ties tasks to each other: the order within a group, the limit of a key.
//!
//! Neither needs to know of the faults. A task of a group is over when its row is gone, and no run that the server has given up changes
//! that; so whatever was enqueued after it is handed out later, and begins after its last step noted its end. For a limit only those runs
//! count that nobody has run again: they were never given up.

use std::collections::BTreeMap;

use super::Story;
use super::Violation;
use crate::ledger::End;
use crate::ledger::Moment;
use crate::plan::Bond;
use crate::queues::TENANT_LIMIT;

/// One at a time of each group, in the order of the transactions, and within one in that of the keys.
pub(super) fn groups_go_in_order(stories: &BTreeMap<u64, Story<'_>>, out: &mut Vec<Violation>) {
    let mut groups: BTreeMap<u64, Vec<Member<'_>>> = BTreeMap::new();
    for (&key, story) in stories {
        if let Some(Bond::Group { group, batch }) = story.plan.map(|plan| plan.bond)
            && !story.rolled_back
        {
            groups.entry(group).or_default().push(Member { key, batch, story });
        }
    }
    for members in groups.values() {
        for younger in members {
            let (Some(first), Some(began)) = (younger.story.tokens().min(), younger.story.first_began())
            else {
                continue;
            };
            for older in members.iter().filter(|other| other.is_before(younger)) {
                let mut complain = |text: String| out.push(Violation { key: younger.key, text });
                if older.story.tokens().max() > Some(first) {
                    complain(format!("it was handed out before task {}, the older of its group", older.key));
                }
                if !older.story.cancelling && older.story.done_at().is_none_or(|done| done > began) {
                    complain(format!(
                        "it began before task {}, the older of its group, had ended",
                        older.key
                    ));
                }
            }
        }
    }
}

/// A task of a group.
struct Member<'a> {
    key: u64,
    batch: u64,
    story: &'a Story<'a>,
}

impl Member<'_> {
    /// Whether its id is the smaller one for certain, and was there when the other came.
    fn is_before(&self, other: &Self) -> bool {
        if self.batch == other.batch {
            return self.key < other.key;
        }
        self.story.there_at().is_some_and(|at| at < other.story.intended_at)
    }
}

/// When a run began (true) or ended, and of which task.
type BeginOrEnd = (Moment, bool, u64);

/// No more runs at once of each key than its queue allows. Runs of one epoch of tokens are compared: at the hand-out of the last of them
/// the server knew of the others.
pub(super) fn keys_keep_their_limit(stories: &BTreeMap<u64, Story<'_>>, out: &mut Vec<Violation>) {
    let mut moments: BTreeMap<(u64, i64), Vec<BeginOrEnd>> = BTreeMap::new();
    for (&key, story) in stories {
        let Some(Bond::Tenant(tenant)) = story.plan.map(|plan| plan.bond) else { continue };
        // What was moved to another queue has another key.
        if story.cancelling || story.moved {
            continue;
        }
        for (index, (run, began)) in story.runs.iter().enumerate() {
            let given_up = story.runs[index + 1..].iter().any(|(later, _)| later.seq == run.seq);
            let ended = story.ends.get(&run.token).filter(|(_, ended)| !given_up && ended > began);
            if let Some((_, ended)) = ended {
                let of_key = moments.entry((tenant, run.token >> 32)).or_default();
                of_key.extend([(*began, true, key), (*ended, false, key)]);
            }
        }
    }
    for ((tenant, _), mut moments) in moments {
        // What ends in the same hundredth of a second in which another begins may have ended before.
        moments.sort_unstable();
        let mut running: Vec<u64> = Vec::new();
        for (_, begins, key) in moments {
            if !begins {
                if let Some(at) = running.iter().position(|other| *other == key) {
                    running.swap_remove(at);
                }
                continue;
            }
            running.push(key);
            if running.len() > TENANT_LIMIT {
                let text = format!("{} tasks of tenant {tenant} ran at once: {running:?}", running.len());
                out.push(Violation { key, text });
            }
        }
    }
}

impl Story<'_> {
    fn tokens(&self) -> impl Iterator<Item = i64> {
        self.runs.iter().map(|(run, _)| run.token)
    }

    fn first_began(&self) -> Option<Moment> {
        self.runs.iter().map(|(_, began)| *began).min()
    }

    /// A moment at which it had been committed.
    pub(super) fn there_at(&self) -> Option<Moment> {
        self.committed_at.into_iter().chain(self.first_began()).min()
    }

    /// When a run first noted that the task is done: it was not over before.
    pub(super) fn done_at(&self) -> Option<Moment> {
        let last = self.plan?.last_step();
        let ends = self.runs.iter().filter(|(run, _)| run.seq == last);
        ends.filter_map(|(run, _)| self.ends.get(&run.token))
            .filter(|(end, _)| *end == End::Done)
            .map(|(_, at)| *at)
            .min()
    }
}
