//! The upstream: the simulator's model, with a drawn fault for each request.

use std::time::Duration;

use order_service::order::{Observed, OrderId};
use order_service::pace::{list_cost, look_ups_cost};
use order_service::simulator::crash::Access;
use order_service::upstream::{Cause, Entry, Failure, StartError, Upstream};

use super::{Environment, Fault, Handle};
use crate::oracle::Arrival;

fn failure(detail: &str, certain: bool) -> Failure {
    let cause = match (detail, certain) {
        (_, true) => Cause::NoConnection,
        ("no answer", _) => Cause::Timeout,
        ("answered 403", _) => Cause::AccessDenied,
        _ => Cause::Unusable,
    };
    Failure::new(detail, cause)
}

/// Lets a start that a gateway answers take effect or not: the answer is from before or after it forwarded the
/// start.
fn in_doubt(env: &Environment, id: &OrderId) {
    if env.draws.below(2) == 0 && env.take_effect(id.as_str(), Arrival::InTime) {
        env.oracle.borrow_mut().on_accepted_in_doubt(id.as_str());
    }
}

impl Upstream for Handle {
    async fn start(&self, id: &OrderId) -> Result<(), StartError> {
        let env = &self.0;
        let request = env.begin_request();
        env.reach_crash_point().await;
        env.oracle
            .borrow_mut()
            .on_start_sent(id.as_str(), env.time());
        let fault = env.draw_fault(Some(id));
        env.log(|| format!("start {id} ({fault:?})"));
        let ambiguous = |answer_status| StartError::Ambiguous {
            answer_status,
            failure: failure("no answer", false),
        };
        env.travel().await;
        let is_up = env.is_up();
        let admitted = if is_up { env.admit(true) } else { Ok(()) };
        let result = match fault {
            _ if !is_up => Err(StartError::Unavailable(failure("no connection", true))),
            _ if admitted.is_err() => {
                env.travel().await;
                let (status, failure) = admitted.unwrap_err();
                Err(match status {
                    429 => StartError::Unavailable(failure),
                    _ => StartError::Ambiguous {
                        answer_status: Some(status),
                        failure,
                    },
                })
            }
            Fault::Unreachable => Err(StartError::Unavailable(failure("no connection", true))),
            Fault::Lost => {
                env.sleep(env.request_timeout).await;
                Err(ambiguous(None))
            }
            Fault::Late => {
                env.sleep(env.request_timeout).await;
                let timeout = u64::try_from(env.request_timeout.as_millis()).unwrap();
                let delay = i64::try_from(env.draws.below(timeout)).unwrap();
                let arrival = (env.time().0 + delay, id.as_str().to_owned());
                env.late.borrow_mut().push(arrival);
                Err(ambiguous(None))
            }
            Fault::Error => {
                in_doubt(env, id);
                Err(ambiguous(Some(503)))
            }
            Fault::Refused => Err(StartError::Refused {
                answer_status: 400,
                detail: "answered 400".to_owned(),
            }),
            Fault::Foreign => {
                in_doubt(env, id);
                Err(StartError::Unconfirmed {
                    answer_status: 200,
                    failure: failure("<html>", false),
                })
            }
            fault => {
                let is_new = env.take_effect(id.as_str(), Arrival::InTime);
                let processes = env.model.borrow().len();
                let access = if is_new {
                    Access::Start { processes }
                } else {
                    Access::LookUp
                };
                match fault {
                    _ if !env.survives(access) => Err(ambiguous(None)),
                    Fault::AnswerLost => {
                        env.sleep(env.request_timeout).await;
                        Err(ambiguous(None))
                    }
                    Fault::Crash => {
                        env.end_incarnation();
                        Err(ambiguous(None))
                    }
                    _ => {
                        env.delay(fault, env.request_timeout).await;
                        env.travel().await;
                        if is_new {
                            Ok(())
                        } else {
                            Err(StartError::Refused {
                                answer_status: 400,
                                detail: "exists".to_owned(),
                            })
                        }
                    }
                }
            }
        };
        request.on_answered("starts");
        env.reach_crash_point().await;
        env.log(|| format!("start {id} answered {result:?}"));
        env.oracle
            .borrow_mut()
            .on_start_answered(id.as_str(), &result, env.time());
        result
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        let env = &self.0;
        let request = env.begin_request();
        env.reach_crash_point().await;
        let began_at = env.time();
        let fault = env.draw_fault(Some(id));
        env.travel().await;
        let result = match fault {
            Fault::Unreachable => Err(failure("no connection", true)),
            Fault::Lost | Fault::Late | Fault::AnswerLost => {
                env.sleep(env.request_timeout).await;
                Err(failure("no answer", false))
            }
            Fault::Refused => Err(failure("answered 403", false)),
            Fault::Error | Fault::BadList | Fault::Foreign => Err(failure("answered 500", false)),
            Fault::Crash => {
                env.end_incarnation();
                Err(failure("the connection broke", false))
            }
            _ if !env.is_up() => Err(failure("no connection", true)),
            _ if let Err((_, failure)) = env.admit(false) => Err(failure),
            _ if !env.survives(Access::LookUp) => Err(failure("the connection broke", false)),
            Fault::None | Fault::UnknownStatus | Fault::Slow | Fault::Lagging => {
                env.delay(fault, env.request_timeout).await;
                env.on_poll(look_ups_cost(1));
                let read_at = env.read_at(fault, began_at);
                let (model, history) = (env.model.borrow(), env.history.borrow());
                let status = history.look_up(&model, id.as_str(), read_at);
                Ok(match status {
                    None => Observed::Absent,
                    Some("RUNNING") if fault == Fault::UnknownStatus => {
                        Observed::of_status("PAUSED")
                    }
                    Some(status) => Observed::of_status(status),
                })
            }
        };
        env.travel().await;
        request.on_answered("look-ups");
        env.reach_crash_point().await;
        env.log(|| format!("look-up {id} ({fault:?}) answered {result:?}"));
        if let Ok(observed) = &result {
            let mut oracle = env.oracle.borrow_mut();
            oracle.on_observed(id.as_str(), observed, began_at, true);
        }
        result
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        let env = &self.0;
        env.reach_crash_point().await;
        let began_at = env.time();
        let fault = env.draw_fault(None);
        env.travel().await;
        match fault {
            Fault::Unreachable => return Err(failure("no connection", true)),
            Fault::Lost | Fault::Late | Fault::AnswerLost => {
                env.sleep(env.request_timeout).await;
                return Err(failure("no answer", false));
            }
            Fault::Refused => return Err(failure("answered 403", false)),
            Fault::Error | Fault::Foreign => return Err(failure("answered 500", false)),
            Fault::None
            | Fault::BadList
            | Fault::UnknownStatus
            | Fault::Crash
            | Fault::Slow
            | Fault::Lagging => {}
        }
        if !env.is_up() {
            return Err(failure("no connection", true));
        }
        if let Err((_, failure)) = env.admit(false) {
            return Err(failure);
        }
        let entries = env.model.borrow().len();
        env.on_poll(list_cost(entries as u64));
        if !env.survives(Access::List { entries }) {
            return Err(failure("the connection broke", false));
        }
        let draws = env.draws.clone();
        let draw = &mut |below| draws.below(below);
        let read_at = env.read_at(fault, began_at);
        let mut processes = {
            let (model, history) = (env.model.borrow(), env.history.borrow());
            history.list(&model, read_at, draw)
        };
        let mut is_whole = true;
        let mut is_complete = true;
        if fault == Fault::BadList {
            // Either cut, or complete with an entry that contradicts another.
            if env.draws.below(2) == 0 {
                let length = env.draws.below(processes.len() as u64 + 1) as usize;
                processes.truncate(length);
                (is_whole, is_complete) = (false, false);
            } else if let Some((id, status)) = processes.first().cloned() {
                let other = if status == "FAILED" {
                    "SUCCEEDED"
                } else {
                    "FAILED"
                };
                processes.push((id, other));
            }
        }
        if fault == Fault::Crash {
            env.end_incarnation();
            processes.truncate(processes.len() / 2);
            (is_whole, is_complete) = (false, false);
        }
        if fault == Fault::UnknownStatus {
            for (_, status) in processes
                .iter_mut()
                .filter(|(_, status)| *status == "RUNNING")
            {
                *status = "PAUSED";
            }
        }
        env.delay(fault, Duration::from_secs(60)).await;
        env.travel().await;
        env.reach_crash_point().await;
        env.log(|| format!("list ({fault:?}) of {}", processes.len()));
        env.oracle
            .borrow_mut()
            .on_listed(&processes, is_complete, began_at);
        for (id, status) in &processes {
            on_entry(Entry {
                order_id: id.into(),
                status: (*status).into(),
            });
        }
        if is_whole {
            Ok(processes.len() as u64)
        } else {
            Err(failure("cut off", false))
        }
    }
}
