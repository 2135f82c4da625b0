//! The text format of a terminal: an exchange in the access log is one line of at most 80 columns there.

use std::fmt::{self, Write as _};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Writer},
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

/// The width that every terminal has.
const COLUMNS: usize = 80;

/// The usual format for all events but those of the access log.
pub struct ShortAccessLines(Format);

impl ShortAccessLines {
    /// On top of the usual format.
    pub fn new(format: Format) -> Self {
        Self(format)
    }
}

impl<S, N> FormatEvent<S, N> for ShortAccessLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if event.metadata().target() != "access" {
            return self.0.format_event(context, writer, event);
        }
        let mut exchange = Exchange::default();
        event.record(&mut exchange);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        // `2026-01-31T12:34:56.789Z`: the time of day is enough for whoever looks on.
        writeln!(writer, "{}", exchange.line(time.get(11..19).unwrap_or(&time)))
    }
}

/// The fields of an exchange that a line has room for.
#[derive(Default)]
struct Exchange {
    status: u64,
    method: String,
    host: String,
    uri: String,
    took: f64,
    reason: String,
}

impl Exchange {
    fn line(&self, time: &str) -> String {
        let Self { status, method, host, uri, took, reason } = self;
        let mut end = format!(" {took:.0} ms");
        if !reason.is_empty() {
            // The pattern of a `String` takes everything.
            let _ = write!(end, " {reason}");
        }
        let start = format!("{time} {status:3} {method} ");
        let room = COLUMNS.saturating_sub(start.chars().count() + end.chars().count());
        let place = format!("{host}{uri}");
        // What is left out is the middle: host and resource are at the ends.
        let place = match place.chars().count() {
            len if len <= room => place,
            len => {
                let kept = room.saturating_sub(1);
                let head: String = place.chars().take(kept / 2).collect();
                let tail: String = place.chars().skip(len - (kept - kept / 2)).collect();
                format!("{head}…{tail}")
            }
        };
        format!("{start}{place}{end}").chars().take(COLUMNS).collect()
    }
}

impl Visit for Exchange {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "method" => self.method = format!("{value:?}"),
            "uri" => self.uri = format!("{value:?}"),
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "host" => value.clone_into(&mut self.host),
            "reason" => value.clone_into(&mut self.reason),
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "status" {
            self.status = value;
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "total_ms" {
            self.took = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_a_line_of_eighty_columns() {
        let mut exchange = Exchange {
            status: 200,
            method: "GET".into(),
            host: "matrix.example.org".into(),
            uri: "/_matrix/client/versions".into(),
            took: 12.3,
            reason: String::new(),
        };
        assert_eq!(exchange.line("12:34:56"), "12:34:56 200 GET matrix.example.org/_matrix/client/versions 12 ms");
        exchange.uri = format!("/_matrix/client/v3/sync?since={}é&timeout=30000", "s".repeat(200));
        exchange.reason = "client_gone".into();
        let line = exchange.line("12:34:56");
        assert_eq!(line.chars().count(), 80, "{line}");
        assert!(line.contains("matrix.example.org") && line.ends_with("timeout=30000 12 ms client_gone"), "{line}");
    }
}
