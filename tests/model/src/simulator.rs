//! The real rules (board, due book, inbox) under a virtual clock, with many workers and millions of events.
//!
//! The shell around them does what the extension's does, in the same order: a commit leaves a hint, the scheduler ticks, an exchange claims and
//! reads rows, a result is checked, written and settled. Some tasks have a group or a key, and keys have limits and rates now and then. Workers do
//! nothing unless they are woken or have something to bring, so that a wake-up that is lost shows as a task that is never run.
//!
//! A history is a list of events that a seed decides. When one fails, [`shrink`] takes out what is not needed for the failure.

mod world;

pub use world::Break;
pub use world::World;

/// One event. The number chooses the task, the worker, the delay: whatever the event needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// What happens.
    pub what: What,
    /// The choices.
    pub dice: u64,
}

/// What happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// A producer commits some tasks.
    Enqueue,
    /// The scheduler ticks.
    Tick,
    /// A worker registers: a new one, or one that was silent.
    Join,
    /// A worker brings what is finished and asks for more.
    Exchange,
    /// A worker falls silent for ever.
    Vanish,
    /// A worker signs off.
    Leave,
    /// A user changes a task.
    Change,
    /// A user deletes a task.
    Cancel,
    /// Time goes on.
    Wait,
    /// Everything in memory is lost: the server restarts.
    Restart,
    /// An operator pauses a queue or sets its limits, or those of all together; or ends that.
    Rule,
}

/// Numbers that a seed decides: splitmix64, as Steele, Lea and Flood describe it.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

/// The events of a seed.
pub fn history(seed: u64, len: usize) -> Vec<Event> {
    let mut dice = Dice(seed);
    let one = |_| {
        let what = match dice.below(1000) {
            0..=299 => What::Enqueue,
            300..=499 => What::Tick,
            500..=529 => What::Join,
            530..=879 => What::Exchange,
            880..=889 => What::Vanish,
            890..=899 => What::Leave,
            900..=929 => What::Change,
            930..=944 => What::Cancel,
            945..=994 => What::Wait,
            995..=998 => What::Rule,
            _ => What::Restart,
        };
        Event { what, dice: dice.roll() }
    };
    (0..len).map(one).collect()
}

/// Plays a history and then lets everything come to rest.
///
/// # Errors
/// What does not hold, and after which event.
pub fn play(events: &[Event], workers: usize, broken: Option<Break>) -> Result<World, String> {
    let mut world = World::new(workers, broken);
    for (index, event) in events.iter().enumerate() {
        world.happen(event).map_err(|what| format!("event {index}, {event:?}: {what}"))?;
    }
    world.come_to_rest()?;
    Ok(world)
}

/// A short history that fails as the long one does: parts are left out for as long as it still fails.
pub fn shrink(events: &[Event], workers: usize, broken: Option<Break>) -> Vec<Event> {
    let mut events = events.to_vec();
    let mut part = events.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < events.len() {
            let mut fewer = events.clone();
            fewer.drain(at..(at + part).min(events.len()));
            if play(&fewer, workers, broken).is_err() {
                events = fewer;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    events
}
