//! The part of the check that is about rates: in no stretch of time more hand-outs than the burst and what the rate brings, of a queue and of
//! each of its keys, with any number of workers and over every restart.

use std::collections::BTreeMap;

use super::ROUNDING;
use super::Violation;
use super::hand_outs::HandOut;
use crate::ledger::Moment;
use crate::plan::Bond;
use crate::queues::KEY_METER;
use crate::queues::METERED;
use crate::queues::Meter;
use crate::queues::QUEUE_METER;

/// The fullest stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fullest {
    /// Hand-outs in it.
    pub count: u64,
    /// As many would have been too many.
    pub most: f64,
    /// How long it was.
    pub time: Moment,
    /// The task that was handed out last.
    pub key: u64,
}

/// Of the queue and of each of its keys.
pub(super) fn are_kept(hand_outs: &[HandOut], out: &mut Vec<Violation>) {
    let (queue, keys) = fullest(hand_outs);
    for (name, fullest) in std::iter::once((METERED.to_owned(), queue))
        .chain(keys.into_iter().map(|(key, fullest)| (format!("{METERED}, key {key}"), fullest)))
    {
        let Fullest { count, most, time, key } = fullest;
        if count as f64 > most {
            let text = format!(
                "queue {name}: {count} hand-outs in {time} hundredths of a second, {most:.1} are allowed"
            );
            out.push(Violation { key, text });
        }
    }
}

/// The fullest stretches of the queue and of each of its keys.
pub(super) fn fullest(hand_outs: &[HandOut]) -> (Fullest, BTreeMap<u64, Fullest>) {
    let (mut of_queue, mut of_keys) = (Vec::new(), BTreeMap::<u64, Vec<(Moment, Moment, u64)>>::new());
    for hand_out in hand_outs.iter().filter(|hand_out| !hand_out.moved) {
        let Bond::Metered(key) = hand_out.bond else { continue };
        of_queue.push((hand_out.from, hand_out.to, hand_out.key));
        // A key's token is taken when the row has been read, which may be after a later hand-out has come to its worker.
        of_keys.entry(key).or_default().push((hand_out.from, hand_out.began, hand_out.key));
    }
    let of_keys = of_keys.into_iter().map(|(key, spans)| (key, fullest_of(&KEY_METER, spans))).collect();
    (fullest_of(&QUEUE_METER, of_queue), of_keys)
}

/// Of hand-outs each of which was at some moment between two: the stretch that has the most of what it may have.
fn fullest_of(meter: &Meter, mut spans: Vec<(Moment, Moment, u64)>) -> Fullest {
    spans.sort_unstable_by_key(|(_, to, _)| *to);
    let mut fullest = Fullest { most: 1.0, ..Fullest::default() };
    for &(start, ..) in &spans {
        let mut count = 0;
        for &(from, to, key) in &spans {
            if from < start {
                continue;
            }
            count += 1;
            let time = to - start + ROUNDING;
            let most = meter.most(time);
            if f64::from(count) / most > fullest.count as f64 / fullest.most {
                fullest = Fullest { count: u64::from(count as u32), most, time, key };
            }
        }
    }
    fullest
}
