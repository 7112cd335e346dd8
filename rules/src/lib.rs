//! The rules of pg_task that need no database.
