//! `cargo xtask bench`: pg_task beside its peers and beside bare loops of the same run, on a private server.
#![expect(clippy::print_stdout, reason = "results are for people")]

mod bench;
mod figure;
mod hops;
mod plot;
mod process;
mod programs;
mod report;
mod server;
mod shapes;

use std::path::PathBuf;

use anyhow::bail;
use bench::Bench;
use clap::Parser;
use programs::AWA;
use programs::GRAPHILE;
use programs::PG_TASK_1;
use programs::RIVER;
use programs::Who;
use server::Server;
use shapes::SHAPES;
use shapes::Shape;

/// Measure pg_task beside its peers and beside bare loops.
#[derive(Parser)]
#[command(name = "cargo xtask bench", after_help = shapes_help())]
struct Options {
    /// Shapes of work, or figures (P1 to P12); none for all; `quick` for drain, chains and latency beside bare loops, in
    /// about a minute.
    names: Vec<String>,
    /// Smaller counts: all shapes within five minutes.
    #[arg(long)]
    quick: bool,
    /// Leave the other systems out.
    #[arg(long)]
    no_peers: bool,
    /// How often each figure is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write the figures to a file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write docs/benchmarks.md and its plots.
    #[arg(long)]
    report: bool,
}

fn shapes_help() -> String {
    let lines = SHAPES.iter().map(|shape| format!("  {:<10} {}", shape.name, shape.what));
    format!("Shapes:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    let preset = options.names == ["quick"];
    if preset {
        options.names = ["drain", "chains", "latency"].map(str::to_owned).into();
        options.quick = true;
        options.no_peers = true;
    }
    let shapes = chosen(&options.names)?;
    let mut bench = Bench::new(Server::start()?, options.quick, !options.no_peers);
    bench.rounds = options.rounds.max(1);
    build(&mut bench)?;
    let mut failed = None;
    for shape in shapes {
        if let Err(error) = shapes::run(&mut bench, shape).await {
            // What was measured before is still worth showing.
            bench.say(&format!("{} failed: {error:#}", shape.name));
            failed.get_or_insert(error);
        }
    }
    println!("\n{}", report::table(&bench.figures));
    println!("{}", report::summary(&bench.figures));
    if let Some(file) = &options.json {
        let list: Vec<_> = bench.figures.iter().map(figure::Figure::json).collect();
        std::fs::write(file, serde_json::to_string_pretty(&list)?)?;
    }
    if options.report {
        report::write(&bench).await?;
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Builds everything first, so that no compiler runs beside a measurement.
fn build(bench: &mut Bench) -> anyhow::Result<()> {
    bench.say("building what is measured; the first time this takes some minutes");
    bench.programs.path(Who::Ours)?;
    bench.programs.path(Who::Bare)?;
    for who in bench.peers(&[GRAPHILE, PG_TASK_1, RIVER, AWA]) {
        if let Err(error) = bench.programs.path(who) {
            bench.say(&format!("its rows stay empty: {error:#}"));
        }
    }
    Ok(())
}

/// The shapes that were named, in their usual order; all if none was.
fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Shape>> {
    let is_named = |shape: &Shape, name: &str| {
        shape.name.eq_ignore_ascii_case(name) || shape.ids.iter().any(|id| id.eq_ignore_ascii_case(name))
    };
    for name in names {
        if !SHAPES.iter().any(|shape| is_named(shape, name)) {
            bail!("there is no shape or figure \"{name}\"; `cargo xtask bench --help` names them");
        }
    }
    Ok(SHAPES
        .iter()
        .filter(|shape| names.is_empty() || names.iter().any(|name| is_named(shape, name)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_chosen_by_name_or_figure() {
        let names = |list: &[&str]| -> Vec<&str> {
            let list: Vec<String> = list.iter().map(|&name| name.to_owned()).collect();
            chosen(&list).expect("all are known").iter().map(|shape| shape.name).collect()
        };
        assert_eq!(names(&["latency", "drain"]), ["drain", "latency"]);
        assert_eq!(names(&["p12"]), ["asleep"]);
        assert_eq!(names(&[]).len(), SHAPES.len());
        assert!(chosen(&["nonsense".to_owned()]).is_err());
    }
}
