//! The media ports of LiveKit on the public address, which bypass the proxy: 7881/tcp and UDP (row 7).
//!
//! Only the ports of `livekit.yaml` are tried: without the file they are not known.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    ProbeContext, files,
    finding::{Check, Finding, Layer},
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
