//! Statements that the scheduler has to get out of the way of, or has to know about.

use std::sync::atomic::Ordering::SeqCst;

use pgrx::pg_sys;

use crate::background;
use crate::commit;
use crate::shmem;

/// How long a database stays without a scheduler so that it can be dropped, renamed, moved or copied.
pub const HOLD: i64 = 10_000_000;

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Installs the hook. Called while the server preloads its libraries.
pub fn init() {
    // SAFETY: the process has one thread, and the server reads the hook only after this returns.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

#[pgrx::pg_guard]
#[expect(clippy::too_many_arguments, reason = "the signature is PostgreSQL's")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the server calls the hook with a statement; what it points to is valid for the call.
    unsafe {
        before((*statement).utilityStmt);
        match PREVIOUS {
            Some(previous) => pg_sys::ffi::pg_guard_ffi_boundary(|| {
                previous(
                    statement,
                    query,
                    read_only_tree,
                    context,
                    parameters,
                    environment,
                    destination,
                    completion,
                );
            }),
            None => pg_sys::standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                parameters,
                environment,
                destination,
                completion,
            ),
        }
    }
}

/// # Safety
/// `node` is a utility statement's node.
unsafe fn before(node: *mut pg_sys::Node) {
    use pg_sys::NodeTag;
    // SAFETY: the tag says which struct the node is.
    unsafe {
        match (*node).type_ {
            NodeTag::T_DropdbStmt => release((*node.cast::<pg_sys::DropdbStmt>()).dbname),
            NodeTag::T_AlterDatabaseStmt => release((*node.cast::<pg_sys::AlterDatabaseStmt>()).dbname),
            NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                if rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE {
                    release(rename.subname);
                }
            }
            NodeTag::T_CreatedbStmt => {
                let options = (*node.cast::<pg_sys::CreatedbStmt>()).options;
                for index in 0..if options.is_null() { 0 } else { (*options).length } {
                    let option = pg_sys::list_nth(options, index).cast::<pg_sys::DefElem>();
                    let name = std::ffi::CStr::from_ptr((*option).defname);
                    if name == c"template" && !(*option).arg.is_null() {
                        release(pg_sys::defGetString(option));
                    }
                }
            }
            NodeTag::T_TransactionStmt => {
                use pg_sys::TransactionStmtKind::*;
                let kind = (*node.cast::<pg_sys::TransactionStmt>()).kind;
                // The session that prepared it has forgotten what it inserted, and what it has taken off the board.
                if kind == TRANS_STMT_COMMIT_PREPARED || kind == TRANS_STMT_ROLLBACK_PREPARED {
                    commit::note_rescan();
                    commit::note_rules_stale();
                    commit::note_schedules_stale();
                    commit::note_unique();
                }
            }
            NodeTag::T_CreateExtensionStmt | NodeTag::T_AlterExtensionStmt if shmem::my_slot().is_some() => {
                commit::note_recheck();
            }
            // What else takes the extension away with it is noticed when its tables are missing.
            NodeTag::T_DropStmt if shmem::my_slot().is_some() => {
                let what = (*node.cast::<pg_sys::DropStmt>()).removeType;
                if what == pg_sys::ObjectType::OBJECT_EXTENSION || what == pg_sys::ObjectType::OBJECT_SCHEMA {
                    commit::note_recheck();
                }
            }
            _ => {}
        }
    }
}

/// Ends the scheduler of a database that the user owns and keeps it away for a while.
///
/// # Safety
/// `name` is a database's name or null.
unsafe fn release(name: *const std::ffi::c_char) {
    if name.is_null() {
        return;
    }
    // SAFETY: catalog look-ups inside the statement's transaction; the process id belongs to a scheduler that is running now.
    unsafe {
        let database = pg_sys::get_database_oid(name, true);
        if database == pg_sys::InvalidOid {
            return;
        }
        #[cfg(feature = "pg15")]
        let owned = pg_sys::pg_database_ownercheck(database, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        let owned = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, pg_sys::GetUserId());
        if !owned {
            return;
        }
        let Some(slot) = shmem::slot_of(database) else { return };
        slot.control().hold_until.store(background::now() + HOLD, SeqCst);
        let pid = slot.control().pid.load(SeqCst);
        if pid != 0 {
            kill(pid, pg_sys::SIGTERM as i32);
        }
    }
}

unsafe extern "C" {
    /// POSIX `kill(2)`.
    fn kill(pid: i32, signal: i32) -> i32;
}
