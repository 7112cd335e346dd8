//! Version 7 UUIDs (RFC 9562, section 5.7, with the clock's fractions of a millisecond: section 6.2, method 3).

use std::cell::RefCell;

use pg_task_rules::TaskId;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::background;
use crate::call::Call;
use crate::error::Error;

/// 2000-01-01 in milliseconds since 1970.
const POSTGRES_EPOCH_MILLIS: i64 = 946_684_800_000;

/// The steps of a millisecond: 12 bits follow it in the id.
const STEPS: i64 = 1 << 12;

/// Random bytes are fetched for so many ids at a time: a system call each would cost more than the rest of it.
const RANDOM_BYTES: usize = 1024;

thread_local! {
    static SOURCE: RefCell<Source> =
        const { RefCell::new(Source { last: 0, random: [0; RANDOM_BYTES], left: 0 }) };
}

struct Source {
    /// The moment of the last id, in steps.
    last: i64,
    random: [u8; RANDOM_BYTES],
    left: usize,
}

impl Source {
    fn next(&mut self) -> TaskId {
        let random = self.random_word();
        let now = background::now();
        // So the ids of transactions that follow each other ascend, whichever sessions make them: groups go by them.
        let steps =
            (now.div_euclid(1_000) + POSTGRES_EPOCH_MILLIS) * STEPS + now.rem_euclid(1_000) * STEPS / 1_000;
        self.last = steps.max(self.last + 1);
        let (millis, step) = (self.last / STEPS, (self.last % STEPS) as u16);
        let mut id = [0; 16];
        id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        id[6..8].copy_from_slice(&(0x7000 | step).to_be_bytes());
        id[8..].copy_from_slice(&random);
        id[8] = 0x80 | (id[8] & 0x3f);
        id
    }

    fn random_word(&mut self) -> [u8; 8] {
        if self.left < 8 {
            // SAFETY: fills the buffer that it is given.
            let filled = unsafe { pg_sys::pg_strong_random(self.random.as_mut_ptr().cast(), RANDOM_BYTES) };
            assert!(filled, "no random bytes from the operating system");
            self.left = RANDOM_BYTES;
        }
        self.left -= 8;
        self.random[self.left..self.left + 8].try_into().expect("eight bytes")
    }
}

/// A new id, larger than the last one of this process.
pub fn new() -> TaskId {
    SOURCE.with_borrow_mut(Source::next)
}

/// The usual form: lower case, with hyphens.
pub fn text(id: &TaskId) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(36);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text
}

/// The channel on which a worker is woken.
pub fn channel(worker: &TaskId) -> String {
    format!("pg_task_{}", text(worker))
}

/// A `uuid` datum in the current memory context.
pub fn datum(id: &TaskId) -> Datum {
    // SAFETY: writes 16 bytes into a fresh chunk of 16.
    unsafe {
        let place = pg_sys::palloc(16).cast::<TaskId>();
        place.write(*id);
        Datum::from(place)
    }
}

fn uuid7(_call: &mut Call) -> Result<Option<Datum>, Error> {
    Ok(Some(datum(&new())))
}
crate::call::sql_function!("uuid7_wrapper", "pg_finfo_uuid7_wrapper", uuid7, "uuid7() RETURNS uuid");
