//! Where the orders of a database are instead, while it is an incomplete copy or once they have moved.

use std::fmt;

use super::lines::{BoxError, Lines, fields};
use crate::messages::quoted;
use crate::order::words;

/// The reason why a database must not be used: its orders are in another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocation {
    pub(super) state: State,
    /// The other database, without a password.
    pub(super) address: String,
}

words! {
    pub(super) enum State {
        /// It is being copied from there.
        Incomplete = "incomplete",
        /// They have moved there.
        Moved = "moved",
    }
}

/// Purpose that a database is opened for.
pub(super) enum Purpose {
    /// To use its orders.
    Use,
    /// To read its orders. Nothing is created, migrated or written.
    #[cfg(feature = "postgres")]
    Read,
    /// To copy them, whether or not they have moved. The statements mark a database that is created.
    Copy(Option<String>),
}

/// Completes a sentence that begins with the address of the database.
impl fmt::Display for Relocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Incomplete => "is an incomplete copy of",
            State::Moved => "has moved to",
        };
        write!(f, "{state} {}", self.address)
    }
}

/// Returns how the database of this address is removed.
pub(super) fn removal(address: &str) -> &'static str {
    match address.starts_with("postgres") {
        true => "run `DROP SCHEMA order_service CASCADE` in it",
        false => "delete the file",
    }
}

impl Relocation {
    /// Returns what can be done about the database of this address.
    pub(super) fn advice(&self, address: &str) -> String {
        let [this, other] = [address, &self.address].map(quoted);
        match self.state {
            State::Incomplete => format!(
                "run `order-service copy {other} {this}` again, or {}",
                removal(address)
            ),
            State::Moved => format!(
                "use that address, or undo it by `order-service copy --take-back {this} {other}`"
            ),
        }
    }

    /// The mark of a copy from this database that is not complete.
    pub(super) fn incomplete(address: String) -> Self {
        let state = State::Incomplete;
        Self { state, address }
    }

    /// The mark of a database whose orders have moved to this one.
    pub(super) fn moved(address: String) -> Self {
        let state = State::Moved;
        Self { state, address }
    }

    /// Returns the relocation in the row of the table, if there is one.
    pub(super) fn new(row: Option<(&str, &str)>) -> Option<Self> {
        let (state, address) = row?;
        let address = address.to_owned();
        let state = State::from_word(state).unwrap_or(State::Moved);
        Some(Self { state, address })
    }

    /// Reads the relocation of a database.
    pub(super) fn read(db: &(impl Lines + ?Sized)) -> Result<Option<Self>, BoxError> {
        let mut found = None;
        db.each("SELECT state, address FROM relocation", &mut |line| {
            let row: Vec<_> = fields(line).flatten().collect();
            if let [state, address] = &row[..] {
                found = Self::new(Some((state, address)));
            }
        })?;
        Ok(found)
    }

    /// Returns statements that store a relocation, or that none is in force: `refuse` and `allow` are
    /// those of an engine that have it refuse writes, and no longer do so.
    pub(super) fn statements(this: Option<&Self>, refuse: &str, allow: &str) -> String {
        let cleared = format!("{allow}; DELETE FROM relocation");
        match this {
            None => cleared,
            Some(Self { state, address }) => {
                let (state, address) = (state.as_str(), address.replace('\'', "''"));
                format!(
                    "{cleared}; INSERT INTO relocation (id, state, address) \
                     VALUES (1, '{state}', '{address}'); {refuse}"
                )
            }
        }
    }
}
