//! An agent of the tests that runs several applications behind one front door, as `sandpipe run`
//! runs one: `sandpipe-test-agent DIRECTORY...`, each with its `app.toml`. Ends at SIGTERM.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sandpipe_agent::application::{Application, BusChoice, Places};
use sandpipe_agent::config::AppSpec;
use sandpipe_agent::control::{AgentStatus, Answer, Control};
use sandpipe_agent::front_door::{self, FrontDoor, bind};
use sandpipe_agent::telemetry::Telemetry;

fn main() -> anyhow::Result<std::process::ExitCode> {
    if sandpipe_sandbox::is_sandbox_init() {
        return Ok(sandpipe_sandbox::sandbox_init_main());
    }
    let (mut applications, mut controls) = (Vec::new(), Vec::new());
    for directory in std::env::args().skip(1) {
        let directory = Path::new(&directory);
        let spec = AppSpec::load(&directory.join("app.toml"))?;
        let (data, run) = (directory.join("data"), directory.join("run"));
        let places = Places::new(&spec.name, Some(&data), Some(&run));
        let socket = Places::control_socket(&places.run, &spec.name);
        controls.push(Control::bind(&socket, &spec.name)?);
        let (bus, telemetry) = (BusChoice::Embedded, Telemetry::default());
        applications.push(Application::start(&spec, &places, &bus, &telemetry)?);
    }
    let doors = applications
        .iter()
        .map(|application| application.door.clone());
    let door = Arc::new(FrontDoor::new(doors.collect()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(serve(door, &controls))?;
    for application in applications {
        application.stop(Duration::from_secs(10));
    }
    Ok(std::process::ExitCode::SUCCESS)
}

async fn serve(door: Arc<FrontDoor>, controls: &[Control]) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let listener = bind("127.0.0.1:0".parse()?).await?;
    let address = listener.local_addr()?;
    for control in controls {
        let (door, runtime) = (Arc::clone(&door), tokio::runtime::Handle::current());
        let status = move || AgentStatus {
            pid: std::process::id(),
            url: format!("http://{address}"),
            address: address.to_string(),
            apps: runtime.block_on(door.status()),
            ..AgentStatus::default()
        };
        control.serve(move |_| Answer::Status(Box::new(status())), || ())?;
    }
    let url = serde_json::json!({ "url": format!("http://{address}/") });
    writeln!(std::io::stdout(), "{url}")?;
    front_door::serve(listener, door, async { _ = terminate.recv().await }).await;
    Ok(())
}
