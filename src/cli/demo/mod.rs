//! `vestibule demo`: the whole edge on this machine, in front of stand-ins, judged by its own checks.

mod checks;
mod standins;

use std::{
    fs::Permissions, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, process::ExitCode, time::Duration,
};

use anyhow::Context as _;
use tokio::signal::{
    ctrl_c,
    unix::{SignalKind, signal},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::standins::StandIn;
use super::{FAILED, Failure, Outcome, print};
use crate::{
    app::{Edge, ListenerKind, Start},
    cert,
    clock::Clock,
    config,
    telemetry::Metrics,
};

/// Runs the demo: until Ctrl-C, or with `check` until the table is there.
pub fn run(check: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let passed = runtime.block_on(demo(check))?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn demo(check: bool) -> Result<bool, Failure> {
    // A name that nobody can have taken before us, for a key is kept there; it goes with the demo.
    let folder =
        tempfile::Builder::new().prefix("vestibule-demo-").permissions(Permissions::from_mode(0o700)).tempdir()?;
    let storage = folder.path().to_owned();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let clock = Clock::system();
    let mut services = Vec::new();
    for what in [StandIn::Synapse, StandIn::LkJwt, StandIn::Livekit] {
        services.push(standins::start(what, stop.clone(), &tasks).await?);
    }
    let (http, https) = (free_port()?, free_port()?);
    let text = configuration(&storage, http, https, &services);
    let (plan, _) =
        config::parse("demo.toml", &text, ".".into(), &|_| None).map_err(|report| anyhow::anyhow!(report.render()))?;
    let metrics = Metrics::new(clock.now());
    let edge =
        Edge::start(plan, metrics.clone(), clock.clone(), Start::Takeover).await.context("the edge does not start")?;
    let address = |wanted| edge.addresses().find(|(kind, _)| *kind == wanted).map(|(_, addr)| addr);
    let (Some(plain), Some(secure)) = (address(ListenerKind::Plain), address(ListenerKind::Tls)) else {
        return Err(anyhow::anyhow!("the edge does not listen").into());
    };
    let root = cert::root_pem(&cert::Store::new(storage.clone()), &clock)?;
    let passed = checks::run(plain, secure, &root).await?;
    if !check {
        invite(secure, &storage, &root)?;
        let mut ended = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = ctrl_c() => interrupted?,
            _ = ended.recv() => {}
        }
        print("\nstopping\n")?;
    }
    edge.drain().await;
    edge.close().await;
    stop.cancel();
    tasks.close();
    // The stand-ins have nothing to lose.
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
    Ok(passed)
}

fn invite(secure: SocketAddr, storage: &Path, root: &str) -> Outcome {
    let file = storage.join("root.pem");
    std::fs::write(&file, root)?;
    let port = secure.port();
    let file = file.display();
    print(format_args!(
        "\nServing until Ctrl-C. Try:\n  \
         curl --cacert {file} https://matrix.localhost:{port}/_matrix/client/versions\n  \
         curl --cacert {file} https://example.localhost:{port}/.well-known/matrix/client\n\
         or open https://example.localhost:{port}/.well-known/matrix/client in a browser\n\
         (it will not know the CA).\n"
    ))
}

/// The thirteen lines, with the names and ports of this machine.
fn configuration(storage: &Path, http: u16, https: u16, services: &[SocketAddr]) -> String {
    format!(
        r#"
[listen]
http = ["127.0.0.1:{http}"]
https = ["127.0.0.1:{https}"]
public_port = {https}
[storage]
path = {storage:?}
[tls]
certificates = "internal"
[admin]
listen = "off"
[matrix]
server_name = "example.localhost"
[sites."matrix.localhost"]
kind = "synapse"
upstream = "http://{synapse}"
[sites."jwt.matrixrtc.localhost"]
kind = "lk-jwt"
upstream = "http://{jwt}"
[sites."matrixrtc.localhost"]
kind = "livekit"
upstream = "http://{livekit}"
[sites."example.localhost"]
redirect = "https://www.example.localhost"
"#,
        storage = storage.display().to_string(),
        synapse = services[0],
        jwt = services[1],
        livekit = services[2],
    )
}

/// A port that is free now. Derived URLs name it, so it must be known before the edge listens.
fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
