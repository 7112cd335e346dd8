//! `options` of a task: which keys there are, and what each takes.

use pg_task_rules::names::Group;
use pg_task_rules::traceparent::is_traceparent;
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
const KEYS: &[Key] = &[
    Key { name: "group", takes: "a text of 1 to 200 bytes", check: name },
    Key { name: "meta", takes: "an object", check: object },
    Key { name: "tags", takes: "an array of texts, none of them empty", check: tags },
    Key { name: "traceparent", takes: "a W3C trace context", check: traceparent },
];

/// The longest name of a group, in bytes.
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

/// The group of a task: its name's hash, as the expression of the index `task_group` has it.
///
/// # Safety
/// The datum is a `jsonb` object.
pub unsafe fn group(options: Datum) -> Option<Group> {
    const KEY: &std::ffi::CStr = c"group";
    // SAFETY: the container lies in the detoasted value, which has a header of four bytes; the string that is found lies in it too.
    unsafe {
        let options = pg_sys::pg_detoast_datum(options.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        let mut value = pg_sys::JsonbValue::default();
        let found = pg_sys::getKeyJsonValueFromContainer(
            &raw mut (*options).root,
            KEY.as_ptr(),
            KEY.count_bytes() as i32,
            &raw mut value,
        );
        if found.is_null() || value.type_ != pg_sys::jbvType::jbvString {
            return None;
        }
        let name = pg_sys::cstring_to_text_with_len(value.val.string.val, value.val.string.len);
        let hash = pg_sys::OidFunctionCall2Coll(
            pg_sys::Oid::from(pg_sys::F_HASHTEXTEXTENDED),
            pg_sys::Oid::from(C_COLLATION),
            Datum::from(name),
            Datum::from(0_i64),
        );
        Some(Group(hash.value() as i64))
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
