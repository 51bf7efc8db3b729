//! Rate limits, as gateways and services impose them.

use std::time::Duration;

use order_service::order::Timestamp;

use crate::environment::Draws;

/// The algorithm of a limit.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A token bucket: `rate` tokens a second, `burst` at most.
    TokenBucket { rate: f64, burst: f64 },
    /// A fixed window: at most `limit` requests each. Throttled ones are answered with the time until the next window.
    FixedWindow { limit: u32, window: Duration },
}

/// A rate limit with its state.
#[derive(Clone, Debug)]
pub struct Limit {
    kind: Kind,
    /// Set if polls are limited too.
    pub counts_polls: bool,
    /// HTTP status of the answer to a throttled request.
    pub status: u16,
    /// Number of tokens left, or of requests in this window.
    level: f64,
    changed_at: Option<Timestamp>,
}

impl Limit {
    pub fn new(kind: Kind, status: u16, counts_polls: bool) -> Self {
        Self {
            kind,
            counts_polls,
            status,
            level: 0.0,
            changed_at: None,
        }
    }

    /// Draws a limit that is tight enough for a few orders to reach it.
    pub fn draw(draws: &Draws) -> Self {
        let kind = match draws.below(2) {
            0 => Kind::TokenBucket {
                rate: 0.5 * (1 + draws.below(10)) as f64,
                burst: (1 + draws.below(5)) as f64,
            },
            _ => Kind::FixedWindow {
                limit: 1 + draws.below(10) as u32,
                window: Duration::from_secs(1 + draws.below(20)),
            },
        };
        let status = [429, 503][draws.below(2) as usize];
        Self::new(kind, status, draws.below(2) == 0)
    }

    /// Returns the number of requests per second that the limit admits.
    pub fn rate(&self) -> f64 {
        match &self.kind {
            Kind::TokenBucket { rate, .. } => *rate,
            Kind::FixedWindow { limit, window } => f64::from(*limit) / window.as_secs_f64(),
        }
    }

    /// Admits a request, or throttles it and returns its `Retry-After`.
    pub fn admit(&mut self, now: Timestamp) -> Result<(), Option<Duration>> {
        match self.kind {
            Kind::TokenBucket { rate, burst } => {
                let passed = self.changed_at.map(|at| now.since(at).as_secs_f64());
                let refilled = passed.map_or(burst, |passed| self.level + passed * rate);
                self.level = refilled.min(burst);
                self.changed_at = Some(now);
                if self.level < 1.0 {
                    return Err(None);
                }
                self.level -= 1.0;
            }
            Kind::FixedWindow { limit, window } => {
                let window = window.as_millis() as i64;
                let began_at = Timestamp(now.0 - now.0.rem_euclid(window));
                if self.changed_at != Some(began_at) {
                    self.level = 0.0;
                    self.changed_at = Some(began_at);
                }
                if self.level >= f64::from(limit) {
                    let left = (began_at.0 + window - now.0) as u64;
                    // The header has whole seconds: rounded up.
                    return Err(Some(Duration::from_secs(left.div_ceil(1_000))));
                }
                self.level += 1.0;
            }
        }
        Ok(())
    }
}
