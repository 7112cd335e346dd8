//! The server's time zones.

use std::ffi::CString;

use pg_task_schedule::Seconds;
use pg_task_schedule::Zone;
use pgrx::pg_sys;

/// A time zone that the server knows. The server keeps each that was asked for as long as the process lives.
#[derive(Clone, Copy, Debug)]
pub struct PgZone(*mut pg_sys::pg_tz);

impl PgZone {
    /// The zone of a name; none if there is no such name.
    pub fn named(name: &str) -> Option<Self> {
        // The server reads almost any word with a number as the rules of a zone (POSIX), a misspelled name too, and keeps each.
        let is_posix = name.contains(|c: char| c.is_ascii_digit() || c == '<') && !has_number(name);
        if is_posix || name.is_empty() || name.contains(',') {
            return None;
        }
        let name = CString::new(name).ok()?;
        // SAFETY: the name is a C string, which is copied; the zone is checked before it is used.
        unsafe {
            let zone = pg_sys::pg_tzset(name.as_ptr());
            (!zone.is_null() && pg_sys::pg_tz_acceptable(zone)).then_some(Self(zone))
        }
    }
}

/// Whether a name with a number is one of those that there are: `Etc/GMT+5` and the like.
fn has_number(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if ["est5edt", "cst6cdt", "mst7mdt", "pst8pdt"].contains(&name.as_str()) {
        return true;
    }
    let hours = name.strip_prefix("etc/").unwrap_or(&name).strip_prefix("gmt");
    hours.is_some_and(|hours| {
        let digits = hours.strip_prefix(['+', '-']).unwrap_or(hours);
        digits.len() <= 2 && digits.bytes().all(|digit| digit.is_ascii_digit())
    })
}

impl Zone for PgZone {
    fn offset(&self, at: Seconds) -> i64 {
        // SAFETY: the zone lives as long as the process; the answer is read before the next call.
        unsafe {
            let local = pg_sys::pg_localtime(&raw const at, self.0);
            if local.is_null() { 0 } else { (*local).tm_gmtoff }
        }
    }

    fn next_change(&self, after: Seconds) -> Option<Seconds> {
        let (mut before_offset, mut after_offset, mut before_summer, mut after_summer, mut change) =
            (0, 0, 0, 0, 0);
        // SAFETY: as above; the results are plain numbers.
        let found = unsafe {
            pg_sys::pg_next_dst_boundary(
                &raw const after,
                &mut before_offset,
                &mut before_summer,
                &mut change,
                &mut after_offset,
                &mut after_summer,
                self.0,
            )
        };
        (found == 1).then_some(change)
    }
}
