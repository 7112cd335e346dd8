//! Every order of events at small size: the properties hold, and each rule that is broken on purpose breaks one of them.
#![expect(
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    reason = "an integration test that reports figures"
)]

use pg_task_model::model::Handout;
use pg_task_model::model::Mutation;
use stateright::Checker;
use stateright::Expectation;
use stateright::HasDiscoveries;
use stateright::Model;

const SMALL: Handout =
    Handout { tasks: 1, workers: 2, steps: 2, grouped: false, faults: 3, limit: 1, mutation: None };

/// Tries every order of events, with few faults first, so that what is found has a short history.
fn check(model: &Handout, what: &str) {
    for faults in 0..=model.faults {
        let model = Handout { faults, ..model.clone() };
        let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!("{what}, at most {faults} faults: {} states", checker.unique_state_count());
        for property in checker.model().properties() {
            match property.expectation {
                Expectation::Always => checker.assert_no_discovery(property.name),
                _ if faults == 3 => _ = checker.assert_any_discovery(property.name),
                _ => {}
            }
        }
    }
}

#[test]
fn the_rules_hold_in_every_order_of_events_with_three_faults() {
    check(&SMALL, "one task of two steps, two workers");
}

#[test]
fn the_rules_hold_for_two_tasks_that_share_the_board() {
    check(&Handout { tasks: 2, steps: 1, faults: 1, ..SMALL }, "two tasks of one step, two workers");
}

#[test]
fn the_rules_hold_for_two_tasks_of_a_group() {
    check(
        &Handout { tasks: 2, steps: 1, faults: 1, grouped: true, ..SMALL },
        "a group of two tasks, two workers",
    );
}

#[test]
fn every_rule_that_is_broken_is_noticed() {
    for mutation in Mutation::ALL {
        // The fewest faults that show it: the whole space of the next number is much larger.
        let noticed = (0..=4).find_map(|faults| {
            let model = Handout { mutation: Some(mutation), faults, ..SMALL };
            let model = match mutation.is_of_groups() {
                true => Handout { tasks: 2, steps: 1, grouped: true, ..model },
                false => model,
            };
            let checker =
                model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
            let properties = checker.model().properties();
            let broken = properties.iter().find(|property| {
                property.expectation == Expectation::Always && checker.discovery(property.name).is_some()
            })?;
            let steps = checker.discovery(broken.name)?.into_actions().len();
            Some(format!("\"{}\" fails after {steps} steps with {faults} faults", broken.name))
        });
        println!("{mutation:?}: {noticed:?}");
        assert!(noticed.is_some(), "{mutation:?} goes unnoticed");
    }
}
