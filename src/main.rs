//! Arguments and environment in, exit code out; nothing else.

use std::io::Write;
use std::process::ExitCode;

use openim_group_mirror::config::{self, Command, Config};
use openim_group_mirror::{app, http, telemetry};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone; the exit code is still told.
            let _ = writeln!(std::io::stderr(), "openim-group-mirror: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    config::load_dotenv()?;
    let (command, config) = config::read(std::env::args_os())?;
    telemetry::init(&config);
    let runtime = tokio::runtime::Runtime::new()?;
    let result = execute(command, &config, &runtime);
    // Does not wait for a start that was given up on: dropping the runtime would.
    runtime.shutdown_background();
    result
}

fn execute(
    command: Command,
    config: &Config,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), Box<dyn std::error::Error>> {
    match command {
        Command::Serve => runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let shutdown = async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            Ok(app::serve(config, std::io::stdout(), shutdown).await?)
        }),
        Command::Migrate => Ok(runtime.block_on(app::migrate(config))?),
        Command::Openapi => {
            writeln!(std::io::stdout(), "{}", http::openapi_json()?)?;
            Ok(())
        }
    }
}
