//! What a family makes of a field of config.json.

/// A field of config.json in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// What the family makes of it.
    pub usage: Usage,
}

/// How a family uses a field of config.json. A field that it does not list is not its own, and is refused unless its
/// value comes to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Its value is part of what is computed.
    Read,
    /// It says nothing of what is computed.
    Neutral,
    /// It may only say what is computed anyway.
    Only {
        /// The ways to say it, as JSON.
        values: &'static [&'static str],
        /// Why there is no other.
        rule: &'static str,
    },
    /// It acts in training alone, and Firebox's training does not have it: passed over, and warned of where a training
    /// starts.
    Training,
    /// It stands for something that Firebox does not compute, and must be off: null, false, zero or empty.
    Off {
        /// What Firebox does not compute.
        rule: &'static str,
    },
}

/// A field that is read.
pub(super) const fn read(name: &'static str) -> Field {
    Field {
        name,
        usage: Usage::Read,
    }
}

/// A field that says nothing of what is computed.
pub(super) const fn neutral(name: &'static str) -> Field {
    Field {
        name,
        usage: Usage::Neutral,
    }
}

/// A field that may only say what is computed anyway, in one of these ways, as JSON.
pub(super) const fn only(
    name: &'static str,
    values: &'static [&'static str],
    rule: &'static str,
) -> Field {
    Field {
        name,
        usage: Usage::Only { values, rule },
    }
}

/// A field that acts in training alone.
pub(super) const fn training(name: &'static str) -> Field {
    Field {
        name,
        usage: Usage::Training,
    }
}

/// A field that must be off.
pub(super) const fn off(name: &'static str, rule: &'static str) -> Field {
    Field {
        name,
        usage: Usage::Off { rule },
    }
}
