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
    for (seed, len, workers) in [(1, 300_000, 20), (2, 300_000, 200), (3, 300_000, 2_000), (4, 100_000, 3)] {
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
    for broken in
        [Break::DropHints, Break::KeepLost, Break::CountMissing, Break::IgnoreFence, Break::SkipWakes]
    {
        let history = (0..20).find_map(|seed| run(seed, 4_000, 1, Some(broken)).err());
        let history = history.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        let lines = history.matches("Event {").count();
        println!("{broken:?}: {}", history.lines().take(2).collect::<Vec<_>>().join(" "));
        assert!(lines < 200, "{broken:?}: the shortest history has {lines} events");
    }
}
