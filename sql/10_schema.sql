-- The prefix pg_ is reserved for system schemas, so that making this one needs the switch below. The schema is made here,
-- not by the control file, so that it is a member of the extension: DROP EXTENSION removes it and pg_dump carries its grants.
SET LOCAL allow_system_table_mods = on;
CREATE SCHEMA pg_task;
SET LOCAL allow_system_table_mods = off;

COMMENT ON SCHEMA pg_task IS
    'Durable background tasks. Producers call pg_task.enqueue(); pg_task.queues, running, failed, workers and scheduler show what goes on';

-- Raises a clear error when the library is not in shared_preload_libraries, before anything else is made.
CREATE FUNCTION pg_task.require_preload() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'require_preload_wrapper';
COMMENT ON FUNCTION pg_task.require_preload() IS
    'Raises object_not_in_prerequisite_state (55000) unless pg_task is in shared_preload_libraries';
SELECT pg_task.require_preload();

-- Names of queues and steps are compared as UTF-8 in shared memory.
CREATE FUNCTION pg_task.require_encoding() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'require_encoding_wrapper';
COMMENT ON FUNCTION pg_task.require_encoding() IS
    'Raises feature_not_supported (0A000) unless the encoding of the database is UTF8';
SELECT pg_task.require_encoding();
