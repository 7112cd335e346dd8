//! The due book: what becomes due when, and how far the table has been read.
//!
//! It belongs to the scheduler alone. For every lane (a priority and a queue) it keeps a *mark*: every committed row whose key
//! (due time, id) is below the mark has been told to the scheduler, either by a read of the table or by a hint, and is in the book
//! until it is moved to the board. Rows at or above the mark are found by the next read, which starts at the mark and never at the
//! head of the index. So dead index entries are passed over once, however long a transaction holds them there.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::collections::VecDeque;

use crate::Micros;
use crate::TaskId;
use crate::names::QueueName;
use crate::place::Place;

/// A lane: lower priorities come first in this order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LaneKey {
    /// The priority.
    pub priority: i16,
    /// The queue.
    pub queue: QueueName,
}

/// The place of a row in its lane.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RowKey {
    /// When it is due.
    pub due: Micros,
    /// Which it is.
    pub id: TaskId,
}

impl RowKey {
    /// Before every row.
    pub const START: Self = Self { due: Micros::MIN, id: [0; 16] };
    /// After every row.
    pub const END: Self = Self { due: Micros::MAX, id: [0xff; 16] };

    fn from_due(due: Micros) -> Self {
        Self { due, id: [0; 16] }
    }

    /// The next key after this one.
    fn successor(self) -> Self {
        match u128::from_be_bytes(self.id).checked_add(1) {
            Some(next) => Self { due: self.due, id: next.to_be_bytes() },
            None => Self::from_due(self.due.saturating_add(1)),
        }
    }
}

/// A read of the table that the book wants: the first `limit` rows of the lane at or after `from`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Read {
    /// Of which lane.
    pub lane: LaneKey,
    /// From which key on.
    pub from: RowKey,
    /// At most how many rows.
    pub limit: usize,
}

/// What became of a task that the book offered to the board.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offered {
    /// It is on the board (or was already): the book lets go of it.
    Taken,
    /// There is no room for this lane: the book keeps it.
    NoRoom,
}

/// The due book.
#[derive(Debug)]
pub struct DueBook {
    lanes: BTreeMap<LaneKey, LaneBook>,
    held: usize,
    /// Rows that are in the line of a lane.
    in_turn: HashSet<TaskId>,
    capacity: usize,
    read_limit: usize,
    /// From where the table is to be read again in lanes that are still to be found.
    rescan_from: Micros,
}

#[derive(Debug)]
struct LaneBook {
    /// Rows that are known, with the place where a read has seen them.
    upcoming: BTreeMap<RowKey, Place>,
    /// Tasks of keys, each as of the moment at which its turn had come.
    line: VecDeque<RowKey>,
    mark: RowKey,
    /// No row at or above the mark is due before this.
    unread_due: Micros,
}

/// The least share of a lane: with very many lanes the book grows beyond its capacity rather than read in circles.
pub const MIN_SHARE: usize = 8;

/// A read is worth its while so long before its rows are due, so that they are in memory on time.
const READ_AHEAD: Micros = 1_000_000;

impl DueBook {
    /// A book that holds at most about `capacity` rows and reads at most `read_limit` at a time.
    ///
    /// Every lane has an equal share of the capacity, though never less than [`MIN_SHARE`] rows.
    pub fn new(capacity: usize, read_limit: usize) -> Self {
        Self {
            lanes: BTreeMap::new(),
            held: 0,
            in_turn: HashSet::new(),
            capacity,
            read_limit,
            rescan_from: Micros::MAX,
        }
    }

    /// A committed row is due at `key.due`, or will be.
    pub fn hint(&mut self, lane: LaneKey, key: RowKey) {
        // A lane that the book does not know had no rows when the lanes were last looked for; all since came as hints.
        let book = self.lanes.entry(lane).or_insert_with(LaneBook::all_known);
        if key < book.mark {
            self.held += usize::from(book.upcoming.insert(key, Place::UNKNOWN).is_none());
            self.evict(lane);
        } else {
            book.unread_due = book.unread_due.min(key.due);
        }
    }

    /// The same for a task of a key, which is due: its turn comes after those that wait now, whatever its time.
    pub fn hint_in_turn(&mut self, lane: LaneKey, key: RowKey, now: Micros) {
        let book = self.lanes.entry(lane).or_insert_with(LaneBook::all_known);
        if key >= book.mark {
            book.unread_due = book.unread_due.min(key.due);
        } else if self.in_turn.insert(key.id) {
            book.line.push_back(RowKey { due: now, id: key.id });
            self.held += 1;
            self.evict(lane);
        }
    }

    /// Whether the row waits in a line for its turn.
    pub fn is_in_turn(&self, id: &TaskId) -> bool {
        self.in_turn.contains(id)
    }

    /// All lanes that have rows in the table. Those that are new to the book will be read from their start.
    pub fn found_lanes(&mut self, lanes: &[LaneKey]) {
        for lane in lanes {
            let book = self.lanes.entry(*lane).or_insert_with(LaneBook::nothing_known);
            // A lane that a hint has made since the rescan was asked for looks whole and is not.
            if self.rescan_from != Micros::MAX {
                self.held -= book.read_again(self.rescan_from);
            }
        }
        self.rescan_from = Micros::MAX;
    }

    /// Rows that are due at `from` or later may have been missed: read again from there. The lanes have to be looked for again
    /// as well, see [`DueBook::found_lanes`].
    pub fn rescan(&mut self, from: Micros) {
        self.rescan_from = self.rescan_from.min(from);
        self.held -= self.lanes.values_mut().map(|book| book.read_again(from)).sum::<usize>();
    }

    /// The read that is needed next, if any.
    pub fn next_read(&self, now: Micros) -> Option<Read> {
        let soon = now.saturating_add(READ_AHEAD);
        let limit = self.lane_read_limit();
        let (lane, book) =
            self.lanes.iter().find(|(_, book)| book.wants_read(limit) && book.unread_due <= soon)?;
        Some(Read { lane: *lane, from: book.mark, limit })
    }

    /// What the read brought, in the order of the keys.
    pub fn read_done(&mut self, read: &Read, rows: &[(RowKey, Place)]) {
        self.read_some(read, rows.len(), rows.last().map(|(last, _)| *last), rows);
    }

    /// The same when only some of the rows are to be kept: so many were read, the last of them this one. The others come as hints when
    /// their time has come.
    pub fn read_some(&mut self, read: &Read, count: usize, last: Option<RowKey>, rows: &[(RowKey, Place)]) {
        let Some(book) = self.lanes.get_mut(&read.lane) else { return };
        if count < read.limit {
            book.mark = RowKey::END;
            book.unread_due = Micros::MAX;
        } else if let Some(last) = last {
            book.mark = last.successor();
            book.unread_due = last.due;
        }
        for (row, place) in rows {
            self.held += usize::from(book.upcoming.insert(*row, *place).is_none());
        }
        self.evict(read.lane);
    }

    /// Offers what is due, lower priority numbers first and by due time within a lane.
    pub fn offer_due(&mut self, now: Micros, mut offer: impl FnMut(&LaneKey, &RowKey, Place) -> Offered) {
        for (lane, book) in &mut self.lanes {
            loop {
                let in_turn = book.line.front().copied();
                let first = book.upcoming.first_entry().filter(|first| {
                    first.key().due <= now && in_turn.is_none_or(|in_turn| *first.key() <= in_turn)
                });
                match (first, in_turn) {
                    (Some(first), _) if offer(lane, first.key(), *first.get()) == Offered::Taken => {
                        first.remove();
                    }
                    // It is due, even if the clock was set back since.
                    (None, Some(in_turn)) if offer(lane, &in_turn, Place::IN_TURN) == Offered::Taken => {
                        book.line.pop_front();
                        self.in_turn.remove(&in_turn.id);
                    }
                    _ => break,
                }
                self.held -= 1;
            }
        }
        self.lanes.retain(|_, book| book.mark != RowKey::END || book.len() > 0);
    }

    /// The first moment after `now` at which there is something to do. What is due already waits for room on the board, which
    /// the board announces, or for a read, which [`DueBook::next_read`] names.
    pub fn next_due(&self, now: Micros) -> Option<Micros> {
        let limit = self.lane_read_limit();
        self.lanes
            .values()
            .flat_map(|book| {
                let next = book
                    .upcoming
                    .range(RowKey::from_due(now.saturating_add(1))..)
                    .next()
                    .map(|(row, _)| row.due);
                let unread =
                    book.wants_read(limit).then(|| book.unread_due.saturating_sub(READ_AHEAD).max(now));
                [next, unread]
            })
            .flatten()
            .min()
    }

    /// The lanes in which something is due that the board had no room for, or that is still to be read.
    pub fn due_lanes(&self, now: Micros) -> impl Iterator<Item = &LaneKey> {
        let is_due = move |book: &LaneBook| {
            !book.line.is_empty()
                || book.upcoming.first_key_value().is_some_and(|(first, _)| first.due <= now)
                || (book.mark != RowKey::END && book.unread_due <= now)
        };
        self.lanes.iter().filter(move |(_, book)| is_due(book)).map(|(lane, _)| lane)
    }

    /// Rows in memory.
    pub fn held(&self) -> usize {
        self.held
    }

    fn share(&self) -> usize {
        (self.capacity / self.lanes.len().max(1)).max(MIN_SHARE)
    }

    /// Half a share, so that a read into a lane that is down to a quarter of its share never overflows it.
    fn lane_read_limit(&self) -> usize {
        self.read_limit.min(self.share() / 2)
    }

    /// Lets go of the latest rows of a lane that has more than its share while the book is full: they will be read again.
    fn evict(&mut self, lane: LaneKey) {
        let share = self.share();
        let Some(book) = self.lanes.get_mut(&lane) else { return };
        // What is in the line stays: a read would not bring it, for its time is another one.
        while self.held > self.capacity && book.len() > share {
            let Some((last, _)) = book.upcoming.pop_last() else { break };
            self.held -= 1;
            book.mark = book.mark.min(last);
            book.unread_due = book.unread_due.min(last.due);
        }
    }
}

impl LaneBook {
    /// Lowers the mark. Lets go of the rows above it, which will be read again: kept, they would make the lane look as if it
    /// needed no reading. Returns how many those were.
    fn read_again(&mut self, from: Micros) -> usize {
        self.mark = self.mark.min(RowKey::from_due(from));
        self.unread_due = self.unread_due.min(from);
        self.upcoming.split_off(&self.mark).len()
    }

    fn len(&self) -> usize {
        self.upcoming.len() + self.line.len()
    }

    fn wants_read(&self, limit: usize) -> bool {
        self.mark != RowKey::END && self.len() < limit.div_ceil(2)
    }

    fn all_known() -> Self {
        Self { upcoming: BTreeMap::new(), line: VecDeque::new(), mark: RowKey::END, unread_due: Micros::MAX }
    }

    fn nothing_known() -> Self {
        Self {
            upcoming: BTreeMap::new(),
            line: VecDeque::new(),
            mark: RowKey::START,
            unread_due: Micros::MIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn lane(n: u8) -> LaneKey {
        let name = ["a", "b"][usize::from(n % 2)];
        LaneKey { priority: 0, queue: QueueName::new(name).expect("a name") }
    }

    fn key(due: Micros, n: u8) -> RowKey {
        let mut id = [0; 16];
        id[15] = n;
        RowKey { due, id }
    }

    fn serve_reads(book: &mut DueBook, table: &BTreeSet<(LaneKey, RowKey)>, now: Micros) {
        while let Some(read) = book.next_read(now) {
            let rows: Vec<_> = table
                .iter()
                .filter(|(lane, row)| *lane == read.lane && *row >= read.from)
                .map(|(_, row)| (*row, Place::UNKNOWN))
                .take(read.limit)
                .collect();
            book.read_done(&read, &rows);
        }
    }

    fn find_lanes(book: &mut DueBook, table: &BTreeSet<(LaneKey, RowKey)>) {
        let lanes: BTreeSet<LaneKey> = table.iter().map(|(lane, _)| *lane).collect();
        book.found_lanes(&lanes.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn the_successor_of_the_last_id_is_in_the_next_microsecond() {
        assert_eq!(RowKey { due: 5, id: [0xff; 16] }.successor(), RowKey::from_due(6));
        assert_eq!(key(5, 255).successor().id[14..], [1, 0]);
    }

    #[test]
    fn sleepers_are_read_once_and_the_book_sleeps_until_the_first_is_due() {
        let mut book = DueBook::new(100, 10);
        book.found_lanes(&[lane(0)]);
        let table: BTreeSet<_> = (0..5).map(|n| (lane(0), key(10_000_000 + i64::from(n), n))).collect();
        serve_reads(&mut book, &table, 0);
        assert_eq!(book.next_read(0), None);
        assert_eq!(book.next_due(0), Some(10_000_000));
        assert_eq!(book.held(), 5);
    }

    #[test]
    fn rows_that_came_without_hints_are_read_at_once_beside_any_number_of_sleepers() {
        let mut book = DueBook::new(100, 10);
        book.found_lanes(&[lane(0)]);
        let tomorrow = 86_400_000_000;
        let mut table: BTreeSet<_> = (0..200).map(|n| (lane(0), key(tomorrow, n))).collect();
        table.insert((lane(0), key(1, 201)));
        serve_reads(&mut book, &table, 10);
        assert!(book.held() > 5, "the read of what is due has brought sleepers along");
        table.insert((lane(0), key(9, 202)));
        book.rescan(9);
        serve_reads(&mut book, &table, 10);
        let mut offered = Vec::new();
        book.offer_due(10, |_, row, _| {
            offered.push(row.id[15]);
            Offered::Taken
        });
        assert_eq!(offered, [201, 202]);
    }

    #[test]
    fn a_full_board_does_not_make_the_book_spin() {
        let mut book = DueBook::new(100, 10);
        book.hint(lane(0), key(5, 1));
        book.offer_due(10, |_, _, _| Offered::NoRoom);
        assert_eq!(book.next_due(10), None);
        assert_eq!(book.held(), 1);
    }

    #[test]
    fn what_is_in_the_line_keeps_its_order_and_its_place_among_what_is_due() {
        let mut book = DueBook::new(100, 20);
        for n in [9, 3, 7] {
            book.hint_in_turn(lane(0), key(1, n), 10);
        }
        book.hint_in_turn(lane(0), key(1, 9), 20);
        (0..3).for_each(|n| book.hint(lane(0), key(9 + i64::from(n), n)));
        book.rescan(0);
        book.hint(lane(0), key(9, 0));
        assert!(!book.is_in_turn(&key(1, 0).id) && book.is_in_turn(&key(1, 9).id));
        let table = BTreeSet::from([(lane(0), key(9, 0)), (lane(0), key(10, 1)), (lane(0), key(11, 2))]);
        let mut offered = Vec::new();
        for room in [2, 3, 9] {
            let mut room = room;
            serve_reads(&mut book, &table, 15);
            book.offer_due(15, |_, row, place| {
                if room == 0 {
                    return Offered::NoRoom;
                }
                room -= 1;
                offered.push((row.id[15], place == Place::IN_TURN));
                Offered::Taken
            });
        }
        assert_eq!(offered, [(0, false), (1, false), (9, true), (3, true), (7, true), (2, false)]);
        assert_eq!((book.held(), book.is_in_turn(&key(1, 9).id)), (0, false));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Commit(u8, i64),
        CommitUnseen(u8, i64),
        FindLanes,
        Tick(i64, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (any::<u8>(), 0..40_i64).prop_map(|(n, after)| Op::Commit(n, after * 100_000)),
            1 => (any::<u8>(), 0..40_i64).prop_map(|(n, after)| Op::CommitUnseen(n, after * 100_000)),
            1 => Just(Op::FindLanes),
            3 => (0..20_i64, any::<u8>()).prop_map(|(step, room)| Op::Tick(step * 100_000, room % 8)),
        ]
    }

    proptest! {
        /// Rows commit with due times before and after now, some hints are lost and replaced by a rescan, the board has room for few or
        /// many at a time, the book is small: every row is offered once it is due, and none before.
        #[test]
        fn every_row_is_offered_when_it_is_due(ops in prop::collection::vec(op(), 1..crate::up_to(120)), capacity in 2..20_usize) {
            let mut book = DueBook::new(capacity, 4);
            let mut table = BTreeSet::new();
            let mut now = 1_000_000;
            let mut taken = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Commit(n, after) => {
                        let row = key(now - 500_000 + after, n);
                        if table.insert((lane(n), row)) {
                            taken.remove(&(lane(n), row));
                            book.hint(lane(n), row);
                        }
                    }
                    Op::CommitUnseen(n, after) => {
                        let row = key(now - 500_000 + after, n);
                        if table.insert((lane(n), row)) {
                            book.rescan(row.due);
                        }
                    }
                    Op::FindLanes => find_lanes(&mut book, &table),
                    Op::Tick(step, mut room) => {
                        now += step;
                        serve_reads(&mut book, &table, now);
                        book.offer_due(now, |lane, row, _| {
                            assert!(row.due <= now);
                            if room == 0 {
                                return Offered::NoRoom;
                            }
                            room -= 1;
                            taken.insert((*lane, *row));
                            table.remove(&(*lane, *row));
                            Offered::Taken
                        });
                        prop_assert!(book.held() <= capacity.max(2 * MIN_SHARE));
                    }
                }
            }
            find_lanes(&mut book, &table);
            // Time goes on from one moment that the book names to the next, with room for all.
            for _ in 0..2000 {
                serve_reads(&mut book, &table, now);
                book.offer_due(now, |lane, row, _| {
                    table.remove(&(*lane, *row));
                    Offered::Taken
                });
                if book.next_read(now).is_some() {
                    continue;
                }
                let late = table.iter().find(|(_, row)| row.due <= now);
                prop_assert!(late.is_none(), "due and not offered at {}: {:?}", now, late);
                match book.next_due(now) {
                    Some(next) => now = now.max(next),
                    None => break,
                }
            }
            prop_assert!(table.is_empty(), "left behind: {:?}", table);
        }
    }
}
