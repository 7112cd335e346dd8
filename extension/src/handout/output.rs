//! What `exchange` returns: rows for any client, or one packed value for those that want it cheap.

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Claim;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::SetWriter;
use crate::spi;

/// What an `exchange` call tells. The numbers are those of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    Task = 0,
    Continue = 1,
    Refused = 2,
    Cancelled = 3,
    Stop = 4,
    Unregistered = 5,
    Work = 6,
    TaskWithOptions = 7,
}

/// A task that is handed out. Queue and step point into the row.
#[derive(Clone, Copy)]
pub struct Task {
    /// Its claim.
    pub claim: Claim,
    /// The row's fence.
    pub fence: i64,
    /// Attempts before this one.
    pub tried: i32,
    /// When it was due.
    pub wakeup_at: Micros,
    /// Its queue, a `text`.
    pub queue: Datum,
    /// Its step, a `jsonb`.
    pub step: Datum,
    /// Its settings, a `jsonb`: its own ones, and in the answer what its queue says beside them.
    pub options: Option<Datum>,
}

/// Where the answer goes.
pub enum Output {
    /// Into a set of rows.
    Rows(SetWriter),
    /// Into one `bytea`.
    Packed(Packed),
}

impl Output {
    /// A task to run.
    pub fn task(&mut self, task: &Task) {
        match self {
            Self::Rows(rows) => rows.push([
                spi::int(Event::Task as i16),
                Some(spi::uuid(&task.claim.id)),
                spi::int(task.fence),
                spi::int(task.claim.token),
                spi::int(task.tried),
                spi::int(task.wakeup_at),
                Some(task.queue),
                Some(task.step),
                task.options,
            ]),
            Self::Packed(packed) => packed.task(task),
        }
    }

    /// The next step of a task stays with the worker.
    pub fn goes_on(&mut self, id: &TaskId, fence: i64, token: i64) {
        match self {
            Self::Rows(rows) => rows.push([
                spi::int(Event::Continue as i16),
                Some(spi::uuid(id)),
                spi::int(fence),
                spi::int(token),
                spi::int(0),
                None,
                None,
                None,
                None,
            ]),
            Self::Packed(packed) => {
                packed.byte(Event::Continue as u8);
                packed.bytes(id);
                packed.bytes(&fence.to_be_bytes());
                packed.bytes(&token.to_be_bytes());
            }
        }
    }

    /// A result was refused.
    pub fn refused(&mut self, id: &TaskId, token: i64) {
        match self {
            Self::Rows(rows) => rows.push([
                spi::int(Event::Refused as i16),
                Some(spi::uuid(id)),
                None,
                spi::int(token),
                None,
                None,
                None,
                None,
                None,
            ]),
            Self::Packed(packed) => {
                packed.byte(Event::Refused as u8);
                packed.bytes(id);
                packed.bytes(&token.to_be_bytes());
            }
        }
    }

    /// A task that the worker runs was cancelled.
    pub fn cancelled(&mut self, Claim { id, token }: &Claim) {
        match self {
            Self::Rows(rows) => rows.push([
                spi::int(Event::Cancelled as i16),
                Some(spi::uuid(id)),
                None,
                spi::int(*token),
                None,
                None,
                None,
                None,
                None,
            ]),
            Self::Packed(packed) => {
                packed.byte(Event::Cancelled as u8);
                packed.bytes(id);
                packed.bytes(&token.to_be_bytes());
            }
        }
    }

    /// Something about the worker itself.
    pub fn event(&mut self, event: Event) {
        match self {
            Self::Rows(rows) => {
                rows.push([spi::int(event as i16), None, None, None, None, None, None, None, None]);
            }
            Self::Packed(packed) => packed.byte(event as u8),
        }
    }

    /// The function's result.
    pub fn finish(self) -> Option<Datum> {
        match self {
            Self::Rows(_) => None,
            Self::Packed(packed) => Some(packed.finish()),
        }
    }
}

/// A `bytea` that grows. `docs/protocol.md` tells what lies in it.
pub struct Packed {
    buffer: pg_sys::StringInfoData,
}

impl Packed {
    /// The version of the packed form.
    const VERSION: u8 = 1;

    /// An empty one in the current memory context.
    pub fn new() -> Self {
        let mut buffer = pg_sys::StringInfoData::default();
        // SAFETY: initialises the buffer that it is given.
        unsafe { pg_sys::initStringInfo(&mut buffer) };
        let mut packed = Self { buffer };
        // Room for the header of the `bytea`.
        packed.bytes(&[0; size_of::<u32>()]);
        packed.byte(Self::VERSION);
        packed
    }

    fn task(&mut self, task: &Task) {
        let mut head = [0; 45];
        let event = if task.options.is_none() { Event::Task } else { Event::TaskWithOptions };
        head[0] = event as u8;
        head[1..17].copy_from_slice(&task.claim.id);
        head[17..25].copy_from_slice(&task.fence.to_be_bytes());
        head[25..33].copy_from_slice(&task.claim.token.to_be_bytes());
        head[33..37].copy_from_slice(&task.tried.to_be_bytes());
        head[37..45].copy_from_slice(&task.wakeup_at.to_be_bytes());
        self.bytes(&head);
        // SAFETY: the datums are a text of at most 63 bytes and jsonbs that lie in the row.
        unsafe {
            let queue = pg_sys::pg_detoast_datum_packed(task.queue.cast_mut_ptr());
            let len = pgrx::varlena::varsize_any_exhdr(queue);
            let data = pgrx::varlena::vardata_any(queue).cast::<u8>();
            self.byte(len.min(255) as u8);
            self.bytes(std::slice::from_raw_parts(data, len.min(255)));
            self.json(task.step);
            if let Some(options) = task.options {
                self.json(options);
            }
        }
    }

    /// The length of the text of a `jsonb`, and the text.
    ///
    /// # Safety
    /// The datum is a `jsonb`.
    unsafe fn json(&mut self, datum: Datum) {
        let at = self.len();
        self.bytes(&[0; size_of::<u32>()]);
        // SAFETY: detoasted first; its text is appended by PostgreSQL's own function.
        unsafe {
            let value = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::Jsonb>();
            let size = pgrx::varlena::varsize_any_exhdr(value.cast());
            pg_sys::JsonbToCString(&mut self.buffer, &raw mut (*value).root, size as i32);
            let size = (self.len() - at - size_of::<u32>()) as u32;
            self.buffer.data.add(at).cast::<[u8; 4]>().write(size.to_be_bytes());
        }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes(&[byte]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // SAFETY: the buffer was initialised and has room for the bytes and the zero that PostgreSQL keeps behind them. Written
        // here, because a call into the server for each field of each task would cost more than the copy.
        unsafe {
            if self.len() + bytes.len() >= self.buffer.maxlen as usize {
                pg_sys::enlargeStringInfo(&mut self.buffer, bytes.len() as i32);
            }
            let end = self.buffer.data.add(self.len()).cast::<u8>();
            end.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            end.add(bytes.len()).write(0);
        }
        self.buffer.len += bytes.len() as i32;
    }

    fn len(&self) -> usize {
        self.buffer.len as usize
    }

    fn finish(self) -> Datum {
        // SAFETY: the first four bytes were left for the header, which holds the whole length.
        unsafe {
            pgrx::set_varsize_4b(self.buffer.data.cast(), self.buffer.len);
            Datum::from(self.buffer.data)
        }
    }
}
