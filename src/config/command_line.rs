//! The command line as a whole: the default command, empty variables, and the reports of errors.

use std::ffi::OsString;
use std::io::Write as _;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::store::{DatabaseUrl, may_hold_password};

/// Parses the arguments, after inserting the command that `default_command` returns for the first
/// argument. `elsewhere` returns where an unknown command is instead, and `contradiction` the error of
/// settings that exclude each other.
pub(super) fn parse<T: CommandFactory + FromArgMatches>(
    default_command: impl FnOnce(Option<&str>) -> Option<&'static str>,
    elsewhere: impl FnOnce(&str) -> Option<String>,
    contradiction: impl FnOnce(&ArgMatches) -> Option<String>,
) -> T {
    let mut arguments = join_negative_values(std::env::args_os());
    let index = first_after_globals(&arguments);
    let first = arguments.get(index).map(|first| first.to_string_lossy());
    if let Some(command) = default_command(first.as_deref()) {
        arguments.insert(index, command.into());
    }
    let command = adapt(T::command());
    let matches = command.clone().try_get_matches_from(&arguments);
    let is_help = matches.as_ref().is_err_and(|error| !error.use_stderr());
    if !is_help && let Some(what) = control_character(&command, &arguments, index) {
        command.clone().error(ErrorKind::InvalidValue, what).exit();
    }
    matches
        .and_then(
            |matches| match contradiction(&matches).or_else(|| password_in_flag(&matches)) {
                Some(what) => Err(command.clone().error(ErrorKind::ArgumentConflict, what)),
                None => T::from_arg_matches(&matches),
            },
        )
        .unwrap_or_else(|mut error| {
            hide_passwords(&mut error);
            if let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand)
                && let Some(tip) = elsewhere(name)
            {
                let tip = ContextValue::StyledStrs(vec![tip.into()]);
                error.insert(ContextKind::Suggested, tip);
            }
            let variable = variable_behind(&error, &command, &arguments, index);
            // If standard error is closed, the exit code remains.
            let _ = error.print();
            if let Some(variable) = variable {
                let _ = writeln!(
                    std::io::stderr(),
                    "\nThe value comes from the environment variable {variable}."
                );
            }
            std::process::exit(error.exit_code())
        })
}

/// Hides what may hold a password in an error, because standard error is often kept.
fn hide_passwords(error: &mut clap::Error) {
    for kind in [
        ContextKind::InvalidValue,
        ContextKind::InvalidArg,
        ContextKind::InvalidSubcommand,
    ] {
        if let Some(ContextValue::String(value)) = error.get(kind)
            && may_hold_password(value)
        {
            let hidden = ContextValue::String("(not shown, as it may hold a secret)".into());
            error.insert(kind, hidden);
            // It would repeat the value.
            error.insert(ContextKind::Suggested, ContextValue::None);
        }
    }
}

/// Joins each flag to a value that begins like a negative number, so that the error is that of its parser. With
/// clap's `allow_hyphen_values`, a flag without a value would take the next flag for it.
fn join_negative_values(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut may_be_flags = true;
    for argument in arguments {
        may_be_flags &= argument != "--";
        let is_negative = matches!(argument.as_encoded_bytes(), [b'-', b'0'..=b'9' | b'.', ..]);
        let flag = joined.last_mut().filter(|flag| {
            let flag = flag.as_encoded_bytes();
            flag.starts_with(b"--") && !flag.contains(&b'=')
        });
        match flag {
            Some(flag) if is_negative && may_be_flags => {
                flag.push("=");
                flag.push(argument);
            }
            _ => joined.push(argument),
        }
    }
    joined
}

/// Returns the error of a password on the command line, which other users of the machine can read.
fn password_in_flag(matches: &ArgMatches) -> Option<String> {
    let (_, command) = matches.subcommand()?;
    let has_password = |id: &&str| {
        let url: Option<&DatabaseUrl> = command.try_get_one(id).ok().flatten();
        command.value_source(id) == Some(ValueSource::CommandLine)
            && url.is_some_and(DatabaseUrl::has_password)
    };
    // An unknown id makes clap panic where the value is asked for, but not here.
    let id = ["database_url", "from", "to"]
        .into_iter()
        .filter(|id| command.try_contains_id(id).is_ok())
        .find(has_password)?;
    let name = match id {
        "database_url" => "--database-url",
        "from" => "FROM",
        _ => "TO",
    };
    Some(format!(
        "{name} may hold no password, because other users of the machine can read it; set \
         PGPASSWORD or PGPASSFILE instead"
    ))
}

/// Returns the error of `dev` with both an upstream and a flag of the simulator. Variables may be meant
/// for another program, so of these only the preset counts: its faults would never come.
pub(super) fn simulator_without_simulator(matches: &ArgMatches) -> Option<String> {
    let ("dev", dev) = matches.subcommand()? else {
        return None;
    };
    let given = |id: &str, flag: &str, variable: &str| match dev.value_source(id)? {
        ValueSource::CommandLine => Some(flag.to_owned()),
        ValueSource::EnvVariable => Some(format!("{flag} (from {variable})")),
        _ => None,
    };
    let url = given(
        "order_process_url",
        "--order-process-url",
        "ORDER_PROCESS_URL",
    )?;
    let is_flag = |id| dev.value_source(id) == Some(ValueSource::CommandLine);
    let preset = given("preset", "--preset", "SIMULATOR_PRESET");
    let flag = preset.or_else(|| {
        let others = [
            ("control", "--control"),
            ("seed", "--seed"),
            ("simulator_listen", "--simulator-listen"),
            ("max_order_process_duration", "--max-order-process-duration"),
        ];
        let (_, flag) = others.into_iter().find(|(id, _)| is_flag(id))?;
        Some(flag.to_owned())
    })?;
    Some(format!(
        "{flag} is for the simulator, which does not run when {url} names an order process service; \
         leave one of the two out"
    ))
}

/// Returns the index of the first argument after the global flags.
fn first_after_globals(arguments: &[OsString]) -> usize {
    const LOG_FORMAT: &str = "--log-format";
    let mut index = 1.min(arguments.len());
    while let Some(argument) = arguments.get(index).and_then(|argument| argument.to_str()) {
        index += match argument.strip_prefix(LOG_FORMAT) {
            Some("") if index + 1 < arguments.len() => 2,
            Some(rest) if rest.starts_with('=') => 1,
            _ => break,
        };
    }
    index
}

/// Returns the variable that a wrong value came from, if any. The command is at `index`.
fn variable_behind(
    error: &clap::Error,
    command: &Command,
    arguments: &[OsString],
    index: usize,
) -> Option<String> {
    let ContextValue::String(named) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let flag = named.split_whitespace().next()?;
    let is_given = arguments
        .iter()
        .any(|argument| argument.to_string_lossy().starts_with(flag));
    let subcommand = command.find_subcommand(arguments.get(index)?)?;
    let argument = command
        .get_arguments()
        .chain(subcommand.get_arguments())
        .find(|argument| argument.get_long() == flag.strip_prefix("--"))?;
    let variable = argument.get_env()?.to_string_lossy().into_owned();
    (!is_given).then_some(variable)
}

/// Returns the error of a control character in a setting of the command at `index`. A file of
/// variables with line ends of Windows leaves a carriage return at the end of each value, which would
/// end up in the name of a file, and is invisible in a message that repeats the value.
fn control_character(command: &Command, arguments: &[OsString], index: usize) -> Option<String> {
    let describe = |setting: &str, value: &str| {
        let wrong = value.chars().find(|found| found.is_control())?;
        let name = match wrong {
            '\r' => ", a carriage return, as at line ends of Windows".to_owned(),
            '\n' => ", the end of a line".to_owned(),
            _ => String::new(),
        };
        Some(format!(
            "{setting} has the control character {wrong:?}{name}; remove it"
        ))
    };
    let words = arguments.iter().skip(1).map(|word| word.to_string_lossy());
    let words: Vec<_> = words.take_while(|word| word != "--").collect();
    let flags = words.iter().enumerate().find_map(|(index, word)| {
        if let Some((flag, value)) = word.split_once('=')
            && flag.starts_with("--")
        {
            return describe(flag, value);
        }
        let flag = words.get(index.checked_sub(1)?)?;
        flag.starts_with("--").then(|| describe(flag, word))?
    });
    flags.or_else(|| {
        let of_command = arguments
            .get(index)
            .and_then(|name| command.find_subcommand(name));
        let settings = of_command.into_iter().flat_map(Command::get_arguments);
        let mut variables = command
            .get_arguments()
            .chain(settings)
            .filter_map(|argument| {
                let variable = argument.get_env()?;
                Some((variable.to_string_lossy(), std::env::var_os(variable)?))
            });
        variables.find_map(|(variable, value)| {
            let setting = format!("the environment variable {variable}");
            describe(&setting, &value.to_string_lossy())
        })
    })
}

/// Ignores empty variables, and hides the values of the others in the help: they may be secret, and the
/// help is often kept or shared.
fn adapt(command: Command) -> Command {
    command
        .mut_args(|argument| {
            let argument = argument.hide_env_values(true);
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
        .mut_subcommands(adapt)
}
