//! `sandpipe status`: how a running application is.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::application::{Places, run_dir};
use crate::bridge::{AppStatus, BusCounts, LimitState};
use crate::config::Network;
use crate::control::{Question, ask};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  sandpipe status hello\n  sandpipe status hello --json\n  \
    sandpipe status hello --shutdown"
)]
pub(super) struct Args {
    /// The application's name
    app: String,
    /// Where sockets and locks are
    #[arg(long, value_name = "DIR", env = "SANDPIPE_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Finish what is open, then end the agent and its sandbox
    #[arg(long)]
    shutdown: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn status(args: &Args) -> anyhow::Result<ExitCode> {
    let socket = Places::socket_for(&run_dir(args.run_dir.as_deref()), &args.app);
    let question = if args.shutdown {
        Question::Shutdown
    } else {
        Question::Status
    };
    let of_agent = socket.file_name().is_some_and(|name| name == "agent.sock");
    if of_agent && args.shutdown {
        anyhow::bail!(
            "{0} may share its agent; end it with: sandpipe undeploy {0}",
            args.app
        );
    }
    let mut agent = ask(&socket, question)?;
    if of_agent {
        agent.apps.retain(|app| app.app == args.app);
        if agent.apps.is_empty() {
            anyhow::bail!(
                "{} does not run here; sandpipe ps shows what does",
                args.app
            );
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&agent)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("agent {} at {}", agent.pid, agent.url);
    let mut ready = true;
    for app in &agent.apps {
        let state = app.not_ready.as_deref().unwrap_or("ready");
        ready &= app.not_ready.is_none();
        println!(
            "{}: {state}; {} open, {} unbacked",
            app.app, app.in_flight, app.unbacked_messages
        );
        if app.dead_letters > 0 {
            let dead = app.dead_letters;
            println!("  {dead} dead letters: sandpipe bus dead {}", app.app);
        }
        for grain in &app.grains {
            let pid = grain
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            println!(
                "  {:<20} {:<10} pid {pid}, {} restarts, {} cold starts",
                grain.grain, grain.state, grain.restarts, grain.cold_starts
            );
        }
        for family in &app.bus {
            println!("  {:<20} {}", family.grain, counts(family));
        }
        notes(app).iter().for_each(|note| println!("  {note}"));
        for refused in &app.refused {
            println!(
                "  {:<20} was ended: it wrote {}",
                refused.grain, refused.reason
            );
        }
    }
    Ok(if ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(super::FAILED)
    })
}

/// What is not as it is with most applications.
fn notes(app: &AppStatus) -> Vec<String> {
    let shares = (app.network == Some(Network::Host)).then(|| "shares the host's network".into());
    let hits = app.limits.iter().filter_map(LimitState::told);
    let hits = hits.map(|hit| format!("limit {hit}"));
    shares.into_iter().chain(hits).collect()
}

/// The two counts that everybody looks for, and whatever else is not zero.
fn counts(family: &BusCounts) -> String {
    let always = ["published", "received"].map(|name| {
        let count = family.counts.get(name).copied().unwrap_or_default();
        format!("{count} {name}")
    });
    let others = family
        .counts
        .iter()
        .filter(|(name, count)| **count != 0 && !["published", "received"].contains(&&***name))
        .map(|(name, count)| format!("{count} {}", name.replace('_', " ")));
    let grown = (family.pool_extensions != 0).then(|| {
        let (mib, extensions) = (family.pool_bytes >> 20, family.pool_extensions);
        format!("pool of {mib} MiB with {extensions} extensions")
    });
    let all: Vec<_> = always.into_iter().chain(others).chain(grown).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_has_grown_is_told_and_another_is_not() {
        let family = |pool_extensions: u64| BusCounts {
            grain: "g".into(),
            counts: [("published".to_owned(), 3)].into(),
            pool_bytes: (1 + pool_extensions) << 20,
            pool_extensions,
            ..BusCounts::default()
        };
        assert_eq!(counts(&family(0)), "3 published, 0 received");
        let grown = "3 published, 0 received, pool of 3 MiB with 2 extensions";
        assert_eq!(counts(&family(2)), grown);
    }
}
