//! What a rule costs for each task, from a thousand tasks to ten million: the ready set, the claims, the due book.
//!
//! `cargo bench --package pg_task_rules`. The times are for all elements of a size; the throughput is per element.

use std::hint::black_box;
use std::time::Duration;
use std::time::Instant;

use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::SamplingMode;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Board;
use pg_task_rules::board::OwnedBoard;
use pg_task_rules::board::QueueId;
use pg_task_rules::board::Registration;
use pg_task_rules::board::Sizes;
use pg_task_rules::board::Taken;
use pg_task_rules::due::DueBook;
use pg_task_rules::due::LaneKey;
use pg_task_rules::due::Offered;
use pg_task_rules::due::RowKey;
use pg_task_rules::names::Label;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;

const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// Tasks that one exchange hands out or brings back.
const BATCH: usize = 1_000;

/// An empty board for so many tasks.
fn memory(tasks: usize) -> OwnedBoard {
    OwnedBoard::new(&Sizes::new(tasks, 4))
}

/// The board, emptied, with one worker, and that worker.
fn with_worker(memory: &mut OwnedBoard) -> (Board<'_>, usize) {
    let mut board = memory.board();
    board.reset();
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
    let worker = board.register(&registration, 0).expect("a place is free");
    (board, worker)
}

/// Ids as version 7 UUIDs are: ascending first, random at the end.
fn id(number: usize) -> TaskId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(number as u64).to_be_bytes());
    id[8..].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id
}

/// A hundred rows fit on a page, about.
fn place(number: usize) -> Place {
    Place { block: (number / 100) as u32, position: (number % 100) as u16 + 1 }
}

fn push_all(board: &mut Board<'_>, tasks: usize) {
    for number in 0..tasks {
        black_box(board.push_ready(id(number), number as Micros, QueueId(0), 0, place(number)));
    }
}

fn claim_all(board: &mut Board<'_>, worker: usize, tasks: usize) -> Vec<Taken> {
    let mut claims = Vec::with_capacity(tasks);
    while claims.len() < tasks {
        let before = claims.len();
        board.claim(worker, BATCH as u32, 0, &mut claims);
        assert!(claims.len() > before, "every task that was pushed is handed out");
    }
    claims
}

fn board(criterion: &mut Criterion) {
    /// Which part of a task's way over the board is timed.
    #[derive(Clone, Copy)]
    enum Part {
        Push,
        Claim,
        End,
    }

    for (name, part) in
        [("ready set: push", Part::Push), ("claims: hand out", Part::Claim), ("claims: end", Part::End)]
    {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(3));
        for tasks in SIZES {
            group.throughput(Throughput::Elements(tasks as u64));
            group.bench_function(BenchmarkId::from_parameter(tasks), |bencher| {
                let mut memory = memory(tasks);
                bencher.iter_custom(|rounds| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..rounds {
                        let (mut board, worker) = with_worker(&mut memory);
                        let began = Instant::now();
                        push_all(&mut board, tasks);
                        let pushed = began.elapsed();
                        let claims = claim_all(&mut board, worker, tasks);
                        let claimed = began.elapsed();
                        for taken in &claims {
                            assert!(board.end_claim(&taken.claim.id, taken.claim.token), "the claim is held");
                        }
                        spent += match part {
                            Part::Push => pushed,
                            Part::Claim => claimed - pushed,
                            Part::End => began.elapsed() - claimed,
                        };
                    }
                    spent
                });
            });
        }
        group.finish();
    }
}

/// Rows are read from the table as long as there is room, and move to the board when they are due.
fn due_book(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("due book: read and offer");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(3));
    let lane = LaneKey { priority: 0, queue: QueueName::EMPTY };
    for tasks in SIZES {
        group.throughput(Throughput::Elements(tasks as u64));
        group.bench_function(BenchmarkId::from_parameter(tasks), |bencher| {
            let row = |number| (RowKey { due: number as Micros, id: id(number) }, place(number));
            let rows: Vec<(RowKey, Place)> = (0..tasks).map(row).collect();
            bencher.iter(|| {
                let mut book = DueBook::new(tasks.min(100_000), BATCH);
                book.rescan(Micros::MIN);
                book.found_lanes(&[lane]);
                let now = tasks as Micros;
                let mut offered = 0;
                while let Some(read) = book.next_read(now) {
                    let from = rows.partition_point(|row| row.0 < read.from);
                    let found = &rows[from..rows.len().min(from + read.limit)];
                    book.read_done(&read, found);
                    book.offer_due(now, |_, row, _| {
                        black_box(row);
                        offered += 1;
                        Offered::Taken
                    });
                }
                assert_eq!(offered, tasks, "every row is offered once");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, board, due_book);
criterion_main!(benches);
