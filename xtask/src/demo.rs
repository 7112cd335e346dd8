//! `cargo xtask demo`: the main job on a private server, with every event checked.

use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use pg_task_cluster::Cluster;

use crate::build;
use crate::cluster::DATABASE;
use crate::endpoint::Endpoint;

/// How long an event may take before the demo fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(keep: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    println!("1. Build the extension and the demo's worker, and start a private server");
    let tree = build::tree()?;
    let worker = build::example("demo_worker")?;
    let mut cluster = Cluster::create(&tree, "demo", &[])?;
    println!("   port {}, data in {}", cluster.port(), cluster.data().display());
    let demo = Demo::new(&cluster, worker)?;
    let result = demo.play();
    if let Err(error) = &result {
        println!(
            "\nFAILED: {error:#}\n\nThe end of the server's log ({}):\n{}",
            cluster.log().display(),
            demo.server_log()
        );
        println!("\nThe worker's last lines:\n{}", demo.worker_log());
    }
    drop(demo);
    if keep {
        cluster.keep();
        println!("\nThe server goes on running:   psql {}", cluster.url(DATABASE));
        println!(
            "Look at it:                   TABLE pg_task.queues; TABLE pg_task.scheduler; TABLE pg_task.workers;"
        );
        println!("Stop it:                      cargo xtask cluster stop --name demo");
    } else if result.is_ok() {
        println!(
            "\nEverything happened as it should, in {:.1} s. The server is stopped and nothing is left running.",
            began.elapsed().as_secs_f64()
        );
        println!("Look further:   cargo xtask demo --keep      the same, and the server stays");
        println!(
            "                cargo xtask cluster start    a server of your own; then `cargo xtask cluster psql`"
        );
        println!("                docs/protocol.md             how to write a worker in another language");
    }
    result
}

struct Demo<'a> {
    cluster: &'a Cluster,
    worker: PathBuf,
    folder: PathBuf,
    endpoint: Endpoint,
}

/// A worker's process; ended when the value is dropped.
struct Worker {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Demo<'a> {
    fn new(cluster: &'a Cluster, worker: PathBuf) -> anyhow::Result<Self> {
        let folder = build::target().join("pg_task/demo");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        Ok(Self { cluster, worker, folder, endpoint: Endpoint::start(r#""item":"glass""#)? })
    }

    fn play(&self) -> anyhow::Result<()> {
        println!("\n2. Make the extension in a new database");
        self.sql_in("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        self.sql("CREATE EXTENSION pg_task")?;
        self.until("the scheduler runs", || {
            Ok(self.ask("SELECT state FROM pg_task.scheduler")? == "running")
        })?;

        println!("\n3. Start a worker, in a process of its own");
        let worker = self.start_worker()?;
        self.until("the worker is idle", || Ok(self.ask("SELECT state FROM pg_task.workers")? == "idle"))?;

        self.greeter(&worker)?;
        self.delayed(&worker)?;
        self.orders(&worker)?;
        self.latency(&worker)?;
        self.pause(&worker)?;
        self.many(&worker)?;
        self.unique(&worker)?;
        self.group(&worker)?;
        self.schedule(&worker)?;
        self.history()?;
        self.stop(worker)
    }

    fn greeter(&self, worker: &Worker) -> anyhow::Result<()> {
        let name = self.folder.join("name.txt");
        println!(
            "\n4. A task in two steps. The first reads a file that is missing: it fails, is retried twice, and is parked"
        );
        let step = format!(r#"{{"Greeter":{{"ReadName":{{"filename":"{}"}}}}}}"#, name.display());
        let id = self.sql(&format!("SELECT pg_task.enqueue('{step}')"))?;
        self.until("the task is parked", || Ok(self.ask("SELECT count(*) FROM pg_task.failed")? == "1"))?;
        let parked = self.sql("SELECT 'tried ' || tried || ' times: ' || error FROM pg_task.failed")?;
        if !parked.starts_with("tried 3 times: No such file") {
            bail!("the parked task says: {parked}");
        }
        println!("\n5. Fix the world, then clear the error: the task goes on at the step that failed");
        fs::write(&name, "Fixed World")?;
        println!("   $ echo 'Fixed World' > {}", name.display());
        self.sql(&format!("UPDATE pg_task.task SET error = NULL WHERE id = '{id}'"))?;
        self.hear(worker, "Hello, Fixed World")
    }

    fn delayed(&self, worker: &Worker) -> anyhow::Result<()> {
        println!("\n6. A task that is due in a second");
        self.sql(r#"SELECT pg_task.delay('{"Probe":{"Lateness":null}}', '1 second')"#)?;
        self.hear(worker, "the delayed task ran")
    }

    fn orders(&self, worker: &Worker) -> anyhow::Result<()> {
        println!("\n7. A trigger on a table turns its rows into tasks, in the same transaction");
        self.sql("CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, item text, price numeric)")?;
        self.sql("CREATE TRIGGER deliver AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row('Order', 'Deliver')")?;
        self.sql("INSERT INTO orders (item, price) VALUES ('lamp', 19.90), ('glass', 2.50), ('chair', 75)")?;
        println!("   Each is sent to {} by HTTP; the endpoint refuses the glass once", self.endpoint.url());
        for item in ["lamp", "chair", "glass"] {
            self.until(&format!("the {item} is delivered"), || {
                let wanted = format!(r#""item":"{item}""#);
                Ok(self
                    .endpoint
                    .deliveries()
                    .iter()
                    .any(|delivery| delivery.status == 200 && delivery.body.contains(&wanted)))
            })?;
        }
        for delivery in self.endpoint.deliveries() {
            println!("   POST {} -> {}", delivery.body, delivery.status);
        }
        let refused = self.endpoint.deliveries().iter().filter(|delivery| delivery.status == 503).count();
        if refused != 1 || self.endpoint.deliveries().len() != 4 {
            bail!(
                "three orders, of which one is refused once, make four deliveries; there were {}",
                self.endpoint.deliveries().len()
            );
        }
        self.hear(worker, "delivered in attempt 2")?;
        self.until("every task is done", || Ok(self.ask("SELECT count(*) FROM pg_task.task")? == "0"))
    }

    fn latency(&self, worker: &Worker) -> anyhow::Result<()> {
        println!("\n8. How long from the call of enqueue to the start of the step?");
        let mut micros = Vec::new();
        for _ in 0..20 {
            self.ask("SELECT pg_task.enqueue(jsonb_build_object('Probe', jsonb_build_object('Latency', jsonb_build_object('enqueued_at', clock_timestamp()))))")?;
            let line = self.wait_line(worker, "started after")?;
            let number = line.split_whitespace().rev().nth(1).and_then(|word| word.parse::<u64>().ok());
            micros.push(number.with_context(|| format!("the worker said: {line}"))?);
        }
        micros.sort_unstable();
        println!(
            "   20 tasks, one at a time, commit included: median {} us, fastest {} us, slowest {} us",
            micros[10], micros[0], micros[19]
        );
        Ok(())
    }

    fn pause(&self, worker: &Worker) -> anyhow::Result<()> {
        println!("\n9. Pause a queue: what is enqueued waits, and nobody polls for the end of the pause");
        self.sql("SELECT pg_task.pause_queue('mail')")?;
        self.sql(r#"SELECT pg_task.enqueue('{"Greeter":{"SayHello":{"name":"the paused"}}}', 'mail')"#)?;
        self.until("it waits, and the view says why", || {
            Ok(self.ask("SELECT EXISTS (SELECT 1 FROM pg_task.problems WHERE problem = 'queue paused')")?
                == "t")
        })?;
        self.sql("SELECT pg_task.resume_queue('mail')")?;
        self.hear(worker, "Hello, the paused")
    }

    fn many(&self, worker: &Worker) -> anyhow::Result<()> {
        println!(
            "\n10. 5,000 tasks by mistake: how many are they, cancel all but one, mend that, and make a copy of it"
        );
        self.sql("SELECT pg_task.pause_queue('spam')")?;
        self.sql(
            r#"INSERT INTO pg_task.task (queue, step) SELECT 'spam', '{"Greeter":{"SayHello":{"name":"you"}}}' FROM generate_series(1, 5000)"#,
        )?;
        let counted = self.sql("SELECT pg_task.cancel_all(task => 'Greeter/SayHello', dry_run => true)")?;
        let cancelled = self.sql("SELECT pg_task.cancel_all(task => 'Greeter/SayHello', max => 4999)")?;
        if (counted.as_str(), cancelled.as_str()) != ("5000", "4999") {
            bail!("5000 are there and 4999 are cancelled: {counted}, {cancelled}");
        }
        self.sql(r#"SELECT pg_task.edit(id, payload => '{"name":"the mended"}'), pg_task.clone(id) FROM pg_task.task"#)?;
        self.sql("SELECT pg_task.resume_queue('spam')")?;
        self.hear(worker, "Hello, the mended")?;
        self.hear(worker, "Hello, the mended")
    }

    fn unique(&self, worker: &Worker) -> anyhow::Result<()> {
        println!("\n11. Debounce: three calls within a second are one task, with what was said last");
        for (name, expected) in [("ann", "enqueued"), ("bob", "replaced"), ("cleo", "replaced")] {
            let outcome = self.sql(&format!(
                r#"SELECT outcome FROM pg_task.enqueue_unique('{{"Greeter":{{"SayHello":{{"name":"{name}, the last"}}}}}}', 'greeting', on_conflict => 'replace_and_move', wakeup_at => now() + interval '1 second')"#
            ))?;
            if outcome != expected {
                bail!("the outcome of this call should be {expected}");
            }
        }
        let line = self.wait_line(worker, "the last")?;
        println!("   worker: {line}");
        if line != "Hello, cleo, the last" {
            bail!("only the last one should run");
        }
        self.until(
            "nothing else is left to run",
            || Ok(self.ask("SELECT count(*) FROM pg_task.task")? == "0"),
        )
    }

    fn group(&self, worker: &Worker) -> anyhow::Result<()> {
        println!(
            "\n12. Strict order: tasks of one group run one at a time, in the order of their enqueueing, though the worker could run them at once"
        );
        self.sql(
            r#"SELECT pg_task.enqueue(jsonb_build_object('Greeter', jsonb_build_object('SayHello', jsonb_build_object('name', 'number ' || i))), options => '{"group": "queue at the counter"}') FROM generate_series(1, 5) AS i"#,
        )?;
        for number in 1..=5 {
            let line = self.wait_line(worker, "Hello, number")?;
            println!("   worker: {line}");
            if line != format!("Hello, number {number}") {
                bail!("this one is not number {number}");
            }
        }
        Ok(())
    }

    fn schedule(&self, worker: &Worker) -> anyhow::Result<()> {
        println!(
            "\n13. A schedule: an interval here, cron expressions with time zones as well; each tick is enqueued once"
        );
        self.sql(
            r#"SELECT pg_task.set_schedule('clock', 'every 1 second', '{"Greeter":{"SayHello":{"name":"tick"}}}')"#,
        )?;
        self.hear(worker, "Hello, tick")?;
        self.hear(worker, "Hello, tick")?;
        self.sql("SELECT array_to_string(pg_task.next_ticks('30 2 * * *', 'Europe/Berlin', after => '2026-03-28 00:00+01', count => 2), '   ')")?;
        self.sql("SELECT pg_task.drop_schedule('clock')")?;
        Ok(())
    }

    fn history(&self) -> anyhow::Result<()> {
        println!(
            "\n14. Wait for a task without polling, fetch what it returned, and look at what became of all of them"
        );
        let id = self.sql(
            r#"SELECT pg_task.enqueue('{"Probe":{"Sum":{"numbers":[19,23]}}}', options => '{"retry":{"limit":3,"delay":"100 ms"}}')"#,
        )?;
        let answer = self.sql(&format!("SELECT outcome, result FROM pg_task.wait('{id}')"))?;
        if answer.split(['|', '\t', ' ']).collect::<Vec<_>>() != ["done", "42"] {
            bail!("the sum of 19 and 23 is 42");
        }
        self.sql("SELECT k AS task, s AS step, outcome, count(*), max(attempts) AS attempts FROM pg_task.history, jsonb_object_keys(step) AS k, jsonb_object_keys(step -> k) AS s GROUP BY 1, 2, 3 ORDER BY 1, 2, 3")?;
        Ok(())
    }

    fn stop(&self, mut worker: Worker) -> anyhow::Result<()> {
        println!("\n15. Ask the worker to stop, and wait until nothing runs");
        self.sql("SELECT pg_notify('pg_task_changed', 'stop_worker')")?;
        self.until("nothing runs", || Ok(self.ask("SELECT EXISTS (SELECT 1 FROM pg_task.running)")? == "f"))?;
        self.until("the worker has ended", || Ok(worker.child.try_wait()?.is_some()))?;
        if !worker.child.wait()?.success() {
            bail!("the worker ended with an error");
        }
        Ok(())
    }

    /// Runs SQL before the reader's eyes.
    fn sql(&self, sql: &str) -> anyhow::Result<String> {
        self.sql_in(DATABASE, sql)
    }

    fn sql_in(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        println!("   {database}=# {sql};");
        let answer = self.cluster.psql(database, sql)?;
        for line in answer.lines() {
            println!("   {line}");
        }
        Ok(answer)
    }

    /// Runs SQL quietly.
    fn ask(&self, sql: &str) -> anyhow::Result<String> {
        self.cluster.psql(DATABASE, sql)
    }

    fn until(&self, what: &str, done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let mut done = done;
        let deadline = Instant::now() + PATIENCE;
        while !done()? {
            if Instant::now() > deadline {
                bail!("did not happen within {} s: {what}", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(20));
        }
        println!("   ok: {what}");
        Ok(())
    }

    /// Waits until the worker has said something, and shows it.
    fn hear(&self, worker: &Worker, text: &str) -> anyhow::Result<()> {
        let line = self.wait_line(worker, text)?;
        println!("   worker: {line}");
        Ok(())
    }

    fn wait_line(&self, worker: &Worker, text: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match worker.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(_) => {}
                Err(_) => bail!("the worker did not say \"{text}\" within {} s", PATIENCE.as_secs()),
            }
        }
    }

    fn start_worker(&self) -> anyhow::Result<Worker> {
        let log = fs::File::create(self.folder.join("worker.log"))?;
        let mut child = Command::new(&self.worker)
            .env("DATABASE_URL", self.cluster.url(DATABASE))
            .env("DEMO_ENDPOINT", self.endpoint.url())
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("failed to start the worker")?;
        let output = BufReader::new(child.stdout.take().context("the worker has no output")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        println!("   $ {} (process {})", self.worker.display(), child.id());
        Ok(Worker { child, lines })
    }

    fn server_log(&self) -> String {
        tail(&fs::read_to_string(self.cluster.log()).unwrap_or_default())
    }

    fn worker_log(&self) -> String {
        tail(&fs::read_to_string(self.folder.join("worker.log")).unwrap_or_default())
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
