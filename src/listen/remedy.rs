//! What to do about an address that cannot be listened on.

use std::{fs, io, net::SocketAddr, path::Path};

/// The state LISTEN in `/proc/net/tcp` (proc_net_tcp(5)).
const LISTENING: &str = "0A";

/// The error with its remedy behind it, where there is one.
#[must_use]
pub fn explained(addr: SocketAddr, error: io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => Some(privilege(addr.port())),
        io::ErrorKind::AddrInUse => Some(match holder(addr.port()) {
            Some(holder) => format!("{holder} listens there: stop it, or listen on another address"),
            None => format!("another program listens there: `ss -ltnp 'sport = :{}'` as root names it", addr.port()),
        }),
        io::ErrorKind::AddrNotAvailable => Some("no interface of this machine has this address".to_owned()),
        _ => None,
    };
    match remedy {
        Some(remedy) => io::Error::new(error.kind(), format!("{error}; {remedy}")),
        None => error,
    }
}

fn privilege(port: u16) -> String {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.ok().and_then(|text| text.trim().parse::<u16>().ok()).unwrap_or(1024);
    if port >= first {
        return "the system forbids it".to_owned();
    }
    format!(
        "ports below {first} need the capability CAP_NET_BIND_SERVICE: `setcap cap_net_bind_service=+ep vestibule`, or \
         `AmbientCapabilities=CAP_NET_BIND_SERVICE` in its systemd unit"
    )
}

/// The program that listens on a port, where this process may see it.
fn holder(port: u16) -> Option<String> {
    let inodes = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let inodes: Vec<String> =
        inodes.iter().flat_map(|table| table.lines()).filter_map(|line| socket(line, port)).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.map(|process| process.path()).find_map(|process| {
        let holds = fs::read_dir(process.join("fd")).ok()?.flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|target| inodes.iter().any(|inode| target == Path::new(inode)))
        });
        let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
        let name = fs::read_to_string(process.join("comm")).ok()?;
        holds.then(|| format!("{} (process {pid})", name.trim()))
    })
}

/// The socket of a line of `/proc/net/tcp` that listens on this port, as it stands in `/proc/PID/fd`.
fn socket(line: &str, port: u16) -> Option<String> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, state) = (columns.next()?, columns.nth(1)?);
    let (_, hex) = local.rsplit_once(':')?;
    let is_meant = state == LISTENING && u16::from_str_radix(hex, 16) == Ok(port);
    is_meant.then(|| columns.nth(5)).flatten().map(|inode| format!("socket:[{inode}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_that_holds_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let error = std::net::TcpListener::bind(addr).unwrap_err();
        let said = explained(addr, error).to_string();
        assert!(said.contains(&format!("(process {}) listens there", std::process::id())), "{said}");
    }

    #[test]
    fn a_privileged_port_names_the_capability() {
        let error = io::Error::from(io::ErrorKind::PermissionDenied);
        let said = explained("[::]:0".parse().unwrap(), error).to_string();
        let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
        assert_eq!(said.contains("CAP_NET_BIND_SERVICE"), first.trim() != "0", "{said}");
    }
}
