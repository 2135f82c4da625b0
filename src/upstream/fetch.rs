//! A client for rooms that must ask somebody something: an ACME directory, a probe. One connection per request.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Uri, header, uri::Scheme};
use tokio::{net::TcpStream, time::timeout};

use super::{
    Env, Lease, Roots, Upstream, client,
    connect::{self, Socket, UpstreamConnection},
};
use crate::{
    config::plan,
    conn::{Fetch, Phases, RequestObservers},
    error::{Kind, ProxyError},
    message::{Request, Response, Value},
};

/// Where a name is to be found instead of where DNS says; `None` asks DNS.
pub type Override = Arc<dyn Fn(&str, u16) -> Option<SocketAddr> + Send + Sync>;

/// A client whose requests take at most `limit` from dial to head.
#[must_use]
pub fn fetcher(roots: Roots, limit: Duration, at: Option<Override>, env: &Env) -> Fetch {
    let env = Env { roots, ..env.clone() };
    Arc::new(move |request| {
        let (env, at) = (env.clone(), at.clone());
        Box::pin(async move {
            timeout(limit, fetch(request, limit, at, env)).await.unwrap_or_else(|_| Err(Kind::ResponseTimeout.into()))
        })
    })
}

async fn fetch(mut request: Request, limit: Duration, at: Option<Override>, env: Env) -> Result<Response, ProxyError> {
    let server = server(&request.uri)?;
    let link = dial(&server, limit, at.as_ref(), &env.roots).await?;
    if let Some(authority) = request.uri.authority()
        && let Ok(host) = Value::new(authority.as_str().as_bytes())
    {
        request.fields.insert_if_absent(header::HOST, host);
    }
    if !request.fields.contains(header::UPGRADE) {
        request.fields.insert(header::CONNECTION, Value::from_static("close"));
    }
    let path = request.uri.path_and_query().cloned().unwrap_or(http::uri::PathAndQuery::from_static("/"));
    request.uri = Uri::from(path);
    let plan = plan::Upstream {
        name: server.to_string().into(),
        servers: vec![server],
        connect_timeout: limit,
        response_timeout: Some(limit),
        retry_connect: Duration::ZERO,
        balance: plan::Balance::RoundRobin,
        health: None,
    };
    let upstream = Upstream::new(&plan, &env);
    let lease = Lease::new(upstream.0.clone(), 0);
    let mut outgoing = client::Outgoing::new(request, RequestObservers::default());
    match client::exchange(link, &mut outgoing, &plan, &env, lease).await {
        Ok(client::ReceivedResponse(response)) => Ok(response),
        Err(failed) => Err(failed.error),
    }
}

async fn dial(
    server: &plan::Server,
    limit: Duration,
    at: Option<&Override>,
    roots: &Roots,
) -> Result<UpstreamConnection, ProxyError> {
    let (host, port, secure) = match server {
        plan::Server::Http { host, port } => (host, *port, false),
        plan::Server::Https { host, port } => (host, *port, true),
        plan::Server::Unix(_) => return Ok(connect::dial(server, limit, roots, &Phases::default()).await?),
    };
    let Some(address) = at.and_then(|at| at(host, port)) else {
        return Ok(connect::dial(server, limit, roots, &Phases::default()).await?);
    };
    let tcp: TcpStream = connect::tcp_to(address).await.map_err(connect::DialError::Io)?;
    let socket = if secure { connect::tls(tcp, host, roots).await? } else { Socket::Tcp(tcp) };
    Ok(UpstreamConnection::new(socket))
}

fn server(uri: &Uri) -> Result<plan::Server, ProxyError> {
    let host = uri.host().map(|host| host.trim_matches(['[', ']']).to_owned());
    match (uri.scheme(), host) {
        (Some(scheme), Some(host)) if *scheme == Scheme::HTTPS => {
            Ok(plan::Server::Https { host, port: uri.port_u16().unwrap_or(443) })
        }
        (Some(scheme), Some(host)) if *scheme == Scheme::HTTP => {
            Ok(plan::Server::Http { host, port: uri.port_u16().unwrap_or(80) })
        }
        _ => Err(Kind::BadRequest("the URL is not absolute").into()),
    }
}
