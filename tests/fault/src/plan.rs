//! The kinds of tasks in the load, and what each is meant to do.

use std::str::FromStr;

use anyhow::Context;
use anyhow::bail;
use serde_json::Value;
use serde_json::json;

/// What a task does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Steps that follow each other at once.
    Chain,
    /// Fails until the world is mended for it; is parked and resumed.
    Doomed,
    /// Steps that write a row each in the transaction of their transition.
    Exact,
    /// Writes to a table with its attempt token as a fence.
    Fenced,
    /// Fails in its first attempts.
    Flaky,
    /// Is due in a day: must stay where it is.
    Future,
    /// Steps that follow each other after delays.
    Later,
    /// Does nothing.
    Noop,
    /// Steps that take their time; its user may cancel or change it meanwhile.
    Slow,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Chain,
        Self::Doomed,
        Self::Exact,
        Self::Fenced,
        Self::Flaky,
        Self::Future,
        Self::Later,
        Self::Noop,
        Self::Slow,
    ];

    /// Its name, also that of its step.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chain => "Chain",
            Self::Doomed => "Doomed",
            Self::Exact => "Exact",
            Self::Fenced => "Fenced",
            Self::Flaky => "Flaky",
            Self::Future => "Future",
            Self::Later => "Later",
            Self::Noop => "Noop",
            Self::Slow => "Slow",
        }
    }

    /// How often its steps are retried after an error.
    pub fn retry_limit(self) -> i32 {
        match self {
            Self::Doomed => 1,
            // Its errors are those of the database under fault.
            Self::Exact | Self::Fenced => 20,
            Self::Flaky => 6,
            _ => 0,
        }
    }
}

/// The arguments of `register` that name every step with its retries: what is parked when a worker is lost hangs on them.
pub fn registration() -> String {
    let names: Vec<String> = Kind::ALL.iter().map(|kind| format!("Load/{}", kind.name())).collect();
    let limits: Vec<String> = Kind::ALL.iter().map(|kind| kind.retry_limit().to_string()).collect();
    format!("steps => '{{{}}}', retry_limits => '{{{}}}'", names.join(","), limits.join(","))
}

/// What a task is meant to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Its kind.
    pub kind: Kind,
    /// The number of its last step; the first is 0. For [`Kind::Flaky`] the attempts that fail.
    pub last: u32,
}

impl Plan {
    /// The task's first step, as it is stored.
    pub fn step(self, key: u64) -> Value {
        json!({ "Load": { self.kind.name(): { "key": key, "seq": 0, "last": self.last, "via": 0 } } })
    }

    /// The number of the last step that it runs.
    pub fn last_step(self) -> u32 {
        if self.kind == Kind::Flaky { 0 } else { self.last }
    }

    /// A plan by chance, of a kind that is due when it is enqueued.
    pub fn choose(rng: &mut fastrand::Rng) -> Self {
        let (kind, last) = match rng.u32(0..100) {
            0..30 => (Kind::Noop, 0),
            30..55 => (Kind::Chain, rng.u32(1..8)),
            55..70 => (Kind::Later, rng.u32(1..4)),
            70..80 => (Kind::Flaky, rng.u32(1..4)),
            80..83 => (Kind::Doomed, 0),
            83..88 => (Kind::Slow, rng.u32(0..4)),
            88..94 => (Kind::Exact, rng.u32(0..4)),
            _ => (Kind::Fenced, 0),
        };
        Self { kind, last }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.last)
    }
}

impl FromStr for Plan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, last) = text.split_once(' ').context("no plan")?;
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else {
            bail!("no kind of task: {name}")
        };
        Ok(Self { kind, last: last.parse()? })
    }
}
