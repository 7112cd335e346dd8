//! What the server's log says that it should not.

use std::collections::BTreeMap;
use std::path::Path;

/// Errors that the faults and the load bring about by design, as parts of their texts.
const EXPECTED: &[&str] = &[
    "the database system is ",
    "terminating connection",
    "terminating background worker",
    // What a session is told that is terminated before it has logged in.
    "canceling authentication due to timeout",
    "canceling statement due to",
    "connection to client lost",
    "could not receive data from client",
    "could not send data to client",
    "the scheduler of this database is not running",
    // The processes of a server whose postmaster was killed.
    "postmaster exited during",
    // Rolled back by the load itself.
    "prepared transaction with identifier",
    // Killed processes are reported as such; any other signal is not expected.
    "was terminated by signal 9",
    "terminating any other active server processes",
    // A scheduler that was cancelled or terminated in the middle of a tick tries again.
    "pg_task scheduler: a tick failed and will be tried again: canceling statement due to",
    "interrupted; last known up at",
    // A step that is dropped while its pool begins a transaction: the connection goes back in that state, or is rolled back before it was.
    "there is already a transaction in progress",
    "there is no transaction in progress",
    // A process that ended between being chosen and being terminated.
    "is not a PostgreSQL backend process",
    "unexpected EOF on client connection",
    // Recovery does over again that a database was dropped.
    "could not open directory \"base/",
    "some useless files may be left behind in old database directory",
    // A crash left a lock file or memory behind.
    "pre-existing shared memory block",
    // A REINDEX CONCURRENTLY that was ended in its middle leaves an index behind, of which the next one says that it passes over it.
    "cannot reindex invalid index",
];

/// Statements that lock the whole table, by the faults alone: two of them can deadlock, which is PostgreSQL's to resolve. No other deadlock is
/// expected.
const WHOLE_TABLE: &[&str] =
    &["LOCK TABLE ", "REINDEX ", "VACUUM FULL ", "CLUSTER ", "ALTER TABLE ", "ALTER INDEX "];

/// Words that nothing excuses.
const NEVER: &[&str] = &["panicked", "PANIC", "signal 11", "signal 6", "signal 4", "TRAP:", "invalid memory"];

/// Lines at a level from WARNING up that nothing explains, and lines with words that nothing excuses; equal ones once, with their
/// number. Reads from `from` bytes on and returns how far it read.
///
/// # Errors
/// When the log cannot be read.
pub fn complaints(path: &Path, from: usize, also_expected: &[&str]) -> std::io::Result<(Vec<String>, usize)> {
    let bytes = std::fs::read(path)?;
    let text = String::from_utf8_lossy(&bytes[from.min(bytes.len())..]);
    let mut found: BTreeMap<String, (u32, String)> = BTreeMap::new();
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().copied().enumerate() {
        if line.contains("ERROR:  deadlock detected") && is_of_the_whole_table(&lines[number..]) {
            continue;
        }
        let never = NEVER.iter().any(|word| line.contains(word));
        let level = ["WARNING:  ", "ERROR:  ", "FATAL:  "].iter().any(|level| line.contains(level));
        let expected = EXPECTED.iter().chain(also_expected).any(|part| line.contains(part));
        if (never && !also_expected.iter().any(|part| line.contains(part))) || (level && !expected) {
            // Without the time, the process and the numbers, equal lines are equal.
            let start = line.find(":  ").map_or(0, |at| line[..at].rfind(' ').map_or(0, |space| space + 1));
            let shape: String = line[start..]
                .chars()
                .map(|letter| if letter.is_ascii_digit() { '#' } else { letter })
                .collect();
            found.entry(shape).or_insert((0, line.to_owned())).0 += 1;
        }
    }
    let lines = found.into_values().map(|(count, line)| format!("{count} × {line}")).collect();
    Ok((lines, bytes.len()))
}

/// Whether the statement of the error that these lines begin with is one of [`WHOLE_TABLE`].
fn is_of_the_whole_table(lines: &[&str]) -> bool {
    let statement = lines.iter().skip(1).find(|line| line.contains("STATEMENT:  "));
    statement.is_some_and(|line| WHOLE_TABLE.iter().any(|part| line.contains(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_expected_is_found_once_with_its_number() -> std::io::Result<()> {
        let path = std::env::temp_dir().join(format!("pg_task-fault-log-{}", std::process::id()));
        let start = "2026-11-24 20:00:00.000 UTC [1] load ";
        let lines = [
            "ERROR:  canceling statement due to user request",
            "ERROR:  row 12 is bad",
            "ERROR:  row 13 is bad",
            "LOG:  background worker \"x\" (PID 4) was terminated by signal 11: Segmentation fault",
            "LOG:  all is well",
            "ERROR:  deadlock detected",
            "DETAIL:  Process 1 waits for ShareLock on transaction 7; blocked by process 2.",
            "STATEMENT:  REINDEX TABLE CONCURRENTLY pg_task.task",
        ];
        std::fs::write(&path, lines.map(|line| format!("{start}{line}\n")).concat())?;
        let (found, read) = complaints(&path, 0, &[])?;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("2 × ") && line.contains("row 12 is bad")));
        assert!(found.iter().any(|line| line.contains("signal 11")));
        assert_eq!(complaints(&path, read, &[])?.0, Vec::<String>::new());
        let deadlock = ["ERROR:  deadlock detected", "DETAIL:  a", "STATEMENT:  SELECT pg_task.exchange($1)"];
        std::fs::write(&path, deadlock.map(|line| format!("{start}{line}\n")).concat())?;
        assert_eq!(complaints(&path, 0, &[])?.0.len(), 1);
        std::fs::remove_file(&path)
    }
}
