//! The model: rows that survive a crash, memory that does not, workers that may outlive the server, and the faults between them.
//!
//! An action is one atomic moment of the real system. Where the real system does something in several moments (a claim is made in memory
//! before its row is read; a result is checked against memory, then written, then settled), the model does too.

mod action;
mod apply;
mod mutation;
mod state;

use stateright::Model;
use stateright::Property;

pub use action::Action;
pub use action::Outcome;
pub use mutation::Mutation;
pub use state::State;
pub use state::Violation;

/// What is checked: how much there is of everything, and the rule that is broken on purpose, if any.
#[derive(Clone, Debug)]
pub struct Handout {
    /// Tasks, at most 2.
    pub tasks: usize,
    /// Workers, at most 3.
    pub workers: usize,
    /// Steps of each task.
    pub steps: u8,
    /// Whether the tasks are one group: they run one at a time, in their order.
    pub grouped: bool,
    /// Faults in all, of any kind.
    pub faults: u8,
    /// Attempts after the first, as `pg_task.lost_limit`.
    pub limit: u8,
    /// The rule that is broken on purpose.
    pub mutation: Option<Mutation>,
}

impl Handout {
    /// Whether a rule is kept.
    fn keeps(&self, rule: Mutation) -> bool {
        self.mutation != Some(rule)
    }
}

impl Model for Handout {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        action::possible(self, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        apply::apply(self, &mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no transition happens twice", |_, state: &State| {
                !state.has(Violation::DoubleTransition)
            }),
            Property::always(
                "one attempt of a task at a time, unless its worker or the server was lost",
                |_, state: &State| state.live_attempts().all(|count| count <= 1),
            ),
            Property::always(
                "no task of a group is begun beside another one, unless that one's worker or the server was lost",
                |_, state: &State| !state.has(Violation::OutOfTurn),
            ),
            Property::always(
                "no task of a group is begun before an older one is gone",
                |_, state: &State| !state.has(Violation::OutOfOrder),
            ),
            Property::always("tokens only grow", |_, state: &State| !state.has(Violation::OldToken)),
            Property::always(
                "what an attempt brings after it was given up is refused",
                |_, state: &State| !state.has(Violation::StaleResult),
            ),
            Property::always("no task is forgotten", |model: &Self, state: &State| {
                if model.grouped { !state.is_group_forgotten() } else { state.forgotten().is_none() }
            }),
            Property::always("every lost attempt is counted", |_, state: &State| {
                !state.has(Violation::Uncounted)
            }),
            Property::always("no attempt is counted twice", |_, state: &State| {
                !state.has(Violation::CountedTwice)
            }),
            Property::always(
                "a task that takes the server down is counted before it runs again",
                |_, state: &State| !state.has(Violation::CrashUncounted),
            ),
            Property::always("attempts end at the limit", |_, state: &State| {
                !state.has(Violation::BeyondLimit)
            }),
            Property::always("a row is locked by the worker whose attempt it is", |_, state: &State| {
                !state.has(Violation::WrongLock)
            }),
            Property::sometimes("everything is done", |_, state: &State| state.all_done()),
            Property::sometimes("a task is parked", |_, state: &State| {
                state.rows.iter().flatten().any(|row| row.parked)
            }),
            Property::sometimes("a result is refused", |_, state: &State| state.refused),
            Property::sometimes("a worker keeps its task over a restart", |_, state: &State| {
                state.reasserted
            }),
        ]
    }
}
