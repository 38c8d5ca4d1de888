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

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone; the exit code is still told.
            let _ = writeln!(std::io::stderr(), "openim-group-mirror: {error}");
            match error.downcast_ref() {
                // One that is found is told from one that could not be looked for.
                Some(app::Error::Reconcile(_) | app::Error::OpenIm(_)) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let unknown = config::load_dotenv()?;
    let (command, config) = config::read(std::env::args_os())?;
    telemetry::init(&config);
    if !unknown.is_empty() {
        tracing::warn!(
            names = unknown.join(", "),
            "./.env: not settings of this program"
        );
    }
    let runtime = Runtime::new()?;
    let result = execute(command, &config, &runtime);
    // Does not wait for a start that was given up on: dropping the runtime would.
    runtime.shutdown_background();
    result
}

fn execute(
    command: Command,
    config: &Config,
    runtime: &Runtime,
) -> Result<(), Box<dyn std::error::Error>> {
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    match command {
        Command::Serve => {
            let shutdown = on_signal(runtime)?;
            runtime.block_on(app::serve(config, stdout, shutdown))?;
        }
        Command::Reconcile(asked) => {
            let shutdown = on_signal(runtime)?;
            let is_terminal = stderr.is_terminal();
            let reconcile = app::reconcile(config, asked, stdout, stderr, is_terminal, shutdown);
            runtime.block_on(reconcile)?;
        }
        Command::Migrate => runtime.block_on(app::migrate(config))?,
        Command::Openapi => writeln!(&stdout, "{}", http::openapi_json()?)?,
        Command::OpenimConfig { url } => app::openim_config(config, url, stdout)?,
        Command::Healthcheck => runtime.block_on(app::healthcheck(config))?,
        Command::Drain => runtime.block_on(app::drain(config))?,
        Command::Rejected(command) => {
            runtime.block_on(app::rejected(config, command, stdout, stderr))?;
        }
    }
    Ok(())
}

/// Resolves at the first signal to end; the second ends at once.
fn on_signal(runtime: &Runtime) -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = runtime.block_on(async {
        // A file that may grow no more is an error to whoever writes it, and not the end.
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
        // Nothing is waited for. What was answered is committed, and the private Postgres ends when
        // it sees us gone.
        let _ = writeln!(
            std::io::stderr(),
            "openim-group-mirror: a second signal: ending at once"
        );
        std::process::exit(1);
    });
    Ok(async { stopped.await.unwrap_or(()) })
}

async fn any([interrupt, terminate]: &mut [unix::Signal; 2]) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
