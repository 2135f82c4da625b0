//! Questions to DNS servers that the system's resolver does not ask: records of other types than addresses, at a server of
//! the caller's choice. Over UDP, and over TCP where the answer does not fit (RFC 7766 section 5).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Where a name server listens (RFC 1035 section 4.2).
pub const PORT: u16 = 53;

/// Bound on one try; a lost datagram is asked again once.
const LIMIT: Duration = Duration::from_secs(2);

/// A service under a name (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// The lowest is asked first.
    pub priority: u16,
    /// The share among those of one priority.
    pub weight: u16,
    /// The machine; empty where there is no such service.
    pub target: String,
    /// Its port.
    pub port: u16,
}

/// The name server that this machine is told to ask.
pub async fn system_nameserver() -> Option<SocketAddr> {
    let text = tokio::fs::read_to_string("/etc/resolv.conf").await.ok()?;
    let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.find_map(|ip| Some(SocketAddr::new(ip.trim().parse::<IpAddr>().ok()?, PORT)))
}

/// The texts of a name; none where there is no such name.
///
/// # Errors
/// The server does not answer, or refuses: then nothing is known.
pub async fn texts(server: SocketAddr, name: &str) -> io::Result<Vec<String>> {
    let pick = |data: &RData<'_>| match data {
        RData::TXT(text) => String::try_from(text.clone()).ok(),
        _ => None,
    };
    records(server, name, TYPE::TXT, pick).await
}

/// Where an alias leads.
///
/// # Errors
/// As those of [`texts`].
pub async fn alias(server: SocketAddr, name: &str) -> io::Result<Option<String>> {
    let pick = |data: &RData<'_>| match data {
        RData::CNAME(target) => Some(target.0.to_string()),
        _ => None,
    };
    Ok(records(server, name, TYPE::CNAME, pick).await?.pop())
}

/// The names of the servers of a zone; none where the name is no zone of its own.
///
/// # Errors
/// As those of [`texts`].
pub async fn zone_servers(server: SocketAddr, name: &str) -> io::Result<Vec<String>> {
    let pick = |data: &RData<'_>| match data {
        RData::NS(ns) => Some(ns.0.to_string()),
        _ => None,
    };
    records(server, name, TYPE::NS, pick).await
}

/// Whether a name is the top of a zone.
///
/// # Errors
/// As those of [`texts`].
pub async fn is_zone(server: SocketAddr, name: &str) -> io::Result<bool> {
    let found = records(server, name, TYPE::SOA, |data| matches!(data, RData::SOA(_)).then_some(())).await?;
    Ok(!found.is_empty())
}

/// The services under a name.
///
/// # Errors
/// As those of [`texts`].
pub async fn services(server: SocketAddr, name: &str) -> io::Result<Vec<Srv>> {
    let pick = |data: &RData<'_>| match data {
        RData::SRV(srv) => {
            let target = srv.target.to_string().trim_matches('.').to_owned();
            Some(Srv { priority: srv.priority, weight: srv.weight, target, port: srv.port })
        }
        _ => None,
    };
    records(server, name, TYPE::SRV, pick).await
}

async fn records<T>(
    server: SocketAddr,
    name: &str,
    kind: TYPE,
    pick: impl Fn(&RData<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let query = query(name, kind).map_err(io::Error::other)?;
    for _ in 0..2 {
        let Ok(answer) = timeout(LIMIT, ask(&query, server)).await else { continue };
        let answer = answer?;
        let packet = Packet::parse(&answer).map_err(io::Error::other)?;
        return match packet.rcode() {
            RCODE::NoError | RCODE::NameError => Ok(packet.answers.iter().filter_map(|one| pick(&one.rdata)).collect()),
            code => Err(io::Error::other(format!("{server} says {code:?}"))),
        };
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")))
}

/// The id only has to differ from that of a stray answer; the socket is connected.
fn query(name: &str, kind: TYPE) -> Result<Vec<u8>, simple_dns::SimpleDnsError> {
    let mut packet = Packet::new_query(0x6d78);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name)?, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec()
}

async fn ask(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let answer = ask_udp(query, server).await?;
    let is_cut = Packet::parse(&answer).is_ok_and(|packet| packet.has_flags(PacketFlag::TRUNCATION));
    if is_cut { ask_tcp(query, server).await } else { Ok(answer) }
}

async fn ask_udp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
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

/// A message after its length, both ways (RFC 1035 section 4.2.2).
async fn ask_tcp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use simple_dns::{
        ResourceRecord,
        rdata::{SRV, TXT},
    };
    use tokio::net::TcpListener;

    use super::*;

    const NAME: &str = "_x._tcp.example.org";

    fn answer(records: Vec<RData<'_>>, flags: PacketFlag) -> Vec<u8> {
        let mut packet = Packet::new_reply(0x6d78);
        packet.set_flags(flags);
        for data in records {
            packet.answers.push(ResourceRecord::new(Name::new(NAME).unwrap(), CLASS::IN, 60, data));
        }
        packet.build_bytes_vec().unwrap()
    }

    #[tokio::test]
    async fn a_name_server_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = async {
            let mut question = [0; 512];
            let (read, from) = server.recv_from(&mut question).await.unwrap();
            assert_eq!(Packet::parse(&question[..read]).unwrap().questions[0].qname.to_string(), NAME);
            let target = Name::new("a.example").unwrap();
            let srv = RData::SRV(SRV { priority: 1, weight: 2, port: 8448, target });
            server.send_to(&answer(vec![srv], PacketFlag::RESPONSE), from).await.unwrap();
        };
        let (found, ()) = tokio::join!(services(address, NAME), serve);
        let srv = Srv { priority: 1, weight: 2, target: "a.example".into(), port: 8448 };
        assert_eq!(found.unwrap(), [srv]);
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_is_asked_for_over_tcp() {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let serve = async {
            let mut question = [0; 512];
            let (_, from) = udp.recv_from(&mut question).await.unwrap();
            udp.send_to(&answer(vec![], PacketFlag::RESPONSE | PacketFlag::TRUNCATION), from).await.unwrap();
            let (mut stream, _) = tcp.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            stream.read_exact(&mut question[..usize::from(length)]).await.unwrap();
            let text = RData::TXT(TXT::new().with_string("value").unwrap());
            let whole = answer(vec![text], PacketFlag::RESPONSE);
            stream.write_u16(u16::try_from(whole.len()).unwrap()).await.unwrap();
            stream.write_all(&whole).await.unwrap();
        };
        let (found, ()) = tokio::join!(texts(udp.local_addr().unwrap(), NAME), serve);
        assert_eq!(found.unwrap(), ["value"]);
    }
}
