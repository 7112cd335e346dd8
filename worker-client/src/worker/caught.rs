//! Panics of steps and layers, as errors.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::task::Poll;

use crate::StepError;

/// Makes a panic of a future an error.
pub(crate) fn caught<F: ?Sized>(what: &'static str, future: Pin<Box<F>>) -> Caught<F> {
    Caught { what, future }
}

/// A future whose panic is an error.
pub(crate) struct Caught<F: ?Sized> {
    what: &'static str,
    future: Pin<Box<F>>,
}

impl<T, F: Future<Output = Result<T, StepError>> + ?Sized> Future for Caught<F> {
    type Output = Result<T, StepError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no message".to_owned());
                Poll::Ready(Err(format!("{} panicked: {text}", self.what).into()))
            }
        }
    }
}
