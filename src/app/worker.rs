//! Worker threads: each with a runtime, listeners and pooled sockets of its own, so that a connection lives and dies on
//! one core and nothing on the request path is contended.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    thread::{self, JoinHandle},
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::pipeline::{self, ListenerKind, Pipeline};
use crate::{
    conn,
    listen::{BindError, Inherited, Listener},
};

/// A worker as the control thread sees it. Dropping it ends its thread with whatever still runs there.
pub struct Worker {
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    Open { kind: ListenerKind, addr: SocketAddr, reply: oneshot::Sender<Result<SocketAddr, BindError>> },
    Close { addr: SocketAddr },
}

impl Worker {
    /// Starts a thread.
    ///
    /// # Errors
    /// The system has no thread or no poll descriptor left.
    pub fn start(index: usize, pipeline: Arc<Pipeline>, inherited: Arc<Inherited>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            conn::set_worker(index);
            runtime.block_on(run_commands(inbox, pipeline, &inherited));
            // What is on a thread for blocking calls (a name that the system's resolver waits for) is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { commands: Some(commands), thread: Some(thread) })
    }

    /// Listens on an address; the answer has the port where it was 0.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn open(&self, kind: ListenerKind, addr: SocketAddr) -> Result<SocketAddr, BindError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Open { kind, addr, reply });
        answer.await.expect("a worker answers as long as it is held")
    }

    /// Stops listening on an address; its connections go on.
    pub fn close(&self, addr: SocketAddr) {
        self.send(Command::Close { addr });
    }

    fn send(&self, command: Command) {
        let sender = self.commands.as_ref().expect("taken only by drop");
        if sender.send(command).is_err() {
            error!("a worker thread is gone");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread itself has been logged by the hook.
            let _ = thread.join();
        }
    }
}

async fn run_commands(mut inbox: mpsc::UnboundedReceiver<Command>, pipeline: Arc<Pipeline>, inherited: &Inherited) {
    let mut open = HashMap::<SocketAddr, CancellationToken>::new();
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Open { kind, addr, reply } => {
                let bound = Listener::bind(addr, inherited);
                let answer = bound.map(|listener| {
                    let addr = listener.local_addr();
                    let stop = pipeline.accepting.child_token();
                    pipeline.listeners.spawn(accept(listener, kind, stop.clone(), pipeline.clone()));
                    open.insert(addr, stop);
                    addr
                });
                // The control thread may have given up waiting; then the listener goes with the worker.
                let _ = reply.send(answer);
            }
            Command::Close { addr } => {
                if let Some(stop) = open.remove(&addr) {
                    stop.cancel();
                }
            }
        }
    }
}

async fn accept(listener: Listener, kind: ListenerKind, stop: CancellationToken, pipeline: Arc<Pipeline>) {
    let port = listener.local_addr().port();
    let serve = |io, peer| drop(pipeline.tasks.spawn(pipeline::run(io, peer, (kind, port), pipeline.clone())));
    while let Some((io, peer)) = stop.run_until_cancelled(listener.accept()).await {
        serve(io, peer);
    }
    if pipeline.accepting.is_cancelled() {
        listener.close(serve);
    } else {
        listener.retire(serve).await;
    }
}
