//! The extension's own tables and indexes, by their names.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::Oid;

/// What came of asking for a lock without waiting.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lock {
    /// The transaction has it, until its end.
    Taken,
    /// Somebody else has one that it does not go with.
    Busy,
    /// There is no such table: the extension, or the version of it that is installed, has none.
    Missing,
}

/// A table or index that every version has.
///
/// Raises 3F000 when the extension is not there, or no longer.
pub fn oid(name: &CStr) -> Oid {
    // SAFETY: catalog look-ups inside a transaction, by names that end with a zero.
    unsafe { pg_sys::get_relname_relid(name.as_ptr(), pg_sys::get_namespace_oid(c"pg_task".as_ptr(), false)) }
}

/// A table or index, if the extension is there and its version has it.
pub fn find(name: &CStr) -> Option<Oid> {
    // SAFETY: catalog look-ups inside a transaction, by names that end with a zero; no relation is in the schema 0.
    let relation = unsafe {
        let schema = pg_sys::get_namespace_oid(c"pg_task".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (relation != pg_sys::InvalidOid).then_some(relation)
}

/// Locks a table until the end of the transaction, as soon as nobody is in the way.
pub fn lock(name: &CStr, mode: u32) {
    if let Some(table) = find(name) {
        // SAFETY: inside a transaction, which gives the lock back at its end; any number may be locked.
        unsafe { pg_sys::LockRelationOid(table, mode as pg_sys::LOCKMODE) };
    }
}

/// Locks a table until the end of the transaction if nobody is in the way, for whom what else the scheduler does must not wait.
pub fn try_lock(name: &CStr, mode: u32) -> Lock {
    let Some(table) = find(name) else { return Lock::Missing };
    // SAFETY: inside a transaction, which gives the lock back at its end; any number may be locked.
    match unsafe { pg_sys::ConditionalLockRelationOid(table, mode as pg_sys::LOCKMODE) } {
        true => Lock::Taken,
        false => Lock::Busy,
    }
}
