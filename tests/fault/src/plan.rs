//! The kinds of tasks in the load, and what each is meant to do.

use std::str::FromStr;

use anyhow::bail;
use serde_json::Value;
use serde_json::json;

use crate::ledger::Moment;
use crate::queues::FORGETFUL;
use crate::queues::HEIR_LIMITS;
use crate::queues::HEIRS;
use crate::queues::METERED;
use crate::queues::TENANTS;

/// What a task does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Steps that follow each other at once.
    Chain,
    /// Takes away, in the transaction of its transition, what was wished for by the name that is its [`Plan::last`].
    Collect,
    /// Fails until the world is mended for it; is parked and resumed.
    Doomed,
    /// Steps that write a row each in the transaction of their transition.
    Exact,
    /// Has a deadline that is over: is parked without having begun, and runs when it has been resumed without one.
    Expired,
    /// Writes to a table with its attempt token as a fence.
    Fenced,
    /// Fails in its first attempts.
    Flaky,
    /// Is due in a day: must stay where it is.
    Future,
    /// Has a deadline soon: runs, or is parked without having begun.
    Hasty,
    /// Fails in its first attempts, by an error or by not coming to its end; what becomes of that its queue says alone.
    Heir,
    /// Steps that follow each other after delays.
    Later,
    /// Steps that take a few hundredths of a second: what must not overlap would.
    Nap,
    /// Does nothing.
    Noop,
    /// Fails in its first attempts; its retries are what its options say, its step says none.
    Patient,
    /// Steps that take their time; its user may cancel or change it meanwhile.
    Slow,
    /// Takes longer than its step may in its first attempts.
    Tardy,
    /// Is copied; half of them fail until the world is mended.
    Twin,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 17] = [
        Self::Chain,
        Self::Collect,
        Self::Doomed,
        Self::Exact,
        Self::Expired,
        Self::Fenced,
        Self::Flaky,
        Self::Future,
        Self::Hasty,
        Self::Heir,
        Self::Later,
        Self::Nap,
        Self::Noop,
        Self::Patient,
        Self::Slow,
        Self::Tardy,
        Self::Twin,
    ];

    /// Its name, also that of its step.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chain => "Chain",
            Self::Collect => "Collect",
            Self::Doomed => "Doomed",
            Self::Exact => "Exact",
            Self::Expired => "Expired",
            Self::Fenced => "Fenced",
            Self::Flaky => "Flaky",
            Self::Future => "Future",
            Self::Hasty => "Hasty",
            Self::Heir => "Heir",
            Self::Later => "Later",
            Self::Nap => "Nap",
            Self::Noop => "Noop",
            Self::Patient => "Patient",
            Self::Slow => "Slow",
            Self::Tardy => "Tardy",
            Self::Twin => "Twin",
        }
    }

    /// Whether it has one step, and [`Plan::last`] means something else.
    fn has_one_step(self) -> bool {
        matches!(self, Self::Collect | Self::Flaky | Self::Heir | Self::Patient | Self::Tardy)
    }

    /// How often its steps are retried after an error, as they say or its options.
    pub fn retry_limit(self) -> i32 {
        match self {
            Self::Doomed => 1,
            // Its errors are those of the database under fault.
            Self::Collect | Self::Exact | Self::Fenced | Self::Twin => 20,
            Self::Flaky | Self::Patient | Self::Tardy => 6,
            _ => 0,
        }
    }

    /// The same, where it is another number from time to time: at most.
    pub fn highest_retry_limit(self) -> i32 {
        match self {
            Self::Heir => HEIR_LIMITS.iter().copied().max().unwrap_or_default(),
            _ => self.retry_limit(),
        }
    }
}

/// The arguments of `register` that name every step with its retries: what is parked when a worker is lost hangs on them, or on the options.
pub fn registration() -> String {
    let names: Vec<String> = Kind::ALL.iter().map(|kind| format!("Load/{}", kind.name())).collect();
    let limits: Vec<String> = Kind::ALL
        .iter()
        .map(|kind| if *kind == Kind::Patient { 0 } else { kind.retry_limit() })
        .map(|limit| limit.to_string())
        .collect();
    format!("steps => '{{{}}}', retry_limits => '{{{}}}'", names.join(","), limits.join(","))
}

/// What ties a task to others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Bond {
    /// The queue [`FORGETFUL`].
    Forgotten,
    /// A group, and the transaction that enqueued it: those of one transaction are in the order of their keys.
    Group {
        /// Which group.
        group: u64,
        /// The transaction: the key of its first task.
        batch: u64,
    },
    /// A key of the queue [`METERED`].
    Metered(u64),
    /// Nothing.
    #[default]
    None,
    /// A key of the queue [`TENANTS`].
    Tenant(u64),
    /// The key of a unique task.
    Unique(Unique),
}

/// A call of `enqueue_unique`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unique {
    /// The key.
    pub name: u32,
    /// Until when it is held. Each key has its own, always the same.
    pub scope: Scope,
    /// What to do when it is held.
    pub on_conflict: OnConflict,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its word in SQL.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl FromStr for $name {
            type Err = anyhow::Error;

            fn from_str(word: &str) -> anyhow::Result<Self> {
                match word { $($word => Ok(Self::$variant),)* _ => bail!("no such word: {word}") }
            }
        }
    };
}

words! {
    /// Until when a unique task holds its key.
    Scope {
        /// Until its row is gone.
        Done = "done",
        /// For [`PERIOD`] since the call.
        Period = "period",
        /// Until a worker has it.
        Queued = "queued",
        /// Until its row is gone or parked.
        Running = "running",
    }
}

words! {
    /// What is to be done when a key is held.
    OnConflict {
        /// The call fails.
        Error = "error",
        /// The task is due at another time.
        Move = "move",
        /// It gets another payload.
        Replace = "replace",
        /// Both.
        ReplaceAndMove = "replace_and_move",
        /// Nothing.
        Skip = "skip",
    }
}

words! {
    /// What `enqueue_unique` says that it did.
    Answer {
        /// There is a new task.
        Enqueued = "enqueued",
        /// The task that is there is due at another time.
        Moved = "moved",
        /// The task that is there has this payload.
        Replaced = "replaced",
        /// Nothing.
        Skipped = "skipped",
    }
}

/// After so many tasks unique ones have other keys.
const NAMES_CHANGE_AFTER: u64 = 600;
const NAMES_AT_A_TIME: u64 = 4;

/// How long a key with that scope is held, in hundredths of a second.
pub const PERIOD: Moment = 200;

/// Different keys of the queue [`TENANTS`].
const TENANT_COUNT: u64 = 5;

/// Different keys of the queue [`METERED`].
const METERED_COUNT: u64 = 4;

/// After so many tasks there are other groups: none grows so long that the run waits for it.
const GROUPS_CHANGE_AFTER: u64 = 300;
const GROUPS_AT_A_TIME: u64 = 4;

/// What a task is meant to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Its kind.
    pub kind: Kind,
    /// The number of its last step; the first is 0. For [`Kind::Flaky`] and its like the attempts that fail.
    pub last: u32,
    /// What ties it to others.
    pub bond: Bond,
}

impl Plan {
    /// A task that is tied to none.
    pub fn new(kind: Kind, last: u32) -> Self {
        Self { kind, last, bond: Bond::None }
    }

    /// The task's first step, as it is stored.
    pub fn step(self, key: u64) -> Value {
        json!({ "Load": { self.kind.name(): { "key": key, "seq": 0, "last": self.last, "via": 0 } } })
    }

    /// The task's options.
    pub fn options(self) -> Option<Value> {
        let mut options = serde_json::Map::new();
        match self.kind {
            Kind::Expired => _ = options.insert("deadline".to_owned(), json!("2020-02-02T20:20:20Z")),
            Kind::Patient => {
                let policy = json!({ "limit": 6, "delay": "40 ms", "backoff": "exponential", "max_delay": "200 ms", "jitter": 0.5 });
                options.insert("retry".to_owned(), policy);
            }
            _ => {}
        }
        match self.bond {
            Bond::Forgotten | Bond::None | Bond::Unique(_) => {}
            Bond::Group { group, .. } => {
                _ = options.insert("group".to_owned(), json!(format!("group {group}")));
            }
            Bond::Metered(key) => _ = options.insert("key".to_owned(), json!(format!("metered {key}"))),
            Bond::Tenant(tenant) => _ = options.insert("key".to_owned(), json!(format!("tenant {tenant}"))),
        }
        (!options.is_empty()).then_some(Value::Object(options))
    }

    /// The queue, if it has to be a certain one.
    pub fn queue(self) -> Option<&'static str> {
        Self::queue_of(self.bond).or((self.kind == Kind::Heir).then_some(HEIRS))
    }

    /// The queue that belongs to a bond.
    pub fn queue_of(bond: Bond) -> Option<&'static str> {
        match bond {
            Bond::Forgotten => Some(FORGETFUL),
            Bond::Metered(_) => Some(METERED),
            Bond::Tenant(_) => Some(TENANTS),
            Bond::Group { .. } | Bond::None | Bond::Unique(_) => None,
        }
    }

    /// The number of the last step that it runs.
    pub fn last_step(self) -> u32 {
        if self.kind.has_one_step() { 0 } else { self.last }
    }

    /// A plan by chance, of a kind that is due when it is enqueued, tied to none.
    pub fn choose(rng: &mut fastrand::Rng) -> Self {
        let (kind, last) = match rng.u32(0..100) {
            0..20 => (Kind::Noop, 0),
            20..22 => (Kind::Heir, rng.u32(1..4)),
            22..25 => (Kind::Twin, 0),
            25..30 => (Kind::Nap, rng.u32(0..3)),
            30..55 => (Kind::Chain, rng.u32(1..8)),
            55..70 => (Kind::Later, rng.u32(1..4)),
            70..74 => (Kind::Flaky, rng.u32(1..4)),
            74..76 => (Kind::Patient, rng.u32(1..4)),
            76..79 => (Kind::Tardy, rng.u32(1..3)),
            79 => (Kind::Expired, 0),
            80..83 => (Kind::Doomed, 0),
            83..88 => (Kind::Slow, rng.u32(0..4)),
            88..94 => (Kind::Exact, rng.u32(0..4)),
            _ => (Kind::Fenced, 0),
        };
        Self::new(kind, last)
    }

    /// A call of `enqueue_unique` by chance, for the task `key`.
    pub fn unique(rng: &mut fastrand::Rng, key: u64) -> Self {
        let name = (key / NAMES_CHANGE_AFTER * NAMES_AT_A_TIME + rng.u64(0..NAMES_AT_A_TIME)) as u32;
        let scope = Scope::ALL[name as usize % Scope::ALL.len()];
        let (kind, last) = match rng.u32(0..4) {
            _ if scope == Scope::Queued => (Kind::Collect, name),
            0 => (Kind::Chain, rng.u32(1..4)),
            1 => (Kind::Flaky, rng.u32(1..3)),
            2 => (Kind::Exact, rng.u32(0..3)),
            _ => (Kind::Nap, rng.u32(0..4)),
        };
        let on_conflict = OnConflict::ALL[rng.usize(0..OnConflict::ALL.len())];
        Self { kind, last, bond: Bond::Unique(Unique { name, scope, on_conflict }) }
    }

    /// The same, tied to others by chance, for the task `key` of the transaction `batch`.
    pub fn tie(self, rng: &mut fastrand::Rng, key: u64, batch: u64) -> Self {
        let bond = match rng.u32(0..100) {
            // Other queues have nothing to say for it.
            chance if self.kind == Kind::Heir => {
                if chance < 30 {
                    Bond::Forgotten
                } else {
                    Bond::None
                }
            }
            0..15 => {
                let group = key / GROUPS_CHANGE_AFTER * GROUPS_AT_A_TIME + rng.u64(0..GROUPS_AT_A_TIME);
                Bond::Group { group, batch }
            }
            15..25 => Bond::Tenant(rng.u64(0..TENANT_COUNT)),
            25..31 => Bond::Metered(rng.u64(0..METERED_COUNT)),
            _ => Bond::None,
        };
        self.tied(bond)
    }

    /// The same with this bond. What has to wait for its turn takes less time: the run waits for all of it.
    pub fn tied(self, bond: Bond) -> Self {
        let (kind, last) = match (bond, self.kind) {
            (Bond::Forgotten | Bond::None | Bond::Unique(_), _) => (self.kind, self.last),
            // Copies would be tied as well.
            (_, Kind::Twin) => (Kind::Nap, self.last),
            (Bond::Group { .. }, Kind::Slow | Kind::Noop) => (Kind::Nap, self.last),
            (Bond::Tenant(_), Kind::Chain | Kind::Noop) => (Kind::Nap, self.last.min(2)),
            // Each hand-out takes a token.
            (Bond::Metered(_), kind) => (kind, self.last.min(1)),
            (_, kind) => (kind, self.last.min(2)),
        };
        Self { kind, last, bond }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.last)?;
        match self.bond {
            Bond::Forgotten => f.write_str(" forgotten"),
            Bond::Group { group, batch } => write!(f, " group {group} batch {batch}"),
            Bond::Metered(key) => write!(f, " metered {key}"),
            Bond::None => Ok(()),
            Bond::Tenant(tenant) => write!(f, " tenant {tenant}"),
            Bond::Unique(Unique { name, scope, on_conflict }) => {
                write!(f, " unique {name} {} {}", scope.word(), on_conflict.word())
            }
        }
    }
}

impl FromStr for Plan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let [name, last, bond @ ..] = &text.split(' ').collect::<Vec<_>>()[..] else { bail!("no plan") };
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == *name) else {
            bail!("no kind of task: {name}")
        };
        let bond = match bond {
            ["forgotten"] => Bond::Forgotten,
            ["group", group, "batch", batch] => Bond::Group { group: group.parse()?, batch: batch.parse()? },
            ["metered", key] => Bond::Metered(key.parse()?),
            ["tenant", tenant] => Bond::Tenant(tenant.parse()?),
            ["unique", name, scope, on_conflict] => Bond::Unique(Unique {
                name: name.parse()?,
                scope: scope.parse()?,
                on_conflict: on_conflict.parse()?,
            }),
            [] => Bond::None,
            other => bail!("no bond: {other:?}"),
        };
        Ok(Self { kind, last: last.parse()?, bond })
    }
}
