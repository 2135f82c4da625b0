//! How many sockets the file limit of the process has room for.

/// Descriptors that no client may use: listeners, logs, the storage, the admin server, look-ups of names, and what an
/// outgoing connection to a CA takes.
const RESERVE: u64 = 64;

/// How many sockets there may be of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Connections of clients.
    pub clients: usize,
    /// Connections to services.
    pub dials: usize,
}

impl SocketLimits {
    /// Raises the soft file limit to the hard one, and shares what it has room for: at most half of it for clients, fewer
    /// where `configured` says so, and the rest for the services behind them.
    #[must_use]
    pub fn of_process(configured: Option<usize>) -> Self {
        Self::within(rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024), configured)
    }

    fn within(files: u64, configured: Option<usize>) -> Self {
        let sockets = usize::try_from(files.saturating_sub(RESERVE).max(2)).unwrap_or(usize::MAX);
        let clients = configured.map_or(sockets / 2, |configured| configured.min(sockets / 2));
        Self { clients, dials: sockets - clients }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_services_share_what_there_is() {
        for (files, configured, clients, dials) in
            [(1024, None, 480, 480), (1024, Some(100), 100, 860), (1024, Some(9_000), 480, 480), (10, None, 1, 1)]
        {
            assert_eq!(SocketLimits::within(files, configured), SocketLimits { clients, dials });
        }
    }
}
