//! Functions that SQL calls, below pgrx's argument conversion: NULLs stay visible, jsonb stays binary, sets are written
//! straight into a tuplestore.

use pg_task_rules::TaskId;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::spi;

/// Makes a Rust function callable as a version 1 C function.
///
/// The first name is the symbol that the SQL declares, the second the record that PostgreSQL looks for beside it. The last text is the
/// declaration that the function counts on, as in `sql/` but without defaults: a test compares the two, and in debug builds every
/// argument that is read is compared with it.
macro_rules! sql_function {
    ($symbol:literal, $finfo:literal, $function:path, $declaration:literal) => {
        const _: () = {
            #[unsafe(export_name = $finfo)]
            extern "C" fn finfo() -> &'static pgrx::pg_sys::Pg_finfo_record {
                const V1: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
                &V1
            }

            #[pgrx::pg_guard]
            #[unsafe(export_name = $symbol)]
            unsafe extern "C-unwind" fn call(fcinfo: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
                let mut call = $crate::call::Call::new(fcinfo, $declaration);
                match $function(&mut call) {
                    Ok(value) => call.give(value),
                    Err(error) => $crate::error::Error::from(error).raise(),
                }
            }
        };
    };
}
pub(crate) use sql_function;

/// One call of a function.
pub struct Call {
    fcinfo: pg_sys::FunctionCallInfo,
    declaration: &'static str,
}

impl Call {
    /// The call that the server makes of a function with this declaration.
    pub fn new(fcinfo: pg_sys::FunctionCallInfo, declaration: &'static str) -> Self {
        Self { fcinfo, declaration }
    }

    /// An argument's name and type by the declaration: what the unsafe reads below count on.
    fn declared(&self, index: usize) -> (&str, &str) {
        self.declaration
            .split_once('(')
            .and_then(|(_, rest)| rest.split_once(')')?.0.split(',').nth(index)?.trim().split_once(' '))
            .unwrap_or(("", ""))
    }

    /// Returns a value, or NULL.
    pub fn give(&mut self, value: Option<Datum>) -> Datum {
        // SAFETY: the server's call structure is valid for the call.
        unsafe { (*self.fcinfo).isnull = value.is_none() };
        value.unwrap_or(Datum::null())
    }

    /// An argument (from 0). One that an older version's declaration of the function does not have is NULL.
    pub fn datum(&self, index: usize) -> Option<Datum> {
        // SAFETY: the server's call structure has as many arguments as it says.
        let argument =
            unsafe { (*self.fcinfo).args.as_slice((*self.fcinfo).nargs as usize).get(index).copied() };
        argument.filter(|argument| !argument.isnull).map(|argument| argument.value)
    }

    /// Whether the function is declared with so many arguments and one more: an older version's declaration may not be.
    pub fn is_declared(&self, index: usize) -> bool {
        // SAFETY: the server's call structure is valid for the call.
        index < unsafe { (*self.fcinfo).nargs } as usize
    }

    /// An argument that must be there.
    pub fn required(&self, index: usize, name: &'static str) -> Result<Datum, Error> {
        debug_assert_eq!(self.declared(index).0, name, "{}", self.declaration);
        self.datum(index).ok_or(Error::NullArgument { name })
    }

    /// A `uuid` that must be there.
    pub fn uuid(&self, index: usize, name: &'static str) -> Result<TaskId, Error> {
        debug_assert_eq!(self.declared(index).1, "uuid", "{}", self.declaration);
        // SAFETY: declared as uuid.
        self.required(index, name).map(|datum| unsafe { spi::uuid_from(datum) })
    }

    /// An `integer` that must be there.
    pub fn int4(&self, index: usize, name: &'static str) -> Result<i32, Error> {
        debug_assert_eq!(self.declared(index).1, "integer", "{}", self.declaration);
        self.required(index, name).map(|datum| datum.value() as i32)
    }

    /// A `text`.
    pub fn text(&self, index: usize) -> Option<String> {
        debug_assert_eq!(self.declared(index).1, "text", "{}", self.declaration);
        // SAFETY: declared as text.
        self.datum(index).map(|datum| unsafe { spi::text_from(datum) })
    }

    /// The elements of an array, or nothing for a NULL.
    pub fn array(&self, index: usize) -> Option<Vec<Option<Datum>>> {
        debug_assert!(self.declared(index).1.ends_with("[]"), "{}", self.declaration);
        // SAFETY: declared as an array.
        self.datum(index).map(|datum| unsafe { array_elements(datum) })
    }

    /// The trigger that makes the call.
    pub fn trigger(&self) -> Option<&pg_sys::TriggerData> {
        // SAFETY: the context is null or a node whose tag says what it is.
        unsafe {
            let context = (*self.fcinfo).context;
            (!context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData)
                .then(|| &*context.cast::<pg_sys::TriggerData>())
        }
    }

    /// Begins a set of rows as the function's result.
    pub fn rows(&mut self) -> SetWriter {
        // SAFETY: the function is declared to return a set of composites; the call's ReturnSetInfo is valid for the call.
        unsafe {
            pg_sys::InitMaterializedSRF(self.fcinfo, 0);
            let info = &*(*self.fcinfo).resultinfo.cast::<pg_sys::ReturnSetInfo>();
            SetWriter { store: info.setResult, descriptor: info.setDesc }
        }
    }

    /// A row as the result of a function that is declared with OUT parameters.
    pub fn record(&self, values: &[Option<Datum>]) -> Datum {
        let mut descriptor = std::ptr::null_mut();
        // SAFETY: the function is declared to return a composite, whose descriptor the server knows; the values have its types.
        unsafe {
            pg_sys::get_call_result_type(self.fcinfo, std::ptr::null_mut(), &mut descriptor);
            let descriptor = pg_sys::BlessTupleDesc(descriptor);
            let mut datums: Vec<Datum> = values.iter().map(|value| value.unwrap_or(Datum::null())).collect();
            let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
            let tuple = pg_sys::heap_form_tuple(descriptor, datums.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data)
        }
    }
}

/// The rows that a function returns.
pub struct SetWriter {
    store: *mut pg_sys::Tuplestorestate,
    descriptor: pg_sys::TupleDesc,
}

impl SetWriter {
    /// Adds a row; its values are copied.
    pub fn push<const N: usize>(&mut self, values: [Option<Datum>; N]) {
        let mut nulls = values.map(|value| value.is_none());
        let mut values = values.map(|value| value.unwrap_or(Datum::null()));
        // SAFETY: the store and the descriptor live as long as the call, and the descriptor has N columns (see the SQL declaration), or the
        // fewer of an older version's: the rest is not read.
        unsafe {
            debug_assert!((*self.descriptor).natts as usize <= N);
            pg_sys::tuplestore_putvalues(
                self.store,
                self.descriptor,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
    }
}

/// # Safety
/// The datum is an array.
pub unsafe fn array_elements(datum: Datum) -> Vec<Option<Datum>> {
    // SAFETY: the array's header says its element type, whose storage the catalog knows; the results are read over their number.
    unsafe {
        let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let (mut len, mut by_value, mut align) = (0, false, 0);
        pg_sys::get_typlenbyvalalign((*array).elemtype, &mut len, &mut by_value, &mut align);
        let (mut datums, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            (*array).elemtype,
            i32::from(len),
            by_value,
            align,
            &mut datums,
            &mut nulls,
            &mut count,
        );
        (0..count as usize).map(|index| (!*nulls.add(index)).then(|| *datums.add(index))).collect()
    }
}
