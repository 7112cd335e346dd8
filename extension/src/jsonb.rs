//! Steps as PostgreSQL keeps them: jsonb is read where it lies, never through text, so that numbers stay exact.

use pg_task_rules::names::Kind;
use pg_task_rules::names::Label;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::error::Error;
use crate::guc;

/// What is read of a step: whose it is.
#[derive(Clone, Copy)]
pub struct StepName {
    /// The kind, for comparisons.
    pub kind: Kind,
    /// `Task/Step`, for people.
    pub label: Label,
}

/// The name of the step in a `jsonb`, if it has the shape `{"Task": {"Step": …}}`.
///
/// # Safety
/// The datum is a `jsonb`.
pub unsafe fn step_name(datum: Datum) -> Option<StepName> {
    // SAFETY: the datum is detoasted first; the container and its only element are then read through PostgreSQL's functions.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
        let (task, inner) = only_pair(&raw mut (*jsonb).root)?;
        if (*inner).type_ != pg_sys::jbvType::jbvBinary {
            return None;
        }
        let (step, _) = only_pair((*inner).val.binary.data)?;
        Some(StepName { kind: Kind::new(task, step), label: Label::new(&format!("{task}/{step}")) })
    }
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

/// The start of a `jsonb` as text, for error messages.
///
/// # Safety
/// The datum is a `jsonb`.
unsafe fn shortened(datum: Datum) -> String {
    const LIMIT: usize = 100;
    // SAFETY: jsonb_out's result is a C string in the current memory context.
    let text = unsafe {
        let text = pg_sys::OidOutputFunctionCall(pg_sys::Oid::from(F_JSONB_OUT), datum);
        std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    };
    match text.char_indices().nth(LIMIT) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// `jsonb_out` in `pg_proc.dat`.
const F_JSONB_OUT: u32 = 3804;

/// The key and the value of an object that has exactly one.
///
/// # Safety
/// `container` points to a jsonb container that stays where it is.
unsafe fn only_pair<'a>(
    container: *mut pg_sys::JsonbContainer,
) -> Option<(&'a str, *mut pg_sys::JsonbValue)> {
    const COUNT: u32 = 0x0fff_ffff;
    const IS_OBJECT: u32 = 0x2000_0000;
    // SAFETY: the header is the container's first word. The iterator yields begin, key, value for an object with one pair; the key's
    // bytes lie in the container.
    unsafe {
        let header = (*container).header;
        if header & IS_OBJECT == 0 || header & COUNT != 1 {
            return None;
        }
        let mut iterator = pg_sys::JsonbIteratorInit(container);
        let value = pg_sys::palloc(size_of::<pg_sys::JsonbValue>()).cast::<pg_sys::JsonbValue>();
        pg_sys::JsonbIteratorNext(&mut iterator, value, true);
        pg_sys::JsonbIteratorNext(&mut iterator, value, true);
        let key = &(*value).val.string;
        let key = std::slice::from_raw_parts(key.val.cast::<u8>(), key.len as usize);
        pg_sys::JsonbIteratorNext(&mut iterator, value, true);
        Some((std::str::from_utf8(key).ok()?, value))
    }
}

fn step_is_valid(call: &mut Call) -> Result<Option<Datum>, Error> {
    let step = call.required(0, "step")?;
    // SAFETY: declared as jsonb.
    Ok(Some(Datum::from(unsafe { step_name(step) }.is_some())))
}
crate::call::sql_function!("step_is_valid_wrapper", "pg_finfo_step_is_valid_wrapper", step_is_valid);
