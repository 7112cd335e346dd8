//! The table of all figures, and docs/benchmarks.md.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::Context;
use pg_task_cluster::workspace_root;

use crate::bench::Bench;
use crate::figure::Bar;
use crate::figure::Figure;
use crate::figure::number;
use crate::plot;
use crate::server::SETTINGS;

/// All figures as a Markdown table.
pub fn table(figures: &[Figure]) -> String {
    let head = ["", "what", "ours", "reference", "ratio", "bar", ""].map(str::to_owned);
    let mut rows = vec![head];
    for figure in figures {
        let with_unit =
            |shown: String| if shown == "–" { shown } else { format!("{shown} {}", figure.unit) };
        let mut reference = figure.reference.clone();
        if !reference.is_empty() {
            let _ = write!(reference, ": {}", with_unit(figure.reference_values.shown()));
        }
        if !figure.note.is_empty() {
            let _ = write!(reference, "{}{}", if reference.is_empty() { "" } else { "; " }, figure.note);
        }
        rows.push([
            figure.id.to_owned(),
            figure.what.clone(),
            with_unit(figure.ours.shown()),
            reference,
            figure.ratio().map(number).unwrap_or_default(),
            figure.bar.map(Bar::shown).unwrap_or_default(),
            figure.verdict().to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{:<width$}", cell.replace('|', "\\|")))
            .collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if at == 0 {
            let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width.max(3))).collect();
            let _ = writeln!(text, "| {} |", rules.join(" | "));
        }
    }
    text
}

/// How many bars are held.
pub fn summary(figures: &[Figure]) -> String {
    let held = |ok| figures.iter().filter(|figure| figure.bar.is_some() && figure.ok() == ok).count();
    let mut text = format!("{} bars held, {} short", held(Some(true)), held(Some(false)));
    if held(None) > 0 {
        let _ = write!(text, ", {} not measured", held(None));
    }
    text
}

/// Writes docs/benchmarks.md and the plots beside it.
///
/// # Errors
/// When files cannot be written.
pub async fn write(bench: &Bench) -> anyhow::Result<()> {
    let docs = workspace_root().join("docs");
    let folder = docs.join("benchmarks");
    fs::create_dir_all(&folder)?;
    let mut plots = String::new();
    for plot in &bench.plots {
        let name = format!("{}.svg", plot.name);
        match plot::draw(plot, &folder.join(&name)) {
            Ok(()) => writeln!(plots, "![{}](benchmarks/{name})\n", plot.title)?,
            Err(error) => bench.say(&format!("{error:#}")),
        }
    }
    let server: String = bench.server.connect().await?.query_one("SELECT version()", &[]).await?.get(0);
    let mut command: Vec<String> = std::env::args().skip(1).collect();
    // Where somebody wanted the figures as JSON is nobody else's concern.
    if let Some(at) = command.iter().position(|argument| argument == "--json") {
        command.drain(at..(at + 2).min(command.len()));
    }
    command.retain(|argument| !argument.starts_with("--json="));
    let text = format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench {}`, which repeats them. Do not edit.\n\n\
         Every figure is a median of {} rounds unless it is one value by nature; in brackets the least and the most. The reference was \
         measured in the same run, in turns with ours, on the same server, each worker in a process of its own. Commits are durable: fsync \
         and synchronous_commit are on. A row without a value says why.\n\n\
         - Machine: {}\n- Server: {server}\n- Settings beside the defaults: {}\n- Built by: {}, in the release profile\n- pg_task: commit {}\n\n\
         {}\n{}\n\n## Plots\n\n{plots}",
        command.join(" "),
        bench.rounds,
        machine(),
        SETTINGS.iter().map(|line| format!("`{line}`")).collect::<Vec<_>>().join(", "),
        output("rustc", &["--version"]),
        output("git", &["rev-parse", "--short", "HEAD"]),
        table(&bench.figures),
        summary(&bench.figures),
    );
    fs::write(docs.join("benchmarks.md"), text).context("failed to write docs/benchmarks.md")
}

fn machine() -> String {
    let first = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, value)| value).trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let kilobytes: f64 =
        first("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores ({}), {:.0} GiB of memory, Linux {}",
        first("/proc/cpuinfo", "model name"),
        kilobytes / 1024.0 / 1024.0,
        kernel.trim()
    )
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(workspace_root()).output();
    output.map_or_else(|_| "unknown".to_owned(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Series;

    #[test]
    fn the_table_has_a_row_for_each_figure_and_the_summary_counts_bars() {
        let values = || Series(vec![1.0, 2.0, 3.0]);
        let figures = [
            Figure::new("P1", "held", "tasks/s", values())
                .beside("bare", values())
                .bar(Bar::RatioAtLeast(1.0)),
            Figure::new("P1", "short", "tasks/s", values())
                .beside("bare", values())
                .bar(Bar::RatioAtLeast(2.0)),
            Figure::new("P2", "empty", "tasks/s", values())
                .beside("peer", Series::default())
                .bar(Bar::RatioAtLeast(2.0))
                .note("does not build"),
        ];
        let table = table(&figures);
        assert_eq!(table.lines().count(), 2 + figures.len());
        assert!(table.contains("2.00 (1.00–3.00) tasks/s") && table.contains("peer: –; does not build"));
        assert_eq!(summary(&figures), "1 bars held, 1 short, 1 not measured");
    }
}
