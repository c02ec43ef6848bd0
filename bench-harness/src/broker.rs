//! A real Apache Kafka broker for the figures, started and stopped by scripts/kafka.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::BenchError;

/// A running broker; stopped and its data removed when it goes out of scope, and also when the
/// harness is killed (scripts/kafka watches it).
#[derive(Debug)]
pub struct Broker {
    bootstrap: String,
    /// Where its data lies, and the script that stops it; `None` for the user's own broker.
    own: Option<(PathBuf, PathBuf)>,
}

impl Broker {
    /// Starts one broker with all JIT tiers (blocks some seconds; the first time it fetches Kafka),
    /// or takes the user's own that `KAFKA_BOOTSTRAP` names.
    ///
    /// # Errors
    /// [`BenchError::Missing`] with the script's own words.
    pub fn start(root: &Path) -> Result<Broker, BenchError> {
        if let Ok(bootstrap) = std::env::var("KAFKA_BOOTSTRAP") {
            return Ok(Broker {
                bootstrap,
                own: None,
            });
        }
        let script = root.join("scripts/kafka");
        let pid = std::process::id();
        let directory = root.join(format!("target/kafka/bench-{pid}"));
        let output = Command::new(&script)
            .arg("start")
            .arg("--dir")
            .arg(&directory)
            .args(["--owner-pid", &pid.to_string()])
            .env("KAFKA_TIER", "4")
            .output()
            .map_err(|e| missing(&format!("{}: {e}", script.display())))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let bootstrap = said.lines().last().unwrap_or_default().trim().to_owned();
        if !output.status.success() || bootstrap.is_empty() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(missing(
                errors
                    .lines()
                    .last()
                    .unwrap_or("scripts/kafka said nothing"),
            ));
        }
        Ok(Broker {
            bootstrap,
            own: Some((script, directory)),
        })
    }

    /// `host:port,…`
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some((script, directory)) = &self.own {
            // If it fails, the script's watch kills the broker when this process ends.
            let _ = Command::new(script)
                .arg("stop")
                .arg("--dir")
                .arg(directory)
                .output();
        }
    }
}

fn missing(why: &str) -> BenchError {
    BenchError::missing(
        "Kafka",
        why,
        "install Java 17 or newer and Maven (scripts/setup does), or set KAFKA_BOOTSTRAP to a \
         running broker",
    )
}
