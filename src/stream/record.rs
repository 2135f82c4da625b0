//! The log event and the counters of one connection that is not HTTP.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::info;

use crate::{config::plan::TcpServer, error::chain, telemetry::StreamNumbers};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client closed it, or is gone.
    Client,
    /// The server did, or is.
    Upstream,
    /// Nothing moved for `timeouts.tunnel_idle`.
    Idle,
    /// A TURN client did not begin with a STUN message within `timeouts.handshake`.
    Silent,
    /// A TURN client sent HTTP.
    Http,
    /// The TLS handshake failed.
    HandshakeFailed,
    /// No server accepted a connection.
    ConnectFailed,
    /// There is no socket left for a connection to a server.
    NoSocket,
    /// The process drains.
    Drain,
}

impl End {
    /// Who ended the connection, and why where that is worth a word.
    const fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Client => ("client", None),
            Self::Upstream => ("upstream", None),
            Self::Idle => ("limit", Some("tunnel_idle")),
            Self::Silent => ("limit", Some("no_stun")),
            Self::Http => ("edge", Some("http")),
            Self::HandshakeFailed => ("client", Some("handshake_failed")),
            Self::ConnectFailed => ("upstream", Some("connect_failed")),
            Self::NoSocket => ("limit", Some("no_socket")),
            Self::Drain => ("drain", Some("drain")),
        }
    }
}

/// What is known of a connection; logged and counted when dropped.
pub struct Record {
    site: Arc<str>,
    protocol: &'static str,
    /// `None` where nothing is logged; inside, the address as far as it may be.
    client: Option<Option<IpAddr>>,
    numbers: StreamNumbers,
    began: Instant,
    tls: Option<&'static str>,
    server: Option<String>,
    connect: Option<Duration>,
    received: u64,
    sent: u64,
    /// `None` until it has ended: a task that is dropped before was cut by the drain.
    end: Option<End>,
    error: Option<String>,
    discarded: bool,
}

impl Record {
    pub(super) fn new(
        site: Arc<str>,
        protocol: &'static str,
        client: Option<Option<IpAddr>>,
        numbers: StreamNumbers,
    ) -> Self {
        numbers.opened();
        Self {
            site,
            protocol,
            client,
            numbers,
            began: Instant::now(),
            tls: None,
            server: None,
            connect: None,
            received: 0,
            sent: 0,
            end: None,
            error: None,
            discarded: false,
        }
    }

    /// Notes the TLS version that was agreed on.
    pub const fn tls(&mut self, version: &'static str) {
        self.tls = Some(version);
    }

    /// Notes how the connection ended; the first end counts.
    pub fn end(&mut self, end: End, error: Option<&(dyn std::error::Error + 'static)>) {
        if self.end.is_none() {
            self.end = Some(end);
            self.error = error.map(chain);
        }
    }

    /// Forgets the connection: it was a validation by a CA.
    pub fn discard(mut self) {
        self.discarded = true;
    }

    /// Whether neither side has ended the connection.
    pub(super) const fn is_ended_here(&self) -> bool {
        matches!(self.end, Some(End::Idle | End::Silent | End::Http))
    }

    pub(super) fn dialled(&mut self, server: &TcpServer) {
        self.server = Some(server.to_string());
    }

    pub(super) const fn connected(&mut self, took: Duration) {
        self.connect = Some(took);
    }

    /// Counts bytes from the client.
    pub(super) fn received(&mut self, bytes: usize) {
        self.received += bytes as u64;
        self.numbers.received(bytes as u64);
    }

    /// Counts bytes to the client.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.numbers.sent(bytes as u64);
    }

    pub(super) fn failed(&mut self, end: End, error: &io::Error) {
        self.end(end, Some(error));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (ended_by, reason) = self.end.unwrap_or(End::Drain).words();
        self.numbers.closed((!self.discarded).then_some(reason.unwrap_or(ended_by)));
        let Some(client) = self.client.filter(|_| !self.discarded) else { return };
        let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        info!(
            target: "access",
            client = client.map(tracing::field::display),
            protocol = self.protocol,
            tls = self.tls,
            site = &*self.site,
            upstream = self.server,
            bytes_in = self.received,
            bytes_out = self.sent,
            connect_ms = self.connect.map(millis),
            total_ms = millis(self.began.elapsed()),
            ended_by,
            reason,
            error = self.error,
            "{} connection",
            self.protocol,
        );
    }
}
