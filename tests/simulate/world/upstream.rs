//! The upstream: the simulator's model, with a drawn fault for each request.

use std::time::Duration;

use order_service::order::{Observed, OrderId};
use order_service::pace::{list_cost, look_ups_cost};
use order_service::simulator::crash::Access;
use order_service::upstream::{Cause, Entry, Failure, StartError, Upstream};

use super::{Fault, Handle};
use crate::oracle::Arrival;

fn failure(detail: &str, certain: bool) -> Failure {
    let cause = match (detail, certain) {
        (_, true) => Cause::NoAccess,
        ("no answer", _) => Cause::Timeout,
        _ => Cause::Unusable,
    };
    Failure::new(detail, cause)
}

impl Upstream for Handle {
    async fn start(&self, id: &OrderId) -> Result<(), StartError> {
        let world = &self.0;
        world.crash_point().await;
        world
            .oracle
            .borrow_mut()
            .on_start_sent(id.as_str(), world.time());
        let fault = world.draw_fault();
        world.log(|| format!("start {id} ({fault:?})"));
        let silent = |answer| StartError::Ambiguous {
            answer,
            failure: failure("no answer", false),
        };
        world.travel().await;
        let is_up = world.is_up();
        let admitted = if is_up { world.admit(true) } else { Ok(()) };
        let result = match fault {
            _ if !is_up => Err(StartError::Unavailable(failure("no connection", true))),
            _ if admitted.is_err() => {
                world.travel().await;
                let (status, failure) = admitted.unwrap_err();
                Err(match status {
                    429 => StartError::Unavailable(failure),
                    _ => StartError::Ambiguous {
                        answer: Some(status),
                        failure,
                    },
                })
            }
            Fault::Unreachable => Err(StartError::Unavailable(failure("no connection", true))),
            Fault::Lost => {
                world.sleep(world.request_timeout).await;
                Err(silent(None))
            }
            Fault::Late => {
                world.sleep(world.request_timeout).await;
                let timeout = u64::try_from(world.request_timeout.as_millis()).unwrap();
                let delay = i64::try_from(world.draws.below(timeout)).unwrap();
                let arrival = (world.time().0 + delay, id.as_str().to_owned());
                world.late.borrow_mut().push(arrival);
                Err(silent(None))
            }
            Fault::Error => {
                // From a gateway, before or after it forwarded the start.
                if world.draws.below(2) == 0 && world.take_effect(id.as_str(), Arrival::InTime) {
                    world.oracle.borrow_mut().on_accepted_in_doubt(id.as_str());
                }
                Err(silent(Some(503)))
            }
            Fault::Refused => Err(StartError::Refused {
                answer: 400,
                detail: "answered 400".to_owned(),
            }),
            Fault::Foreign => {
                if world.draws.below(2) == 0 {
                    world.take_effect(id.as_str(), Arrival::InTime);
                }
                Err(StartError::Unconfirmed(failure("<html>", false)))
            }
            fault => {
                let is_new = world.take_effect(id.as_str(), Arrival::InTime);
                let processes = world.model.borrow().len();
                let access = if is_new {
                    Access::Start { processes }
                } else {
                    Access::LookUp
                };
                match fault {
                    _ if !world.survives(access) => Err(silent(None)),
                    Fault::AnswerLost => {
                        world.sleep(world.request_timeout).await;
                        Err(silent(None))
                    }
                    Fault::Crash => {
                        world.end_incarnation();
                        Err(silent(None))
                    }
                    _ => {
                        world.delay(fault, world.request_timeout).await;
                        world.travel().await;
                        if is_new {
                            Ok(())
                        } else {
                            Err(StartError::Refused {
                                answer: 400,
                                detail: "exists".to_owned(),
                            })
                        }
                    }
                }
            }
        };
        world.crash_point().await;
        world.log(|| format!("start {id} answered {result:?}"));
        world
            .oracle
            .borrow_mut()
            .on_start_answered(id.as_str(), &result, world.time());
        result
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        let world = &self.0;
        world.crash_point().await;
        let began_at = world.time();
        let fault = world.draw_fault();
        world.travel().await;
        let result = match fault {
            Fault::Unreachable => Err(failure("no connection", true)),
            Fault::Lost | Fault::Late | Fault::AnswerLost => {
                world.sleep(world.request_timeout).await;
                Err(failure("no answer", false))
            }
            Fault::Error | Fault::Refused | Fault::BadList | Fault::Foreign => {
                Err(failure("answered 500", false))
            }
            Fault::Crash => {
                world.end_incarnation();
                Err(failure("the connection broke", false))
            }
            _ if !world.is_up() => Err(failure("no connection", true)),
            _ if let Err((_, failure)) = world.admit(false) => Err(failure),
            _ if !world.survives(Access::LookUp) => Err(failure("the connection broke", false)),
            Fault::None | Fault::UnknownStatus | Fault::Slow | Fault::Lagging => {
                world.delay(fault, world.request_timeout).await;
                world.on_poll(look_ups_cost(1));
                let read_at = world.read_at(fault, began_at);
                let (model, history) = (world.model.borrow(), world.history.borrow());
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
        world.travel().await;
        world.crash_point().await;
        world.log(|| format!("look-up {id} ({fault:?}) answered {result:?}"));
        if let Ok(observed) = &result {
            let mut oracle = world.oracle.borrow_mut();
            oracle.on_observed(id.as_str(), observed, began_at, true);
        }
        result
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        let world = &self.0;
        world.crash_point().await;
        let began_at = world.time();
        let fault = world.draw_fault();
        world.travel().await;
        match fault {
            Fault::Unreachable => return Err(failure("no connection", true)),
            Fault::Lost | Fault::Late | Fault::AnswerLost => {
                world.sleep(world.request_timeout).await;
                return Err(failure("no answer", false));
            }
            Fault::Error | Fault::Refused | Fault::Foreign => {
                return Err(failure("answered 500", false));
            }
            Fault::None
            | Fault::BadList
            | Fault::UnknownStatus
            | Fault::Crash
            | Fault::Slow
            | Fault::Lagging => {}
        }
        if !world.is_up() {
            return Err(failure("no connection", true));
        }
        if let Err((_, failure)) = world.admit(false) {
            return Err(failure);
        }
        let entries = world.model.borrow().len();
        world.on_poll(list_cost(entries as u64));
        if !world.survives(Access::List { entries }) {
            return Err(failure("the connection broke", false));
        }
        let draws = world.draws.clone();
        let draw = &mut |below| draws.below(below);
        let read_at = world.read_at(fault, began_at);
        let mut processes = {
            let (model, history) = (world.model.borrow(), world.history.borrow());
            history.list(&model, read_at, draw)
        };
        let mut is_whole = true;
        let mut is_complete = true;
        if fault == Fault::BadList {
            // Either cut, or complete with an entry that contradicts another.
            if world.draws.below(2) == 0 {
                let length = world.draws.below(processes.len() as u64 + 1) as usize;
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
            world.end_incarnation();
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
        world.delay(fault, Duration::from_secs(60)).await;
        world.travel().await;
        world.crash_point().await;
        world.log(|| format!("list ({fault:?}) of {}", processes.len()));
        world
            .oracle
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
