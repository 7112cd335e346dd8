//! `options` of a task: which keys there are, and what each takes.

use std::borrow::Cow;

use chrono::Datelike;
use pg_task_rules::Micros;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key as TaskKey;
use pg_task_rules::retry;
use pg_task_rules::retry::Backoff;
use pg_task_rules::retry::Policy;
use pg_task_rules::traceparent::is_traceparent;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use serde_json::Value;

use crate::error::Error;
use crate::jsonb;

/// The most that the options of one task may take, in bytes: they are read with every hand-out.
const LIMIT: usize = 8 << 10;

/// One key. `docs/options.md` tells the same to people.
struct Key {
    name: &'static str,
    /// What it takes, for the error's text: "an object".
    takes: &'static str,
    /// Whether a value fits, or what is wrong with it.
    check: fn(&Value) -> Result<(), String>,
}

/// The keys, in the order of the alphabet.
const KEYS: &[Key] = &[
    Key {
        name: "deadline",
        takes: "a moment with its offset from UTC, such as \"2030-01-31T12:00:00Z\"",
        check: |value| fits(moment(value), value),
    },
    Key { name: "group", takes: "a text of 1 to 200 bytes", check: name },
    Key { name: "key", takes: "a text of 1 to 200 bytes", check: name },
    Key { name: "meta", takes: "an object", check: object },
    Key { name: "retry", takes: POLICY, check: |value| policy(value).map(|_| ()) },
    Key { name: "tags", takes: "an array of texts, none of them empty", check: tags },
    Key {
        name: "timeout",
        takes: DURATION,
        check: |value| fits(duration(value).filter(|&timeout| timeout > 0), value),
    },
    Key { name: "traceparent", takes: "a W3C trace context", check: traceparent },
];

/// The longest name of a group or key, in bytes.
const MAX_NAME: usize = 200;

/// The collation "C" in `pg_collation.dat`.
const C_COLLATION: u32 = 950;

/// The names of all keys, for hints.
pub fn names() -> String {
    KEYS.iter().map(|key| format!("\"{}\"", key.name)).collect::<Vec<_>>().join(", ")
}

/// Checks a column or argument `options`; NULL has none.
pub fn check_datum(options: Option<Datum>) -> Result<(), Error> {
    let Some(options) = options else { return Ok(()) };
    // SAFETY: callers pass a jsonb.
    let (got, value) = unsafe {
        let size = jsonb::limited_size(options, LIMIT);
        if size > LIMIT {
            return Err(Error::OptionsTooLarge { size, limit: LIMIT });
        }
        (jsonb::shortened(options), read(options))
    };
    match value {
        Some(Value::Object(keys)) => {
            keys.iter().try_for_each(|(name, value)| match KEYS.iter().find(|key| key.name == *name) {
                None => Err(Error::OptionUnknown { key: name.clone() }),
                Some(key) => (key.check)(value).map_err(|got| Error::OptionValue {
                    key: key.name,
                    takes: key.takes,
                    got,
                }),
            })
        }
        _ => Err(Error::OptionsShape { got }),
    }
}

/// The options as a value; none when they cannot be read as one, for instance for a number that is out of range.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn read(options: Datum) -> Option<Value> {
    // SAFETY: the caller's.
    serde_json::from_str(&unsafe { jsonb::text(options) }).ok()
}

/// The group of a task: its name's hash, as the expression of the index `task_group` has it.
///
/// # Safety
/// The datum is a `jsonb` object.
pub unsafe fn group(options: Datum) -> Option<Group> {
    // SAFETY: the caller's.
    unsafe { text(options, c"group").map(|name| Group(hash(name, 0))) }
}

/// The key of a task within its queue, a text: the hash of both names, as the expression of the index `task_key` has it.
///
/// # Safety
/// The datum is a `jsonb` object, the queue a text.
pub unsafe fn key(options: Datum, queue: Datum) -> Option<TaskKey> {
    // SAFETY: the caller's.
    unsafe { text(options, c"key").map(|name| TaskKey(hash(name, hash(queue, 0)))) }
}

/// The group and the key of a task.
///
/// # Safety
/// The options are a `jsonb` object, the queue is a text.
pub unsafe fn group_and_key(options: Option<Datum>, queue: Datum) -> (Option<Group>, Option<TaskKey>) {
    // SAFETY: the caller's.
    options.map_or((None, None), |options| unsafe { (group(options), key(options, queue)) })
}

/// # Safety
/// The datum is a text.
unsafe fn hash(text: Datum, seed: i64) -> i64 {
    // SAFETY: the function takes a text and an int8.
    let hash = unsafe {
        pg_sys::OidFunctionCall2Coll(
            pg_sys::Oid::from(pg_sys::F_HASHTEXTEXTENDED),
            pg_sys::Oid::from(C_COLLATION),
            text,
            Datum::from(seed),
        )
    };
    hash.value() as i64
}

/// The value of a key, as a text, if it is one.
///
/// # Safety
/// The datum is a `jsonb` object.
unsafe fn text(options: Datum, key: &std::ffi::CStr) -> Option<Datum> {
    // SAFETY: the container lies in the detoasted value, which has a header of four bytes; the string that is found lies in it too.
    unsafe {
        let options = pg_sys::pg_detoast_datum(options.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        let mut value = pg_sys::JsonbValue::default();
        let found = pg_sys::getKeyJsonValueFromContainer(
            &raw mut (*options).root,
            key.as_ptr(),
            key.count_bytes() as i32,
            &raw mut value,
        );
        if found.is_null() || value.type_ != pg_sys::jbvType::jbvString {
            return None;
        }
        let text = pg_sys::cstring_to_text_with_len(value.val.string.val, value.val.string.len);
        Some(Datum::from(text))
    }
}

fn name(value: &Value) -> Result<(), String> {
    match value {
        Value::String(name) if (1..=MAX_NAME).contains(&name.len()) => Ok(()),
        Value::String(name) => Err(format!("The value has {} bytes.", name.len())),
        value => Err(format!("The value is {value}")),
    }
}

fn tags(value: &Value) -> Result<(), String> {
    let is_tag = |tag: &Value| tag.as_str().is_some_and(|tag| !tag.is_empty());
    match value.as_array() {
        Some(tags) if tags.iter().all(is_tag) => Ok(()),
        _ => Err(format!("The value is {value}.")),
    }
}

fn traceparent(value: &Value) -> Result<(), String> {
    match value.as_str() {
        Some(text) if is_traceparent(text) => Ok(()),
        _ => Err(format!(
            "The value is {value}; one reads 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01, in small letters, no id all zeros."
        )),
    }
}

fn object(value: &Value) -> Result<(), String> {
    if value.is_object() { Ok(()) } else { Err(format!("The value is {value}")) }
}

/// The policy in `options`, if there is one.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn policy_of(options: Datum) -> Option<Policy> {
    // SAFETY: the caller's.
    policy(unsafe { read(options) }?.get("retry")?).ok()
}

/// Checks a policy that is given by itself.
pub fn check_policy(retry: Option<Datum>) -> Result<(), Error> {
    let Some(retry) = retry else { return Ok(()) };
    // SAFETY: callers pass a jsonb.
    let size = unsafe { jsonb::limited_size(retry, LIMIT) };
    if size > LIMIT {
        return Err(Error::OptionsTooLarge { size, limit: LIMIT });
    }
    // SAFETY: as above.
    let value = unsafe { read(retry) };
    let checked = value.ok_or_else(|| "It cannot be read.".to_owned()).and_then(|value| policy(&value));
    checked.map(drop).map_err(|got| Error::OptionValue { key: "retry", takes: POLICY, got })
}

/// What a policy is, for errors.
const POLICY: &str = "an object with the policy of its retries";

/// Reads a policy, or says what is wrong with it.
pub fn policy(value: &Value) -> Result<Policy, String> {
    const KNOWN: &str = "limit, delay, backoff, factor, max_delay, jitter, delays";
    let Value::Object(keys) = value else { return Err(format!("The value is {value}")) };
    let mut policy = Policy::NONE;
    for (name, value) in keys {
        let fits = match name.as_str() {
            "limit" => {
                value.as_i64().and_then(|limit| i32::try_from(limit).ok()).filter(|&limit| limit >= 0).map(
                    |limit| {
                        policy.limit = Some(limit);
                    },
                )
            }
            "delay" => duration(value).map(|delay| policy.delay = Some(delay)),
            "max_delay" => duration(value).map(|longest| policy.max_delay = Some(longest)),
            "backoff" => {
                let backoff = match value.as_str() {
                    Some("constant") => Some(Backoff::Constant),
                    Some("exponential") => Some(Backoff::Exponential),
                    _ => None,
                };
                backoff.map(|backoff| policy.backoff = backoff)
            }
            "factor" => value
                .as_f64()
                .filter(|factor| (1.0..=100.0).contains(factor))
                .map(|factor| policy.factor = factor),
            "jitter" => value
                .as_f64()
                .filter(|jitter| (0.0..=1.0).contains(jitter))
                .map(|jitter| policy.jitter = jitter),
            "delays" => value
                .as_array()
                .filter(|delays| (1..=100).contains(&delays.len()))
                .and_then(|delays| delays.iter().map(duration).collect::<Option<Vec<Micros>>>())
                .map(|delays| policy.delays = Cow::Owned(delays)),
            _ => return Err(format!("\"{name}\" is none of {KNOWN}.")),
        };
        if fits.is_none() {
            return Err(format!("\"{name}\" must be {}, not {value}.", takes(name)));
        }
    }
    if policy.backoff == Backoff::Exponential && policy.delay.is_none() {
        return Err("An exponential back-off needs a \"delay\" to begin with.".to_owned());
    }
    if !policy.delays.is_empty() && (policy.delay.is_some() || policy.backoff == Backoff::Exponential) {
        return Err("\"delays\" stand instead of \"delay\" and \"backoff\".".to_owned());
    }
    Ok(policy)
}

/// What the keys of a policy take.
fn takes(name: &str) -> &'static str {
    match name {
        "limit" => "a whole number of retries, 0 or more",
        "backoff" => "\"constant\" or \"exponential\"",
        "factor" => "a number from 1 to 100",
        "jitter" => "a number from 0 to 1",
        "delays" => "a list of 1 to 100 durations",
        _ => DURATION,
    }
}

/// What a duration is, for errors.
const DURATION: &str =
    "a number of seconds or a text such as \"1.5 s\", \"10 min\", \"2 h\", \"7 days\", at most 10 years";

/// A duration: a number of seconds, or a text with its unit.
fn duration(value: &Value) -> Option<Micros> {
    match value {
        Value::Number(number) => retry::from_seconds(number.as_f64()?),
        Value::String(text) => retry::duration(text),
        _ => None,
    }
}

/// The moment of `deadline` in `options`, if there is one.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn deadline(options: Datum) -> Option<Micros> {
    // SAFETY: the caller's.
    moment(unsafe { read(options) }?.get("deadline")?)
}

/// A moment: a text with its offset from UTC, so that it means the same for everyone.
fn moment(value: &Value) -> Option<Micros> {
    /// 2000-01-01 in microseconds since 1970.
    const START: Micros = 946_684_800_000_000;
    let moment = chrono::DateTime::parse_from_rfc3339(value.as_str()?).ok()?;
    // PostgreSQL, which people and tools will use to read it, knows no year 0 and no offset of sixteen hours.
    if moment.year() < 1 || moment.offset().local_minus_utc().abs() >= 16 * 3_600 {
        return None;
    }
    moment.timestamp_micros().checked_sub(START)
}

fn fits<V>(read: Option<V>, value: &Value) -> Result<(), String> {
    if read.is_some() { Ok(()) } else { Err(format!("The value is {value}")) }
}
