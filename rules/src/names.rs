//! Names of fixed size for shared memory, and the hash by which a step's name is compared.

/// A queue's name: 1 to [`QueueName::MAX`] bytes, kept in place.
#[derive(Clone, Copy, Eq, PartialEq)]
#[repr(C)]
pub struct QueueName {
    len: u8,
    bytes: [u8; Self::MAX],
}

impl QueueName {
    /// The longest name, in bytes: the table's constraint says the same.
    pub const MAX: usize = 63;

    /// No name: what a place that is not in use holds.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; Self::MAX] };

    /// The name, or none when it is empty or too long.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; Self::MAX];
        let len = u8::try_from(name.len()).ok().filter(|&len| len > 0)?;
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { len, bytes })
    }

    /// The name as text. What was stored came from a `&str`; bytes that are not UTF-8 read as empty.
    pub fn as_str(&self) -> &str {
        let len = usize::from(self.len).min(Self::MAX);
        core::str::from_utf8(&self.bytes[..len]).unwrap_or("")
    }
}

impl core::fmt::Debug for QueueName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Ord for QueueName {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        // Byte order, which is the order of the column's collation "C".
        self.as_str().as_bytes().cmp(other.as_str().as_bytes())
    }
}

impl PartialOrd for QueueName {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A label for people (a worker's name, a step's name), cut at a character boundary when it is longer than the place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Label {
    len: u8,
    bytes: [u8; Self::MAX],
}

impl Label {
    /// The place for a label, in bytes.
    pub const MAX: usize = 95;

    /// No label.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; Self::MAX] };

    /// The label, cut to [`Label::MAX`] bytes.
    pub fn new(text: &str) -> Self {
        let mut len = text.len().min(Self::MAX);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; Self::MAX];
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self { len: len as u8, bytes }
    }

    /// The label as text.
    pub fn as_str(&self) -> &str {
        let len = usize::from(self.len).min(Self::MAX);
        core::str::from_utf8(&self.bytes[..len]).unwrap_or("")
    }
}

/// Identifies the name of a step, `Task/Step`. Never 0, which stands for "any step".
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Kind(u64);

impl Kind {
    /// Any step: what a lane holds whose tasks have not been refused by a worker.
    pub const ANY: Self = Self(0);

    /// The kind of the step `task/step`: FNV-1a, 64 bits.
    pub fn new(task: &str, step: &str) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in task.bytes().chain([b'/']).chain(step.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash.max(1))
    }

    /// The kind named by `Task/Step`; none when there is no slash.
    pub fn parse(name: &str) -> Option<Self> {
        name.split_once('/').map(|(task, step)| Self::new(task, step))
    }
}

/// Identifies a group: the hash of its name, as the table's index has it. Two groups of one hash, should there ever be such, are one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Group(pub i64);

/// Identifies a key within a queue: the hash of both names, as the table's index has it. Two keys of one hash, should there ever be such, are one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(transparent)]
pub struct Key(pub i64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_name_that_is_empty_or_too_long_is_refused() {
        assert_eq!(QueueName::new(""), None);
        assert_eq!(QueueName::new(&"q".repeat(64)), None);
        assert_eq!(QueueName::new(&"q".repeat(63)).expect("63 bytes fit").as_str(), "q".repeat(63));
    }

    #[test]
    fn a_long_label_is_cut_between_characters() {
        let label = Label::new(&"é".repeat(80));
        assert_eq!(label.as_str(), "é".repeat(47));
    }

    #[test]
    fn a_kind_depends_on_where_the_slash_is() {
        assert_eq!(Kind::parse("a/b"), Some(Kind::new("a", "b")));
        assert_ne!(Kind::new("a", "b/c"), Kind::new("b", "a"));
        assert_eq!(Kind::parse("ab"), None);
    }
}
