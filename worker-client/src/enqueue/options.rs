//! The options of one task, as the column `options` has them.

use chrono::DateTime;
use chrono::Utc;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::types::Json;

use crate::Result;
use crate::RetryPolicy;
use crate::trace;

/// The options that an [`super::Enqueue`] was given. A new one is a field here and a setter there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Options<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deadline: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) meta: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retry: Option<RetryPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tags: Option<&'a [&'a str]>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) traceparent: Option<&'a str>,
}

impl Options<'_> {
    pub(super) const NONE: Self = Self {
        deadline: None,
        group: None,
        key: None,
        meta: None,
        retry: None,
        tags: None,
        timeout: None,
        traceparent: None,
    };

    /// As they are stored; none when there are none.
    pub(super) fn json(&self) -> Result<Option<Json<Box<RawValue>>>> {
        let surrounding = if self.traceparent.is_none() { trace::current() } else { None };
        if let Some(traceparent) = &surrounding {
            return super::step(&Options { traceparent: Some(traceparent), ..*self }).map(Some);
        }
        if *self == Self::NONE { Ok(None) } else { super::step(self).map(Some) }
    }
}
