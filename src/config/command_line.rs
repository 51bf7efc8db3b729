//! The command line as a whole: which command is meant, which variables count, and what is told of
//! a mistake.

use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Command, CommandFactory, FromArgMatches};

/// Parses the arguments, after adding the command that is meant when none is given.
pub(super) fn parse<T: CommandFactory + FromArgMatches>(
    meant: impl FnOnce(&[OsString]) -> Option<&'static str>,
) -> T {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if let Some(command) = meant(&arguments) {
        arguments.insert(1.min(arguments.len()), command.into());
    }
    let command = without_empty_variables(T::command());
    command
        .clone()
        .try_get_matches_from(&arguments)
        .and_then(|matches| T::from_arg_matches(&matches))
        .unwrap_or_else(|mut error| {
            // A URL may hold a password, and standard error is often kept.
            if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
                && value.contains('@')
            {
                let hidden = ContextValue::String("(not shown, as it may hold a secret)".into());
                error.insert(ContextKind::InvalidValue, hidden);
            }
            let variable = variable_behind(&error, &command, &arguments);
            // If standard error is closed, the exit code still tells.
            let _ = error.print();
            if let Some(variable) = variable {
                eprintln!("\nThe value comes from the environment variable {variable}.");
            }
            std::process::exit(error.exit_code())
        })
}

/// The variable that a wrong value came from, if it came from one.
fn variable_behind(
    error: &clap::Error,
    command: &Command,
    arguments: &[OsString],
) -> Option<String> {
    let ContextValue::String(named) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let flag = named.split_whitespace().next()?;
    let is_given = arguments
        .iter()
        .any(|argument| argument.to_string_lossy().starts_with(flag));
    let command = command.find_subcommand(arguments.get(1)?)?;
    let argument = command
        .get_arguments()
        .find(|argument| argument.get_long() == flag.strip_prefix("--"))?;
    let variable = argument.get_env()?.to_string_lossy().into_owned();
    (!is_given).then_some(variable)
}

/// Forgets the variables that are set to nothing.
fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|argument| {
            let is_empty = argument
                .get_env()
                .and_then(std::env::var_os)
                .is_some_and(|value| value.is_empty());
            if is_empty {
                argument.env(Resettable::Reset)
            } else {
                argument
            }
        })
        .mut_subcommands(without_empty_variables)
}
