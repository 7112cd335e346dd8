//! Random histories of the real rules: a failing one is printed with its seed, shortened.
#![expect(
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    reason = "an integration test that reports figures"
)]

use pg_task_model::simulator::Break;
use pg_task_model::simulator::history;
use pg_task_model::simulator::play;
use pg_task_model::simulator::shrink;

/// Plays a seed; the error has the shortest history that was found.
fn run(seed: u64, len: usize, workers: usize, broken: Option<Break>) -> Result<String, String> {
    let events = history(seed, len);
    match play(&events, workers, broken) {
        Ok(world) => Ok(format!(
            "seed {seed}: {len} events, {} transitions, {} refused, {} workers lost, {} reads after an overflow",
            world.transitions, world.refused, world.lost, world.rescans
        )),
        Err(what) => {
            // A prefix first, so that shortening takes seconds.
            let short = shrink(&events[..events.len().min(20_000)], workers, broken);
            let last = play(&short, workers, broken).err().unwrap_or(what);
            Err(format!("seed {seed}: {last}\n{} events:\n{short:#?}", short.len()))
        }
    }
}

#[test]
fn the_rules_hold_in_a_million_random_events_with_thousands_of_workers() {
    for (seed, len, workers) in [(1, 400_000, 20), (2, 400_000, 200), (3, 200_000, 2_000), (4, 100_000, 3)] {
        match run(seed, len, workers, None) {
            Ok(figures) => println!("{workers} workers, {figures}"),
            Err(history) => panic!("{history}"),
        }
    }
}

#[test]
fn a_fresh_seed_holds_too() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let seed = std::env::var("SEED").map_or(now.as_nanos() as u64, |seed| seed.parse().expect("a number"));
    match run(seed, 200_000, 50, None) {
        Ok(figures) => println!("{figures}"),
        Err(history) => panic!("repeat with SEED={seed}: {history}"),
    }
}

#[test]
fn what_is_broken_on_purpose_is_noticed_and_shortened_to_a_few_events() {
    // Short histories too: in a long one something else may wake what was forgotten.
    let seeds = || (0..3_000).map(|seed| (seed, if seed % 2 == 0 { 120 } else { 2_000 }));
    assert_eq!(seeds().take(300).find_map(|(seed, len)| run(seed, len, 2, None).err()), None);
    let all = [
        Break::DropHints,
        Break::KeepLost,
        Break::IgnoreFence,
        Break::SkipWakes,
        Break::ForgetRules,
        Break::ForgetLooks,
        Break::IgnoreTurns,
        Break::IgnoreOrder,
        Break::IgnoreKeys,
    ];
    for broken in all {
        let history = seeds().find_map(|(seed, len)| run(seed, len, 2, Some(broken)).err());
        let history = history.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        let lines = history.matches("Event {").count();
        println!("{broken:?}: {}", history.lines().take(2).collect::<Vec<_>>().join(" "));
        assert!(lines < 200, "{broken:?}: the shortest history has {lines} events");
    }
}
