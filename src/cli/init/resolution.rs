//! Name resolution, for a part of a deployment that is written only if its name resolves.

use std::{
    net::{IpAddr, ToSocketAddrs as _},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Time limit of a look-up.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether two names share an address.
pub fn lead_to_one_machine(one: &str, other: &str) -> bool {
    let (one, other) = (look_up(one), look_up(other));
    let addresses = |answer: mpsc::Receiver<Vec<IpAddr>>| answer.recv_timeout(PATIENCE).unwrap_or_default();
    let (one, other) = (addresses(one), addresses(other));
    one.iter().any(|address| other.contains(address))
}

/// The addresses of a name, from a thread that is abandoned if the name server hangs: the process exits soon.
fn look_up(host: &str) -> mpsc::Receiver<Vec<IpAddr>> {
    let (sender, receiver) = mpsc::channel();
    let name = host.to_owned();
    thread::spawn(move || {
        let found = (name.as_str(), 443).to_socket_addrs();
        // Nobody waits any more if it took too long.
        let _ = sender.send(found.into_iter().flatten().map(|address| address.ip()).collect());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_one_machine_or_not() {
        assert!(lead_to_one_machine("localhost", "127.0.0.1"));
        assert!(!lead_to_one_machine("127.0.0.1", "127.0.0.2"));
        assert!(!lead_to_one_machine("127.0.0.1", "turn.invalid"));
    }
}
