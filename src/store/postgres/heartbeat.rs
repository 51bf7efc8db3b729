//! Writes of the heartbeat.

use super::error::Error;
use super::session::{Steps, Value};
use crate::decide::LostProcess;
use crate::order::Timestamp;
use crate::reconciler_state::ReconcilerState;
use crate::store::queue::Pending;
use crate::store::rows::upstream_columns;
use crate::store::write::Write;

const WRITE_HEARTBEAT: &str = "\
    UPDATE heartbeat SET leader_since = $1, last_pass_at = $2, next_pass_at = $3, \
        last_seen_at = $4, upstream = $5, upstream_since = $6, upstream_detail = $7, \
        next_look_at = $8, learned = $9, tally = $10, led_until = $11, policy = $12 \
    WHERE id = 1 AND CASE WHEN epoch = $13 THEN true ELSE 1 / (epoch - epoch) = 0 END";

/// Adds the statements that write heartbeats. Each fails, as `CHECK_EPOCHS` does, unless its epoch is that
/// of the row it replaces, so it needs no transaction. They run before the numbering lock is taken, because
/// another transaction may have locked the row.
pub(super) fn add_heartbeats(writes: &[Pending], steps: &mut Steps) -> Result<(), Error> {
    for pending in writes {
        if let Write::Heartbeat {
            epoch, heartbeat, ..
        } = &pending.write
        {
            steps.add(WRITE_HEARTBEAT, heartbeat_values(*epoch, heartbeat)?);
        }
    }
    Ok(())
}

fn heartbeat_values(epoch: i64, heartbeat: &ReconcilerState) -> Result<Vec<Value>, Error> {
    let (upstream, since, detail) = upstream_columns(&heartbeat.upstream);
    let time = |at: Option<Timestamp>| -> Value { Box::new(at.map(|at| at.0)) };
    Ok(vec![
        time(heartbeat.leader_since),
        time(heartbeat.last_pass_at),
        time(heartbeat.next_pass_at),
        time(heartbeat.last_observed_at),
        Box::new(upstream),
        Box::new(since),
        Box::new(detail.map(str::to_owned)),
        time(heartbeat.next_poll_at),
        Box::new(serde_json::to_string(&heartbeat.learned).map_err(Error::value)?),
        Box::new(serde_json::to_string(&heartbeat.metrics).map_err(Error::value)?),
        time(heartbeat.led_until),
        Box::new(heartbeat.policy.map(LostProcess::as_str)),
        Box::new(epoch),
    ])
}
