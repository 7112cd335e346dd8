//! One tick: hints in, due tasks to the board, idle workers woken, lost ones given up, the table read on.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::ops::Bound;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::board::Belongs;
use pg_task_rules::board::Board;
use pg_task_rules::board::Displaced;
use pg_task_rules::board::KeyRoom;
use pg_task_rules::board::Look;
use pg_task_rules::board::Pushed;
use pg_task_rules::board::Rank;
use pg_task_rules::due::DueBook;
use pg_task_rules::due::LaneKey;
use pg_task_rules::due::Offered;
use pg_task_rules::due::Read;
use pg_task_rules::due::RowKey;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;
use pg_task_rules::token;
use pg_task_rules::turns::Passes;
use pg_task_rules::turns::Turn;

use super::beat;
use super::keys::Keys;
use super::loss::Losses;
use super::retention::Retention;
use super::rules::Rules;
use super::schedules::Schedules;
use super::sweep::Sweep;
use crate::background;
use crate::guc;
use crate::jsonb;
use crate::shmem;
use crate::shmem::Slot;
use crate::shmem::State;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Statement;
use crate::task_table::Column;
use crate::task_table::Due;
use crate::task_table::Next;
use crate::task_table::TaskRow;
use crate::task_table::TaskTable;

/// Rows that the due book holds, at about 60 bytes each.
const BOOK_CAPACITY: usize = 100_000;

/// Rows that are read at a time.
const READ_LIMIT: usize = 8_192;

/// Tasks of one lane that the board has room for however many lanes there are.
const LEAST_SHARE: usize = 16;

/// So many tasks that wait aside, for their step, are passed over to find others of their key.
const MAX_ASIDE: u32 = 1_000;

/// Keys without a place are looked at again after this time.
const PLACES_GAP: Micros = 1_000_000;

/// So many keys without a place are kept in mind; others are found when the table is read again.
const MAX_PLACELESS: usize = 100_000;

/// Reads in one transaction, after which workers are woken and hints are looked at again.
const READS_PER_TICK: usize = 4;

/// Tasks that are moved on the board under one hold of its lock.
const BOARD_CHUNK: usize = 1_000;

/// A clock that goes back by less is put right in passing; one that goes back by more was set.
const CLOCK_STEP: Micros = 1_000_000;

/// After hints were lost the whole table may have to be read again: not more often than this.
const RESCAN_GAP: Micros = 100_000;

thread_local! {
    // A loose index scan: one descent for each queue and priority.
    static LANES: Statement = const { Statement::new(
        c"WITH RECURSIVE lane AS ( \
            (SELECT t.queue, t.priority FROM pg_task.task AS t WHERE t.error IS NULL \
             ORDER BY t.queue, t.priority LIMIT 1) \
            UNION ALL \
            SELECT next.queue, next.priority FROM lane, LATERAL ( \
                SELECT t.queue, t.priority FROM pg_task.task AS t \
                WHERE t.error IS NULL AND (t.queue, t.priority) OPERATOR(pg_catalog.>) (lane.queue, lane.priority) \
                ORDER BY t.queue, t.priority LIMIT 1) AS next \
          ) SELECT lane.queue, lane.priority FROM lane",
        &[],
    ) };
}

/// What the scheduler knows beside the shared board.
pub struct Ticker {
    slot: Slot,
    book: DueBook,
    rules: Rules,
    retention: Retention,
    sweep: Sweep,
    keys: Keys,
    schedules: Schedules,
    hints: Vec<Hint>,
    /// Tasks that are on the board in another lane than a hint says: their rows are to be asked.
    elsewhere: Vec<(TaskId, Place)>,
    /// Keys to look at when their limits and rates open by themselves.
    later: BTreeSet<(Micros, Look)>,
    /// Where the turns of keys stand.
    passes: Passes,
    /// Keys for which memory has no place.
    placeless: BTreeSet<Key>,
    /// Up to which of them places were given: the others come next.
    placed: Key,
    /// When these are looked at again, as many as there are places then.
    places_at: Micros,
    /// The epoch of the tokens; none until one was taken.
    epoch: Option<i64>,
    /// The lanes have to be looked for in the table, not before this moment.
    find_lanes_at: Option<Micros>,
    /// When the table is looked at again for rows that came without a hint.
    rescan_at: Micros,
    last_rescan: Micros,
    /// Time spent in reads since the last rescan: what a rescan costs, or less.
    read_cost: Micros,
    last_tick: Micros,
    /// The same moment by a clock that nobody sets.
    ticked: Instant,
    woke_someone: bool,
    backlog: bool,
    losses: Losses,
}

impl Ticker {
    /// A scheduler that knows nothing yet.
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            book: DueBook::new(BOOK_CAPACITY, READ_LIMIT),
            rules: Rules::default(),
            retention: Retention::default(),
            sweep: Sweep::default(),
            keys: Keys::new(background::now()),
            schedules: Schedules::default(),
            hints: Vec::new(),
            elsewhere: Vec::new(),
            later: BTreeSet::new(),
            passes: Passes::default(),
            placeless: BTreeSet::new(),
            placed: Key(i64::MIN),
            places_at: 0,
            epoch: None,
            find_lanes_at: Some(shmem::settled_at()),
            rescan_at: Micros::MAX,
            last_rescan: 0,
            read_cost: 0,
            last_tick: 0,
            ticked: Instant::now(),
            woke_someone: false,
            backlog: false,
            losses: Losses::default(),
        }
    }

    /// Where the scheduler stands when all is well.
    pub fn state(&self) -> State {
        if self.find_lanes_at.is_some_and(|at| at > background::now()) {
            State::Settling
        } else {
            State::Running
        }
    }

    /// Begins from nothing: the board may have been emptied.
    pub fn forget(&mut self) {
        self.book = DueBook::new(BOOK_CAPACITY, READ_LIMIT);
        self.elsewhere.clear();
        self.schedules = Schedules::default();
        self.find_lanes_at = Some(shmem::settled_at());
        self.retention.forget();
        self.sweep = Sweep::default();
    }

    /// The clock was set back to this moment. What is kept for a later one would wait for the old time.
    fn clock_went_back(&mut self, now: Micros) {
        shmem::clock_went_back(now);
        self.slot.with_board(|board| {
            board.clock_went_back(now);
            board.set_settling(shmem::settled_at(), shmem::trust_locks_until());
        });
        if self.last_tick.saturating_sub(now) < CLOCK_STEP {
            return;
        }
        let waiting = std::mem::take(&mut self.later).into_iter().map(|(_, look)| (Micros::MIN, look));
        self.later = waiting.collect();
        (self.places_at, self.last_rescan) = (0, 0);
        self.keys = Keys::new(now);
        self.rules.look_again();
        self.forget();
        self.rescan_at = now + RESCAN_EVERY;
    }

    /// Does what there is to do and returns when there will be more.
    pub fn tick(&mut self) -> Result<Micros, String> {
        let now = background::now();
        if now < self.last_tick {
            self.clock_went_back(now);
        }
        let passed = self.ticked.elapsed().as_micros() as Micros;
        let jump = now.saturating_sub(self.last_tick).saturating_sub(passed);
        if self.last_tick > 0 && jump >= CLOCK_STEP {
            self.slot.with_board(|board| board.clock_went_forward(jump, now));
        }
        (self.last_tick, self.ticked) = (now, Instant::now());
        self.woke_someone = false;
        if self.epoch.is_none() {
            self.rules.load(self.slot)?;
            // Before the first task can end.
            self.retention.tend(self.slot);
            self.begin()?;
        }
        if self.rules.refresh(self.slot) {
            // What waits may go by other limits.
            let waiting = std::mem::take(&mut self.later).into_iter().map(|(_, look)| look);
            let waiting = waiting.chain(std::mem::take(&mut self.placeless).into_iter().map(Look::Key));
            self.later = waiting.map(|look| (Micros::MIN, look)).collect();
        }
        // Before the hints: nobody wakes the scheduler for what it enqueues itself.
        self.schedules.fire(self.slot);
        self.take_hints();
        self.look()?;
        self.offer()?;
        self.wake_idle()?;
        self.give_up_lost()?;
        self.losses.write_behind(self.slot);
        self.retention.tend(self.slot);
        self.sweep.tend(self.slot);
        let now = background::now();
        if now >= self.rescan_at {
            self.rescan(Micros::MIN, now);
        }
        while self.reads_wanted() {
            self.read()?;
            self.take_hints();
            self.look()?;
            self.offer()?;
            self.wake_idle()?;
            // SAFETY: outside any transaction and lock.
            pgrx::check_for_interrupts!();
        }
        self.announce_room();
        self.keys.sweep(self.slot);
        Ok(self.next_wake())
    }

    /// Under load ticks keep a distance, unless a worker had nothing to do.
    pub fn keep_gap(&self) {
        let gap = guc::micros(&guc::WAKE_GAP);
        let now = background::now();
        // Not when the clock was set back meanwhile.
        if !self.woke_someone && gap > 0 && (self.last_tick..self.last_tick + gap).contains(&now) {
            background::pause_until(self.last_tick + gap);
        }
    }

    /// Takes an epoch for the tokens, in a commit that waits for the disk.
    fn begin(&mut self) -> Result<(), String> {
        let now = background::now();
        let epoch = background::transaction(|| {
            background::set_local(c"synchronous_commit", c"on");
            spi::connected(|spi| beat::take_epoch(spi, now))
        })?;
        let first = token::first_token(epoch);
        self.slot.with_board(|board| board.head.next_token = board.head.next_token.max(first));
        self.slot.control().prepared.store(true, SeqCst);
        self.epoch = Some(epoch);
        self.rescan_at = now + guc::max_sleep().as_micros() as Micros;
        self.slot.control().set_state(self.state());
        Ok(())
    }

    fn take_hints(&mut self) {
        self.hints.clear();
        let hints = &mut self.hints;
        let from = self.slot.with_inbox(|inbox| inbox.drain(hints, usize::MAX));
        for hint in &self.hints {
            let lane = LaneKey { priority: hint.priority, queue: hint.queue };
            self.book.hint(lane, RowKey { due: hint.due, id: hint.id });
        }
        if let Some(from) = from {
            self.rescan(from, background::now());
        }
    }

    /// Finds the next tasks of groups and keys in which a claim has ended, or for which there are new ones.
    fn look(&mut self) -> Result<(), String> {
        let now = background::now();
        let mut looks: Vec<Look> = Vec::new();
        while let Some((_, look)) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            self.later.pop_first();
            looks.push(look);
        }
        if self.slot.with_board(|board| board.wants_look() && board.take_looks(&mut looks)) {
            self.rescan(Micros::MIN, now);
        }
        if !self.placeless.is_empty() && now >= self.places_at {
            self.places_at = now + PLACES_GAP;
            let places = self.slot.with_board(|board| board.key_places(now));
            let next = self.placeless.range((Bound::Excluded(self.placed), Bound::Unbounded));
            let next = next.chain(self.placeless.range(..=self.placed)).copied();
            let next: Vec<Key> = next.take(places).collect();
            for key in &next {
                self.placeless.remove(key);
            }
            self.placed = next.last().copied().unwrap_or(self.placed);
            looks.extend(next.into_iter().map(Look::Key));
        }
        if looks.is_empty() {
            return Ok(());
        }
        looks.sort_unstable();
        looks.dedup();
        let (slot, later) = (self.slot, &mut self.later);
        let turns = &self.rules.turns;
        let mut asked: Vec<(Look, u32)> = Vec::with_capacity(looks.len());
        for looks in looks.chunks(BOARD_CHUNK) {
            slot.with_board(|board| {
                let aside = board.aside().min(MAX_ASIDE);
                let mut want = |look: &Look| match look {
                    Look::Group(_) => Some(1),
                    // Nothing need be read before its rate lets a task go.
                    Look::Key(key) => match board.key_closed_until(*key, now) {
                        Some(at) => {
                            later.insert((at, *look));
                            None
                        }
                        None => Some(board.running_of_key(*key) + aside + turns.at_most(*key)),
                    },
                };
                asked.extend(looks.iter().filter_map(|look| Some((*look, want(look)?))));
            });
        }
        if asked.is_empty() {
            return Ok(());
        }
        let all = &asked;
        let found = background::transaction(|| next(all, now)).inspect_err(|_| {
            slot.with_board(|board| all.iter().for_each(|(look, _)| board.ask_look(*look)));
        })?;
        let mut in_turn = BTreeMap::new();
        for found in found.chunks(BOARD_CHUNK) {
            slot.with_board(|board| {
                for (look, next) in found {
                    match look {
                        Look::Group(group) => self.found_in_group(board, *group, next, now),
                        Look::Key(key) => self.found_of_key(board, *key, next, &mut in_turn, now),
                    }
                }
            });
        }
        for (lane, found) in in_turn {
            for row in self.passes.order(lane, found) {
                self.book.hint_in_turn(lane, row, now);
            }
        }
        Ok(())
    }

    fn found_in_group(&mut self, board: &mut Board<'_>, group: Group, next: &[Next], now: Micros) {
        // Where another one runs, the end of its claim asks for the next look.
        if board.has_turn(group) {
            return;
        }
        for next in next.iter().filter(|next| !next.is_parked) {
            match next.key.filter(|_| next.due <= now) {
                // It takes its turn among the tasks of its key.
                Some(key) => board.ask_look(Look::Key(key)),
                None => self.book.hint(lane_of(next), RowKey { due: next.due, id: next.id }),
            }
        }
    }

    /// Notes what of a key is to be put into lines.
    fn found_of_key(
        &mut self,
        board: &mut Board<'_>,
        key: Key,
        next: &[Next],
        in_turn: &mut InTurn,
        now: Micros,
    ) {
        let Some(first) = next.first() else { return };
        let length = self.rules.turns.of(key, &first.queue);
        let room = match board.key_room(key, &first.queue, length, now) {
            KeyRoom::For(room) => room,
            KeyRoom::OpensAt(at) => {
                self.later.insert((at, Look::Key(key)));
                return;
            }
            KeyRoom::NoPlace => {
                if self.placeless.len() < MAX_PLACELESS {
                    self.placeless.insert(key);
                }
                return;
            }
            KeyRoom::Shut => return,
        };
        let free = next.iter().filter(|next| !board.is_aside(&next.id)).take(room as usize);
        for next in free {
            let (lane, id) = (lane_of(next), next.id);
            if board.is_ready_in(&id, &lane.queue, lane.priority) || self.book.is_in_turn(&id) {
                continue;
            }
            let (found, row) = (in_turn.entry(lane).or_default(), RowKey { due: next.due, id });
            match found.last_mut().filter(|found| found.key == key) {
                Some(found) => found.tasks.push(row),
                None => found.push(Turn { key, length, tasks: vec![row] }),
            }
        }
    }

    fn rescan(&mut self, from: Micros, now: Micros) {
        self.slot.control().rescans.fetch_add(1, Relaxed);
        self.book.rescan(from);
        let earliest = shmem::settled_at().max(self.last_rescan + RESCAN_GAP);
        self.find_lanes_at = Some(self.find_lanes_at.map_or(earliest, |at| at.min(earliest)));
        self.rescan_at = now + RESCAN_EVERY;
        self.read_cost = 0;
    }

    /// Moves what is due to the board. What can wait longer gives way to what cannot.
    fn offer(&mut self) -> Result<(), String> {
        let now = background::now();
        let lanes = self.book.due_lanes(now).count();
        let cap = (guc::READY_CAPACITY.get() as usize / lanes.max(4)).max(LEAST_SHARE) as u32;
        let mut displaced: Vec<Displaced> = Vec::new();
        let (book, rules, elsewhere) = (&mut self.book, &self.rules, &mut self.elsewhere);
        self.backlog = self.slot.with_board(|board| {
            board.head.ageing = guc::micros(&guc::PRIORITY_AGEING);
            // There may be very many lanes: what each is compared with is found once.
            let (wanted, mut lengths) = (board.wanted(), board.lane_lengths());
            // Nothing gives way to this rank and those after it.
            let mut hopeless: Option<Rank> = None;
            book.offer_due(now, |lane, key, place| {
                let len = lengths.get(lane).copied().unwrap_or(0);
                let rank = Rank { unwanted: !wanted.has(&lane.queue), priority: lane.priority, due: key.due };
                let is_hopeless = hopeless.is_some_and(|hopeless| rank >= hopeless);
                if rules.is_unplaced(&lane.queue)
                    || len >= cap
                    || (rank.unwanted && !board.has_room_for_unwanted(len == 0))
                    || (is_hopeless && !board.has_room(len == 0))
                {
                    return Offered::NoRoom;
                }
                // A task whose turn it is goes to the end of its lane.
                let is_in_turn = place == Place::IN_TURN;
                let (due, place) = if is_in_turn { (now, Place::UNKNOWN) } else { (key.due, place) };
                let push =
                    |board: &mut Board<'_>| board.push_due(&lane.queue, lane.priority, due, key.id, place);
                let mut pushed = push(board);
                if pushed == Pushed::Full && !is_hopeless {
                    hopeless = Some(rank);
                    if board.displace(rank, &mut displaced) {
                        lengths = board.lane_lengths();
                        pushed = push(board);
                        // Still none: it is for the names of queues that there is no place, and giving way helps nobody.
                        hopeless = (pushed == Pushed::Full).then_some(Rank::FIRST);
                    }
                }
                match pushed {
                    Pushed::Added => {
                        *lengths.entry(*lane).or_insert(0) += 1;
                        Offered::Taken
                    }
                    Pushed::Present => Offered::Taken,
                    Pushed::Elsewhere => {
                        elsewhere.push((key.id, place));
                        Offered::Taken
                    }
                    Pushed::Full => Offered::NoRoom,
                }
            });
            // What nobody takes need not be fetched; a worker that will take it wakes the scheduler when it registers.
            book.due_lanes(background::now()).any(|lane| wanted.has(&lane.queue))
        });
        for task in displaced {
            let lane = LaneKey { priority: task.priority, queue: task.queue };
            self.book.hint(lane, RowKey { due: task.due, id: task.id });
        }
        if self.elsewhere.is_empty() { Ok(()) } else { self.relocate() }
    }

    /// Asks the rows of tasks that were changed while they were on the board where they belong now, and brings them there.
    fn relocate(&mut self) -> Result<(), String> {
        let elsewhere = &self.elsewhere;
        let rows = background::transaction(|| {
            let mut table = TaskTable::to_read();
            let rows: Vec<Belongs> =
                elsewhere.iter().filter_map(|(id, place)| belongs(&table.row(id, *place)?)).collect();
            table.close();
            rows
        })?;
        self.elsewhere.clear();
        let now = background::now();
        for rows in rows.chunks(BOARD_CHUNK) {
            let book = &mut self.book;
            self.slot.with_board(|board| {
                for row in rows {
                    let is_left =
                        if row.due > now { board.remove_ready(&row.id) } else { !board.relocate(row) };
                    if is_left {
                        let lane = LaneKey { priority: row.priority, queue: row.queue };
                        book.hint(lane, RowKey { due: row.due, id: row.id });
                    }
                }
            });
        }
        Ok(())
    }

    fn wake_idle(&mut self) -> Result<(), String> {
        if !guc::ENABLED.get() {
            return Ok(());
        }
        let mut idle: Vec<WorkerId> = Vec::new();
        let now = background::now();
        self.slot.with_board(|board| {
            board.take_idle(now, &mut idle);
            board.take_told(&mut idle);
        });
        if idle.is_empty() {
            return Ok(());
        }
        self.woke_someone = true;
        let slot = self.slot;
        background::transaction(|| beat::notify(slot, &idle)).inspect_err(|_| {
            slot.with_board(|board| idle.iter().for_each(|worker| board.not_woken(worker)));
        })
    }

    fn give_up_lost(&mut self) -> Result<(), String> {
        while self.losses.give_up_next(self.slot) {
            self.wake_idle()?;
        }
        Ok(())
    }

    fn reads_wanted(&self) -> bool {
        let now = background::now();
        self.find_lanes_at.is_some_and(|at| at <= now) || self.book.next_read(now).is_some()
    }

    /// Reads on in the table, from where the last read ended.
    fn read(&mut self) -> Result<(), String> {
        let now = background::now();
        let find_lanes = self.find_lanes_at.is_some_and(|at| at <= now);
        let memory = std::panic::AssertUnwindSafe((&mut self.book, &mut self.later));
        let kept = background::transaction(move || {
            let memory = memory;
            let std::panic::AssertUnwindSafe((book, later)) = memory;
            spi::connected(|spi| {
                if find_lanes {
                    book.found_lanes(&lanes(spi));
                }
                for _ in 0..READS_PER_TICK {
                    let Some(read) = book.next_read(now) else { break };
                    let Found { rows, count, last, keys } = due(&read, now);
                    book.read_some(&read, count, last, &rows);
                    // After this read: what is due of them takes its turn.
                    later.extend(keys.into_iter().map(|key| (Micros::MIN, Look::Key(key))));
                }
                find_lanes.then(|| beat::kept_epoch(spi))
            })
        })?;
        if kept > self.epoch {
            // A dump of another server was restored, whose tokens must not come again.
            self.begin()?;
        }
        if find_lanes {
            self.find_lanes_at = None;
            self.last_rescan = now;
            self.slot.control().set_state(State::Running);
        }
        self.read_cost += background::now() - now;
        // Looking again from the start passes over every dead entry of the index, as long as some transaction holds them there.
        let share = (now + RESCAN_SHARE * self.read_cost).min(self.last_rescan + RESCAN_AT_LEAST);
        self.rescan_at = self.rescan_at.max(share);
        Ok(())
    }

    /// Tells those who take tasks when to wake the scheduler for more.
    fn announce_room(&self) {
        let ready = if self.backlog { self.slot.with_board(|board| board.head.ready) } else { 0 };
        let low_water = if self.backlog { (ready - ready / 4).max(1) } else { 0 };
        self.slot.control().low_water.store(low_water, SeqCst);
    }

    fn next_wake(&self) -> Micros {
        let now = background::now();
        let grace = guc::micros(&guc::WORKER_GRACE);
        let write_after = guc::micros(&guc::WRITE_BEHIND_AFTER);
        let (loss, unwritten, opening, look, returning) = self.slot.with_board(|board| {
            let mut unwritten = if board.head.claimed > 0 { board.oldest_unwritten() } else { None };
            if board.head.workers > 0 && board.may_hand_out(now) {
                // About to be claimed, of which the scheduler hears nothing: it comes back to write down what still runs then.
                unwritten = unwritten.or(Some(now));
            }
            let workers = board.head.workers > 0;
            let opening = if workers { board.next_opening(now) } else { None };
            let look = board.wants_look().then_some(now);
            let loss = if workers { board.next_loss(grace) } else { None };
            (loss, unwritten, opening, look, board.next_return(now))
        });
        [
            self.book.next_due(now),
            self.find_lanes_at,
            loss,
            opening,
            look,
            returning,
            self.later.first().map(|(at, _)| *at),
            (!self.placeless.is_empty()).then_some(self.places_at),
            self.rules.again_at(),
            self.retention.next_look(self.slot),
            self.sweep.next_look(),
            self.keys.again_at(),
            self.schedules.wake_at(),
            unwritten.map(|since| (since + write_after).max(now + 100_000).max(self.losses.write_at(now))),
            Some(self.rescan_at),
            // A user's trigger has enqueued something when the scheduler wrote to the table, of which nobody wakes it.
            self.slot.with_inbox(|inbox| (!inbox.is_empty()).then_some(now)),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(Micros::MAX)
    }
}

/// How often the table is looked at for rows of which nothing was heard: loaded without triggers, say.
const RESCAN_EVERY: Micros = 60_000_000;

/// Reads take at most one part in so many of the scheduler's time for that.
const RESCAN_SHARE: Micros = 100;

/// However much reads cost, the table is looked at again after this time.
const RESCAN_AT_LEAST: Micros = 3_600_000_000;

/// What was found of keys, in each lane.
type InTurn = BTreeMap<LaneKey, Vec<Turn<RowKey>>>;

/// What a read has found.
struct Found {
    /// What it brings.
    rows: Vec<(RowKey, Place)>,
    /// How many rows it has seen.
    count: usize,
    /// The last of them.
    last: Option<RowKey>,
    /// Keys of which tasks are due.
    keys: HashSet<Key>,
}

/// Reads on in a lane. Tasks whose group has an older one are left where they are, and those that are due and have a key: looks bring them.
fn due(read: &Read, now: Micros) -> Found {
    let mut table = TaskTable::to_read();
    let Due { mut rows, named } = table.due(&read.lane, &read.from, read.limit, now);
    let (count, last) = (rows.len(), rows.last().map(|(last, _)| *last));
    let mut keys = HashSet::new();
    if !named.is_empty() {
        let mut oldest: HashMap<Group, Option<TaskId>> = HashMap::new();
        let mut left: HashSet<usize> = HashSet::new();
        for (at, group, key) in named {
            let row = rows[at].0;
            let is_oldest = group.is_none_or(|group| {
                let oldest = oldest.entry(group);
                *oldest.or_insert_with(|| table.oldest(group).map(|next| next.id)) == Some(row.id)
            });
            let due_key = key.filter(|_| row.due <= now);
            keys.extend(due_key.filter(|_| is_oldest));
            if !is_oldest || due_key.is_some() {
                left.insert(at);
            }
        }
        let mut at = 0;
        rows.retain(|_| {
            at += 1;
            !left.contains(&(at - 1))
        });
    }
    table.close();
    Found { rows, count, last, keys }
}

/// What is next in the table: the oldest tasks of groups, and the first of keys, as many as a turn has beside those that are claimed or wait
/// aside.
fn next(looks: &[(Look, u32)], now: Micros) -> Vec<(Look, Vec<Next>)> {
    let mut table = TaskTable::to_read();
    let mut of = |look: &Look, want: u32| match look {
        Look::Group(group) => table.oldest(*group).into_iter().collect(),
        Look::Key(key) => table.first_of(*key, want as usize, now),
    };
    let found = looks.iter().map(|(look, want)| (*look, of(look, *want))).collect();
    table.close();
    found
}

fn lane_of(next: &Next) -> LaneKey {
    LaneKey { priority: next.priority, queue: next.queue }
}

fn lanes(spi: &Connected) -> Vec<LaneKey> {
    let rows = LANES.with(|statement| statement.run(spi, &[], true));
    (0..rows.len())
        .filter_map(|row| {
            let queue = QueueName::new(&rows.text(row, 1)?)?;
            Some(LaneKey { priority: rows.int2(row, 2)?, queue })
        })
        .collect()
}

/// Where a row says that its task belongs; none when it is parked.
fn belongs(row: &TaskRow<'_>) -> Option<Belongs> {
    if row.datum(Column::Error).is_some() {
        return None;
    }
    // SAFETY: the columns are a text and a jsonb, and the row stays in its buffer.
    let (queue, kind) = unsafe {
        let queue = QueueName::new(&spi::text_from(row.datum(Column::Queue)?))?;
        (queue, jsonb::step_name(row.datum(Column::Step)?)?.kind())
    };
    let (priority, due) = (row.int2(Column::Priority)?, row.int8(Column::WakeupAt)?);
    Some(Belongs { id: row.id()?, queue, priority, due, kind })
}
