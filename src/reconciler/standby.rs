//! The wait for leadership.

use std::time::Duration;

use crate::process::Stop;
use crate::store::{LeadError, Leadership, Store};

/// Interval at which a standby tries to take the lead.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);

/// Waits until this process leads. Returns `None` if the program shuts down first.
pub async fn lead(store: &Store, stop: &Stop) -> anyhow::Result<Option<Leadership>> {
    let mut is_standby_logged = false;
    let mut logged = None;
    while !stop.requested.is_cancelled() {
        match store.try_lead().await {
            Ok(Some(lead)) => {
                log::info!("became leader");
                return Ok(Some(lead));
            }
            Ok(None) => {
                logged = None;
                if !std::mem::replace(&mut is_standby_logged, true) {
                    log::info!("standing by leader=other");
                }
            }
            Err(LeadError::Open(error)) => return Err(error.into()),
            Err(LeadError::Store(error)) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                if logged.as_ref() != Some(&error) {
                    log::error!(
                        "taking the lead failed; retrying every {STANDBY_INTERVAL:?}: {error}"
                    );
                    logged = Some(error);
                }
            }
        }
        tokio::select! {
            () = stop.requested.cancelled() => {}
            () = tokio::time::sleep(STANDBY_INTERVAL) => {}
        }
    }
    Ok(None)
}
