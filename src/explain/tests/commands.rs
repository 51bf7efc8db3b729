//! The commands of an explanation.

use super::*;

#[test]
fn a_command_can_be_pasted_whatever_the_id() {
    for (id, word) in [
        ("a1", "a1"),
        ("/var/lib/o.db", "/var/lib/o.db"),
        ("a b", "'a b'"),
        ("it's", r"'it'\''s'"),
        ("$(reboot)", "'$(reboot)'"),
    ] {
        assert_eq!(quoted(id), word);
    }
    let mut case = troubled(created(), Reason::StartRefused, "\u{1b}[2Jgone", 1);
    assert!(
        !case
            .explain(NOW, &Invocation::elsewhere())
            .to_string()
            .contains('\u{1b}')
    );
    case.order.id = OrderId::new("-x").unwrap();
    let text = case
        .explain(NOW, &Invocation::here("/a b/order-service", "/a b/o.db"))
        .to_string();
    let command = "\n  '/a b/order-service' restart --database-url '/a b/o.db' -- -x   # ";
    assert!(text.contains(command), "{text}");
}

#[test]
fn a_refused_restart_can_be_repeated_and_does_not_let_an_order_fail() {
    let refused = troubled(processing(), Reason::StartRefused, "it answered 422", 1);
    let commands = refused.commands(&Invocation::elsewhere());
    let lines: Vec<_> = commands.iter().map(|command| &*command.command).collect();
    assert_eq!(lines, ["order-service restart a1"]);
}

#[test]
fn a_lost_process_whose_look_up_fails_leaves_the_decision_to_the_operator() {
    let mut silent = troubled(processing(), Reason::UpstreamUnreachable, "no answer", 1);
    let names = |case: &OrderDetails| {
        let commands = case.commands(&Invocation::elsewhere());
        commands
            .into_iter()
            .map(|command| command.command)
            .collect::<Vec<_>>()
    };
    assert!(names(&silent).is_empty(), "it may run");
    open(&mut silent).mark_missing(ago(30));
    open(&mut silent).attention = Some(Reason::UpstreamUnreachable);
    assert_eq!(
        names(&silent),
        ["order-service restart a1", "order-service fail a1"]
    );
}
