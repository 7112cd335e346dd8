//! Rules of the real system that can be broken, one at a time, to see that the model would notice.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Mutation {
    /// An aborted call leaves its claims in memory (`handout::at_end(false)`).
    AbortKeepsClaim,
    /// A task that a worker says it holds is granted and its attempt, counted already, is taken for uncounted (`register::assert_held`).
    AssertForgetsCount,
    /// A task that a worker says it holds is granted though its row has changed since (`register::assert_held`).
    AssertIgnoresFence,
    /// A task that a worker says it holds is granted though another worker holds it (`Board::assert_claim`).
    AssertIgnoresHolder,
    /// After an unclean end of the server old rows are handed out without counting (`claim::claim_in_writing`).
    CrashNotCounted,
    /// Ending a claim does not compare tokens (`Board::find_claim`).
    EndIgnoresToken,
    /// A finish is written whatever the row's fence (`WHERE … fence =` in `handout::results`).
    FinishIgnoresFence,
    /// An attempt that was counted when it was made and is given back is not counted any more (`beat::unwrite`).
    GiveBackUncounts,
    /// The end of a claim of a group asks for no look (`Board::end_turn`).
    GroupEndsUnseen,
    /// A task of a group is handed out though an older one is in the table (`claim::turn`).
    GroupIgnoresOrder,
    /// A task of a group is handed out beside another one that is claimed (`Board::take_turn`).
    GroupIgnoresTurn,
    /// A result that commits when its claim was given back meanwhile asks for no look (`handout::settle`).
    GroupSettlesUnseen,
    /// A hint that the inbox has no room for is dropped (`Inbox::push`).
    HintDropped,
    /// The limit of attempts is not looked at (`beat::write_loss`, `claim_in_writing`).
    LimitIgnored,
    /// A claim that was counted when it was made is counted again when its worker is lost (`Entry::is_counted`).
    LossCountsTwice,
    /// What a lost worker held is handed out again without a change of the fence (`beat::write_loss`).
    LossKeepsFence,
    /// The attempt of a lost worker is not counted (`beat::write_loss`).
    LossNotCounted,
    /// A task is put on the board though it is there (`Board::push_ready`).
    PushIgnoresPresence,
    /// A worker that is told that a task is not its own any more keeps the claim in memory (`register::assert_held`).
    RefusalKeepsClaim,
    /// The result of an attempt that memory does not know is counted though it was counted before (`results::update`).
    ResultForgetsCount,
    /// Results are settled in memory before they are committed (`handout::at_end`).
    SettleBeforeCommit,
    /// A new life of the server begins to number its tokens from the start (`beat::take_epoch`).
    TokensRestart,
    /// A claim is written behind whatever the row's fence (`beat::write_behind`).
    WriteBehindIgnoresFence,
}

impl Mutation {
    /// Every rule.
    pub const ALL: [Self; 23] = [
        Self::AbortKeepsClaim,
        Self::AssertForgetsCount,
        Self::AssertIgnoresFence,
        Self::AssertIgnoresHolder,
        Self::CrashNotCounted,
        Self::EndIgnoresToken,
        Self::FinishIgnoresFence,
        Self::GiveBackUncounts,
        Self::GroupEndsUnseen,
        Self::GroupIgnoresOrder,
        Self::GroupIgnoresTurn,
        Self::GroupSettlesUnseen,
        Self::HintDropped,
        Self::LimitIgnored,
        Self::LossCountsTwice,
        Self::LossKeepsFence,
        Self::LossNotCounted,
        Self::PushIgnoresPresence,
        Self::RefusalKeepsClaim,
        Self::ResultForgetsCount,
        Self::SettleBeforeCommit,
        Self::TokensRestart,
        Self::WriteBehindIgnoresFence,
    ];

    /// Whether it is a rule of groups.
    pub fn is_of_groups(self) -> bool {
        matches!(
            self,
            Self::GroupEndsUnseen
                | Self::GroupIgnoresOrder
                | Self::GroupIgnoresTurn
                | Self::GroupSettlesUnseen
        )
    }
}
