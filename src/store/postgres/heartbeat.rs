//! Writes of the heartbeat.

use super::error::Error;
use super::session::{Steps, Value};
use crate::store::queue::Pending;
use crate::store::rows::{WRITE_HEARTBEAT, heartbeat_values};
use crate::store::write::Write;

/// Condition that fails unless the epoch is that of the row.
const OF_EPOCH: &str = "AND CASE WHEN epoch = $13 THEN true ELSE 1 / (epoch - epoch) = 0 END";

/// Adds the statements that write heartbeats. Each fails, as `CHECK_EPOCHS` does, unless its epoch is that
/// of the row it replaces, so it needs no transaction. Another transaction may have locked the row, so
/// they run before the numbering lock is taken, except in a repetition.
pub(super) fn add_heartbeats(writes: &[Pending], steps: &mut Steps) -> Result<(), Error> {
    for pending in writes {
        if let Write::Heartbeat {
            epoch, heartbeat, ..
        } = &pending.write
        {
            let values = heartbeat_values(heartbeat).map_err(Error::value)?;
            let values = values.into_iter().map(|value| -> Value { Box::new(value) });
            let epoch: Value = Box::new(*epoch);
            let sql = format!("{} {OF_EPOCH}", WRITE_HEARTBEAT);
            steps.add(sql, values.chain([epoch]).collect());
        }
    }
    Ok(())
}
