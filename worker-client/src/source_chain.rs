//! Errors as text with all their causes, as they are kept in the row.

use std::error::Error;
use std::fmt::Write;

/// The error and, each on a line of its own, what caused it. Zero characters, which `text` cannot hold, are replaced.
pub(crate) fn text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    if cause.is_some() {
        text.push_str("\nCaused by:");
    }
    while let Some(error) = cause {
        write!(text, "\n\t{error}").expect("writing to a string cannot fail");
        cause = error.source();
    }
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::text;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner\0")]
    struct Inner;

    #[test]
    fn every_cause_has_a_line() {
        assert_eq!(text(&Outer(Inner)), "outer\nCaused by:\n\tinner\u{fffd}");
    }
}
