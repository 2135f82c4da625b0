//! The media ports of LiveKit on the public address, which bypass the proxy: 7881/tcp and UDP (row 7).
//!
//! Only the ports of `livekit.yaml` are tried: without the file they are not known.

use std::{
    collections::BTreeSet,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    ProbeContext,
    dns::is_public,
    files,
    finding::{Check, Finding, Layer},
    join::Joined,
    names, rtc,
};

/// Bound on one try.
const LIMIT: Duration = Duration::from_secs(5);

/// A STUN server answers within a round trip; a closed port within the same.
const STUN_LIMIT: Duration = Duration::from_secs(1);

/// A binding request (RFC 8489 section 5): type 1, no attributes, the magic cookie, any transaction id.
const STUN: [u8; 20] = *b"\x00\x01\x00\x00\x21\x12\xa4\x42vestibule!!!";

/// Tries the ports of each SFU.
pub async fn probe(context: &ProbeContext<'_>) -> Vec<Finding> {
    let check = |id| Check::new(Layer::Rtc, id, "media");
    let Some(path) = &context.wanted.livekit else {
        return vec![check("rtc.media").skip("the media ports are in livekit.yaml: pass the file with --livekit")];
    };
    // `files` reports what is wrong with the file.
    let Ok(ports) = files::media_ports(path) else {
        return vec![check("rtc.media").skip("livekit.yaml cannot be read (files.livekit)")];
    };
    let found = join_all(rtc::sfus(context).iter().map(|url| sfu(context, url.clone(), &ports))).await;
    found.into_iter().flatten().collect()
}

async fn sfu(context: &ProbeContext<'_>, url: String, ports: &files::MediaPorts) -> Vec<Finding> {
    let check = |id| Check::new(Layer::Rtc, id, &url);
    let Some((host, port)) = names::authority(&url) else { return Vec::new() };
    let resolve = |port| (context.reach.resolve)(host.clone(), port);
    let addresses = match resolve(port).await {
        Ok(addresses) if !addresses.is_empty() => addresses,
        _ => return vec![check("rtc.media").skip("the name does not resolve")],
    };
    let at = |port| addresses.iter().map(move |address| SocketAddr::new(address.ip(), port));
    let mut findings = Vec::new();
    if let Some(ip) = ports.node_ip {
        let check = check("rtc.media.address");
        let words: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
        findings.push(if addresses.iter().any(|address| address.ip() == ip) {
            check.ok(format!("LiveKit tells clients to send media to {ip}"))
        } else {
            let fact =
                format!("LiveKit tells clients to send media to {ip}, but the name resolves to {}", words.join(", "));
            check.fail(
                "node_ip",
                fact,
                "set rtc.node_ip in livekit.yaml to the public address, or use_external_ip: true",
            )
        });
    }
    if let Some(port) = ports.tcp {
        findings.push(tcp(&check("rtc.media.tcp"), at(port)).await);
    }
    findings.push(match ports.udp {
        Some(port) => udp(&check("rtc.media.udp"), at(port)).await,
        None => check("rtc.media.udp").skip("a range of UDP ports cannot be tested without a call"),
    });
    findings
}

/// The addresses at which LiveKit tells a client with a token to send media, beside those of its name.
pub async fn candidates(context: &ProbeContext<'_>, sfu: &str, joined: &Result<Joined, String>) -> Finding {
    let check = Check::new(Layer::Rtc, "rtc.media.candidates", sfu);
    let offered = match joined {
        Ok(joined) if joined.addresses.is_empty() => return check.skip("LiveKit names no address for media in time"),
        Ok(joined) => &joined.addresses,
        Err(reason) => return check.skip(format!("LiveKit names no address for media ({reason})")),
    };
    let Some((host, port)) = names::authority(sfu) else { return check.skip("the URL has no host") };
    let named = (context.reach.resolve)(host, port).await.unwrap_or_default();
    assess(&check, offered, &named.iter().map(SocketAddr::ip).collect())
}

fn assess(check: &Check, offered: &BTreeSet<IpAddr>, named: &BTreeSet<IpAddr>) -> Finding {
    let public: Vec<_> = offered.iter().copied().filter(|ip| is_public(*ip)).collect();
    if public.is_empty() && named.iter().copied().any(is_public) {
        let fact = format!(
            "LiveKit takes media only at {}, where no client on the internet can send it",
            list(offered.iter())
        );
        let fix = "set `use_external_ip: true` under `rtc` in livekit.yaml, or `node_ip` to the public address, and restart LiveKit";
        return check.fail("private", fact, fix);
    }
    if public.is_empty() {
        let fact =
            format!("LiveKit takes media only at {}: enough for clients in the same network", list(offered.iter()));
        return check.skip(fact);
    }
    if named.iter().copied().any(is_public) && !public.iter().any(|ip| named.contains(ip)) {
        let fact =
            format!("LiveKit takes media at {}, but its name resolves to {}", list(public.iter()), list(named.iter()));
        let fix = "unless media has an address of its own, set `use_external_ip: true` under `rtc` in livekit.yaml, or `node_ip` to the address of the name";
        return check.warn("other", fact, fix);
    }
    check.ok(format!("LiveKit takes media at {}", list(public.iter())))
}

fn list(addresses: impl Iterator<Item = impl Display>) -> String {
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
}

async fn tcp(check: &Check, addresses: impl Iterator<Item = SocketAddr>) -> Finding {
    for address in addresses {
        let fact = match timeout(LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => format!("{address} does not accept media over TCP ({error})"),
            Err(_) => format!("{address} does not answer"),
        };
        return check.fail(
            "closed",
            fact,
            "publish the port in compose.yaml and open it in the firewall; it must not go through a proxy",
        );
    }
    check.ok("media over TCP is accepted")
}

async fn udp(check: &Check, addresses: impl Iterator<Item = SocketAddr>) -> Finding {
    let mut silent = None;
    for address in addresses {
        match stun(address).await {
            Ok(true) => {}
            Ok(false) => silent = Some(address),
            Err(error) => {
                let fact = format!("{address} rejects media over UDP ({error})");
                return check.fail("closed", fact, "publish the UDP port in compose.yaml and open it in the firewall");
            }
        }
    }
    match silent {
        None => check.ok("media over UDP is answered"),
        Some(address) => check.skip(format!("{address} does not answer, which may be LiveKit or a firewall")),
    }
}

/// Whether the address answers; an error means that the port is closed.
async fn stun(address: SocketAddr) -> std::io::Result<bool> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    socket.send(&STUN).await?;
    let mut response = [0; 128];
    match timeout(STUN_LIMIT, socket.recv(&mut response)).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Verdict;

    #[test]
    fn addresses_for_media_are_judged_by_where_the_name_leads() {
        let assess = |offered: &[&str], named: &[&str]| {
            let parse = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
            let finding = assess(&Check::new(Layer::Rtc, "c", "s"), &parse(offered), &parse(named));
            (finding.verdict, finding.id)
        };
        // `use_external_ip` is missing, in a container or behind a router.
        let private = (Verdict::Fail, "c.private".to_owned());
        assert_eq!(assess(&["172.18.0.5", "fd00::5"], &["198.51.100.7"]), private);
        assert_eq!(assess(&["100.64.0.9"], &["198.51.100.7", "2001:db8::7"]), private);
        // One that can be reached is enough.
        assert_eq!(assess(&["172.18.0.5", "198.51.100.7"], &["198.51.100.7"]).0, Verdict::Ok);
        assert_eq!(assess(&["2001:db8::7"], &["198.51.100.7", "2001:db8::7"]).0, Verdict::Ok);
        assert_eq!(assess(&["203.0.113.9"], &["198.51.100.7"]), (Verdict::Warn, "c.other".to_owned()));
        // A name that resolves to a private address here, by an alias of the container engine or at home, says nothing.
        assert_eq!(assess(&["172.18.0.5"], &["172.18.0.2"]).0, Verdict::Skip);
        assert_eq!(assess(&["198.51.100.7"], &["172.18.0.2"]).0, Verdict::Ok);
    }
}
