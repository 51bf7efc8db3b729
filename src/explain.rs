//! One order in plain words, for whoever is called at night: what was done, what was seen, why it
//! is where it is, what happens next and when.
//!
//! Pure: a [`Case`] and the present moment go in, sentences come out. The parts can be had one by
//! one, for other readers than a terminal. What will be done is decided in `decide` and is only
//! told here.

mod words;

use std::fmt::Write as _;
use std::time::Duration;

use self::words::{clean, quoted};
pub use self::words::{future, past, span};
use crate::clock::Rfc3339;
use crate::decide::{Intent, OpenOrder, Phase};
use crate::order::{Attention, Order, Reason, Status, Timestamp};
use crate::pace::{LearnedRate, Reach};
use crate::reconciler::is_overdue;
use crate::store::Heartbeat;

/// All that is known of one order.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// As its readers see it.
    pub order: Order,
    /// As the reconciler sees it, while it is open.
    pub open: Option<OpenOrder>,
    /// Its part of the journal, oldest first: when, and the reason's word.
    pub journal: Vec<(Timestamp, String)>,
    /// Orders whose turn to be started comes before this one's.
    pub ahead: u64,
    /// What the reconciler tells of itself and of the upstream.
    pub heartbeat: Heartbeat,
}

impl Case {
    /// Everything, as a text of several paragraphs. `options` are those that a command needs to
    /// find the same database.
    pub fn explain(&self, now: Timestamp, options: &[&str]) -> String {
        let mut text = self.headline(now);
        text.push('\n');
        let mut part = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                // A String takes all that is written to it.
                let _ = write!(text, "\n{title}\n");
                for line in lines {
                    let _ = writeln!(text, "  {line}");
                }
            }
        };
        part("What was done", self.timeline(now));
        if self.open.is_some() {
            part("What was seen", self.seen(now));
            part("Why it is where it is", self.why(now));
        }
        part("What happens next", self.next(now));
        part("What you can do", self.to_do(options));
        text
    }

    /// Where it is, in one line.
    pub fn headline(&self, now: Timestamp) -> String {
        let Order { id, status, .. } = &self.order;
        let since = span(now.since(self.order.updated_at));
        let id = id.as_str();
        match &self.order.attention {
            None if status.is_settled() => format!("Order {id:?} is {status}, for {since}."),
            None => format!("Order {id:?} is {status}, for {since}. Nothing is wrong with it."),
            Some(attention) => format!(
                "Order {id:?} is {status}, for {since}, and needs looking at: {}, for {}.",
                attention.reason.as_str(),
                span(now.since(attention.since))
            ),
        }
    }

    /// What its journal says, and how often it may have been started. A line for each change.
    pub fn timeline(&self, now: Timestamp) -> Vec<String> {
        let mut lines: Vec<_> = self
            .journal
            .iter()
            .map(|(at, reason)| {
                let ago = format!("{} ago", span(now.since(*at)));
                format!("{}  {ago:>12}  {}", Rfc3339(*at), change(reason))
            })
            .collect();
        lines.push(match self.order.starts {
            0 => "It was never started from here, as far as is known.".to_owned(),
            1 => "One start was sent for it that has, or may have, taken effect.".to_owned(),
            n => format!("{n} starts were sent for it that have, or may have, taken effect."),
        });
        lines
    }

    /// What is known of the upstream and of the reconciler.
    pub fn seen(&self, now: Timestamp) -> Vec<String> {
        let heartbeat = &self.heartbeat;
        let mut lines = vec![match &heartbeat.reach {
            Reach::Unknown => "The upstream was not asked for anything yet.".to_owned(),
            Reach::Up { since } => format!("The upstream answers, since {}.", past(*since, now)),
            Reach::Down { since, detail } => format!(
                "The upstream gives no usable answer, since {}: {}.",
                past(*since, now),
                clean(detail)
            ),
        }];
        if let Some(at) = heartbeat.last_seen_at {
            lines.push(format!(
                "The processes that were due to be looked at were last seen {}.",
                past(at, now)
            ));
        }
        let lives = &heartbeat.learned.lives;
        if let Some(at) = lives.began_at()
            && let Some((processes, _)) = lives.expected(now)
        {
            lines.push(format!(
                "The upstream was last found to have forgotten everything {}. It lives for about \
                 {processes:.0} processes.",
                past(at, now)
            ));
        }
        lines.push(match heartbeat.last_pass_at {
            None => "No reconciler has completed a pass on this database yet.".to_owned(),
            Some(at) => format!("The reconciler's last pass ended {}.", past(at, now)),
        });
        lines
    }

    /// Why it is where it is.
    pub fn why(&self, now: Timestamp) -> Vec<String> {
        let Some(open) = &self.open else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        if let Some(attention) = &self.order.attention {
            lines.push(self.trouble(attention, now));
        }
        match (open.phase, open.intent) {
            (_, Some(intent)) => lines.push(start_without_outcome(intent, now)),
            (Phase::Created, None) if lines.is_empty() => {
                lines.push("Its process has not been started yet.".to_owned());
            }
            (Phase::Processing { confirmed_at, .. }, None) if lines.is_empty() => {
                lines.push(format!(
                    "Its process was known to exist {}, and was not seen to have ended.",
                    past(confirmed_at, now)
                ));
            }
            _ => {}
        }
        if open.attempts > 0 {
            lines.push(match open.attempts {
                1 => "One attempt has failed.".to_owned(),
                n => format!("{n} attempts in a row have failed."),
            });
        }
        if open.is_released {
            lines.push("An operator has asked for it to be started again.".to_owned());
        }
        lines
    }

    /// What the attention means.
    fn trouble(&self, attention: &Attention, now: Timestamp) -> String {
        let detail = clean(&attention.detail);
        let since = past(attention.since, now);
        match attention.reason {
            Reason::StartRefused => format!(
                "The upstream refuses to start a process for it, since {since}, and has none: \
                 {detail}."
            ),
            Reason::UpstreamUnreachable if self.is_upstream_down() => format!(
                "The upstream is down, since {since}, so nothing can be asked about any order."
            ),
            Reason::UpstreamUnreachable => format!(
                "The upstream answers others, and gave no usable answer about this order, since \
                 {since}: {detail}."
            ),
            Reason::UnknownStatus => format!(
                "Since {since}, {detail}: nobody here can tell whether that is good or bad."
            ),
            Reason::ProcessLost => format!(
                "The upstream had a process for it, and since {since} does not know it any more, \
                 mostly because it was restarted. Nobody can know whether that process had done \
                 its work."
            ),
            Reason::MaxStarts => format!(
                "It is held, since {since}: {detail}. Something about it may bring the upstream \
                 down, or the upstream forgets too often."
            ),
        }
    }

    /// What happens next, and when.
    pub fn next(&self, now: Timestamp) -> Vec<String> {
        let Some(open) = &self.open else {
            return vec!["Nothing: it is settled, and that never changes.".to_owned()];
        };
        if is_overdue(self.heartbeat.next_pass_at, now) {
            return vec![match self.heartbeat.last_pass_at {
                None => "Nothing, until a reconciler runs on this database.".to_owned(),
                Some(at) => format!(
                    "Nothing: no reconciler runs, or it is stuck. Its last pass ended {}.",
                    past(at, now)
                ),
            }];
        }
        if self.is_upstream_down() {
            return vec![
                format!(
                    "The upstream is asked again in the next pass{}, about one order for all. When \
                     it answers, this order goes on by itself.",
                    self.pass_time(now)
                ),
                "Its status does not change before that: silence says nothing about its process."
                    .to_owned(),
            ];
        }
        let reason = self.order.attention.as_ref().map(|a| a.reason);
        match (open.phase, open.intent, reason) {
            (_, Some(_), _) => vec![format!(
                "Its process is looked for in the next pass{}. If there is one, it is taken over. It \
                 is started again only when a complete answer, asked for late enough, does not \
                 know it{}.",
                self.pass_time(now),
                not_before(open, now)
            )],
            (Phase::Created, None, Some(Reason::MaxStarts)) if !open.is_released => {
                vec!["Nothing, until someone decides.".to_owned()]
            }
            (Phase::Created, None, _) => self.turn(open, now),
            (Phase::Processing { .. }, None, Some(Reason::ProcessLost | Reason::MaxStarts)) => {
                self.after_loss(open, reason, now)
            }
            (Phase::Processing { .. }, None, Some(_)) => vec![format!(
                "It is looked at again by itself{}.",
                match due_at(open, now) {
                    Some(at) => format!(", {}", future(at, now)),
                    None => format!(" in the next pass{}", self.pass_time(now)),
                }
            )],
            (Phase::Processing { .. }, None, None) => vec![format!(
                "Its process is looked at again{}, and later the less likely it is to have ended. \
                 When it has, the order is FULFILLED or FAILED.",
                self.look_time(now)
            )],
        }
    }

    /// When a CREATED order's turn comes.
    fn turn(&self, open: &OpenOrder, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(at) = due_at(open, now) {
            lines.push(format!(
                "It is tried again {}, when its turn comes.",
                future(at, now)
            ));
        }
        let rate = self.heartbeat.learned.rate.as_ref();
        lines.push(match (self.ahead, rate.map(LearnedRate::rate)) {
            (0, _) if lines.is_empty() => format!(
                "It is the next to be started, at once or in the next pass{}.",
                self.pass_time(now)
            ),
            (0, _) => "No other order is ahead of it.".to_owned(),
            (ahead, None) => format!(
                "{} ahead of it. The pace is not known yet.",
                orders_are(ahead)
            ),
            (ahead, Some(pace)) => {
                let wait =
                    Duration::try_from_secs_f64(ahead as f64 / pace).unwrap_or(Duration::MAX);
                format!(
                    "{} ahead of it. At the present pace of {pace:.1} starts/s its turn comes in \
                     about {}.",
                    orders_are(ahead),
                    span(wait)
                )
            }
        });
        lines
    }

    /// What becomes of an order whose process was forgotten. The policy is the reconciler's and not
    /// stored; what it did tells which one it mostly is: one that holds leaves the order for a while.
    fn after_loss(&self, open: &OpenOrder, reason: Option<Reason>, now: Timestamp) -> Vec<String> {
        if open.is_released {
            return vec![format!(
                "It is looked for once more, and started again if it is not found, in the next \
                 pass{}, before new orders.",
                self.pass_time(now)
            )];
        }
        let held = "Nothing, until someone decides. Should its process be seen again, it goes on by \
                    itself.";
        if reason == Some(Reason::MaxStarts) {
            return vec![held.to_owned()];
        }
        if let Some(at) = open.next_attempt_at {
            return vec![
                held.to_owned(),
                format!(
                    "(That is so under --lost-process hold, to which this looks. Under another \
                     policy it goes on {}.)",
                    future(at, now)
                ),
            ];
        }
        vec![format!(
            "It is looked for again in the next pass{}. If it is missing still, it goes as the \
             reconciler's --lost-process says: `restart` starts it again before new orders, at the \
             pace; `hold` leaves it to you; `fail` makes it FAILED.",
            self.pass_time(now)
        )]
    }

    /// What a person can do about it, with the commands to type, which take `options` to find the
    /// database.
    pub fn to_do(&self, options: &[&str]) -> Vec<String> {
        let command = |name: &str, effect: &str| {
            let mut words = vec!["order-service".to_owned(), name.to_owned()];
            words.extend(options.iter().map(|word| quoted(word)));
            let id = self.order.id.as_str();
            if id.starts_with('-') {
                words.push("--".to_owned());
            }
            words.push(quoted(id));
            format!("{}   # {effect}", words.join(" "))
        };
        let reason = match &self.order.attention {
            Some(attention) => attention.reason,
            None => return Vec::new(),
        };
        let is_processing = self.order.status == Status::Processing;
        match reason {
            Reason::UpstreamUnreachable if self.is_upstream_down() => vec![
                "Mend the upstream, or the way to it. If it is well, look at the reconciler's \
                 --order-process-url, at the token, and at what the detail says."
                    .to_owned(),
            ],
            Reason::UpstreamUnreachable => vec![
                "Nothing has to be done if it goes away. If it does not, look in the upstream's log \
                 for this order."
                    .to_owned(),
            ],
            Reason::StartRefused => vec![
                "Find out in the upstream's log why it refuses, and mend it there; the order is \
                 tried again by itself."
                    .to_owned(),
                command("restart", "tries again in the next pass"),
            ],
            Reason::UnknownStatus => vec![
                "Look at the process in the upstream. The statuses known here are RUNNING, SUCCEEDED \
                 and FAILED: mend the upstream, or take a version of this program that knows more."
                    .to_owned(),
            ],
            Reason::ProcessLost => vec![
                "Find out, at the payment provider or the warehouse, whether the work was done. Then"
                    .to_owned(),
                command("restart", "starts it again, which repeats the work if it was done"),
                command("fail", "settles it as FAILED, for ever"),
            ],
            Reason::MaxStarts => {
                let mut lines = vec![
                    "Find out why the upstream does not bring it to an end. Then".to_owned(),
                    command("restart", "starts it once more, whatever the limit"),
                ];
                if is_processing {
                    lines.push(command("fail", "settles it as FAILED, for ever"));
                }
                lines.push("or raise the reconciler's --max-starts.".to_owned());
                lines
            }
        }
    }

    fn is_upstream_down(&self) -> bool {
        matches!(self.heartbeat.reach, Reach::Down { .. })
    }

    /// When the next look may begin, at the earliest.
    fn look_time(&self, now: Timestamp) -> String {
        match self.heartbeat.next_look_at {
            Some(at) if at > now => format!(", {} at the earliest", future(at, now)),
            _ => " in the next pass".to_owned() + &self.pass_time(now),
        }
    }

    /// When the next pass is, as a part of a sentence. It is not told when it is about to be.
    fn pass_time(&self, now: Timestamp) -> String {
        match self.heartbeat.next_pass_at {
            Some(at) if at > now => format!(", {}", future(at, now)),
            _ => String::new(),
        }
    }
}

/// What a reason of the journal means.
fn change(reason: &str) -> &str {
    match reason {
        "created" => "created",
        "started" => "its process was started: PROCESSING",
        "adopted" => "a process was found that exists, and was taken over: PROCESSING",
        "restarted" => "its process was forgotten, and it was started again",
        "succeeded" => "its process has succeeded: FULFILLED",
        "failed" => "its process has failed: FAILED",
        "failed_by_policy" => "its process was forgotten, and --lost-process said: FAILED",
        "failed_by_operator" => "its process was forgotten, and an operator said: FAILED",
        other => other,
    }
}

/// What is known of a start whose outcome is not.
fn start_without_outcome(intent: Intent, now: Timestamp) -> String {
    let written = past(intent.written_at, now);
    match (intent.given_up_at, intent.answer) {
        (None, _) => format!(
            "A start was about to be sent {written}, and its outcome is not recorded: it is on its \
             way now, or the reconciler has died meanwhile. There may be a process."
        ),
        (Some(at), None) => format!(
            "A start was sent {written}, and no answer had come {}. There may be a process.",
            past(at, now)
        ),
        (Some(at), Some(answer)) => format!(
            "A start was sent {written}, and answered with {answer} {}, which says nothing about \
             the order. There may be a process.",
            past(at, now)
        ),
    }
}

/// When the next attempt may be made, if that is not now.
fn due_at(open: &OpenOrder, now: Timestamp) -> Option<Timestamp> {
    open.next_attempt_at.filter(|_| !open.is_due(now))
}

fn not_before(open: &OpenOrder, now: Timestamp) -> String {
    match due_at(open, now) {
        Some(at) => format!("; not before {}", Rfc3339(at)),
        None => String::new(),
    }
}

fn orders_are(count: u64) -> String {
    match count {
        1 => "1 order is".to_owned(),
        n => format!("{n} orders are"),
    }
}

#[cfg(test)]
mod tests;
