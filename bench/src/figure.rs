//! A figure: what was measured, beside what, and what it has to reach.

use serde::Serialize;
use serde_json::Value;
use serde_json::json;

/// The values of all rounds.
#[derive(Clone, Debug, Default)]
pub struct Series(pub Vec<f64>);

impl Series {
    pub fn median(&self) -> Option<f64> {
        let mut values = self.0.clone();
        values.sort_by(f64::total_cmp);
        let upper = values.get(values.len() / 2)?;
        let lower = values.get((values.len() - 1) / 2)?;
        Some(f64::midpoint(*lower, *upper))
    }

    pub fn least(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    pub fn most(&self) -> Option<f64> {
        self.0.iter().copied().max_by(f64::total_cmp)
    }

    /// Median, and in brackets least and most.
    pub fn shown(&self) -> String {
        match (self.median(), self.least(), self.most()) {
            (Some(median), Some(least), Some(most)) if self.0.len() > 1 => {
                format!("{} ({}–{})", number(median), number(least), number(most))
            }
            (Some(median), ..) => number(median),
            _ => "–".to_owned(),
        }
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// The ratio to the reference, at least.
    RatioAtLeast(f64),
    /// The ratio to the reference, at most.
    RatioAtMost(f64),
    /// The value itself, at most.
    AtMost(f64),
}

impl Bar {
    pub fn shown(self) -> String {
        match self {
            Self::RatioAtLeast(bar) => format!("≥ {bar} ×"),
            Self::RatioAtMost(bar) => format!("≤ {bar} ×"),
            Self::AtMost(bar) => format!("≤ {}", number(bar)),
        }
    }
}

/// A line of the report.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its name in the list of figures to hold, or that of the shape.
    pub id: &'static str,
    pub what: String,
    pub unit: &'static str,
    pub ours: Series,
    pub reference: String,
    pub reference_values: Series,
    pub bar: Option<Bar>,
    /// Why something is missing, or what else to know.
    pub note: String,
}

impl Figure {
    pub fn new(id: &'static str, what: impl Into<String>, unit: &'static str, ours: Series) -> Self {
        Self {
            id,
            what: what.into(),
            unit,
            ours,
            reference: String::new(),
            reference_values: Series::default(),
            bar: None,
            note: String::new(),
        }
    }

    #[must_use]
    pub fn beside(mut self, reference: impl Into<String>, values: Series) -> Self {
        self.reference = reference.into();
        self.reference_values = values;
        self
    }

    #[must_use]
    pub fn bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self
    }

    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Of the medians.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.ours.median()? / self.reference_values.median()?)
    }

    /// Whether the bar is held; none without a bar, or without what it is about.
    pub fn ok(&self) -> Option<bool> {
        match self.bar? {
            Bar::RatioAtLeast(bar) => Some(self.ratio()? >= bar),
            Bar::RatioAtMost(bar) => Some(self.ratio()? <= bar),
            Bar::AtMost(bar) => Some(self.ours.median()? <= bar),
        }
    }

    pub fn verdict(&self) -> &'static str {
        match (self.bar, self.ok()) {
            (Some(_), Some(true)) => "ok",
            (Some(_), Some(false)) => "short",
            (Some(_), None) => "not measured",
            (None, _) => "",
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "id": self.id,
            "what": self.what,
            "ours": self.ours.median(),
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": self.reference_values.median(),
            "ratio": self.ratio(),
            "bar": self.bar.map(Bar::shown),
            "ok": self.ok(),
            "rounds": self.ours.0,
            "reference_rounds": self.reference_values.0,
            "note": self.note,
        })
    }
}

/// Data for a plot: lines of points, or bars.
#[derive(Clone, Debug, Serialize)]
pub struct Plot {
    /// The file's name without its ending.
    pub name: &'static str,
    pub title: String,
    pub x: &'static str,
    pub y: &'static str,
    /// Whether the y axis is logarithmic.
    pub log: bool,
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
    /// Bars instead of lines: a name and a value each.
    pub bars: Vec<(String, f64)>,
}

/// Large numbers in groups of three, small ones with three digits.
pub fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let decimals = if value.abs() < 10.0 { 2 } else { 1 };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |rest| ("-", rest));
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(number(1_234_567.4), "1,234,567");
        assert_eq!(number(-123.0), "-123");
        assert_eq!(number(999.6), "1,000");
        assert_eq!(number(1.234), "1.23");
    }

    #[test]
    fn a_median_lies_between_the_two_in_the_middle() {
        assert_eq!(Series(vec![4.0, 1.0, 3.0, 2.0]).median(), Some(2.5));
        assert_eq!(Series(vec![3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Series(vec![]).median(), None);
    }

    #[test]
    fn a_bar_without_a_reference_is_neither_held_nor_short() {
        let figure = Figure::new("P1", "drain", "tasks/s", Series(vec![2.0])).bar(Bar::RatioAtLeast(1.5));
        assert_eq!(figure.ok(), None);
        assert_eq!(figure.clone().beside("bare", Series(vec![1.0])).ok(), Some(true));
        assert_eq!(figure.beside("bare", Series(vec![2.0])).ok(), Some(false));
    }
}
