//! Fields of a config.json that Firebox does not know and a user accepts: they are ignored in computing and kept.

/// The field of config.json with the names of the fields that are accepted, so that a checkpoint that is made from an
/// accepted one is read without being told again.
pub(super) const ACCEPTED: &str = "firebox_accepted";

/// The fields that a user accepts, by where they are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accept<'a> {
    /// Nowhere: only those that config.json itself lists are accepted.
    #[default]
    Nothing,
    /// On a command line, by `--accept FIELD`.
    Flag(&'a [String]),
    /// In the file of a run, by the key `train.accept`.
    Key(&'a [String]),
}

impl<'a> Accept<'a> {
    /// The names of the fields.
    pub(super) fn fields(self) -> &'a [String] {
        match self {
            Self::Nothing => &[],
            Self::Flag(fields) | Self::Key(fields) => fields,
        }
    }

    /// The flag or the key.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::Nothing => ACCEPTED,
            Self::Flag(_) => "--accept",
            Self::Key(_) => "train.accept",
        }
    }

    /// How a user accepts one more field; `None` where there is no way.
    pub(super) fn of(self, field: &str) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Flag(_) => Some(format!("--accept {field}")),
            Self::Key(_) => Some(format!("train.accept = [{field:?}]")),
        }
    }
}
