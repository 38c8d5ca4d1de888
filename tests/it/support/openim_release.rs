//! Which OpenIM it is, and what is different in each.

/// Three that were seen or read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// Not released.
    #[default]
    Main,
    /// v3.8.3-patch.15, which tells of who joins.
    Patch15,
    /// v3.8.3-patch.16: who joins is told an error, and no callback says so.
    Patch16,
}

impl Release {
    pub const ALL: [Self; 3] = [Self::Main, Self::Patch15, Self::Patch16];

    /// The largest answer of one of OpenIM's services that the API takes, in bytes.
    pub fn largest_answer(self) -> usize {
        match self {
            Self::Main => 8 << 20,
            Self::Patch15 | Self::Patch16 => 4 << 20,
        }
    }
}
