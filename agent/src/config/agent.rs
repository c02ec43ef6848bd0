//! `agent.toml`: how the long-running agent is set up.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::error::{ConfigError, Problem, Problems};
use super::{OwnRights, own_rights};
use crate::telemetry;

/// The settings of an agent. Everything has a default: an empty file is a valid one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSpec {
    /// Where the front door listens.
    pub listen: SocketAddr,
    /// Where applications keep their data; `None` = the user's own directory.
    pub data_dir: Option<PathBuf>,
    /// Where sockets and locks are; `None` = the user's own directory.
    pub run_dir: Option<PathBuf>,
    /// Bootstrap servers of a Kafka; `None` = the embedded log.
    pub kafka: Option<String>,
    /// How long open requests may take when an application is stopped or replaced.
    pub drain: Duration,
    /// Each `app.toml` that is deployed at the start, absolute.
    pub applications: Vec<PathBuf>,
    /// What is kept of the grains' output.
    pub logs: LogLimits,
    /// Names of the applications that may have the host's network.
    pub allow_host_network: Vec<String>,
    /// Where spans go: the base URL of an OTLP/HTTP receiver; `None` = nowhere, unless the
    /// environment says so.
    pub otlp: Option<String>,
    /// What it gives up itself.
    pub own_rights: OwnRights,
}

/// How much is kept of one grain's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files, the current one included; the oldest goes.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits {
            file_bytes: 4 << 20,
            files: 4,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen: Option<Spanned<String>>,
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    drain_s: Option<Spanned<i64>>,
    #[serde(default)]
    applications: Vec<PathBuf>,
    #[serde(default)]
    allow_host_network: Vec<String>,
    global_bus: Option<Spanned<RawBus>>,
    logs: Option<RawLogs>,
    telemetry: Option<RawTelemetry>,
    own_rights: Option<own_rights::Raw>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTelemetry {
    otlp: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBus {
    kind: Spanned<String>,
    bootstrap: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLogs {
    file_kb: Option<Spanned<i64>>,
    files: Option<Spanned<i64>>,
}

impl AgentSpec {
    /// Reads and checks the file. Blocks on the disk.
    ///
    /// # Errors
    /// Everything that is wrong with the file, each with its line and a remedy.
    pub fn load(path: &Path) -> Result<AgentSpec, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|reason| ConfigError::Read {
            path: path.to_path_buf(),
            reason,
        })?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        AgentSpec::parse(&text, path, absolute.parent().unwrap_or(Path::new("/")))
    }

    /// Checks a file's text; `file` is what errors call it and `directory` what paths start from.
    ///
    /// # Errors
    /// As [`AgentSpec::load`].
    pub fn parse(text: &str, file: &Path, directory: &Path) -> Result<AgentSpec, ConfigError> {
        let invalid = |problems| ConfigError::Invalid {
            path: file.to_path_buf(),
            problems,
        };
        let raw: Raw = toml::from_str(text)
            .map_err(|error| invalid(vec![Problem::from_toml(text, &error)]))?;
        let mut problems = Problems::new(text);
        let spec = check(raw, directory, &mut problems);
        match problems.into_vec() {
            problems if problems.is_empty() => Ok(spec),
            problems => Err(invalid(problems)),
        }
    }

    /// The names of what differs in `new` and needs a restart.
    #[must_use]
    pub fn fixed(&self, new: &AgentSpec) -> Vec<&'static str> {
        let differs = [
            ("listen", self.listen != new.listen),
            ("data_dir", self.data_dir != new.data_dir),
            ("run_dir", self.run_dir != new.run_dir),
            ("global_bus", self.kafka != new.kafka),
            ("telemetry", self.otlp != new.otlp),
            ("own_rights", self.own_rights != new.own_rights),
        ];
        let differs = differs.into_iter().filter(|(_, differs)| *differs);
        differs.map(|(name, _)| name).collect()
    }
}

fn check(raw: Raw, directory: &Path, problems: &mut Problems<'_>) -> AgentSpec {
    let listen = raw.listen.as_ref().and_then(|listen| {
        let parsed = listen.get_ref().parse();
        let what = || format!("listen = \"{}\"", listen.get_ref());
        if parsed.is_err() {
            problems.add(listen.span(), what(), "use ADDRESS:PORT, as 127.0.0.1:8080");
        }
        parsed.ok()
    });
    let base = LogLimits::default();
    let logs = raw.logs.as_ref();
    let file_kb = logs.and_then(|logs| logs.file_kb.as_ref());
    let files = logs.and_then(|logs| logs.files.as_ref());
    let mut read = |name, raw: Option<&Spanned<i64>>, range, default| {
        super::check::number(name, raw, range, default, problems)
    };
    let drain_s = read("drain_s", raw.drain_s.as_ref(), 0..=3600, 10);
    let file_kb = read("file_kb", file_kb, 4..=1 << 20, base.file_bytes >> 10);
    let files = read("files", files, 1..=100, u64::from(base.files));
    let kafka = raw.global_bus.as_ref().and_then(|bus| kafka(bus, problems));
    let otlp = raw.telemetry.and_then(|telemetry| telemetry.otlp);
    let otlp = otlp.and_then(|otlp| self::otlp(&otlp, problems));
    let applications = raw.applications.iter().map(|path| directory.join(path));
    let applications: Vec<PathBuf> = applications.collect();
    let own_rights = own_rights::own_rights(raw.own_rights, directory, &applications, problems);
    AgentSpec {
        listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
        data_dir: raw.data_dir.map(|path| directory.join(path)),
        run_dir: raw.run_dir.map(|path| directory.join(path)),
        kafka,
        drain: Duration::from_secs(drain_s),
        applications,
        logs: LogLimits {
            file_bytes: file_kb << 10,
            files: u32::try_from(files).expect("at most 100"),
        },
        allow_host_network: raw.allow_host_network,
        otlp,
        own_rights,
    }
}

fn otlp(raw: &Spanned<String>, problems: &mut Problems<'_>) -> Option<String> {
    let wrong = telemetry::check_endpoint(raw.get_ref()).err();
    if let Some(reason) = &wrong {
        let what = format!("otlp = \"{}\"", raw.get_ref());
        problems.add(raw.span(), what, reason.to_string());
    }
    wrong.is_none().then(|| raw.get_ref().clone())
}

fn kafka(raw: &Spanned<RawBus>, problems: &mut Problems<'_>) -> Option<String> {
    let RawBus { kind, bootstrap } = raw.get_ref();
    match (kind.get_ref().as_str(), bootstrap) {
        ("embedded", None) => None,
        ("kafka", Some(bootstrap)) => Some(bootstrap.get_ref().clone()),
        ("kafka", None) => {
            let remedy = "add bootstrap = \"HOST:PORT\"";
            problems.add(kind.span(), "kind = \"kafka\" without bootstrap", remedy);
            None
        }
        ("embedded", Some(bootstrap)) => {
            let what = "`bootstrap` with kind = \"embedded\"";
            problems.add(bootstrap.span(), what, "remove it, or use kind = \"kafka\"");
            None
        }
        (other, _) => {
            let what = format!("kind = \"{other}\"");
            problems.add(kind.span(), what, "use \"embedded\" or \"kafka\"");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AgentSpec, String> {
        AgentSpec::parse(text, Path::new("agent.toml"), Path::new("/etc/sandpipe"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_an_agent_with_the_defaults() {
        let spec = parse("").unwrap();
        assert_eq!(spec.listen.to_string(), "127.0.0.1:8080");
        assert_eq!((spec.drain, spec.kafka), (Duration::from_secs(10), None));
        assert_eq!(spec.logs, LogLimits::default());
    }

    #[test]
    fn paths_start_from_the_file_and_every_setting_is_read() {
        let spec = parse(
            "listen = \"[::1]:9\"\ndata_dir = \"/data\"\nrun_dir = \"run\"\ndrain_s = 3\n\
             applications = [\"a/app.toml\"]\nallow_host_network = [\"shop\"]\n\
             [global_bus]\nkind = \"kafka\"\n\
             bootstrap = \"k:9092\"\n[logs]\nfile_kb = 8\nfiles = 2\n",
        )
        .unwrap();
        assert_eq!(spec.data_dir.unwrap(), Path::new("/data"));
        assert_eq!(spec.run_dir.unwrap(), Path::new("/etc/sandpipe/run"));
        let applications = vec![PathBuf::from("/etc/sandpipe/a/app.toml")];
        assert_eq!(spec.applications, applications);
        assert_eq!(spec.kafka.as_deref(), Some("k:9092"));
        assert_eq!((spec.logs.file_bytes, spec.logs.files), (8192, 2));
        assert_eq!(spec.drain, Duration::from_secs(3));
        assert_eq!(spec.allow_host_network, ["shop"]);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_with_its_line() {
        let error = parse(
            "listen = \"here\"\ndrain_s = -1\n[global_bus]\nkind = \"kafka\"\n[logs]\nfiles = 0\n",
        )
        .unwrap_err();
        for words in [
            "agent.toml:1: listen = \"here\"",
            "agent.toml:2: drain_s = -1",
            "agent.toml:4: kind = \"kafka\" without bootstrap",
            "agent.toml:6: files = 0",
        ] {
            assert!(error.contains(words), "no {words:?} in\n{error}");
        }
        assert!(parse("colour = 1").unwrap_err().contains("unknown field"));
    }

    #[test]
    fn spans_go_only_to_where_this_program_can_send_them() {
        let told = |url: &str| parse(&format!("\n[telemetry]\notlp = \"{url}\""));
        let wrong = told("https://there:4318").unwrap_err();
        assert!(
            wrong.contains("agent.toml:3: otlp = \"https://there:4318\""),
            "{wrong}"
        );
        let right = told("http://there:4318");
        if cfg!(feature = "otel") {
            assert!(wrong.contains("there is no TLS"), "{wrong}");
            assert_eq!(right.unwrap().otlp.as_deref(), Some("http://there:4318"));
        } else {
            assert!(right.unwrap_err().contains("build it with --features otel"));
        }
    }

    #[test]
    fn what_the_agent_gives_up_is_read_and_its_own_files_stay_in_reach() {
        assert_eq!(parse("").unwrap().own_rights, OwnRights::default());
        let spec = parse(
            "applications = [\"/srv/b/app.toml\"]\n[own_rights]\nrestrict = \"require\"\n\
             read = [\"apps\"]\n",
        )
        .unwrap();
        let read = ["/etc/sandpipe/apps", "/srv/b", "/etc/sandpipe"].map(PathBuf::from);
        assert_eq!(spec.own_rights.read.as_deref(), Some(&read[..]));
        assert_eq!(spec.own_rights.restrict, super::super::Restrict::Require);
        let wrong = parse("[own_rights]\nrestrict = \"yes\"\n").unwrap_err();
        assert!(
            wrong.contains("agent.toml:2: restrict = \"yes\""),
            "{wrong}"
        );
    }

    #[test]
    fn what_needs_a_restart_is_named_and_the_rest_is_not() {
        let old = parse("").unwrap();
        let new = parse("listen = \"127.0.0.1:1\"\nrun_dir = \"/r\"\ndrain_s = 1").unwrap();
        assert_eq!(old.fixed(&new), ["listen", "run_dir"]);
        assert!(old.fixed(&old).is_empty());
    }
}
