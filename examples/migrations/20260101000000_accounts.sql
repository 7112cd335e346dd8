-- The extension is created like everything else; where its creation takes a superuser, someone has done it before.
CREATE EXTENSION IF NOT EXISTS pg_task;

CREATE TABLE account (
    id      bigint PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now(),
    closed  boolean NOT NULL DEFAULT false
);
