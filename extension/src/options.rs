//! `options` of a task: which keys there are, and what each takes.

use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use serde_json::Value;

use crate::error::Error;
use crate::jsonb;

/// The most that the options of one task may take, in bytes of stored jsonb: they are read with every hand-out.
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
const KEYS: &[Key] = &[Key { name: "meta", takes: "an object", check: object }];

/// The names of all keys, for hints.
pub fn names() -> String {
    KEYS.iter().map(|key| format!("\"{}\"", key.name)).collect::<Vec<_>>().join(", ")
}

/// Checks a column or argument `options`; NULL has none.
pub fn check_datum(options: Option<Datum>) -> Result<(), Error> {
    let Some(options) = options else { return Ok(()) };
    // SAFETY: callers pass a jsonb; `toast_raw_datum_size` reads the header only.
    let (got, value) = unsafe {
        let size = pg_sys::toast_raw_datum_size(options);
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

fn object(value: &Value) -> Result<(), String> {
    if value.is_object() { Ok(()) } else { Err(format!("The value is {value}")) }
}
