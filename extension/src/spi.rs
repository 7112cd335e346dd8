//! A thin layer over SPI for the hot paths: plans that are kept for the life of the process, raw datums in and out.
//!
//! Every statement is fully schema-qualified, operators included, so that a plan means the same under any search_path. The one
//! exception is `unnest` with several arguments, a form that the parser itself resolves to pg_catalog.

use std::cell::Cell;
use std::ffi::CStr;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::place::Place;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use pgrx::pg_sys::Oid;

use crate::catalog;
use crate::task_table::place_of;

/// A statement whose plan is made at its first use and kept.
pub struct Statement {
    sql: &'static CStr,
    types: &'static [Oid],
    plan: Cell<pg_sys::SPIPlanPtr>,
}

impl Statement {
    /// A statement with parameters of these types.
    pub const fn new(sql: &'static CStr, types: &'static [Oid]) -> Self {
        Self { sql, types, plan: Cell::new(std::ptr::null_mut()) }
    }

    /// Runs the statement, as a part of the surrounding [`connected`].
    ///
    /// With `read_only` it sees the active snapshot; otherwise it takes a new one, in which everything that has committed
    /// by now is visible.
    pub fn run(&self, _spi: &Connected, arguments: &[Option<Datum>], read_only: bool) -> Rows {
        debug_assert_eq!(arguments.len(), self.types.len());
        let mut values: Vec<Datum> = arguments.iter().map(|value| value.unwrap_or(Datum::null())).collect();
        let nulls: Vec<i8> =
            arguments.iter().map(|value| if value.is_some() { b' ' as i8 } else { b'n' as i8 }).collect();
        // SAFETY: connected to SPI; the arrays have as many elements as the plan has parameters, of the declared types.
        unsafe {
            if self.plan.get().is_null() {
                let mut types = self.types.to_vec();
                let plan = pg_sys::SPI_prepare(self.sql.as_ptr(), types.len() as i32, types.as_mut_ptr());
                assert!(!plan.is_null(), "SPI_prepare failed");
                assert_eq!(pg_sys::SPI_keepplan(plan), 0, "SPI_keepplan failed");
                self.plan.set(plan);
            }
            let code = pg_sys::SPI_execute_plan(
                self.plan.get(),
                values.as_mut_ptr(),
                nulls.as_ptr().cast(),
                read_only,
                0,
            );
            assert!(code >= 0, "SPI_execute_plan failed: {code}");
            Rows { table: pg_sys::SPI_tuptable, len: pg_sys::SPI_processed as usize }
        }
    }
}

/// Runs a statement that is planned for these arguments alone: of conditions that may be left out (`$1 IS NULL OR …`) the plan has only those
/// that are there. For rare statements over many rows.
pub fn run_once(
    _spi: &Connected,
    sql: &CStr,
    types: &[Oid],
    arguments: &[Option<Datum>],
    read_only: bool,
) -> Rows {
    assert_eq!(arguments.len(), types.len());
    let mut types = types.to_vec();
    let mut values: Vec<Datum> = arguments.iter().map(|value| value.unwrap_or(Datum::null())).collect();
    let nulls: Vec<i8> =
        arguments.iter().map(|value| if value.is_some() { b' ' as i8 } else { b'n' as i8 }).collect();
    // SAFETY: connected to SPI; the arrays have one element for each parameter, of the declared types.
    unsafe {
        let code = pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            types.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr().cast(),
            read_only,
            0,
        );
        assert!(code >= 0, "SPI_execute_with_args failed: {code}");
        Rows { table: pg_sys::SPI_tuptable, len: pg_sys::SPI_processed as usize }
    }
}

/// A statement's text made of literals.
macro_rules! sql {
    ($($part:expr),+ $(,)?) => {
        match std::ffi::CStr::from_bytes_with_nul(concat!($($part),+, "\0").as_bytes()) {
            Ok(sql) => sql,
            Err(_) => panic!("a statement with a zero byte"),
        }
    };
}
pub(crate) use sql;

/// Proof that SPI is connected.
pub struct Connected(());

/// Connects to SPI for the duration of `f`.
///
/// When `f` raises an error the transaction's abort disconnects.
pub fn connected<R>(f: impl FnOnce(&Connected) -> R) -> R {
    // SAFETY: inside a transaction; nesting is what SPI is made for.
    unsafe {
        assert_eq!(pg_sys::SPI_connect(), pg_sys::SPI_OK_CONNECT as i32, "SPI_connect failed");
        let result = f(&Connected(()));
        pg_sys::SPI_finish();
        result
    }
}

/// Does something as the owner of a table of the extension, for a caller that may not touch it. An error ends it, as it ends the
/// (sub)transaction.
pub fn as_owner_of<R>(table: &CStr, f: impl FnOnce() -> R) -> R {
    const SECURITY_LOCAL_USERID_CHANGE: i32 = 1;
    // SAFETY: inside a transaction. What is changed is changed back below, or by the abort of the transaction; triggers of the user's on the table
    // of tasks resolve names along a path that the caller has no hand in.
    unsafe {
        let relation = pg_sys::relation_open(catalog::oid(table), pg_sys::AccessShareLock as i32);
        let owner = (*(*relation).rd_rel).relowner;
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        let result = f();
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(user, context);
        result
    }
}

/// What a statement returned. Valid until SPI is disconnected.
pub struct Rows {
    table: *mut pg_sys::SPITupleTable,
    len: usize,
}

impl Rows {
    /// How many rows it returned or touched.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it returned or touched none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A column (from 1) of a row (from 0), as it lies in memory.
    pub fn datum(&self, row: usize, column: i32) -> Option<Datum> {
        assert!(row < self.len, "row {row} of {}", self.len);
        let mut is_null = false;
        // SAFETY: the row exists; SPI checks the column against the descriptor.
        let datum = unsafe {
            let table = &*self.table;
            pg_sys::SPI_getbinval(*table.vals.add(row), table.tupdesc, column, &mut is_null)
        };
        (!is_null).then_some(datum)
    }

    /// A `bigint` or `timestamptz`.
    pub fn int8(&self, row: usize, column: i32) -> Option<i64> {
        self.datum(row, column).map(|datum| datum.value() as i64)
    }

    /// An `integer`.
    pub fn int4(&self, row: usize, column: i32) -> Option<i32> {
        self.datum(row, column).map(|datum| datum.value() as i32)
    }

    /// A `smallint`.
    pub fn int2(&self, row: usize, column: i32) -> Option<i16> {
        self.datum(row, column).map(|datum| datum.value() as i16)
    }

    /// A `boolean`.
    pub fn bool(&self, row: usize, column: i32) -> bool {
        self.datum(row, column).is_some_and(|datum| datum.value() & 0xff != 0)
    }

    /// A `uuid`.
    pub fn uuid(&self, row: usize, column: i32) -> Option<TaskId> {
        // SAFETY: the statement's column is a uuid, which is passed by pointer to its 16 bytes.
        self.datum(row, column).map(|datum| unsafe { uuid_from(datum) })
    }

    /// Where a row of the task table lies: its `ctid`.
    pub fn place(&self, row: usize, column: i32) -> Place {
        self.datum(row, column).map_or(Place::UNKNOWN, |tid| {
            // SAFETY: the statement's column is a row's place.
            place_of(unsafe { &*tid.cast_mut_ptr::<pg_sys::ItemPointerData>() })
        })
    }

    /// A `text`.
    pub fn text(&self, row: usize, column: i32) -> Option<String> {
        // SAFETY: the statement's column is a text.
        self.datum(row, column).map(|datum| unsafe { text_from(datum) })
    }
}

/// The value of a column in a row that is not the result of a statement.
///
/// # Safety
/// The row is one of the relation, which is open and has the column.
pub unsafe fn column(tuple: pg_sys::HeapTuple, relation: pg_sys::Relation, column: i32) -> Option<Datum> {
    let mut is_null = false;
    // SAFETY: says the caller.
    let datum = unsafe { pg_sys::SPI_getbinval(tuple, (*relation).rd_att, column, &mut is_null) };
    (!is_null).then_some(datum)
}

/// # Safety
/// The datum is a `uuid`.
pub unsafe fn uuid_from(datum: Datum) -> TaskId {
    // SAFETY: a uuid datum points to 16 bytes.
    unsafe { datum.cast_mut_ptr::<TaskId>().read_unaligned() }
}

/// # Safety
/// The datum is a `text`, `name`-free.
pub unsafe fn text_from(datum: Datum) -> String {
    // SAFETY: detoasted first, then read over its length.
    unsafe {
        let text = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let len = pgrx::varlena::varsize_any_exhdr(text);
        let data = pgrx::varlena::vardata_any(text).cast::<u8>();
        String::from_utf8_lossy(std::slice::from_raw_parts(data, len)).into_owned()
    }
}

/// The bytes of a `text` where they lie; a compressed one is unpacked first.
///
/// # Safety
/// The datum is a `text` that stays where it is as long as the bytes are used.
pub unsafe fn bytes_from<'a>(datum: Datum) -> &'a [u8] {
    // SAFETY: as in `text_from`.
    unsafe {
        let text = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
        let len = pgrx::varlena::varsize_any_exhdr(text);
        std::slice::from_raw_parts(pgrx::varlena::vardata_any(text).cast::<u8>(), len)
    }
}

/// The number of an array's dimensions; 0 for an empty one.
///
/// # Safety
/// The datum is an array.
pub unsafe fn dimensions(datum: Datum) -> i32 {
    // SAFETY: detoasted first; the number is in the array's header.
    unsafe { (*pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>()).ndim }
}

/// A `timestamptz`, `bigint`, `integer` or `smallint` as a datum.
pub fn int(value: impl Into<i64>) -> Option<Datum> {
    Some(Datum::from(value.into()))
}

/// A `double precision` as a datum.
pub fn float(value: f64) -> Option<Datum> {
    Some(Datum::from(value.to_bits()))
}

/// The value of a `double precision`.
pub fn float_from(datum: Datum) -> f64 {
    f64::from_bits(datum.value() as u64)
}

/// A `text` datum in the current memory context.
pub fn text(value: &str) -> Option<Datum> {
    // SAFETY: copies `len` bytes from a valid pointer.
    unsafe {
        let text = pg_sys::cstring_to_text_with_len(value.as_ptr().cast(), value.len() as i32);
        Some(Datum::from(text))
    }
}

/// A `boolean` as a datum.
pub fn bool(value: bool) -> Option<Datum> {
    Some(Datum::from(value))
}

/// A `uuid` datum that borrows the id: keep it alive while the datum is used.
pub fn uuid(id: &TaskId) -> Datum {
    Datum::from(id.as_ptr())
}

/// An array without NULLs. Its elements are copied into the current memory context.
pub fn array(elements: &mut [Datum], of: ElementType) -> Option<Datum> {
    let (oid, len, by_value, align) = of.storage();
    // SAFETY: the elements are datums of the type that is described, as `pg_type` describes it.
    unsafe {
        let array = pg_sys::construct_array(
            elements.as_mut_ptr(),
            elements.len() as i32,
            oid,
            len,
            by_value,
            align as i8,
        );
        Some(Datum::from(array))
    }
}

/// An array in which elements may be NULL.
pub fn nullable_array(elements: impl Iterator<Item = Option<Datum>>, of: ElementType) -> Option<Datum> {
    let (mut values, mut nulls): (Vec<Datum>, Vec<bool>) =
        elements.map(|element| (element.unwrap_or(Datum::null()), element.is_none())).unzip();
    let (oid, len, by_value, align) = of.storage();
    let (mut dimension, mut lower) = (values.len() as i32, 1);
    // SAFETY: as in `array`; one dimension, whose length both arrays have.
    unsafe {
        let array = pg_sys::construct_md_array(
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
            1,
            &mut dimension,
            &mut lower,
            oid,
            len,
            by_value,
            align as i8,
        );
        Some(Datum::from(array))
    }
}

/// An array of ids.
pub fn uuid_array<'a>(ids: impl Iterator<Item = &'a TaskId>) -> Option<Datum> {
    array(&mut ids.map(uuid).collect::<Vec<_>>(), ElementType::Uuid)
}

/// An array of `bigint`.
pub fn int8_array(values: impl Iterator<Item = i64>) -> Option<Datum> {
    array(&mut values.map(Datum::from).collect::<Vec<_>>(), ElementType::Int8)
}

/// Element types of [`array`].
#[derive(Clone, Copy)]
pub enum ElementType {
    Int4,
    Int8,
    Jsonb,
    Text,
    Timestamp,
    Uuid,
}

impl ElementType {
    /// The type and how it is stored, as `pg_type` describes it.
    fn storage(self) -> (Oid, i32, bool, u8) {
        match self {
            Self::Int4 => (pg_sys::INT4OID, 4, true, b'i'),
            Self::Int8 => (pg_sys::INT8OID, 8, true, b'd'),
            Self::Jsonb => (pg_sys::JSONBOID, -1, false, b'i'),
            Self::Text => (pg_sys::TEXTOID, -1, false, b'i'),
            Self::Timestamp => (pg_sys::TIMESTAMPTZOID, 8, true, b'd'),
            Self::Uuid => (pg_sys::UUIDOID, 16, false, b'c'),
        }
    }
}

/// Sends a notification when the transaction commits.
pub fn notify(channel: &CStr, payload: &CStr) {
    unsafe extern "C-unwind" {
        /// `commands/async.c`; not among pgrx's bindings.
        fn Async_Notify(channel: *const std::ffi::c_char, payload: *const std::ffi::c_char);
    }
    // SAFETY: inside a transaction; both strings are copied by the callee. No value with a destructor is alive in the closure.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) };
}

/// The server's time that every function of one transaction agrees on: `now()`.
pub fn transaction_time() -> Micros {
    // SAFETY: inside a transaction.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}
