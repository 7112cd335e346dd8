//! The world of the simulator: a table, the scheduler's book, the board, workers.

mod bonds;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::ALL_QUEUES;
use pg_task_rules::board::Board;
use pg_task_rules::board::Claim;
use pg_task_rules::board::ClaimedRow;
use pg_task_rules::board::Entry;
use pg_task_rules::board::OwnedBoard;
use pg_task_rules::board::Pushed;
use pg_task_rules::board::QueueId;
use pg_task_rules::board::QueueRule;
use pg_task_rules::board::Registration;
use pg_task_rules::board::Sizes;
use pg_task_rules::board::Taken;
use pg_task_rules::bucket::Rate;
use pg_task_rules::due::DueBook;
use pg_task_rules::due::LaneKey;
use pg_task_rules::due::Offered;
use pg_task_rules::due::RowKey;
use pg_task_rules::inbox::Hint;
use pg_task_rules::inbox::Inbox;
use pg_task_rules::inbox::InboxHead;
use pg_task_rules::names::Kind;
use pg_task_rules::names::Label;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;

use self::bonds::Bond;
use self::bonds::Bonds;
use super::Dice;
use super::Event;
use super::What;

const LEASE: Micros = 10_000_000;
const QUEUES: [&str; 5] = ["a", "b", "c", "d", "e"];
const INBOX: usize = 64;
/// Workers among which what runs is counted.
const MOST_COUNTED: usize = 200;

/// A rule of the shell that is broken on purpose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Break {
    /// A full inbox forgets.
    DropHints,
    /// What a lost worker held is not given back.
    KeepLost,
    /// A finish is written whatever the fence.
    IgnoreFence,
    /// Idle workers are not woken for every lane.
    SkipWakes,
    /// After a restart tasks are handed out before the settings of queues are read.
    ForgetRules,
    /// Some of the groups and keys in which a claim has ended are not looked at.
    ForgetLooks,
    /// Whether it is the turn of a task of a group is not asked of memory.
    IgnoreTurns,
    /// Whether an older task of its group is there is not asked of the table.
    IgnoreOrder,
    /// Limits and rates of keys are not asked.
    IgnoreKeys,
}

struct Row {
    lane: LaneKey,
    due: Micros,
    fence: i64,
    steps: u32,
    bond: Bond,
}

#[derive(Default)]
struct Worker {
    /// What it runs: the task, its fence and token.
    running: Vec<(TaskId, i64, i64)>,
    place: Option<usize>,
    /// It has something to do: it was woken, or has room.
    awake: bool,
    silent: bool,
    takes_all: bool,
}

/// Everything.
pub struct World {
    now: Micros,
    broken: Option<Break>,
    rows: HashMap<TaskId, Row>,
    index: BTreeSet<(LaneKey, RowKey)>,
    ids: Vec<TaskId>,
    memory: Memory,
    book: DueBook,
    find_lanes: bool,
    workers: Vec<Worker>,
    last_token: HashMap<TaskId, i64>,
    last_worker: HashMap<TaskId, usize>,
    /// What is set for queues, and which task is in which.
    rules: BTreeMap<QueueName, QueueRule>,
    queue_of: HashMap<TaskId, QueueName>,
    bonds: Bonds,
    /// Transitions that have happened, in all.
    pub transitions: u64,
    /// Results that were refused.
    pub refused: u64,
    /// Workers that were given up.
    pub lost: u64,
    /// Hints that the inbox had no room for, as reads of the table.
    pub rescans: u64,
}

struct Memory {
    board: OwnedBoard,
    inbox_head: InboxHead,
    ring: Vec<Hint>,
}

impl Memory {
    fn new(workers: usize) -> Self {
        Self {
            board: OwnedBoard::new(&Sizes::new(4096, workers)),
            inbox_head: InboxHead::EMPTY,
            ring: vec![Hint::EMPTY; INBOX],
        }
    }

    fn board(&mut self) -> Board<'_> {
        self.board.board()
    }

    fn inbox(&mut self) -> Inbox<'_> {
        Inbox { head: &mut self.inbox_head, ring: &mut self.ring }
    }
}

impl World {
    /// An empty table and no workers.
    pub fn new(workers: usize, broken: Option<Break>) -> Self {
        Self {
            now: 1_000_000,
            broken,
            rows: HashMap::new(),
            index: BTreeSet::new(),
            ids: Vec::new(),
            memory: Memory::new(workers),
            book: DueBook::new(2_000, 256),
            find_lanes: true,
            workers: (0..workers).map(|_| Worker::default()).collect(),
            last_token: HashMap::new(),
            last_worker: HashMap::new(),
            rules: BTreeMap::new(),
            queue_of: HashMap::new(),
            bonds: Bonds::default(),
            transitions: 0,
            refused: 0,
            lost: 0,
            rescans: 0,
        }
    }

    /// Lets an event happen, and checks what can be checked at once.
    pub fn happen(&mut self, event: &Event) -> Result<(), String> {
        let mut dice = Dice(event.dice);
        match event.what {
            What::Enqueue => self.enqueue(&mut dice),
            What::Tick => self.tick(),
            What::Join => {
                let worker = dice.below(self.workers.len() as u64) as usize;
                self.join(worker, &mut dice);
            }
            What::Exchange => {
                let worker = dice.below(self.workers.len() as u64) as usize;
                self.exchange(worker, &mut dice)?;
            }
            What::Vanish => {
                let worker = dice.below(self.workers.len() as u64) as usize;
                self.workers[worker].silent = true;
            }
            What::Leave => {
                let worker = dice.below(self.workers.len() as u64) as usize;
                self.leave(worker);
            }
            What::Change => {
                // One row, or all that a statement with a wide WHERE meets.
                let count = if dice.below(4) == 0 { 20 } else { 1 };
                for id in (0..count).filter_map(|_| self.some_task(&mut dice)).collect::<Vec<_>>() {
                    let later = dice.below(3_000_000) as Micros;
                    self.rewrite(id, self.now + later);
                    self.ask_looks(&id);
                }
            }
            What::Cancel => {
                if let Some(id) = self.some_task(&mut dice) {
                    self.remove(&id);
                    self.memory.board().cancel(&id);
                    self.ask_looks(&id);
                }
            }
            What::Wait => self.now += dice.below(400_000) as Micros,
            What::Restart => self.restart(),
            What::Rule => self.set_rule(&mut dice),
        }
        Ok(())
    }

    /// Enqueues no more, and lets time go on from moment to moment until nothing is left to do.
    pub fn come_to_rest(&mut self) -> Result<(), String> {
        let mut dice = Dice(7);
        // What is paused would wait for ever.
        for (name, rule) in &mut self.rules {
            rule.paused = false;
            self.memory.board.board().set_rule(name, Some(rule), self.now);
        }
        for worker in 0..self.workers.len().min(3) {
            // Some that take every queue, so that there is none which nobody takes. One that does already is not woken by this.
            if self.workers[worker].silent || !self.workers[worker].takes_all || !self.is_known(worker) {
                self.leave(worker);
                self.join_for_all(worker);
            }
        }
        let mut idle_rounds = 0;
        while !self.rows.is_empty() {
            let before = (self.transitions, self.rows.len());
            self.tick();
            for worker in 0..self.workers.len() {
                if !self.workers[worker].silent {
                    self.exchange(worker, &mut dice)?;
                }
            }
            self.now += 500_000;
            idle_rounds = if before == (self.transitions, self.rows.len()) { idle_rounds + 1 } else { 0 };
            // The longest delay and the lease are ten seconds: twenty rounds. Nothing may be waited for that long.
            if idle_rounds > 60 {
                return Err(format!("{} tasks are never run", self.rows.len()));
            }
        }
        Ok(())
    }

    /// A worker that memory knows holds on the board exactly what it runs.
    fn check(&mut self, worker: usize) -> Result<(), String> {
        let Some(place) = self.workers[worker].place.filter(|_| !self.is_void(worker)) else { return Ok(()) };
        let (runs, held) = (self.workers[worker].running.len(), self.memory.board().workers[place].claimed);
        if runs == held as usize {
            Ok(())
        } else {
            Err(format!("worker {worker} runs {runs} steps and holds {held} claims"))
        }
    }

    fn some_task(&mut self, dice: &mut Dice) -> Option<TaskId> {
        if self.ids.is_empty() {
            return None;
        }
        let at = dice.below(self.ids.len() as u64) as usize;
        let id = self.ids[at];
        if self.rows.contains_key(&id) {
            return Some(id);
        }
        self.ids.swap_remove(at);
        None
    }

    fn enqueue(&mut self, dice: &mut Dice) {
        // Now and then more at once than the inbox takes.
        let count = if dice.below(50) == 0 { 100 } else { 1 + dice.below(3) };
        for _ in 0..count {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&dice.roll().to_be_bytes());
            let queue = QUEUES[dice.below(QUEUES.len() as u64) as usize];
            let lane =
                LaneKey { priority: dice.below(3) as i16 - 1, queue: QueueName::new(queue).expect("a name") };
            let due = self.now - 500_000 + dice.below(3_000_000) as Micros;
            let bond = Bond::some(queue, dice);
            self.rows.insert(id, Row { lane, due, fence: 0, steps: 1 + dice.below(4) as u32, bond });
            self.ids.push(id);
            self.queue_of.insert(id, lane.queue);
            self.bonds.add(id, bond);
            self.list(lane, due, id, bond);
            self.note_task(lane, due, id, bond);
        }
    }

    fn hint(&mut self, lane: LaneKey, due: Micros, id: TaskId) {
        if self.broken == Some(Break::DropHints) && !self.has_room_for_hint() {
            return;
        }
        self.memory.inbox().push(&Hint { due, id, priority: lane.priority, queue: lane.queue });
    }

    fn has_room_for_hint(&mut self) -> bool {
        let mut head = *self.memory.inbox().head;
        let mut ring = self.memory.ring.clone();
        let mut hints = Vec::new();
        Inbox { head: &mut head, ring: &mut ring }.drain(&mut hints, usize::MAX);
        hints.len() < INBOX
    }

    fn tick(&mut self) {
        let mut hints = Vec::new();
        let from = self.memory.inbox().drain(&mut hints, usize::MAX);
        for hint in hints {
            let lane = LaneKey { priority: hint.priority, queue: hint.queue };
            self.book.hint(lane, RowKey { due: hint.due, id: hint.id });
        }
        if let Some(from) = from {
            self.rescans += 1;
            self.book.rescan(from);
            self.find_lanes = true;
        }
        self.look();
        if std::mem::take(&mut self.find_lanes) {
            let lanes: BTreeSet<LaneKey> = self.index.iter().map(|(lane, _)| *lane).collect();
            self.book.found_lanes(&lanes.into_iter().collect::<Vec<_>>());
        }
        self.offer();
        while let Some(read) = self.book.next_read(self.now) {
            let rows: Vec<(RowKey, Place)> = self
                .index
                .range((read.lane, read.from)..)
                .take_while(|(lane, _)| *lane == read.lane)
                .take(read.limit)
                .map(|(_, key)| (*key, Place::UNKNOWN))
                .collect();
            let (count, last) = (rows.len(), rows.last().map(|(last, _)| *last));
            let kept = self.kept(rows);
            self.book.read_some(&read, count, last, &kept);
            self.look();
            self.offer();
            if self.memory.board().room() == 0 {
                break;
            }
        }
        self.give_up_lost();
        let mut woken = Vec::new();
        self.memory.board().take_idle(self.now, &mut woken);
        if self.broken == Some(Break::SkipWakes) {
            woken.truncate(woken.len() / 2);
        }
        for id in woken {
            self.workers[number(&id)].awake = true;
        }
    }

    fn offer(&mut self) {
        let mut board = self.memory.board();
        let now = self.now;
        self.book.offer_due(now, |lane, key, place| {
            let (due, place) = if place == Place::IN_TURN { (now, Place::UNKNOWN) } else { (key.due, place) };
            let pushed = board.intern(&lane.queue).map_or(Pushed::Full, |queue: QueueId| {
                board.push_ready(key.id, due, queue, lane.priority, place)
            });
            if pushed == Pushed::Full { Offered::NoRoom } else { Offered::Taken }
        });
    }

    fn give_up_lost(&mut self) {
        while let Some(place) = self.memory.board().take_lost(1_000_000, self.now) {
            let claims: Vec<Entry> = self.memory.board().claims_of(place).copied().collect();
            self.lost += 1;
            for claim in &claims {
                if let Some(row) = self.rows.get_mut(&claim.id).filter(|row| row.fence == claim.fence) {
                    row.fence += 1;
                }
            }
            if self.broken == Some(Break::KeepLost) {
                for claim in &claims {
                    self.memory.board().end_claim(&claim.id, claim.token);
                }
            }
            self.memory.board().leave(place);
        }
    }

    fn join(&mut self, worker: usize, dice: &mut Dice) {
        if self.is_known(worker) {
            return;
        }
        let only = dice.below(3) == 0;
        let queues: Vec<QueueId> = QUEUES
            .iter()
            .filter(|_| only && dice.below(2) == 0)
            .filter_map(|queue| self.memory.board().intern(&QueueName::new(queue).expect("a name")))
            .collect();
        self.register(worker, &queues);
    }

    fn join_for_all(&mut self, worker: usize) {
        self.register(worker, &[]);
    }

    fn register(&mut self, worker: usize, queues: &[QueueId]) {
        let registration = Registration {
            id: id_of(worker),
            name: Label::EMPTY,
            queues,
            weights: &[],
            kinds: None,
            lease: LEASE,
            role: 1,
            pid: 0,
        };
        let place = self.memory.board().register(&registration, self.now).ok();
        self.workers[worker] =
            Worker { running: Vec::new(), place, awake: true, silent: false, takes_all: queues.is_empty() };
    }

    fn is_known(&mut self, worker: usize) -> bool {
        let known = self.memory.board().find_worker(&id_of(worker));
        known.is_some() && known == self.workers[worker].place
    }

    fn leave(&mut self, worker: usize) {
        if self.is_known(worker) {
            let place = self.workers[worker].place.take();
            place.map(|place| self.memory.board().leave(place));
            self.workers[worker] = Worker::default();
        }
    }

    fn restart(&mut self) {
        let tokens = self.memory.board().head.next_token;
        self.memory = Memory::new(self.workers.len());
        self.memory.board().head.next_token = tokens + 1_000;
        self.book = DueBook::new(2_000, 256);
        self.find_lanes = true;
        self.book.rescan(Micros::MIN);
        self.bonds.forget();
        if self.broken != Some(Break::ForgetRules) {
            for (name, rule) in &self.rules {
                self.memory.board.board().set_rule(name, Some(rule), self.now);
            }
        }
    }

    fn set_rule(&mut self, dice: &mut Dice) {
        // What runs is counted by looking at every worker: not where there are thousands.
        if self.workers.len() > MOST_COUNTED {
            return;
        }
        let choice = dice.below(QUEUES.len() as u64 + 1) as usize;
        let name = QueueName::new(QUEUES.get(choice).copied().unwrap_or(ALL_QUEUES)).expect("a name");
        // Many workers get more, or little of what they are there for would happen.
        let more = self.workers.len() as u32 / 20;
        let rate =
            Rate { count: 1 + dice.below(30) as u32, period: 1_000_000, burst: 1 + dice.below(5) as u32 };
        let by_key = choice < QUEUES.len();
        let rule = match dice.below(8) {
            0 => None,
            1 => Some(QueueRule { paused: true, ..QueueRule::default() }),
            2 => {
                let rate = Rate {
                    count: 1 + 20 * more + dice.below(50) as u32,
                    period: 1_000_000,
                    burst: 1 + more + dice.below(9) as u32,
                };
                Some(QueueRule { rate: Some(rate), ..QueueRule::default() })
            }
            3 | 4 if by_key => {
                let key_concurrency = Some(1 + more + dice.below(2) as u32);
                Some(QueueRule { key_concurrency, ..QueueRule::default() })
            }
            5 | 6 if by_key => Some(QueueRule { key_rate: Some(rate), ..QueueRule::default() }),
            _ => {
                Some(QueueRule { concurrency: Some(1 + more + dice.below(4) as u32), ..QueueRule::default() })
            }
        };
        self.memory.board().set_rule(&name, rule.as_ref(), self.now);
        self.bonds.rules_changed();
        match rule {
            Some(rule) => _ = self.rules.insert(name, rule),
            None => _ = self.rules.remove(&name),
        }
    }

    /// A task of the queue has just been begun: that was allowed.
    fn check_rules(&mut self, queue: &QueueName) -> Result<(), String> {
        for name in [*queue, QueueName::new(ALL_QUEUES).expect("a name")] {
            let Some(rule) = self.rules.get(&name).copied() else { continue };
            if rule.paused {
                return Err(format!("a task of {queue:?} is begun while {name:?} is paused"));
            }
            let Some(limit) = rule.concurrency else { continue };
            let mut running = 0;
            for worker in 0..self.workers.len() {
                if !self.workers[worker].running.is_empty() && !self.is_void(worker) {
                    let of = |(id, ..): &&(TaskId, i64, i64)| {
                        name.as_str() == ALL_QUEUES || self.queue_of.get(id) == Some(&name)
                    };
                    running += self.workers[worker].running.iter().filter(of).count();
                }
            }
            if running > limit as usize {
                return Err(format!("{running} tasks of {name:?} run where {limit} may"));
            }
        }
        Ok(())
    }

    fn exchange(&mut self, worker: usize, dice: &mut Dice) -> Result<(), String> {
        if self.workers[worker].silent {
            return Ok(());
        }
        let known = self.is_known(worker);
        let place = self.workers[worker].place.filter(|_| known);
        let heard = place.is_some_and(|place| self.memory.board().heard(place, self.now));
        let finished = self.workers[worker].running.len().min(1 + dice.below(4) as usize);
        let results: Vec<_> = self.workers[worker].running.drain(..finished).collect();
        let brought = !results.is_empty();
        for (id, fence, token) in results {
            self.finish(id, fence, token, dice)?;
        }
        if !heard {
            // Told to register again; what it runs is void.
            self.workers[worker].running.clear();
            if self.workers[worker].place.is_some() {
                self.join_for_all(worker);
            }
            return Ok(());
        }
        let room = 4 - self.workers[worker].running.len().min(4);
        let awake = std::mem::take(&mut self.workers[worker].awake);
        if room == 0 || !(awake || brought) {
            return Ok(());
        }
        self.claim(worker, place.expect("it is known"), room as u32)?;
        self.check(worker)
    }

    fn claim(&mut self, worker: usize, place: usize, want: u32) -> Result<(), String> {
        let mut given = 0;
        loop {
            let mut claims: Vec<Taken> = Vec::new();
            let left = want - given;
            self.memory.board().claim(place, left, self.now, &mut claims);
            let popped = claims.len() as u32;
            for taken in claims {
                given += u32::from(self.hand_out(worker, &taken.claim)?);
            }
            if popped < left || given == want {
                break;
            }
        }
        self.memory.board().note_wanted(place, want - given, 0);
        Ok(())
    }

    fn hand_out(&mut self, worker: usize, claim: &Claim) -> Result<bool, String> {
        let last = self.last_token.insert(claim.id, claim.token).unwrap_or(0);
        if claim.token <= last {
            return Err(format!("token {} after {last}", claim.token));
        }
        let Some(row) = self.rows.get(&claim.id) else {
            self.memory.board().withdraw(claim);
            self.memory.board().end_claim(&claim.id, claim.token);
            return Ok(false);
        };
        let (lane, due, fence, bond) = (row.lane, row.due, row.fence, row.bond);
        if due > self.now {
            self.memory.board().withdraw(claim);
            self.memory.board().postpone(claim);
            self.hint(lane, due, claim.id);
            return Ok(false);
        }
        if let Some(look) = self.refusal(claim, bond) {
            let mut board = self.memory.board();
            board.withdraw(claim);
            board.end_claim(&claim.id, claim.token);
            board.ask_look(look);
            return Ok(false);
        }
        if let Some(other) = self.last_worker.insert(claim.id, worker) {
            let runs = self.workers[other].running.iter().any(|(id, of, _)| *id == claim.id && *of == fence);
            if runs && !self.is_void(other) {
                return Err(format!("workers {other} and {worker} run the same attempt"));
            }
        }
        let row = ClaimedRow { fence, kind: Kind::new("t", "s"), counted: false, place: Place::UNKNOWN };
        self.memory.board().note_row(claim, &row);
        self.workers[worker].running.push((claim.id, fence, claim.token));
        self.check_rules(&lane.queue)?;
        self.check_bonds(claim.id, worker)?;
        Ok(true)
    }

    /// Whether memory does not know the worker any more: what it runs may be run beside it.
    fn is_void(&mut self, worker: usize) -> bool {
        self.workers[worker].place.is_none_or(|place| self.memory.board().workers[place].id != id_of(worker))
    }

    fn finish(&mut self, id: TaskId, fence: i64, token: i64, dice: &mut Dice) -> Result<(), String> {
        let held = self.memory.board().claim_of(&id).map(|entry| entry.token);
        let stale = held.is_some_and(|held| held != token);
        let valid = !stale
            && self
                .rows
                .get(&id)
                .is_some_and(|row| row.fence == fence || self.broken == Some(Break::IgnoreFence));
        if !valid {
            self.refused += 1;
            self.memory.board().give_back(&id, token);
            return Ok(());
        }
        let row = self.rows.get_mut(&id).expect("it is valid");
        if row.fence != fence {
            return Err(format!("a result of fence {fence} was written on fence {}", row.fence));
        }
        self.transitions += 1;
        row.steps -= 1;
        if row.steps == 0 {
            self.remove(&id);
            if held.is_none() {
                // No claim can end: its row's trigger tells.
                self.ask_looks(&id);
            }
            self.memory.board().end_claim(&id, token);
            return Ok(());
        }
        let later = if dice.below(2) == 0 { 0 } else { dice.below(5_000_000) as Micros };
        self.memory.board().end_claim(&id, token);
        self.rewrite(id, self.now + later);
        Ok(())
    }

    /// The row's due time and fence change, and the scheduler is told.
    fn rewrite(&mut self, id: TaskId, due: Micros) {
        let Some(row) = self.rows.get_mut(&id) else { return };
        let (lane, bond) = (row.lane, row.bond);
        let was = std::mem::replace(&mut row.due, due);
        row.fence += 1;
        self.unlist(lane, was, id, bond);
        self.list(lane, due, id, bond);
        self.note_task(lane, due, id, bond);
    }

    fn remove(&mut self, id: &TaskId) {
        if let Some(row) = self.rows.remove(id) {
            self.unlist(row.lane, row.due, *id, row.bond);
            self.bonds.remove(id, row.bond);
        }
    }
}

fn id_of(worker: usize) -> [u8; 16] {
    let mut id = [0xab; 16];
    id[..8].copy_from_slice(&(worker as u64).to_be_bytes());
    id
}

fn number(id: &[u8; 16]) -> usize {
    u64::from_be_bytes(id[..8].try_into().expect("eight bytes")) as usize
}
