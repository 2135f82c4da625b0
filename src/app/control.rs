//! `vestibule run`: the life of the process, from the first socket to the exit code.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use super::{
    edge::{Edge, Start, StartError},
    handlers::{AdminCommand, Handlers},
    signal::{Signal, Signals},
    takeover,
};
use crate::{
    admin::{self, AdminHandlers, Reloaded, Scope},
    clock::Clock,
    config::{
        self, Plan,
        plan::{Admin, AdminListen},
    },
    drain::Summary,
    error::chain,
    listen,
    telemetry::{Logging, Metrics},
};

/// How often the file is looked at. Its content is what counts, so that every way of replacing it is seen: in place, by
/// rename, through a link, behind a bind mount.
const LOOK: Duration = Duration::from_secs(1);

/// How often the log's `ready` is asked for until it is true. It reads a few words for each name and service.
const READINESS_LOOK: Duration = Duration::from_millis(50);

/// How long the reasons may last before the log has them: a certificate from storage or a probe takes less.
const UNREADY_REPORT: Duration = Duration::from_secs(2);

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything in flight was finished.
    Finished,
    /// Something was cut off.
    Aborted,
}

/// Runs a plan until it is told to stop; `path` is where it was read from, and is read again.
///
/// # Errors
/// The edge cannot start.
pub fn run(path: &Path, plan: Plan, start: Start) -> Result<Outcome, StartError> {
    let clock = Clock::system();
    let metrics = Metrics::new(clock.now());
    let logging = Arc::new(Logging::start(&plan.log, &metrics));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let outcome = runtime.block_on(async {
        let signals = Signals::new().map_err(StartError::Thread)?;
        let running = takeover::find(plan.admin.listen.as_ref(), start).await?;
        let edge = Edge::start(plan.clone(), metrics.clone(), clock.clone(), start).await?;
        if let Some(listen) = plan.admin.listen.as_ref().filter(|_| running) {
            takeover::take_over(listen).await?;
        }
        let control = Control::new(path.to_owned(), plan, edge, metrics, clock, logging).await?;
        Ok(control.run(signals).await)
    });
    // A blocking call that hangs (the resolver, a lock of another process) must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// Waits until `/ready` says so, and logs it. What it waits for for long is logged once.
async fn until_ready(handlers: Arc<Handlers>) {
    let began = Instant::now();
    let mut is_reported = false;
    loop {
        let reasons = handlers.unready();
        if reasons.is_empty() {
            info!("ready");
            return;
        }
        if !is_reported && began.elapsed() >= UNREADY_REPORT {
            is_reported = true;
            info!(reasons = reasons.join("; "), "not ready yet");
        }
        sleep(READINESS_LOOK).await;
    }
}

struct Control {
    path: PathBuf,
    plan: Plan,
    seen: Option<u64>,
    edge: Edge,
    metrics: Metrics,
    clock: Clock,
    logging: Arc<Logging>,
    commands: mpsc::Receiver<AdminCommand>,
    /// What the admin server shows and does.
    handlers: Arc<Handlers>,
    /// Stops the admin server.
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Control {
    async fn new(
        path: PathBuf,
        plan: Plan,
        edge: Edge,
        metrics: Metrics,
        clock: Clock,
        logging: Arc<Logging>,
    ) -> Result<Self, StartError> {
        let (sender, commands) = mpsc::channel(8);
        let dropped = logging.clone();
        let handlers =
            Handlers::new(&edge, plan.clone(), metrics.clone(), clock.clone(), move || dropped.dropped(), sender);
        let handlers = Arc::new(handlers);
        let tasks = TaskTracker::new();
        let closing = takeover::insist(|| {
            let closing = CancellationToken::new();
            let opened = serve_admin(&plan.admin, &handlers, &closing, &tasks);
            opened.map(|()| closing.clone()).inspect_err(|_| closing.cancel())
        })
        .await?;
        let seen = content(&path);
        Ok(Self { path, plan, seen, edge, metrics, clock, logging, commands, handlers, closing, tasks })
    }

    async fn run(mut self, mut signals: Signals) -> Outcome {
        info!("started");
        notify(&[sd_notify::NotifyState::Ready]);
        let mut readiness = Box::pin(until_ready(self.handlers.clone()));
        let mut is_ready = false;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Stop => return self.end(signals).await,
                    Signal::StopNow => return self.abort(),
                    Signal::Reload => {
                        // Log rotation sends it as well.
                        self.logging.reopen();
                        drop(self.reload().await);
                    }
                },
                _ = looks.tick() => self.look().await,
                () = &mut readiness, if !is_ready => is_ready = true,
                // Without an admin address there are no commands; as a pattern, the branch then rests instead of spinning.
                Some(command) = self.commands.recv() => match command {
                    AdminCommand::Reload(reply) => {
                        // The client may have left.
                        let _ = reply.send(self.reload().await);
                    }
                    AdminCommand::HandOver(reply) => {
                        info!("another process takes over the addresses");
                        self.edge.hand_over();
                        self.closing.cancel();
                        // Likewise.
                        let _ = reply.send(());
                        return self.end(signals).await;
                    }
                },
            }
        }
    }

    /// Ends at once.
    fn abort(self) -> Outcome {
        self.metrics.closes();
        let left = self.edge.draining().in_flight();
        drop(self.edge);
        report_end(Duration::ZERO, &Summary::default(), &left, left.is_empty())
    }

    /// Reloads when the content of the file is another than last time.
    async fn look(&mut self) {
        self.metrics.traffic().sample(Instant::now());
        let shed = self.metrics.take_shed();
        if shed > 0 {
            warn!(connections = shed, "connections over the bound were refused");
        }
        let now = content(&self.path);
        // A file that is away for a moment is being replaced.
        if now.is_some() && now != self.seen {
            // Reported by itself, to the log.
            let _ = self.reload().await;
        }
    }

    /// Takes the file as it is now, if it is good; what happened, in words.
    async fn reload(&mut self) -> Reloaded {
        self.seen = content(&self.path);
        // With `Type=notify-reload` systemd wants to know when (sd_notify(3)).
        let now = sd_notify::NotifyState::monotonic_usec_now();
        notify(&[sd_notify::NotifyState::Reloading, now.unwrap_or(sd_notify::NotifyState::Reloading)]);
        let outcome = match config::load(&self.path) {
            Err(report) => Reloaded::BadFile(report.render()),
            Ok((plan, _)) if plan == self.plan => match self.edge.refresh_roots().await {
                Ok(()) => {
                    // What changed may be behind the edge.
                    self.edge.watch_upstreams();
                    info!("reload: the configuration is the same");
                    Reloaded::Fine("the configuration is the same; trust anchors and the certificates for upstreams are read anew\n".to_owned())
                }
                Err(error) => Reloaded::Failed(chain(&error) + "\n"),
            },
            Ok((plan, warnings)) => match self.take(plan).await {
                Ok(waiting) => {
                    let waits = |key: &&str| format!("{key} takes effect at the next start\n");
                    let waiting: String = waiting.iter().map(waits).collect();
                    Reloaded::Fine(format!("{}{waiting}the new configuration is in effect\n", warnings.render()))
                }
                Err(error) => Reloaded::Failed(chain(&error) + "\n"),
            },
        };
        if let Reloaded::BadFile(problem) | Reloaded::Failed(problem) = &outcome {
            error!(problem, "reload rejected: the old configuration stays in force");
        }
        self.handlers.reloaded(&outcome, &self.plan);
        self.metrics.reloaded(matches!(outcome, Reloaded::Fine(_)), self.clock.now());
        notify(&[sd_notify::NotifyState::Ready]);
        outcome
    }

    /// Puts a plan into effect, the admin address included: all of it or nothing. The keys that wait for the next start.
    async fn take(&mut self, plan: Plan) -> Result<Vec<&'static str>, StartError> {
        let began = Instant::now();
        let moves = plan.admin != self.plan.admin;
        let closing = if moves { CancellationToken::new() } else { self.closing.clone() };
        if moves && let Err(error) = serve_admin(&plan.admin, &self.handlers, &closing, &self.tasks) {
            closing.cancel();
            return Err(error);
        }
        if let Err(error) = self.edge.reload(plan.clone()).await {
            if moves {
                closing.cancel();
            }
            return Err(error);
        }
        if moves {
            std::mem::replace(&mut self.closing, closing).cancel();
        }
        let waiting = self.plan.restart_needed(&plan);
        waiting.iter().for_each(|key| warn!(key, "takes effect at the next start"));
        self.logging.set_level(&plan.log.level);
        self.plan = plan;
        info!(took_ms = began.elapsed().as_millis(), "reload: the new configuration is in effect");
        Ok(waiting)
    }

    /// Ends well: serves until nothing is waited for, then closes everything; or at once, when told so.
    async fn end(mut self, mut signals: Signals) -> Outcome {
        let began = Instant::now();
        let drain = self.edge.draining();
        let waited = drain.in_flight();
        info!(within_s = self.plan.timeouts.drain.as_secs_f64(), in_flight = %waited, "draining");
        notify(&[sd_notify::NotifyState::Stopping]);
        self.commands.close();
        let (closing, metrics) = (self.closing, self.metrics);
        let end = async {
            let in_time = self.edge.drain().await;
            closing.cancel();
            (in_time, self.edge.close().await)
        };
        let (in_time, left) = tokio::select! {
            biased;
            () = stop_now(&mut signals) => {
                // The edge is dropped here, and with it whatever goes on.
                metrics.closes();
                (false, drain.in_flight())
            }
            ended = end => ended,
        };
        self.tasks.close();
        // Nothing that the operator asks for is lost here.
        let _ = tokio::time::timeout(Duration::from_millis(100), self.tasks.wait()).await;
        report_end(began.elapsed(), &waited, &drain.ended().with(&left), in_time)
    }
}

/// The one event that says what the end has cost: what was in flight when it began and was waited for, and what was ended
/// or cut all the same.
fn report_end(took: Duration, waited: &Summary, cut: &Summary, in_time: bool) -> Outcome {
    let finished = in_time && cut.uploads.count + cut.answers.count == 0;
    let text = if finished {
        "stopped; everything in flight was finished"
    } else {
        "stopped; something in flight was cut off"
    };
    macro_rules! report {
        ($level:ident) => {
            $level!(
                took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                waited_polls = waited.polls.count,
                waited_polls_oldest_s = waited.polls.oldest.as_secs_f64(),
                waited_uploads = waited.uploads.count,
                waited_uploads_oldest_s = waited.uploads.oldest.as_secs_f64(),
                waited_answers = waited.answers.count,
                waited_answers_oldest_s = waited.answers.oldest.as_secs_f64(),
                cut_polls = cut.polls.count,
                cut_polls_oldest_s = cut.polls.oldest.as_secs_f64(),
                cut_tunnels = cut.tunnels.count,
                cut_tunnels_oldest_s = cut.tunnels.oldest.as_secs_f64(),
                cut_uploads = cut.uploads.count,
                cut_uploads_oldest_s = cut.uploads.oldest.as_secs_f64(),
                cut_answers = cut.answers.count,
                cut_answers_oldest_s = cut.answers.oldest.as_secs_f64(),
                "{text}"
            )
        };
    }
    if finished {
        report!(info);
        Outcome::Finished
    } else {
        report!(warn);
        Outcome::Aborted
    }
}

/// The error with its remedy, where the address is one of the network.
fn explained(address: &AdminListen, error: io::Error) -> io::Error {
    match address {
        AdminListen::Tcp(addr) => listen::explained(*addr, error),
        AdminListen::Unix(_) => error,
    }
}

/// Serves the admin resources where the plan says: all of them for the operator, numbers for a scraper.
fn serve_admin(
    plan: &Admin,
    handlers: &Arc<Handlers>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(), StartError> {
    let metrics = plan.metrics.map(AdminListen::Tcp);
    for (listen, scope) in [(&plan.listen, Scope::All), (&metrics, Scope::Scrape)] {
        let Some(listen) = listen else { continue };
        let handlers: Arc<dyn AdminHandlers> = handlers.clone();
        admin::serve(listen, &plan.hosts, scope, handlers, stop, tasks)
            .map_err(|source| StartError::Admin { place: listen.to_string(), source: explained(listen, source) })?;
    }
    Ok(())
}

/// A second signal to stop, or one to stop at once.
async fn stop_now(signals: &mut Signals) {
    while signals.next().await == Signal::Reload {}
}

/// Tells systemd, where it is there.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    // Without a socket to tell there is nobody to tell.
    let _ = sd_notify::notify(state);
}

/// What stands in the file, in short.
fn content(path: &Path) -> Option<u64> {
    let bytes = fs::read(path).ok()?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Some(hasher.finish())
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::Thread(error)
    }
}
