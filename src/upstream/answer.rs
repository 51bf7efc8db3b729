//! Answers of the order process service: the process in a look-up, and excerpts for people.

use serde::Deserialize;

use crate::order::{Observed, OrderId};

/// Maximum length of the excerpt of an unexpected answer, in characters.
const EXCERPT_MAX: usize = 200;

/// Returns the observation in the body of a 200 answer to a look-up of `id`.
pub(super) fn observed_of(id: &OrderId, body: &[u8]) -> Result<Observed, String> {
    #[derive(Deserialize)]
    struct Process {
        order_id: String,
        status: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    // An empty object alone means that the order has no process.
    if serde_json::from_slice::<Nothing>(body).is_ok() && body.trim_ascii().starts_with(b"{") {
        return Ok(Observed::Absent);
    }
    if !body.trim_ascii().starts_with(b"{") {
        return Err(match excerpt(body) {
            blank if blank.is_empty() => "an empty body".to_owned(),
            text => format!("something that is no object: {text}"),
        });
    }
    let process: Process = serde_json::from_slice(body)
        .map_err(|error| format!("an object that is no process ({error}): {}", excerpt(body)))?;
    if process.order_id != id.as_str() {
        return Err("the process of another order".to_owned());
    }
    Ok(Observed::of_status(&process.status))
}

/// Returns the status and the beginning of the body.
pub(super) fn summary(status: u16, body: &[u8]) -> String {
    match excerpt(body) {
        blank if blank.is_empty() => status.to_string(),
        text => format!("{status}: {text}"),
    }
}

/// Returns the beginning of a body, on one line.
pub(super) fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(EXCERPT_MAX)
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_object_means_that_the_order_is_unknown() {
        let id = OrderId::new("a1").unwrap();
        assert_eq!(observed_of(&id, b"{}"), Ok(Observed::Absent));
        assert_eq!(observed_of(&id, b" { }\n"), Ok(Observed::Absent));
        for (body, observed) in [
            (r#"{"order_id":"a1","status":"RUNNING"}"#, Observed::Running),
            (
                r#"{"status":"SUCCEEDED","order_id":"a1","more":[1]}"#,
                Observed::Succeeded,
            ),
            (r#"{"order_id":"a1","status":"FAILED"}"#, Observed::Failed),
            (
                r#"{"order_id":"a1","status":"PAUSED"}"#,
                Observed::Unrecognised("PAUSED".into()),
            ),
        ] {
            assert_eq!(observed_of(&id, body.as_bytes()), Ok(observed), "{body}");
        }
        for body in [
            "",
            "null",
            "[]",
            "[{}]",
            r#"[{"order_id":"a1","status":"RUNNING"}]"#,
            r#"["a1","RUNNING"]"#,
            r#"{"message":"hello"}"#,
            r#"{"order_id":"a1"}"#,
            r#"{"status":"RUNNING"}"#,
            r#"{"order_id":"a2","status":"RUNNING"}"#,
            r#"{"order_id":"a1","status":"RUNNING","status":"FAILED"}"#,
            r#"{"order_id":"a1","status":null}"#,
            r#"{"order_id":"a1","status":"RUNNING"}{}"#,
            "<html></html>",
        ] {
            let what = observed_of(&id, body.as_bytes()).unwrap_err();
            assert!(!what.ends_with([' ', ':']), "{body}: {what}");
        }
        for blank in ["", " \r\n", "\0"] {
            let what = observed_of(&id, blank.as_bytes()).unwrap_err();
            assert_eq!(what, "an empty body", "{blank:?}");
            assert_eq!(summary(200, blank.as_bytes()), "200");
        }
    }
}
