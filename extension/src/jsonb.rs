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
    // SAFETY: the datum is detoasted first; the slice covers what its header says.
    let root = unsafe {
        let jsonb = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let len = pgrx::varlena::varsize_any_exhdr(jsonb);
        std::slice::from_raw_parts(pgrx::varlena::vardata_any(jsonb).cast::<u8>(), len)
    };
    let (task, inner) = only_pair(root)?;
    let (step, _) = only_pair(inner?)?;
    Some(StepName { task, step })
}

/// Checks a step before it is stored.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn check(datum: Datum) -> Result<(), Error> {
    // SAFETY: as above; `toast_raw_datum_size` reads the header only.
    unsafe {
        let size = pg_sys::toast_raw_datum_size(datum);
        let limit = guc::max_step_size();
        if size > limit {
            return Err(Error::StepTooLarge { size, limit });
        }
        if step_name(datum).is_none() {
            return Err(Error::StepShape { got: shortened(datum) });
        }
        Ok(())
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
    // SAFETY: reads the header only.
    let size = unsafe { pg_sys::toast_raw_datum_size(datum) };
    let limit = guc::max_step_size();
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
