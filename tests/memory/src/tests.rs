//! The parts of an area: inside it, aligned, apart from each other; and a board and an inbox that are used in it.

use std::alloc::Layout as Block;
use std::ops::Range;

use pg_task_rules::board::Pushed;
use pg_task_rules::board::Registration;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Label;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;
use proptest::prelude::*;

use crate::memory::Layout;

/// What the server's allocator promises, and what a part of the layout begins on.
const LINE: usize = 128;

/// An area of exactly the size that a layout asks for, full of what is left from others.
struct Area {
    start: *mut u8,
    block: Block,
}

impl Area {
    fn new(layout: &Layout) -> Self {
        let block = Block::from_size_align(layout.total, LINE).expect("a size that can be allocated");
        // SAFETY: no layout is empty; the area is filled before anything reads it.
        let start = unsafe {
            let start = std::alloc::alloc(block);
            assert!(!start.is_null(), "out of memory");
            start.write_bytes(0xa5, layout.total);
            layout.initialise(start);
            start
        };
        Self { start, block }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this block; nothing refers to it any more.
        unsafe { std::alloc::dealloc(self.start, self.block) };
    }
}

/// Where a slice lies in its area; also says that it is aligned.
fn range<T>(area: &Area, slice: &[T]) -> Range<usize> {
    let start = slice.as_ptr() as usize - area.start as usize;
    assert_eq!(slice.as_ptr() as usize % LINE, 0, "a part begins in the middle of a cache line");
    start..start + size_of_val(slice)
}

/// Every part of an area.
fn parts(layout: &Layout, area: &Area) -> Vec<Range<usize>> {
    // SAFETY: the area was initialised with this layout, and belongs to this thread.
    let (board, inbox) = unsafe { (layout.board(area.start), layout.inbox(area.start)) };
    vec![
        range(area, std::slice::from_ref(&*board.head)),
        range(area, board.entries),
        range(area, board.buckets),
        range(area, board.lanes),
        range(area, board.workers),
        range(area, board.queues),
        range(area, board.gates),
        range(area, board.group_buckets),
        range(area, board.keys),
        range(area, board.key_buckets),
        range(area, board.looks),
        range(area, board.progress),
        range(area, std::slice::from_ref(&*inbox.head)),
        range(area, inbox.ring),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 }))]

    #[test]
    fn the_parts_lie_in_their_area_and_apart_from_each_other(
        ready in 1_usize..if cfg!(miri) { 20 } else { 5_000 },
        workers in 1_usize..if cfg!(miri) { 3 } else { 300 },
        hints in 1_usize..if cfg!(miri) { 20 } else { 5_000 },
    ) {
        let layout = Layout::new(ready, workers, hints);
        let area = Area::new(&layout);
        let mut parts = parts(&layout, &area);
        parts.sort_by_key(|part| part.start);
        prop_assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start), "{parts:?}");
        prop_assert!(parts.iter().all(|part| part.end <= layout.total), "{parts:?} in {}", layout.total);
        prop_assert_eq!(parts.iter().map(|part| part.start).min(), Some(0));
    }
}

#[test]
fn a_board_and_an_inbox_share_an_area_to_its_last_place() {
    let layout = Layout::new(16, 2, 4);
    let area = Area::new(&layout);
    // SAFETY: as in `parts`.
    let (mut board, mut inbox) = unsafe { (layout.board(area.start), layout.inbox(area.start)) };
    let queue = QueueName::new("default").expect("a name");
    for n in 0..6_u8 {
        inbox.push(&Hint { due: i64::from(n), id: [n; 16], priority: 0, queue });
    }
    let queue = board.intern(&queue).expect("a place for the name");
    let mut added = 0_u8;
    while board.push_ready([added; 16], 0, queue, 0, Place::UNKNOWN) == Pushed::Added {
        added += 1;
    }
    assert!(usize::from(added) >= 16, "{added}");
    let registration = Registration {
        id: [1; 16],
        name: Label::EMPTY,
        queues: &[],
        weights: &[],
        kinds: None,
        lease: 60_000_000,
        role: 10,
        pid: 1,
    };
    let worker = board.register(&registration, 0).expect("a place for the worker");
    let mut taken = Vec::new();
    board.claim(worker, u32::MAX, 0, &mut taken);
    assert_eq!(taken.len(), usize::from(added));
    // What was written to the board has not changed the inbox, nor the other way round.
    let mut hints = Vec::new();
    inbox.drain(&mut hints, usize::MAX);
    assert_eq!(hints.iter().map(|hint| hint.id[0]).collect::<Vec<_>>(), [0, 1, 2, 3]);
}
