//! What a step says of how far it is. Only the last word is kept; the dispatcher brings it to the server now and then.

use std::fmt;
use std::fmt::Write;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

use tokio::sync::Notify;

/// What the server keeps of a text, in bytes.
const MAX_TEXT: usize = 200;

/// Calls the dispatcher: something is finished, or a step has said how far it is.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Notify,
    progress: AtomicBool,
}

impl Bell {
    /// Calls the dispatcher.
    pub(crate) fn ring(&self) {
        self.rung.notify_one();
    }

    /// Waits until it rings.
    pub(crate) async fn rung(&self) {
        self.rung.notified().await;
    }

    /// A step has said something.
    pub(crate) fn note_progress(&self) {
        if !self.progress.swap(true, SeqCst) {
            self.ring();
        }
    }

    /// Whether a step has said something that nobody has looked at.
    pub(crate) fn has_progress(&self) -> bool {
        self.progress.load(Relaxed)
    }

    /// From here on what steps have said is looked at.
    pub(crate) fn take_progress(&self) {
        self.progress.store(false, SeqCst);
    }
}

/// The last that a step has said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    value: Option<f64>,
    text: String,
    is_new: bool,
}

impl Said {
    /// Takes a new word. A value that is no number is none, and what is beyond 0 and 1 is held there; the text is cut.
    pub(crate) fn say(&mut self, value: Option<f64>, text: impl fmt::Display) {
        self.value = value.filter(|value| !value.is_nan()).map(|value| value.clamp(0.0, 1.0));
        self.text.clear();
        // An error says that the text was cut, or that it could not be made: what there is of it is shown.
        let _ = write!(Short(&mut self.text), "{text}");
        if self.text.contains('\0') {
            // A text in PostgreSQL has none.
            self.text = self.text.replace('\0', " ");
        }
        self.is_new = true;
    }

    /// What is new since it was last asked for.
    pub(crate) fn news(&mut self) -> Option<(Option<f64>, String)> {
        std::mem::take(&mut self.is_new).then(|| (self.value, self.text.clone()))
    }

    /// It is to be brought once more.
    pub(crate) fn again(&mut self) {
        self.is_new = true;
    }
}

/// Takes as much as the server keeps.
struct Short<'a>(&'a mut String);

impl Write for Short<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let mut end = part.len().min(MAX_TEXT - self.0.len());
        while !part.is_char_boundary(end) {
            end -= 1;
        }
        self.0.push_str(&part[..end]);
        if end < part.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(value: Option<f64>, text: impl fmt::Display) -> (Option<f64>, String) {
        let mut said = Said::default();
        said.say(value, text);
        said.news().expect("it is new")
    }

    #[test]
    fn what_is_no_part_of_a_whole_is_made_one() {
        for (value, kept) in [
            (Some(0.25), Some(0.25)),
            (Some(-1.0), Some(0.0)),
            (Some(f64::INFINITY), Some(1.0)),
            (Some(f64::NEG_INFINITY), Some(0.0)),
            (Some(f64::NAN), None),
            (None, None),
        ] {
            assert_eq!(said(value, "").0, kept, "{value:?}");
        }
    }

    #[test]
    fn a_text_is_cut_between_characters_and_has_no_zero_bytes() {
        assert_eq!(said(None, "a\0b").1, "a b");
        assert_eq!(said(None, format_args!("{}{}", "é".repeat(99), "€€")).1, "é".repeat(99));
        let parts = (0..1000).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(said(None, format_args!("{parts:?}")).1.len(), MAX_TEXT);
    }

    #[test]
    fn only_what_is_new_is_brought() {
        let mut last = Said::default();
        last.say(Some(0.5), "half");
        assert!(last.news().is_some());
        assert_eq!(last.news(), None);
        last.again();
        assert_eq!(last.news(), Some((Some(0.5), "half".to_owned())));
    }
}
