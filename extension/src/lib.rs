//! pg_task: durable background work, with the scheduler inside the database.
use pgrx::prelude::*;

pg_module_magic!(name = c"pg_task", version = c"0.1.0");
