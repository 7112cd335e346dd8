//! A step within layers. Without layers the executor runs it by itself.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tracing::info;
use tracing::warn;

use super::executor::Outcome;
use crate::Context;
use crate::Ending;
use crate::LayerResult;
use crate::Next;
use crate::NextStep;
use crate::Step;
use crate::error::CommitError;
use crate::layer::Innermost;
use crate::source_chain;
use crate::trace;

/// Runs a step within the trace context of its task and the layers of its worker, if there are any, and brings a transaction of its to its end.
pub(super) async fn run<T: Step<T, Context>>(step: T, cx: Context) -> Outcome<T> {
    let attempt = cx.attempt.clone();
    // What layers and a step's transaction leave each other is in one place.
    cx.extensions.get_or_init(Arc::default);
    let mut innermost = InStep { step: Some(step), ended: None };
    let result = trace::carrying(cx.traceparent.clone(), Next::new(&cx, &mut innermost).run()).await;
    match (innermost.ended, result) {
        // It has committed, or never will, or cannot be written down: the layers have no say.
        (Some(ended @ (Outcome::Committed(_) | Outcome::Release | Outcome::Park { .. })), result) => {
            if let (Outcome::Committed(_), Err(error)) = (&ended, result) {
                let text = source_chain::text(&*error);
                warn!("[{}] a layer failed after the step's transaction had committed: {text}", attempt.id);
            }
            ended
        }
        (Some(ended), Ok(_)) => ended,
        (_, Err(error)) => attempt.outcome(Err(error)),
        (None, Ok(_)) => attempt.outcome(Err("a layer returned Ok, but the step had not ended well".into())),
    }
}

struct InStep<T> {
    step: Option<T>,
    ended: Option<Outcome<T>>,
}

impl<T: Step<T, Context>> Innermost for InStep<T> {
    fn run<'a>(&'a mut self, cx: &'a Context) -> BoxFuture<'a, LayerResult> {
        Box::pin(async move {
            let Some(step) = self.step.take() else { return Err("the step was run before".into()) };
            info!("[{}] run step {step:?}", cx.task_id());
            let next = step.step(cx).await?;
            let ending = Ending::of(&next);
            let ended = match cx.kept() {
                None => cx.attempt.outcome(Ok(next)),
                Some(tx) if cx.shared.worker.is_nil() => {
                    tx.release().await.map_err(CommitError)?;
                    cx.attempt.outcome(Ok(next))
                }
                Some(tx) => cx.attempt.commit(next, tx).await?,
            };
            let result = match &ended {
                Outcome::Release => Ok(Ending::Refused),
                Outcome::Park { error, .. } => Err(error.as_str().into()),
                _ => Ok(ending),
            };
            self.ended = Some(ended);
            result
        })
    }
}

impl Ending {
    fn of<T>(next: &NextStep<T>) -> Self {
        match next {
            NextStep::None => Self::Done,
            NextStep::Now(_) => Self::Next,
            NextStep::Delayed(_, delay) => Self::Delayed(*delay),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use sqlx::PgPool;
    use uuid::Uuid;

    use super::super::executor::Trial;
    use super::super::executor::Tried;
    use super::*;
    use crate::Layer;
    use crate::StepResult;
    use crate::context::Shared;
    use crate::layer::AnyLayer;

    #[derive(Debug, serde::Deserialize, serde::Serialize)]
    pub struct Say {
        how: String,
    }

    impl Step<Test, Context> for Say {
        const RETRY_LIMIT: i32 = 1;
        const RETRY_DELAY: Duration = Duration::from_secs(7);

        async fn step(self, cx: &Context) -> StepResult<Test> {
            if let Some(given) = cx.extension::<Given>() {
                cx.insert(Back(given.0.len()));
            }
            match self.how.as_str() {
                "fails" => Err("not today".into()),
                "panics" => panic!("not at all"),
                "later" => NextStep::delay(Say { how: String::new() }, Duration::from_secs(3)),
                "next" => NextStep::now(Say { how: String::new() }),
                _ => NextStep::none(),
            }
        }
    }

    crate::task!(Test { Say });
    crate::scheduler!(Tasks { Test });

    /// What a layer leaves for the step, and the step for the layers.
    struct Given(&'static str);
    struct Back(usize);

    type Log = Arc<Mutex<Vec<String>>>;

    /// Notes what it sees.
    struct Note(&'static str, Log);

    impl Layer for Note {
        async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
            let note = |text: String| self.1.lock().expect("no holder panics").push(text);
            note(format!("{} begins {} {}", self.0, cx.step_name(), cx.attempt()));
            let result = next.run().await;
            match &result {
                Ok(ending) => note(format!("{} {ending:?}", self.0)),
                Err(error) => note(format!("{} {error} {:?}", self.0, cx.retry_after(error))),
            }
            result
        }
    }

    enum Does {
        Fail,
        FailAfter,
        Give,
        Panic,
        PanicAfter,
        Skip,
        Swallow,
    }

    impl Layer for Does {
        async fn call(&self, cx: &Context, next: Next<'_>) -> LayerResult {
            match self {
                Self::Fail => Err("closed".into()),
                Self::FailAfter => {
                    next.run().await?;
                    Err("too late".into())
                }
                Self::Give => {
                    cx.insert(Given("first"));
                    cx.insert(Given("four"));
                    let result = next.run().await;
                    assert_eq!(cx.extension::<Back>().map(|back| back.0), Some(4));
                    result
                }
                Self::Panic => panic!("a fault"),
                Self::PanicAfter => {
                    next.run().await?;
                    panic!("a late fault")
                }
                Self::Skip => Ok(Ending::Done),
                Self::Swallow => Ok(next.run().await.unwrap_or(Ending::Done)),
            }
        }
    }

    /// Runs a step within layers and says what came of it.
    async fn run(how: &str, tried: i32, layers: Vec<Arc<dyn AnyLayer>>) -> String {
        let db = PgPool::connect_lazy("postgres://nowhere/").expect("it is a URL");
        let bell = Arc::default();
        let shared = Arc::new(Shared { db, worker: Uuid::nil(), pooled: false, state: None, layers, bell });
        let step = format!(r#"{{"Test":{{"Say":{{"how":"{how}"}}}}}}"#);
        let trial = Trial {
            id: Uuid::nil(),
            queue: String::new(),
            step,
            options: None,
            tried,
            due: 0,
            token: 1,
            patience: Duration::MAX,
        };
        match trial.run::<Tasks>(&shared).await.0 {
            Tried::Done(_) => "done".to_owned(),
            Tried::Next(_, delay) => format!("next {delay}"),
            Tried::Instead(step) => format!("instead {}", step.get()),
            Tried::Parked(error) => format!("parked: {error}"),
            Tried::Snoozed(delay) => format!("snoozed {delay}"),
            Tried::Retry(delay) => format!("retry {delay}"),
        }
    }

    #[tokio::test]
    async fn the_first_layer_is_the_outermost_and_each_sees_what_the_step_ended_in() {
        for (how, tried, came, seen) in [
            ("", 0, "done", "Done"),
            ("next", 0, "next 0", "Next"),
            ("later", 0, "next 3000000", "Delayed(3s)"),
            ("fails", 0, "retry 7000000", "not today Some(7s)"),
            ("fails", 1, "parked: not today", "not today None"),
            ("panics", 1, "parked: the step panicked: not at all", "the step panicked: not at all None"),
        ] {
            let log = Log::default();
            let layers: Vec<Arc<dyn AnyLayer>> =
                vec![Arc::new(Note("outer", log.clone())), Arc::new(Note("inner", log.clone()))];
            assert_eq!(run(how, tried, layers).await, came, "{how}");
            let attempt = tried + 1;
            let expected = [
                format!("outer begins Test/Say {attempt}"),
                format!("inner begins Test/Say {attempt}"),
                format!("inner {seen}"),
                format!("outer {seen}"),
            ];
            assert_eq!(*log.lock().expect("no holder panics"), expected, "{how}");
        }
    }

    #[tokio::test]
    async fn an_error_or_a_panic_of_a_layer_is_one_of_the_attempt_and_the_layers_outside_see_it() {
        for (does, tried, came, seen) in [
            (Does::Fail, 0, "retry 7000000", "closed Some(7s)"),
            (Does::Fail, 1, "parked: closed", "closed None"),
            (Does::FailAfter, 1, "parked: too late", "too late None"),
            (Does::Panic, 0, "retry 7000000", "a layer panicked: a fault Some(7s)"),
            (
                Does::PanicAfter,
                1,
                "parked: a layer panicked: a late fault",
                "a layer panicked: a late fault None",
            ),
        ] {
            let log = Log::default();
            let layers: Vec<Arc<dyn AnyLayer>> = vec![Arc::new(Note("outer", log.clone())), Arc::new(does)];
            assert_eq!(run("", tried, layers).await, came);
            assert_eq!(log.lock().expect("no holder panics")[1], format!("outer {seen}"));
        }
    }

    #[tokio::test]
    async fn a_layer_cannot_make_a_success_of_a_step_that_did_not_run_or_failed() {
        const REFUSED: &str = "parked: a layer returned Ok, but the step had not ended well";
        assert_eq!(run("", 1, vec![Arc::new(Does::Skip)]).await, REFUSED);
        assert_eq!(run("fails", 1, vec![Arc::new(Does::Swallow)]).await, REFUSED);
        // What it ended in counts, whatever a layer says.
        assert_eq!(run("later", 1, vec![Arc::new(Does::Swallow)]).await, "next 3000000");
    }

    #[tokio::test]
    async fn layers_and_the_step_leave_values_for_each_other() {
        assert_eq!(run("", 0, vec![Arc::new(Does::Give)]).await, "done");
    }
}
