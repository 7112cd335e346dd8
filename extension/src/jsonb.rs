//! Steps as PostgreSQL keeps them: jsonb is read where it lies, never through text, so that numbers stay exact.

use pg_task_rules::names::Kind;
use pg_task_rules::names::Label;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::error::Error;
use crate::guc;

/// What is read of a step: whose it is. It points into the `jsonb`.
#[derive(Clone, Copy)]
pub struct StepName<'a> {
    task: &'a str,
    step: &'a str,
}

impl<'a> StepName<'a> {
    /// The task's name.
    pub fn task(&self) -> &'a str {
        self.task
    }

    /// The step's name.
    pub fn step(&self) -> &'a str {
        self.step
    }

    /// The kind, for comparisons.
    pub fn kind(&self) -> Kind {
        Kind::new(self.task, self.step)
    }

    /// `Task/Step`, for people.
    pub fn label(&self) -> Label {
        Label::new(&format!("{}/{}", self.task, self.step))
    }
}

/// The name of the step in a `jsonb`, if it has the shape `{"Task": {"Step": …}}`.
///
/// # Safety
/// The datum is a `jsonb` that stays where it is as long as the name is used.
pub unsafe fn step_name<'a>(datum: Datum) -> Option<StepName<'a>> {
    // SAFETY: the caller's.
    let (task, inner) = only_pair(unsafe { root(datum) })?;
    let (step, _) = only_pair(inner?)?;
    Some(StepName { task, step })
}

/// The container of a `jsonb`.
///
/// # Safety
/// As `step_name`.
unsafe fn root<'a>(datum: Datum) -> &'a [u8] {
    // SAFETY: the datum is detoasted first; the slice covers what its header says.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let len = pgrx::varlena::varsize_any_exhdr(jsonb);
        std::slice::from_raw_parts(pgrx::varlena::vardata_any(jsonb).cast::<u8>(), len)
    }
}

/// The `jsonb` without compression and in one piece: what is read of it several times is unpacked once.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn unpacked(datum: Datum) -> Datum {
    // SAFETY: the caller's; what needs no unpacking is returned as it is.
    Datum::from(unsafe { pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr()) })
}

/// What a `jsonb` takes, in bytes: as it is stored, with what is longer as text (numbers, escapes) as long as that. Neither its stored form nor its text is
/// larger.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn size(datum: Datum) -> usize {
    // SAFETY: the caller's; `toast_raw_datum_size` reads the header only.
    unsafe { pg_sys::toast_raw_datum_size(datum) + excess(root(datum)) }
}

/// Checks a step before it is stored.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn check(datum: Datum) -> Result<(), Error> {
    // SAFETY: the caller's.
    unsafe {
        let limit = guc::max_step_size();
        let size = limited_size(datum, limit);
        if size > limit {
            return Err(Error::StepTooLarge { size, limit });
        }
        if step_name(datum).is_none() {
            return Err(Error::StepShape { got: shortened(datum) });
        }
        Ok(())
    }
}

/// The size, which is not worked out of a value that is too large as it is stored.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn limited_size(datum: Datum, limit: usize) -> usize {
    // SAFETY: the caller's; `toast_raw_datum_size` reads the header only.
    unsafe {
        let stored = pg_sys::toast_raw_datum_size(datum);
        if stored > limit { stored } else { size(datum) }
    }
}

/// A copy in the current memory context.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn copy(datum: Datum) -> Datum {
    // SAFETY: the caller's.
    unsafe { Datum::from(pg_sys::pg_detoast_datum_copy(datum.cast_mut_ptr())) }
}

/// `a || b` of two `jsonb`.
///
/// # Safety
/// Both datums are a `jsonb`.
pub unsafe fn concat(a: Datum, b: Datum) -> Option<Datum> {
    // SAFETY: the caller's.
    unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_concat, &[Some(a), Some(b)]) }
}

/// A `jsonb` as text.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn text(datum: Datum) -> String {
    // SAFETY: jsonb_out's result is a C string in the current memory context.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(pg_sys::Oid::from(F_JSONB_OUT), datum);
        std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// Checks what a step has returned before it is stored.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn check_result(datum: Datum) -> Result<(), Error> {
    let limit = guc::max_step_size();
    // SAFETY: the caller's.
    let size = unsafe { limited_size(datum, limit) };
    if size > limit { Err(Error::ResultTooLarge { size, limit }) } else { Ok(()) }
}

/// The start of a `jsonb` as text, for error messages.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn shortened(datum: Datum) -> String {
    const LIMIT: usize = 100;
    // SAFETY: the caller's.
    let text = unsafe { text(datum) };
    match text.char_indices().nth(LIMIT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// `jsonb_out` in `pg_proc.dat`.
const F_JSONB_OUT: u32 = 3804;

/// By how much the text of a container is longer than its stored form, where it is: a number of a few bytes can have a hundred thousand digits,
/// and a control character is written in six.
///
/// The form is that of `only_pair`. An array has a word for each element, an object one for each key and then for each value; they say where the
/// elements end, or, most of them, how long they are. Numbers and containers begin at a multiple of four.
fn excess(container: &[u8]) -> usize {
    const COUNT: u32 = 0x0fff_ffff;
    const IS_OBJECT: u32 = 0x2000_0000;
    const IS_END: u32 = 0x8000_0000;
    const TYPE: u32 = 0x7000_0000;
    const STRING: u32 = 0x0000_0000;
    const NUMBER: u32 = 0x1000_0000;
    const FALSE: u32 = 0x2000_0000;
    const TRUE: u32 = 0x3000_0000;
    const NULL: u32 = 0x4000_0000;
    const CONTAINER: u32 = 0x5000_0000;
    let mut sum = 0;
    // Most containers have one other in them at most.
    let (mut next, mut others) = (Some(container), Vec::new());
    while let Some(bytes) = next.take().or_else(|| others.pop()) {
        let word = |at: usize| {
            bytes.get(at..at + 4).and_then(|word| Some(u32::from_ne_bytes(word.try_into().ok()?)))
        };
        let Some(header) = word(0) else { continue };
        let count = (header & COUNT) as usize * if header & IS_OBJECT == 0 { 1 } else { 2 };
        let data = 4 + 4 * count;
        let mut from = 0;
        for element in 0..count {
            let Some(entry) = word(4 + 4 * element) else { break };
            let number = (entry & COUNT) as usize;
            let until = if entry & IS_END == 0 { from + number } else { number };
            let value = |from: usize| bytes.get(data + from..data + until).unwrap_or_default();
            match entry & TYPE {
                STRING => sum += escapes(value(from)),
                NUMBER => sum += digits(value(from.next_multiple_of(4))),
                // With a comma and a space, beside the word that is stored.
                FALSE => sum += 3,
                TRUE | NULL => sum += 2,
                CONTAINER => others.extend(next.replace(value(from.next_multiple_of(4)))),
                _ => {}
            }
            from = until;
        }
    }
    sum
}

/// The bytes that a text takes more in JSON. Its bytes are counted in parts of which the sum is a byte, many of them at a time.
fn escapes(text: &[u8]) -> usize {
    const MOST: u8 = 5;
    let of = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 1,
        0..32 => MOST,
        _ => 0,
    };
    text.chunks(32).map(|part| usize::from(part.iter().map(of).sum::<u8>())).sum()
}

/// The length of a stored `numeric` as text, if it is longer than some bytes. `utils/adt/numeric.c` of the server tells the form: after the length a
/// word with the scale and, in the short form, the weight; else the weight follows. Each weight stands for four digits.
fn digits(numeric: &[u8]) -> usize {
    const SPECIAL: u16 = 0xc000;
    const SHORT: u16 = 0x8000;
    let half =
        |at: usize| numeric.get(at..at + 2).and_then(|half| Some(u16::from_ne_bytes(half.try_into().ok()?)));
    let (Some(header), next) = (half(4), half(6)) else { return 0 };
    let (scale, weight) = match header & SPECIAL {
        SPECIAL => return 0,
        SHORT if header & 0x40 != 0 => ((header & 0x1f80) >> 7, -1),
        SHORT => ((header & 0x1f80) >> 7, i32::from(header & 0x3f)),
        _ => (header & 0x3fff, next.map_or(0, |weight| i32::from(weight as i16))),
    };
    let length = (4 * (weight + 1).max(0)) as usize + usize::from(scale);
    length.saturating_sub(numeric.len())
}

/// The key of an object that has exactly one, and its value if that is an object or an array.
///
/// `utils/jsonb.h` of the server tells the form: a header word, one word for the key and one for the value, which say type and
/// end, then the key's bytes and, aligned to four, the value.
fn only_pair(container: &[u8]) -> Option<(&str, Option<&[u8]>)> {
    const COUNT: u32 = 0x0fff_ffff;
    const IS_OBJECT: u32 = 0x2000_0000;
    const END: u32 = 0x0fff_ffff;
    const TYPE: u32 = 0x7000_0000;
    const IS_CONTAINER: u32 = 0x5000_0000;
    const DATA: usize = 12;
    let word = |at: usize| Some(u32::from_ne_bytes(container.get(at..at + 4)?.try_into().ok()?));
    let header = word(0)?;
    if header & IS_OBJECT == 0 || header & COUNT != 1 {
        return None;
    }
    let (key, value) = (word(4)?, word(8)?);
    let end = DATA + (key & END) as usize;
    let text = std::str::from_utf8(container.get(DATA..end)?).ok()?;
    let inner = (value & TYPE == IS_CONTAINER).then(|| container.get(end.next_multiple_of(4)..)).flatten();
    Some((text, inner))
}

fn step_is_valid(call: &mut Call) -> Result<Option<Datum>, Error> {
    let step = call.required(0, "step")?;
    // SAFETY: declared as jsonb.
    Ok(Some(Datum::from(unsafe { step_name(step) }.is_some())))
}
crate::call::sql_function!(
    "step_is_valid_wrapper",
    "pg_finfo_step_is_valid_wrapper",
    step_is_valid,
    "step_is_valid(step jsonb) RETURNS boolean"
);
