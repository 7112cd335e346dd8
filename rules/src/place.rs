//! Where a row was seen last: a hint that saves the way through an index, never more.

/// The place of a row in its table, a block and a position within it. Position 0 stands for "not known".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Place {
    /// The block's number.
    pub block: u32,
    /// The position within the block, from 1.
    pub position: u16,
}

impl Place {
    /// Not known.
    pub const UNKNOWN: Self = Self { block: 0, position: 0 };

    /// In its place: the task is one of a key's, whose turn it is as of the moment at which it is made ready, not as of its time.
    pub const IN_TURN: Self = Self { block: u32::MAX, position: 0 };

    /// Whether there is something to try.
    pub fn is_known(self) -> bool {
        self.position != 0
    }
}
