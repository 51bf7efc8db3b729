//! Requests and their answers, as the real service gives them.

use super::*;

const NOW: Timestamp = Timestamp(1_000_000);
const LATER: Timestamp = Timestamp(i64::MAX);

/// Draws the longest duration, FAILED, and lists in the order of the starts.
fn highest(n: u64) -> u64 {
    n - 1
}

fn start(model: &mut Model, body: &str, callback_url: Option<&str>) -> Answer {
    let (content_type, body) = (Some(JSON), body.as_bytes());
    let request = Request::Start {
        content_type,
        body,
        callback_url,
    };
    model.answer(&request, NOW, &mut highest)
}

/// Returns the body of the answer to a GET, which is always 200 and JSON.
fn get(model: &mut Model, order_id: Option<&str>) -> String {
    let answer = model.answer(&Request::of_get(order_id), NOW, &mut highest);
    assert_eq!(
        (answer.status, answer.content_type),
        (200, Some("application/json"))
    );
    String::from_utf8(answer.body).unwrap()
}

#[track_caller]
fn check_refused(answer: &Answer, content_type: &str, body: &str) {
    assert_eq!(
        (answer.status, answer.content_type),
        (400, Some(content_type))
    );
    assert_eq!(String::from_utf8_lossy(&answer.body), body);
}

#[track_caller]
fn check_empty(answer: &Answer, status: u16) {
    assert_eq!((answer.status, answer.content_type), (status, None));
    assert!(answer.body.is_empty());
}

#[test]
fn a_list_is_a_bare_array_and_a_look_up_a_bare_object() {
    let mut model = Model::new(10);
    assert_eq!(get(&mut model, None), "[]");
    assert_eq!(get(&mut model, Some("a1")), "{}");
    check_empty(&start(&mut model, r#"{"order_id":"a1"}"#, None), 200);
    check_empty(
        &start(&mut model, r#"{"order_id":" \"\u0001/é"}"#, None),
        200,
    );
    let a1 = r#"{"order_id":"a1","status":"RUNNING"}"#;
    let other = r#"{"order_id":" \"\u0001/é","status":"RUNNING"}"#;
    assert_eq!(get(&mut model, None), format!("[{a1},{other}]"));
    assert_eq!(get(&mut model, Some("")), format!("[{a1},{other}]"));
    assert_eq!(get(&mut model, Some("a1")), a1);
    assert_eq!(get(&mut model, Some(" \"\u{1}/é")), other);
    for unknown in ["A1", "a1 ", " \"\u{1}/e\u{301}"] {
        assert_eq!(get(&mut model, Some(unknown)), "{}", "{unknown:?}");
    }
}

#[test]
fn an_invalid_start_is_refused_and_starts_nothing() {
    let mut model = Model::new(10);
    let missing = r#"{"message":"missing order id"}"#;
    let bodies = r#"{} null {"order_id":""} {"order_id":null} {"id":"a1"}"#;
    for body in bodies.split(' ') {
        check_refused(&start(&mut model, body, None), "application/json", missing);
    }
    let invalid = r#"{"message":"invalid request body"}"#;
    let bodies = r#" { {"order_id":"a1 [] ["a1"] "a1" {"order_id":1} {"order_id":["a1"]}"#;
    for body in bodies.split(' ') {
        check_refused(&start(&mut model, body, None), "application/json", invalid);
    }
    let invalid = r#"{"message":"invalid content type. Valid: application/json"}"#;
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/json; charset=utf-8"),
    ] {
        let (body, callback_url) = (b"[".as_slice(), None);
        let request = Request::Start {
            content_type,
            body,
            callback_url,
        };
        let answer = model.answer(&request, NOW, &mut highest);
        check_refused(&answer, "text/plain", invalid);
    }
    assert!(model.is_empty());
}

#[test]
fn an_id_with_a_quote_makes_the_refusal_invalid_json() {
    let mut model = Model::new(10);
    for (body, id) in [
        (r#"{"order_id":"a1"}"#, "a1"),
        (r#"{"order_id":"a\"1"}"#, "a\"1"),
    ] {
        check_empty(&start(&mut model, body, None), 200);
        let exists = format!(r#"{{"message":"order process for order {id} exists"}}"#);
        let answer = start(&mut model, body, Some("nonsense"));
        check_refused(&answer, "application/json", &exists);
    }
    assert_eq!(model.len(), 2);
}

#[test]
fn a_start_with_a_callback_is_accepted() {
    let mut model = Model::new(10);
    let url = Some("http://client:8000/called?back");
    check_empty(&start(&mut model, r#"{"order_id":"a1"}"#, url), 202);
    assert_eq!(model.look_up("a1", LATER), Some("FAILED"));
    check_empty(&start(&mut model, r#"{"order_id":"a2"}"#, Some("")), 200);
}

#[test]
fn a_start_with_an_invalid_callback_is_refused_but_its_process_runs_for_ever() {
    let mut model = Model::new(1);
    let invalid = r#"{"message":"invalid callback url"}"#;
    for url in ["nonsense", "/a", "http://", "://a", "1a://b", "http://a b"] {
        let answer = start(&mut model, &format!(r#"{{"order_id":"{url}"}}"#), Some(url));
        check_refused(&answer, "application/json", invalid);
        assert_eq!(model.look_up(url, LATER), Some("RUNNING"));
    }
}

#[test]
fn a_process_runs_for_the_time_drawn_and_may_end_at_once() {
    let mut model = Model::new(10);
    assert!(model.start("a1", NOW, &mut highest));
    assert!(!model.start("a1", NOW, &mut |_| 0));
    let end = NOW.0 + 9_000;
    assert_eq!(model.look_up("a1", Timestamp(end - 1)), Some("RUNNING"));
    assert_eq!(model.look_up("a1", Timestamp(end)), Some("FAILED"));
    assert!(model.start("a2", NOW, &mut |_| 0));
    assert_eq!(model.look_up("a2", NOW), Some("SUCCEEDED"));
    for max in [0, 1] {
        let mut model = Model::new(max);
        assert!(model.start("a1", NOW, &mut highest));
        assert_eq!(model.look_up("a1", NOW), Some("FAILED"));
    }
}

#[test]
fn the_first_process_of_each_incarnation_always_succeeds_on_request() {
    let run = |mut model: Model| {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut draw = |n| rng.u64(..n);
        let mut statuses = Vec::new();
        for _ in 0..2 {
            model.forget_everything();
            assert!((0..9).all(|i| model.start(&i.to_string(), NOW, &mut draw)));
            let at = |secs| NOW.after(Duration::from_secs(secs));
            let at_secs = |secs| (0..9).map(move |i| (i, at(secs)));
            statuses.extend([0, 2, 3, 9].map(|secs| {
                let seen = at_secs(secs).map(|(i, at)| model.look_up(&i.to_string(), at));
                seen.flatten().collect::<Vec<_>>()
            }));
        }
        statuses
    };
    let (plain, sure) = (
        run(Model::new(10)),
        run(Model::new(10).with_first_success()),
    );
    let first: Vec<_> = sure.iter().map(|seen| seen[0]).collect();
    let statuses = ["RUNNING", "RUNNING", "SUCCEEDED", "SUCCEEDED"];
    assert_eq!(first, [statuses, statuses].concat());
    for (plain, sure) in plain.iter().zip(&sure) {
        assert_eq!(plain[1..], sure[1..]);
    }
    let mut model = Model::new(1).with_first_success();
    assert!(model.start("a1", NOW, &mut highest));
    assert_eq!(model.look_up("a1", NOW), Some("SUCCEEDED"));
}

#[test]
fn every_list_has_its_own_order_and_a_seed_repeats_them() {
    let run = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut draw = |n| rng.u64(..n);
        let mut model = Model::new(600);
        assert!((0..100).all(|i| model.start(&i.to_string(), NOW, &mut draw)));
        let then = NOW.after(Duration::from_secs(300));
        [model.list(then, &mut draw), model.list(then, &mut draw)]
    };
    let mut lists = run(1);
    assert_eq!(lists, run(1));
    assert_ne!(lists, run(2));
    assert_ne!(lists[0], lists[1]);
    lists.iter_mut().for_each(|list| list.sort());
    assert_eq!(lists[0], lists[1]);
    for word in ["RUNNING", "SUCCEEDED", "FAILED"] {
        assert!(lists[0].iter().any(|(_, status)| *status == word), "{word}");
    }
}

#[test]
fn each_completion_is_taken_once_and_in_the_order_of_their_moments() {
    let mut model = Model::new(600);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut draw = |n| rng.u64(..n);
    assert!((0..100).all(|i| model.start(&i.to_string(), NOW, &mut draw)));
    assert!(!model.start("0", NOW, &mut draw));
    start(&mut model, r#"{"order_id":"for ever"}"#, Some("nonsense"));
    let middle = NOW.after(Duration::from_secs(300));
    let early: Vec<_> = std::iter::from_fn(|| model.next_completion(middle)).collect();
    let late: Vec<_> = std::iter::from_fn(|| model.next_completion(LATER)).collect();
    assert_eq!(early.len() + late.len(), 100);
    assert!(early.is_sorted() && late.is_sorted());
    assert!(*early.last().unwrap() <= middle && middle < late[0]);
}

#[test]
fn a_restart_forgets_every_process() {
    let mut model = Model::new(10);
    assert!(model.start("a1", NOW, &mut highest));
    model.forget_everything();
    assert_eq!(model.next_completion(LATER), None);
    assert_eq!(model.list(NOW, &mut highest), []);
    assert_eq!(model.look_up("a1", NOW), None);
    assert!(model.start("a1", NOW, &mut highest));
    assert_eq!(model.look_up("a1", NOW), Some("RUNNING"));
}
