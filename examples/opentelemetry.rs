//! Traces of OpenTelemetry that go on from a request to the steps of the task which it enqueues, and to the tasks which these enqueue.
//!
//! `cargo run -p pg_task_examples --features opentelemetry --example opentelemetry`. The spans are kept in memory and printed; a program exports
//! them, with the crate `opentelemetry-otlp` for instance.
#![expect(missing_docs, clippy::print_stdout, reason = "an example")]

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::InMemorySpanExporter;
use opentelemetry_sdk::trace::SdkTracerProvider;
use pg_task::Context;
use pg_task::Layer;
use pg_task::LayerResult;
use pg_task::Next;
use pg_task::NextStep;
use pg_task::Step;
use pg_task::StepResult;
use pg_task::with_traceparent;
use serde::Deserialize;
use serde::Serialize;
use sqlx::PgPool;
use tracing::Instrument;
use tracing::Span;
use tracing::info_span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pg_task::task!(Order { Charge, Mail });
pg_task::scheduler!(Tasks { Order });

/// Makes a span of each step: a child of the span in which its task was enqueued, and the parent of those of the tasks that it enqueues.
struct OpenTelemetry;

impl Layer for OpenTelemetry {
    async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
        let span =
            info_span!("pg_task", otel.name = %cx.step_name(), task = %cx.task_id(), attempt = cx.attempt());
        if let Some(traceparent) = cx.traceparent() {
            let _ = span.set_parent(parent(traceparent));
        }
        match traceparent(&span) {
            Some(traceparent) => with_traceparent(traceparent, next.run()).instrument(span).await,
            None => next.run().instrument(span).await,
        }
    }
}

fn parent(traceparent: &str) -> opentelemetry::Context {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract(&carrier)
}

fn traceparent(span: &Span) -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove("traceparent")
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Charge {
    order: u32,
}

impl Step<Order> for Charge {
    async fn step(self, db: &PgPool) -> StepResult<Order> {
        pg_task::enqueue(db, &Tasks::Order(Mail { order: self.order }.into())).await?;
        NextStep::none()
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Mail {
    order: u32,
}

impl Step<Order> for Mail {
    async fn step(self, _db: &PgPool) -> StepResult<Order> {
        NextStep::none()
    }
}

/// What a web server does with a request.
async fn request(db: &PgPool) -> anyhow::Result<()> {
    let task = Tasks::Order(Charge { order: 7 }.into());
    match traceparent(&Span::current()) {
        Some(traceparent) => with_traceparent(traceparent, pg_task::enqueue(db, &task)).await?,
        None => pg_task::enqueue(db, &task).await?,
    };
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("example"));
    // Of the crates below only warnings: their spans are many.
    let filter = tracing_subscriber::EnvFilter::new("warn,opentelemetry=info");
    tracing_subscriber::registry().with(filter).with(traces).init();

    let db = pg_task_examples::connect().await?;
    request(&db).instrument(info_span!("request")).await?;
    let stop = pg_task_examples::stop_on_signal()?;
    let worker = pg_task::Worker::<Tasks>::new(db).with_layer(OpenTelemetry).with_cancellation(stop.clone());
    let worker = tokio::spawn(async move { worker.run().await });
    // Ends by itself when the three spans are there.
    while exporter.get_finished_spans()?.len() < 3 && !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    worker.await??;
    let spans = exporter.get_finished_spans()?;
    for span in &spans {
        let parent = spans.iter().find(|parent| parent.span_context.span_id() == span.parent_span_id);
        let of = parent.map_or("nothing", |parent| parent.name.as_ref());
        println!("{} is part of {of}, in trace {}", span.name, span.span_context.trace_id());
    }
    Ok(())
}
