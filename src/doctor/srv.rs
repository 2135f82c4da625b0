//! SRV records, which the system's resolver cannot look up: one query over UDP to the name server of this machine.

use std::{fs, io, net::SocketAddr, time::Duration};

use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, TYPE, rdata::RData};
use tokio::{net::UdpSocket, time::timeout};

/// Where a name server listens (RFC 1035 section 4.2).
const PORT: u16 = 53;

/// Time limit of one try; a lost datagram is sent again once.
const LIMIT: Duration = Duration::from_secs(2);

/// An SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// The machine.
    pub target: String,
    /// Its port.
    pub port: u16,
}

/// The name server of `/etc/resolv.conf`.
pub fn system_nameserver() -> Option<SocketAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").ok()?;
    let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.find_map(|ip| Some(SocketAddr::new(ip.trim().parse().ok()?, PORT)))
}

/// The preferred SRV record of a name, if it has one.
///
/// # Errors
/// The name server does not answer, or returns an error.
pub async fn lookup(name: &str, server: SocketAddr) -> io::Result<Option<Srv>> {
    let query = query(name).map_err(io::Error::other)?;
    for _ in 0..2 {
        if let Ok(answer) = timeout(LIMIT, ask(&query, server)).await {
            return best(&answer?).map_err(io::Error::other);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("{server} does not answer")))
}

/// Builds the query. Its id only has to differ from that of a stray response: the socket is connected.
fn query(name: &str) -> Result<Vec<u8>, simple_dns::SimpleDnsError> {
    let mut packet = Packet::new_query(0x6d78);
    packet.set_flags(simple_dns::PacketFlag::RECURSION_DESIRED);
    let class = QCLASS::CLASS(CLASS::IN);
    packet.questions.push(Question::new(Name::new(name)?, QTYPE::TYPE(TYPE::SRV), class, false));
    packet.build_bytes_vec()
}

async fn ask(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
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

fn best(answer: &[u8]) -> Result<Option<Srv>, String> {
    let packet = Packet::parse(answer).map_err(|error| error.to_string())?;
    match packet.rcode() {
        simple_dns::RCODE::NoError | simple_dns::RCODE::NameError => {}
        code => return Err(format!("the name server returned {code:?}")),
    }
    let records = packet.answers.iter().filter_map(|record| match &record.rdata {
        // A target of "." means that there is no such service (RFC 2782).
        RData::SRV(srv) if !srv.target.to_string().trim_matches('.').is_empty() => Some(srv),
        _ => None,
    });
    let best = records.min_by_key(|srv| (srv.priority, std::cmp::Reverse(srv.weight)));
    Ok(best.map(|srv| Srv { target: srv.target.to_string(), port: srv.port }))
}

#[cfg(test)]
mod tests {
    use simple_dns::{ResourceRecord, rdata::SRV};

    use super::*;

    fn answer(records: &[(u16, u16, &'static str, u16)]) -> Vec<u8> {
        let mut packet = Packet::new_reply(0x6d78);
        for (priority, weight, target, port) in records {
            let target = Name::new(target).unwrap();
            let data = RData::SRV(SRV { priority: *priority, weight: *weight, port: *port, target });
            packet.answers.push(ResourceRecord::new(Name::new("_x._tcp.example.org").unwrap(), CLASS::IN, 60, data));
        }
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn the_best_record_is_chosen() {
        let three = answer(&[(20, 0, "c.example", 3), (10, 1, "b.example", 2), (10, 5, "a.example", 1)]);
        assert_eq!(best(&three), Ok(Some(Srv { target: "a.example".into(), port: 1 })));
        assert_eq!(best(&answer(&[])), Ok(None));
        assert!(best(b"x").is_err());
    }

    #[tokio::test]
    async fn a_name_server_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = async {
            let mut question = [0; 512];
            let (read, from) = server.recv_from(&mut question).await.unwrap();
            assert_eq!(Packet::parse(&question[..read]).unwrap().questions[0].qname.to_string(), "_x._tcp.example.org");
            server.send_to(&answer(&[(1, 1, "a.example", 8448)]), from).await.unwrap();
        };
        let (found, ()) = tokio::join!(lookup("_x._tcp.example.org", address), serve);
        assert_eq!(found.unwrap(), Some(Srv { target: "a.example".into(), port: 8448 }));
    }
}
