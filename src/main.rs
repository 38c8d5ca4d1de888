//! Arguments and environment in, exit code out; nothing else.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use openim_group_mirror::config::{self, Command, Config};
use openim_group_mirror::{app, http, telemetry};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tokio::signal::unix::{self, SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An error that ends the program, with its exit code.
struct Failure {
    code: u8,
    error: Box<dyn std::error::Error>,
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            code: 1,
            error: error.into(),
        }
    }
}

/// Exit code of a command that was not done. clap uses it for arguments that are not valid.
const NOT_DONE: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            // Standard error may be closed; the exit code is left.
            let _ = writeln!(std::io::stderr(), "openim-group-mirror: {error}");
            ExitCode::from(code)
        }
    }
}

fn run() -> Result<(), Failure> {
    let settings = config::load_dotenv().and_then(|unknown| {
        let (command, config) = config::read(std::env::args_os())?;
        Ok((unknown, command, config))
    });
    let (unknown, command, config) = settings.map_err(|error| Failure {
        code: NOT_DONE,
        error: error.into(),
    })?;
    telemetry::init(&config.log);
    if !unknown.is_empty() {
        tracing::warn!(
            names = unknown.join(", "),
            "./.env: not settings of this program"
        );
    }
    let runtime = Runtime::new()?;
    let result = execute(command, &config, &runtime);
    // Dropping the runtime would wait for a start that was given up.
    runtime.shutdown_background();
    result
}

fn execute(command: Command, config: &Config, runtime: &Runtime) -> Result<(), Failure> {
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    match command {
        Command::Serve => {
            let shutdown = on_signal(runtime, 1)?;
            runtime.block_on(app::serve(config, stdout, shutdown))?;
        }
        Command::Reconcile(asked) => {
            let shutdown = on_signal(runtime, NOT_DONE)?;
            let is_terminal = stderr.is_terminal();
            let reconcile = app::reconcile(config, asked, stdout, stderr, is_terminal, shutdown);
            // Drift has an exit code of its own.
            runtime.block_on(reconcile).map_err(|error| Failure {
                code: match error {
                    app::Error::Drift(_) => 1,
                    _ => NOT_DONE,
                },
                error: error.into(),
            })?;
        }
        Command::Migrate => runtime.block_on(app::migrate(config))?,
        Command::Openapi => writeln!(&stdout, "{}", http::openapi_json()?)?,
        Command::OpenimConfig(asked) => app::openim_config(config, asked, stdout)?,
        Command::Healthcheck => runtime.block_on(app::healthcheck(config))?,
        Command::Drain => runtime.block_on(app::drain(config))?,
        Command::Rejected(command) => {
            runtime.block_on(app::rejected(config, command, stdout, stderr))?;
        }
    }
    Ok(())
}

/// Resolves at the first signal to stop. The second one ends the process at once, with this exit code.
fn on_signal(runtime: &Runtime, code: u8) -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = runtime.block_on(async {
        // A write beyond the limit of file sizes is an error then, and does not end the process.
        let _ = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?;
        Ok::<_, std::io::Error>([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ])
    })?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        any(&mut signals).await;
        let _ = stop.send(());
        any(&mut signals).await;
        // Answered callbacks are committed, and the private Postgres ends when this process is gone.
        let _ = writeln!(
            std::io::stderr(),
            "openim-group-mirror: a second signal: ending at once"
        );
        std::process::exit(code.into());
    });
    Ok(async { stopped.await.unwrap_or(()) })
}

async fn any([interrupt, terminate]: &mut [unix::Signal; 2]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
