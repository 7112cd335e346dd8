//! The packed answer of `pg_task.exchange_packed`, as `docs/protocol.md` describes it.

use bytes::Buf;
use bytes::Bytes;
use uuid::Uuid;

/// The version of the form that is understood here.
const VERSION: u8 = 1;

/// One thing that an answer tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Item {
    /// A task to run.
    Task(Task),
    /// The next step of this task stays here.
    GoesOn {
        id: Uuid,
        fence: i64,
        token: i64,
    },
    /// A result was not written.
    Refused {
        id: Uuid,
    },
    /// A task that runs here is gone.
    Cancelled {
        id: Uuid,
        token: i64,
    },
    Stop,
    Unregistered,
    Work,
}

/// A task as it was handed out. Queue and step lie in the answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Task {
    pub(super) id: Uuid,
    pub(super) fence: i64,
    pub(super) token: i64,
    pub(super) tried: i32,
    /// Microseconds since 2000-01-01 00:00 UTC.
    pub(super) due: i64,
    pub(super) queue: Bytes,
    pub(super) step: Bytes,
    /// JSON; none for a task without options.
    pub(super) options: Option<Bytes>,
}

/// The answer ends too soon or is of a form that is not known here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the server's answer cannot be read: it is of a later version than this client")]
pub(super) struct Malformed;

/// The items of an answer.
pub(super) fn items(mut answer: Bytes) -> impl Iterator<Item = Result<Item, Malformed>> {
    let mut version = (!answer.is_empty()).then(|| answer.get_u8());
    std::iter::from_fn(move || {
        if let Some(version) = version.take()
            && version != VERSION
        {
            answer.clear();
            return Some(Err(Malformed));
        }
        if answer.is_empty() {
            return None;
        }
        let item = item(&mut answer).ok_or(Malformed);
        if item.is_err() {
            answer.clear();
        }
        Some(item)
    })
}

fn item(answer: &mut Bytes) -> Option<Item> {
    Some(match answer.try_get_u8().ok()? {
        event @ (0 | 7) => Item::Task(Task {
            id: id(answer)?,
            fence: answer.try_get_i64().ok()?,
            token: answer.try_get_i64().ok()?,
            tried: answer.try_get_i32().ok()?,
            due: answer.try_get_i64().ok()?,
            queue: {
                let len = answer.try_get_u8().ok()?;
                part(answer, usize::from(len))?
            },
            step: text(answer)?,
            options: if event == 7 { Some(text(answer)?) } else { None },
        }),
        1 => Item::GoesOn {
            id: id(answer)?,
            fence: answer.try_get_i64().ok()?,
            token: answer.try_get_i64().ok()?,
        },
        2 => {
            let id = id(answer)?;
            answer.try_get_i64().ok()?;
            Item::Refused { id }
        }
        3 => Item::Cancelled { id: id(answer)?, token: answer.try_get_i64().ok()? },
        4 => Item::Stop,
        5 => Item::Unregistered,
        6 => Item::Work,
        _ => return None,
    })
}

fn id(answer: &mut Bytes) -> Option<Uuid> {
    answer.try_get_u128().ok().map(Uuid::from_u128)
}

/// JSON, behind its length.
fn text(answer: &mut Bytes) -> Option<Bytes> {
    let len = answer.try_get_u32().ok()?;
    part(answer, usize::try_from(len).ok()?)
}

fn part(answer: &mut Bytes, len: usize) -> Option<Bytes> {
    (len <= answer.len()).then(|| answer.split_to(len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer() -> Vec<u8> {
        let mut bytes = vec![VERSION, 0];
        bytes.extend([7; 16]);
        bytes.extend(3_i64.to_be_bytes());
        bytes.extend(4_i64.to_be_bytes());
        bytes.extend(5_i32.to_be_bytes());
        bytes.extend(6_i64.to_be_bytes());
        bytes.extend([1, b'q']);
        bytes.extend(2_u32.to_be_bytes());
        bytes.extend(b"{}");
        bytes.push(4);
        bytes
    }

    #[test]
    fn what_the_server_packs_is_read_back() {
        let items: Vec<_> = items(answer().into()).collect();
        let task = Task {
            id: Uuid::from_bytes([7; 16]),
            fence: 3,
            token: 4,
            tried: 5,
            due: 6,
            queue: Bytes::from_static(b"q"),
            step: Bytes::from_static(b"{}"),
            options: None,
        };
        assert_eq!(items, [Ok(Item::Task(task)), Ok(Item::Stop)]);
    }

    fn pack(items: &[Item]) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for item in items {
            match item {
                Item::Task(task) => {
                    bytes.push(if task.options.is_none() { 0 } else { 7 });
                    bytes.extend(task.id.as_bytes());
                    bytes.extend(task.fence.to_be_bytes());
                    bytes.extend(task.token.to_be_bytes());
                    bytes.extend(task.tried.to_be_bytes());
                    bytes.extend(task.due.to_be_bytes());
                    bytes.push(task.queue.len() as u8);
                    bytes.extend(&task.queue);
                    bytes.extend((task.step.len() as u32).to_be_bytes());
                    bytes.extend(&task.step);
                    if let Some(options) = &task.options {
                        bytes.extend((options.len() as u32).to_be_bytes());
                        bytes.extend(options);
                    }
                }
                Item::GoesOn { id, fence, token } => {
                    bytes.push(1);
                    bytes.extend(id.as_bytes());
                    bytes.extend(fence.to_be_bytes());
                    bytes.extend(token.to_be_bytes());
                }
                Item::Refused { id } => {
                    bytes.push(2);
                    bytes.extend(id.as_bytes());
                    bytes.extend([0; 8]);
                }
                Item::Cancelled { id, token } => {
                    bytes.push(3);
                    bytes.extend(id.as_bytes());
                    bytes.extend(token.to_be_bytes());
                }
                Item::Stop => bytes.push(4),
                Item::Unregistered => bytes.push(5),
                Item::Work => bytes.push(6),
            }
        }
        bytes
    }

    fn any_item() -> impl Strategy<Value = Item> {
        let id = || any::<[u8; 16]>().prop_map(Uuid::from_bytes);
        let part = || prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            4 => (id(), any::<i64>(), any::<i64>(), any::<i32>(), any::<i64>(), part(), part(), prop::option::of(part())).prop_map(
                |(id, fence, token, tried, due, queue, step, options)| {
                    Item::Task(Task { id, fence, token, tried, due, queue, step, options })
                }
            ),
            1 => (id(), any::<i64>(), any::<i64>()).prop_map(|(id, fence, token)| Item::GoesOn { id, fence, token }),
            1 => id().prop_map(|id| Item::Refused { id }),
            1 => (id(), any::<i64>()).prop_map(|(id, token)| Item::Cancelled { id, token }),
            1 => Just(Item::Stop),
            1 => Just(Item::Unregistered),
            1 => Just(Item::Work),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn whatever_is_packed_is_read_back(packed in prop::collection::vec(any_item(), 0..20)) {
            let read: Result<Vec<_>, _> = items(pack(&packed).into()).collect();
            prop_assert_eq!(read, Ok(packed));
        }

        /// Bytes of nobody, and answers in which some bytes are wrong: each item takes at least its own byte, nothing follows an error,
        /// and no part is longer than what came.
        #[test]
        fn no_bytes_make_the_reader_panic_or_run_on(
            mut bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                prop::collection::vec(any_item(), 0..8).prop_map(|packed| pack(&packed)),
            ],
            version in any::<bool>(),
            wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            for (at, byte) in wrong {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            if let Some(first) = bytes.first_mut().filter(|_| version) {
                *first = VERSION;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let len = bytes.len();
            let read: Vec<_> = items(bytes.into()).collect();
            prop_assert!(read.len() <= len);
            let errors = read.iter().filter(|item| item.is_err()).count();
            prop_assert!(errors == 0 || (errors == 1 && read.last().is_some_and(Result::is_err)));
            let parts: usize = read.iter().flatten().map(|item| match item {
                Item::Task(task) => {
                    50 + task.queue.len() + task.step.len() + task.options.as_ref().map_or(0, |options| 4 + options.len())
                }
                _ => 1,
            }).sum();
            prop_assert!(parts <= len);
        }
    }

    #[test]
    fn an_answer_that_is_cut_anywhere_is_an_error_or_a_shorter_answer_and_never_a_panic() {
        let whole = answer();
        for len in 0..whole.len() {
            let items: Vec<_> = items(Bytes::copy_from_slice(&whole[..len])).collect();
            let ends_at_an_item = len <= 1 || len == whole.len() - 1;
            assert_eq!(items.iter().any(Result::is_err), !ends_at_an_item, "{len} bytes");
        }
        assert_eq!(items(Bytes::from_static(&[9])).collect::<Vec<_>>(), [Err(Malformed)]);
    }
}
