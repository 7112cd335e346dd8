//! Workers for pg_task.
