"""A small worker for pg_task in Python, after docs/protocol.md.

    pip install 'psycopg[binary]>=3.2'
    DATABASE_URL=postgres://… python3 examples/worker.py

It knows one step, {"Python": {"Greet": {"name": …}}}, runs one at a time, and stops on SIGTERM or Ctrl-C.
"""

import os
import signal
import uuid

import psycopg

DONE, RETRY, PARK = 0, 3, 4
TASK, STOP, UNREGISTERED = 0, 4, 5
HEARTBEAT_SECONDS = 20
RETRY_LIMIT = 3
RETRY_DELAY = 1_000_000  # microseconds


def greet(payload):
    print(f"Hello, {payload['name']}", flush=True)


STEPS = {"Python/Greet": greet}


class Worker:
    def __init__(self, url):
        self.id = uuid.uuid4()
        self.stopping = False
        self.waiting = False
        # Listen first, then register, then exchange: in this order no wake-up can be lost.
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute(f'LISTEN "pg_task_{self.id}"')
        self.connection.execute("LISTEN pg_task_changed")
        self.register()

    def register(self):
        self.connection.execute(
            "SELECT pg_task.register(%s, steps => %s, retry_limits => %s, name => 'python')",
            (self.id, list(STEPS), [RETRY_LIMIT] * len(STEPS)),
        )

    def run(self):
        results = []
        while not self.stopping or results:
            task = self.exchange(results)
            results = [self.attempt(*task)] if task else []
            if not task and not self.stopping:
                self.wait()
        self.connection.execute("SELECT pg_task.leave(%s)", (self.id,))

    def exchange(self, results):
        """Brings results and returns a task to run, if there is one."""
        columns = [list(column) for column in zip(*results)] or [None] * 6
        rows = self.connection.execute(
            "SELECT event, id, fence, token, tried, step FROM pg_task.exchange("
            "%s, %s, %s::uuid[], %s::bigint[], %s::bigint[], %s::smallint[], delays => %s::bigint[], errors => %s::text[])",
            (self.id, 0 if self.stopping else 1, *columns),
        ).fetchall()
        task = None
        for event, *rest in rows:
            if event == TASK:
                task = rest
            elif event == STOP:
                self.stopping = True
            elif event == UNREGISTERED:
                self.register()
        return task

    def attempt(self, id, fence, token, tried, step):
        """Runs a step; returns its result: id, fence, token, outcome, delay, error."""
        [(task, inner)] = step.items()
        [(name, payload)] = inner.items()
        try:
            STEPS[f"{task}/{name}"](payload)
            return id, fence, token, DONE, None, None
        except Exception as error:
            if tried < RETRY_LIMIT:
                return id, fence, token, RETRY, RETRY_DELAY, repr(error)
            return id, fence, token, PARK, None, repr(error)

    def wait(self):
        """Waits for a notification or a signal, with a heartbeat now and then."""
        self.waiting = True
        try:
            for notification in self.connection.notifies(timeout=HEARTBEAT_SECONDS, stop_after=1):
                if notification.payload == "stop_worker":
                    self.stopping = True
                return
        except Stop:
            return
        finally:
            self.waiting = False
        for event, _ in self.connection.execute("SELECT event, id FROM pg_task.heartbeat(%s)", (self.id,)).fetchall():
            if event == STOP:
                self.stopping = True
            elif event == UNREGISTERED:
                self.register()

    def stop(self, *_):
        """What runs is finished and brought; a worker that waits stops waiting."""
        self.stopping = True
        if self.waiting:
            self.waiting = False
            raise Stop


class Stop(Exception):
    """Ends the wait for a notification."""


if __name__ == "__main__":
    worker = Worker(os.environ["DATABASE_URL"])
    signal.signal(signal.SIGTERM, worker.stop)
    signal.signal(signal.SIGINT, worker.stop)
    worker.run()
