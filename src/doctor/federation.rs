//! Federation as another homeserver does it: server discovery step by step, then its first requests.
//!
//! lk-jwt-service verifies users in the same way, so broken federation also breaks calls.

use std::time::{Duration, SystemTime};

use super::{
    ProbeContext,
    ask::ProbeRequest,
    finding::{Check, Finding, Layer},
    names::server_name_origin,
    srv,
};
use crate::{
    config::plan::Matrix,
    conn::Fetch,
    error::{Role, ServerFailure},
};

/// The port of a server name without a port and without delegation.
const PORT: u16 = 8448;

/// The result of discovery, and the step that it comes from.
struct Target {
    /// The name that the certificate must have, with the port.
    authority: String,
    /// The target of an SRV record; no certificate needs its name.
    machine: Option<(String, u16)>,
    step: String,
}

impl Target {
    fn new(authority: impl Into<String>, step: impl Into<String>) -> Self {
        Self { authority: authority.into(), machine: None, step: step.into() }
    }

    async fn way(&self, context: &ProbeContext<'_>) -> Result<Fetch, String> {
        let Some((machine, port)) = &self.machine else { return context.way(&format!("https://{}", self.authority)) };
        let addresses = (context.reach.resolve)(machine.clone(), *port).await;
        let address = addresses.ok().and_then(|addresses| addresses.first().copied());
        let address = address.ok_or_else(|| format!("{machine}, the target of the SRV record, does not resolve"))?;
        Ok((context.reach.via)(Some(address)))
    }
}

/// Discovers the server and sends it the requests of other homeservers.
pub async fn probe(context: &ProbeContext<'_>, matrix: &Matrix) -> Vec<Finding> {
    let discovery = Check::new(Layer::Federation, "federation", &matrix.server_name);
    let target = match discover(context, matrix, &discovery).await {
        Ok(target) => target,
        Err(finding) => return vec![finding],
    };
    let homeserver = context.homeserver(matrix);
    if let Err(reason) = &homeserver {
        return vec![discovery.skip(reason.clone())];
    }
    let base = format!("https://{}", target.authority);
    let way = match target.way(context).await {
        Ok(way) => way,
        Err(reason) => return vec![discovery.skip(reason)],
    };
    let version = match ProbeRequest::get(format!("{base}/_matrix/federation/v1/version")).ask(&way).await {
        Ok(response) => response,
        Err(error) => return vec![unreachable(&discovery, &target, &error)],
    };
    let found = discovery.ok(format!("{} leads to {}", target.step, target.authority));
    if version.status != 200 || !version.json()["server"].is_object() {
        let listens = Check::new(Layer::Federation, "federation.listener", &target.authority);
        let fact = format!("/_matrix/federation/v1/version returns {}", version.words());
        return vec![
            found,
            match version.errcode().as_str() {
                "M_UNRECOGNIZED" => listens.fail(
                    "missing",
                    fact,
                    "add `federation` to the resources of Synapse's listener (names: [client, federation])",
                ),
                _ => listens.fail("other", fact, "proxy all of /_matrix/ at that address to Synapse"),
            },
        ];
    }
    let keys = ProbeRequest::get(format!("{base}/_matrix/key/v2/server")).ask(&way).await;
    let user =
        ProbeRequest::get(format!("{base}/_matrix/federation/v1/openid/userinfo?access_token=x")).ask(&way).await;
    vec![
        found,
        Check::new(Layer::Federation, "federation.listener", &target.authority).ok(format!(
            "answers as {} {}",
            text(&version.json()["server"]["name"]),
            text(&version.json()["server"]["version"])
        )),
        name(
            &Check::new(Layer::Federation, "federation.key", &target.authority),
            keys,
            matrix,
            context.reach.clock.now(),
        ),
        openid(&Check::new(Layer::Federation, "federation.openid", &target.authority), user),
    ]
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or("?")
}

async fn discover(context: &ProbeContext<'_>, matrix: &Matrix, check: &Check) -> Result<Target, Finding> {
    if has_port(&matrix.server_name) {
        return Ok(Target::new(&matrix.server_name, "the server name"));
    }
    let url = format!("{}/.well-known/matrix/server", server_name_origin(context.plan, &matrix.server_name));
    let way = context.way(&url).map_err(|reason| check.skip(reason))?;
    let response = ProbeRequest::get(&url)
        .ask(&way)
        .await
        .map_err(|error| check.skip(format!("{url} does not answer ({error})")))?;
    let document = response.json();
    match document["m.server"].as_str().filter(|_| response.status == 200) {
        Some(server) if has_port(server) => Ok(Target::new(server, "/.well-known/matrix/server")),
        Some(server) => Ok(by_record(context, server, "/.well-known/matrix/server without a port").await),
        None => Ok(by_record(context, &matrix.server_name, "no /.well-known/matrix/server").await),
    }
}

/// The SRV records, the current name before the deprecated one; without any, the default port.
async fn by_record(context: &ProbeContext<'_>, name: &str, before: &str) -> Target {
    let mut doubt = String::new();
    for service in ["_matrix-fed", "_matrix"] {
        let record = format!("{service}._tcp.{name}");
        let found = match context.reach.nameserver {
            Some(server) => srv::lookup(&record, server).await.map_err(|error| error.to_string()),
            None => Err("there is no name server".into()),
        };
        match found {
            Ok(None) => {}
            Ok(Some(srv)) => {
                let step = format!("{before}, but the SRV record {record} to {}:{},", srv.target, srv.port);
                let authority = format!("{name}:{}", srv.port);
                return Target { machine: Some((srv.target, srv.port)), ..Target::new(authority, step) };
            }
            Err(error) => doubt = format!(" (SRV records cannot be looked up: {error})"),
        }
    }
    Target::new(format!("{name}:{PORT}"), format!("{before} nor an SRV record{doubt}, which means port {PORT},"))
}

/// Whether the name has a port; colons inside a bracketed address do not count.
fn has_port(name: &str) -> bool {
    name.rsplit_once(':').is_some_and(|(host, port)| {
        port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']'))
    })
}

fn unreachable(check: &Check, target: &Target, error: &ServerFailure) -> Finding {
    let fact = format!("{} leads to {}, which does not answer ({error})", target.step, target.authority);
    if target.machine.is_none() && target.authority.ends_with(&format!(":{PORT}")) {
        let fix = "serve /.well-known/matrix/server on the server name with a port in m.server, as `vestibule check` prints it, or add \"[::]:8448\" to listen.https";
        return check.fail("delegation", fact, fix);
    }
    let fix = match error.cause.is_unreachable() {
        true => error.fix(Role::Public),
        false => "set m.server (matrix.federation) to an address that is reachable from the internet",
    };
    check.fail("unreachable", fact, fix)
}

fn name(
    check: &Check,
    response: Result<super::ask::ProbeResponse, ServerFailure>,
    matrix: &Matrix,
    now: SystemTime,
) -> Finding {
    let keys = match response {
        Ok(response) if response.status == 200 => response.json(),
        Ok(response) => {
            let fact = format!("/_matrix/key/v2/server returns {}", response.words());
            return check.fail("missing", fact, "proxy all of /_matrix/ to Synapse");
        }
        Err(error) => return check.silent(&error, "read Synapse's log"),
    };
    let name = text(&keys["server_name"]);
    let until = SystemTime::UNIX_EPOCH + Duration::from_millis(keys["valid_until_ts"].as_u64().unwrap_or(0));
    if name != matrix.server_name {
        let fact = format!("the homeserver's name is {name:?}, but matrix.server_name is {:?}", matrix.server_name);
        check.fail(
            "server_name",
            fact,
            "set matrix.server_name to the value in homeserver.yaml, which cannot be changed later",
        )
    } else if until <= now {
        check.fail(
            "expired",
            "the homeserver's signing key has expired",
            "correct the clock of the homeserver's machine",
        )
    } else {
        check.ok(format!("signs as {name}"))
    }
}

/// The request that lk-jwt-service sends to the homeserver of each user.
fn openid(check: &Check, response: Result<super::ask::ProbeResponse, ServerFailure>) -> Finding {
    let fix =
        "add `federation` or `openid` to the resources of Synapse's listener, and do not filter /_matrix/federation/";
    match response {
        Ok(response) if response.is(401, "M_UNKNOWN_TOKEN") => check.ok("call services can verify users"),
        Ok(response) => check.fail("missing", format!("call services cannot verify users: {}", response.words()), fix),
        Err(error) => check.silent(&error, fix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_told_from_an_address() {
        for (name, has) in
            [("a.example", false), ("a.example:443", true), ("[2001:db8::1]", false), ("[::1]:8448", true)]
        {
            assert_eq!(has_port(name), has, "{name}");
        }
    }
}
