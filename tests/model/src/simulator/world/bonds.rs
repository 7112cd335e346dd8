//! The groups and keys of tasks: what a commit tells of them, what the scheduler finds by looks, what a claim asks, and what must hold.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::VecDeque;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Claim;
use pg_task_rules::board::KeyRoom;
use pg_task_rules::board::Leaving;
use pg_task_rules::board::Look;
use pg_task_rules::board::Turn;
use pg_task_rules::due::LaneKey;
use pg_task_rules::due::RowKey;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key;
use pg_task_rules::place::Place;
use pg_task_rules::turns;
use pg_task_rules::turns::Passes;

use super::Break;
use super::Dice;
use super::Row;
use super::World;

const GROUPS: u64 = 8;
/// Of each queue.
const KEYS: u64 = 3;
/// How long the turn of a key is.
const TURN: u32 = 4;
/// So many hand-outs of a key are held against its rate.
const REMEMBERED: usize = 100;

/// The group and the key of a task.
#[derive(Clone, Copy, Default)]
pub(super) struct Bond {
    group: Option<Group>,
    key: Option<Key>,
}

impl Bond {
    /// Most tasks have neither a group nor a key. A key belongs to its queue.
    pub(super) fn some(queue: &str, dice: &mut Dice) -> Self {
        let group = (dice.below(12) == 0).then(|| Group((dice.below(GROUPS) as i64) << 21));
        let number = i64::from(queue.as_bytes()[0]) << 8 | dice.below(KEYS) as i64;
        Self { group, key: (dice.below(4) == 0).then_some(Key(number << 21)) }
    }

    fn looks(self) -> impl Iterator<Item = Look> {
        self.group.map(Look::Group).into_iter().chain(self.key.map(Look::Key))
    }
}

/// What ties the tasks of the table, and what the scheduler keeps in mind of that.
#[derive(Default)]
pub(super) struct Bonds {
    /// The tasks of each group, and of each key in their order.
    groups: HashMap<Group, BTreeSet<TaskId>>,
    keys: HashMap<Key, BTreeSet<(i16, RowKey)>>,
    of: HashMap<TaskId, Bond>,
    /// Groups and keys to look at when their limits open by themselves.
    later: BTreeSet<(Micros, Look)>,
    passes: Passes,
    /// The task of each group that was begun last, and where.
    begun_in: HashMap<Group, (TaskId, usize)>,
    /// When tasks of each key were begun, since rules were changed.
    begun_of: HashMap<Key, VecDeque<Micros>>,
}

impl Bonds {
    pub(super) fn add(&mut self, id: TaskId, bond: Bond) {
        self.of.insert(id, bond);
        if let Some(group) = bond.group {
            self.groups.entry(group).or_default().insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: &TaskId, bond: Bond) {
        if let Some(tasks) = bond.group.and_then(|group| self.groups.get_mut(&group)) {
            tasks.remove(id);
        }
    }

    /// The scheduler begins anew.
    pub(super) fn forget(&mut self) {
        self.later.clear();
        self.passes = Passes::default();
    }

    /// What waits may go by other limits.
    pub(super) fn rules_changed(&mut self) {
        self.later =
            std::mem::take(&mut self.later).into_iter().map(|(_, look)| (Micros::MIN, look)).collect();
        self.begun_of.clear();
    }
}

impl World {
    /// What a commit tells the scheduler of a row: one with a group or a key that is due comes by a look.
    pub(super) fn note_task(&mut self, lane: LaneKey, due: Micros, id: TaskId, bond: Bond) {
        let look = bond.key.map(Look::Key).or(bond.group.map(Look::Group));
        match look.filter(|_| due <= self.now) {
            Some(look) => self.memory.board().ask_look(look),
            None => self.hint(lane, due, id),
        }
    }

    /// Puts a row into the indexes that are ordered by time.
    pub(super) fn list(&mut self, lane: LaneKey, due: Micros, id: TaskId, bond: Bond) {
        self.index.insert((lane, RowKey { due, id }));
        if let Some(key) = bond.key {
            self.bonds.keys.entry(key).or_default().insert((lane.priority, RowKey { due, id }));
        }
    }

    pub(super) fn unlist(&mut self, lane: LaneKey, due: Micros, id: TaskId, bond: Bond) {
        self.index.remove(&(lane, RowKey { due, id }));
        if let Some(tasks) = bond.key.and_then(|key| self.bonds.keys.get_mut(&key)) {
            tasks.remove(&(lane.priority, RowKey { due, id }));
        }
    }

    /// A row has changed or is gone: others of its group and key may be the next.
    pub(super) fn ask_looks(&mut self, id: &TaskId) {
        let bond = self.bonds.of.get(id).copied().unwrap_or_default();
        let mut board = self.memory.board.board();
        bond.looks().for_each(|look| board.ask_look(look));
    }

    fn is_oldest(&self, group: Group, id: &TaskId) -> bool {
        self.bonds.groups.get(&group).and_then(BTreeSet::first) == Some(id)
    }

    /// The first tasks of a key that are due, but for those whose groups have older ones.
    fn first_of(&self, key: Key, want: usize) -> Vec<TaskId> {
        let tasks = self.bonds.keys.get(&key).into_iter().flatten().map(|(_, row)| row);
        let due = tasks.filter(|row| row.due <= self.now).map(|row| row.id);
        let is_first = |id: &TaskId| self.rows[id].bond.group.is_none_or(|group| self.is_oldest(group, id));
        due.filter(is_first).take(want).collect()
    }

    /// What the scheduler keeps of the rows that a read has brought; looks bring the others.
    pub(super) fn kept(&mut self, rows: Vec<(RowKey, Place)>) -> Vec<(RowKey, Place)> {
        let mut kept = Vec::new();
        for (row, place) in rows {
            let Bond { group, key } = self.rows[&row.id].bond;
            if group.is_none_or(|group| self.is_oldest(group, &row.id)) {
                match key.filter(|_| row.due <= self.now) {
                    Some(key) => _ = self.bonds.later.insert((Micros::MIN, Look::Key(key))),
                    None => kept.push((row, place)),
                }
            }
        }
        kept
    }

    /// Finds the next tasks of groups and keys.
    pub(super) fn look(&mut self) {
        let now = self.now;
        let mut looks: Vec<Look> = Vec::new();
        while let Some((_, look)) = self.bonds.later.first().copied().filter(|(at, _)| *at <= now) {
            self.bonds.later.pop_first();
            looks.push(look);
        }
        if self.memory.board().take_looks(&mut looks) {
            self.book.rescan(Micros::MIN);
            self.find_lanes = true;
        }
        looks.sort_unstable();
        looks.dedup();
        if self.broken == Some(Break::ForgetLooks) {
            looks.truncate(looks.len() / 2);
        }
        let mut in_turn: BTreeMap<LaneKey, Vec<turns::Turn<RowKey>>> = BTreeMap::new();
        for look in looks {
            match look {
                Look::Group(group) => self.look_in_group(group),
                Look::Key(key) => self.look_for_key(key, &mut in_turn),
            }
        }
        for (lane, found) in in_turn {
            for row in self.bonds.passes.order(lane, found) {
                self.book.hint_in_turn(lane, row, now);
            }
        }
    }

    fn look_in_group(&mut self, group: Group) {
        let Some(id) = self.bonds.groups.get(&group).and_then(BTreeSet::first).copied() else { return };
        if self.memory.board().has_turn(group) {
            return;
        }
        let Row { lane, due, bond, .. } = self.rows[&id];
        match bond.key.filter(|_| due <= self.now) {
            Some(key) => self.memory.board().ask_look(Look::Key(key)),
            None => self.book.hint(lane, RowKey { due, id }),
        }
    }

    fn look_for_key(&mut self, key: Key, in_turn: &mut BTreeMap<LaneKey, Vec<turns::Turn<RowKey>>>) {
        let now = self.now;
        let running = self.memory.board().running_of_key(key);
        let next = self.first_of(key, (running + TURN) as usize);
        let Some(queue) = next.first().map(|id| self.rows[id].lane.queue) else { return };
        let board = &mut self.memory.board.board();
        let room = match board.key_room(key, &queue, TURN, now) {
            KeyRoom::For(room) => room,
            KeyRoom::OpensAt(at) => {
                self.bonds.later.insert((at, Look::Key(key)));
                return;
            }
            KeyRoom::NoPlace => {
                self.bonds.later.insert((now + 1_000_000, Look::Key(key)));
                return;
            }
            KeyRoom::Shut => return,
        };
        for id in next.into_iter().filter(|id| !board.is_aside(id)).take(room as usize).collect::<Vec<_>>() {
            let Row { lane, due, .. } = self.rows[&id];
            if board.is_ready_in(&id, &lane.queue, lane.priority) || self.book.is_in_turn(&id) {
                continue;
            }
            let found = in_turn.entry(lane).or_default();
            match found.last_mut().filter(|found| found.key == key) {
                Some(found) => found.tasks.push(RowKey { due, id }),
                None => found.push(turns::Turn { key, length: TURN, tasks: vec![RowKey { due, id }] }),
            }
        }
    }

    /// A task has just been begun: its group and its key allowed it.
    pub(super) fn check_bonds(&mut self, id: TaskId, worker: usize) -> Result<(), String> {
        let Bond { group, key } = self.bonds.of.get(&id).copied().unwrap_or_default();
        if let Some(group) = group {
            if let Some(older) =
                self.bonds.groups.get(&group).and_then(BTreeSet::first).filter(|older| **older < id)
            {
                return Err(format!("{id:?} of {group:?} is begun before {older:?}"));
            }
            if let Some((other, at)) = self.bonds.begun_in.insert(group, (id, worker)) {
                let runs = other != id && self.workers[at].running.iter().any(|(of, ..)| *of == other);
                if runs && !self.is_void(at) {
                    return Err(format!("{id:?} of {group:?} is begun while {other:?} runs"));
                }
            }
        }
        let Some(key) = key else { return Ok(()) };
        let Some(rule) = self.queue_of.get(&id).and_then(|queue| self.rules.get(queue)).copied() else {
            return Ok(());
        };
        if let Some(rate) = rule.key_rate {
            let begun = self.bonds.begun_of.entry(key).or_default();
            begun.push_back(self.now);
            if begun.len() > REMEMBERED {
                begun.pop_front();
            }
            for (at, from) in begun.iter().enumerate() {
                let (count, time) = ((begun.len() - at) as i64, self.now - from);
                if count * rate.period > i64::from(rate.burst) * rate.period + i64::from(rate.count) * time {
                    return Err(format!("{count} tasks of {key:?} are begun in {time} µs"));
                }
            }
        }
        let Some(limit) = rule.key_concurrency else { return Ok(()) };
        let mut running = 0;
        for worker in 0..self.workers.len() {
            if !self.workers[worker].running.is_empty() && !self.is_void(worker) {
                let is_of = |(id, ..): &&(TaskId, i64, i64)| {
                    self.bonds.of.get(id).is_some_and(|bond| bond.key == Some(key))
                };
                running += self.workers[worker].running.iter().filter(is_of).count();
            }
        }
        if running > limit as usize {
            return Err(format!("{running} tasks of {key:?} run where {limit} may"));
        }
        Ok(())
    }

    /// Why a task is not handed out as far as its group and its key go: what is to be looked at then.
    pub(super) fn refusal(&mut self, claim: &Claim, bond: Bond) -> Option<Look> {
        let (now, none) = (self.now, Leaving::default());
        let mut board = self.memory.board.board();
        if let Some(group) = bond.group {
            let has_turn = board.take_turn(claim, group, now, &none) == Turn::Taken;
            let is_oldest = self.is_oldest(group, &claim.id);
            let is_next = (has_turn || self.broken == Some(Break::IgnoreTurns))
                && (is_oldest || self.broken == Some(Break::IgnoreOrder));
            if !is_next {
                return Some(Look::Group(group));
            }
        }
        let key = bond.key.filter(|_| self.broken != Some(Break::IgnoreKeys))?;
        let mut board = self.memory.board.board();
        (!board.admit_key(claim, key, now, &none)).then_some(Look::Key(key))
    }
}
