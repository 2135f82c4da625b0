//! Questions to DNS servers that the system's resolver does not ask: TXT and CNAME at the authoritative servers of a name.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData};
use tokio::{
    net::{UdpSocket, lookup_host},
    time::timeout,
};

use crate::config::plan::Dns;

/// Where a name server listens (RFC 1035 section 4.2).
const PORT: u16 = 53;

/// Bound on one try; a lost datagram is asked again once.
const LIMIT: Duration = Duration::from_secs(2);

/// The authoritative servers of a name: those of the configuration, or those that the system's name server knows for the
/// closest zone above it. None where nothing can be found from here.
pub async fn servers(dns: &Dns, name: &str) -> Vec<SocketAddr> {
    if !dns.nameservers.is_empty() {
        return dns.nameservers.clone();
    }
    let Some(resolver) = system_nameserver().await else { return Vec::new() };
    for zone in std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent)) {
        // A name server that does not answer for one name will not for its parent.
        let Ok(answer) = ask(resolver, zone, TYPE::NS).await else { return Vec::new() };
        let names: Vec<_> = records(&answer, |data| match data {
            RData::NS(ns) => Some(ns.0.to_string()),
            _ => None,
        });
        if !names.is_empty() {
            let mut servers = Vec::new();
            for name in names {
                // One address each is enough: the others are the same server.
                servers.extend(lookup_host((name.as_str(), PORT)).await.ok().and_then(|mut found| found.next()));
            }
            return servers;
        }
    }
    Vec::new()
}

/// The zone of a name, as its server says.
pub async fn zone_at(server: SocketAddr, name: &str) -> Option<String> {
    for zone in std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent)) {
        let answer = ask(server, zone, TYPE::SOA).await.ok()?;
        let is_soa = |data: &RData<'_>| matches!(data, RData::SOA(_)).then_some(());
        if !records(&answer, is_soa).is_empty() {
            return Some(zone.to_owned());
        }
    }
    None
}

/// Where an alias leads, as the first server says that answers.
pub async fn alias(servers: &[SocketAddr], name: &str) -> Option<String> {
    for server in servers {
        if let Ok(answer) = ask(*server, name, TYPE::CNAME).await {
            let target = |data: &RData<'_>| match data {
                RData::CNAME(target) => Some(target.0.to_string()),
                _ => None,
            };
            return records(&answer, target).pop();
        }
    }
    None
}

/// The texts of a name at a server.
///
/// # Errors
/// It does not answer, or refuses.
pub async fn texts(server: SocketAddr, name: &str) -> io::Result<Vec<String>> {
    let answer = ask(server, name, TYPE::TXT).await?;
    Ok(records(&answer, |data| match data {
        RData::TXT(text) => String::try_from(text.clone()).ok(),
        _ => None,
    }))
}

fn records<T>(answer: &[u8], pick: impl Fn(&RData<'_>) -> Option<T>) -> Vec<T> {
    let packet = Packet::parse(answer);
    packet.map(|packet| packet.answers.iter().filter_map(|record| pick(&record.rdata)).collect()).unwrap_or_default()
}

async fn ask(server: SocketAddr, name: &str, kind: TYPE) -> io::Result<Vec<u8>> {
    let query = query(name, kind).map_err(io::Error::other)?;
    for _ in 0..2 {
        if let Ok(answer) = timeout(LIMIT, exchange(&query, server)).await {
            let answer = answer?;
            let code = Packet::parse(&answer).map_err(io::Error::other)?.rcode();
            return match code {
                RCODE::NoError | RCODE::NameError => Ok(answer),
                code => Err(io::Error::other(format!("{server} says {code:?}"))),
            };
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")))
}

/// The id only has to differ from that of a stray answer; the socket is connected.
fn query(name: &str, kind: TYPE) -> Result<Vec<u8>, simple_dns::SimpleDnsError> {
    let mut packet = Packet::new_query(0x6163);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name)?, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec()
}

async fn exchange(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 4096];
    loop {
        let read = socket.recv(&mut answer).await?;
        if read >= 2 && answer[..2] == query[..2] {
            answer.truncate(read);
            return Ok(answer);
        }
    }
}

/// The name server that this machine is told to ask.
async fn system_nameserver() -> Option<SocketAddr> {
    let text = tokio::fs::read_to_string("/etc/resolv.conf").await.ok()?;
    let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.find_map(|ip| Some(SocketAddr::new(ip.trim().parse::<IpAddr>().ok()?, PORT)))
}

/// The texts of a name: at its authoritative servers, or as the system's name server has them.
///
/// # Errors
/// Nobody answers.
pub async fn texts_anywhere(dns: Option<&Dns>, name: &str) -> io::Result<Vec<String>> {
    if let Some(server) = dns.and_then(|dns| dns.nameservers.first()) {
        return texts(*server, name).await;
    }
    match system_nameserver().await {
        Some(server) => texts(server, name).await,
        None => Err(io::Error::other("this machine names no name server")),
    }
}
