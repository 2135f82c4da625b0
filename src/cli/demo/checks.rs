//! What a client of the edge would notice, tried from outside: through sockets, by name, over TLS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::{Failure, print, print_words};
use crate::{
    client::{self, Destination, Roots},
    config::plan::RTC_GET_TOKEN,
    conn::Fetch,
    error::FailureCause,
    message::{Body, Fields, Request, Response, Value},
};

/// Bound on one request and its response; both ends are on this machine.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often, and how long after each other, it is looked whether the edge has asked the homeserver for tokens.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Tries everything, prints a table; whether all of it works.
pub async fn run(plain: SocketAddr, secure: SocketAddr, root: &str) -> Result<bool, Failure> {
    let client = Client::new(plain, secure, root)?;
    let mut passed = true;
    let mut row = |what: &str, outcome: anyhow::Result<String>| match outcome {
        Ok(seen) => print_words(format_args!("  ok    {what:46} {seen}\n")),
        Err(error) => {
            passed = false;
            print_words(format_args!("  FAIL  {what:46} {error:#}\n"))
        }
    };
    print("vestibule demo: a homeserver, a call service and an SFU behind vestibule\n\n")?;
    row("well-known of the server name", client.well_known("example.localhost").await)?;
    row("the same on the homeserver's name", client.well_known("matrix.localhost").await)?;
    row("well-known over plain HTTP", client.plain_well_known().await)?;
    row("everything else redirects to https", client.redirect().await)?;
    row("the homeserver answers", client.versions().await)?;
    row("its admin API is closed", client.admin_closed().await)?;
    row("responses are compressed", client.compressed().await)?;
    row("a preflight is answered", client.preflight().await)?;
    row("both endpoints issue a call token", client.call_tokens().await)?;
    row("the SFU's WebSocket opens and echoes", client.websocket().await)?;
    row("an upgrade without a token is rejected", client.refused_upgrade().await)?;
    row("an unknown name is rejected", client.unknown_name().await)?;
    Ok(passed)
}

struct Client {
    fetch: Fetch,
    plain: u16,
    secure: u16,
}

impl Client {
    fn new(plain: SocketAddr, secure: SocketAddr, root: &str) -> anyhow::Result<Self> {
        // Every name is here.
        let here = move |_: &str, port| Some(Destination::Address(if port == plain.port() { plain } else { secure }));
        let roots = Roots::only(root.as_bytes())?;
        let fetch = client::Builder::new(roots, DEADLINE).resolve(Arc::new(here)).build();
        Ok(Self { fetch, plain: plain.port(), secure: secure.port() })
    }

    async fn ask(
        &self,
        method: Method,
        url: String,
        fields: &[(header::HeaderName, &'static str)],
        body: &'static str,
    ) -> anyhow::Result<Response> {
        let mut request = Request::new(Body::full(body));
        request.method = method;
        request.uri = url.parse()?;
        for (name, value) in fields {
            request.fields.insert(name.clone(), Value::from_static(value));
        }
        (self.fetch)(request).await.map_err(|error| match error.source {
            Some(source) => anyhow::anyhow!(source).context(error.kind),
            None => error.kind.into(),
        })
    }

    async fn get(&self, host: &str, path: &str) -> anyhow::Result<(StatusCode, Fields, Bytes)> {
        let response = self.ask(Method::GET, format!("https://{host}:{}{path}", self.secure), &[], "").await?;
        whole(response).await
    }

    async fn well_known(&self, host: &str) -> anyhow::Result<String> {
        let (status, headers, body) = self.get(host, "/.well-known/matrix/client").await?;
        ensure!(status == 200, "{status}");
        ensure!(headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|any| any == "*"), "no CORS");
        let json: serde_json::Value = serde_json::from_slice(&body)?;
        let url = json["org.matrix.msc4143.rtc_foci"][0]["livekit_service_url"].as_str().context("no rtc_foci")?;
        Ok(url.to_owned())
    }

    async fn plain_well_known(&self) -> anyhow::Result<String> {
        let url = format!("http://example.localhost:{}/.well-known/matrix/server", self.plain);
        let (status, _, body) = whole(self.ask(Method::GET, url, &[], "").await?).await?;
        ensure!(status == 200, "{status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn redirect(&self) -> anyhow::Result<String> {
        let url = format!("http://matrix.localhost:{}/a%2Fb?c", self.plain);
        let (status, headers, _) = whole(self.ask(Method::GET, url, &[], "").await?).await?;
        let location = headers.get(header::LOCATION).and_then(Value::to_str).context("no location")?.to_owned();
        ensure!(
            status == 308 && location == format!("https://matrix.localhost:{}/a%2Fb?c", self.secure),
            "{status} {location}"
        );
        Ok(location)
    }

    async fn versions(&self) -> anyhow::Result<String> {
        let (status, _, body) = self.get("matrix.localhost", "/_matrix/client/versions").await?;
        ensure!(status == 200 && body.starts_with(b"{\"versions\""), "{status}");
        Ok(format!("{} bytes", body.len()))
    }

    async fn admin_closed(&self) -> anyhow::Result<String> {
        let (status, _, body) = self.get("matrix.localhost", "/_synapse/admin/v1/server_version").await?;
        let json: serde_json::Value = serde_json::from_slice(&body)?;
        ensure!(status == 404, "{status}");
        Ok(json["errcode"].as_str().context("no Matrix error")?.to_owned())
    }

    async fn compressed(&self) -> anyhow::Result<String> {
        let url = format!("https://example.localhost:{}/.well-known/matrix/client", self.secure);
        let fields = [(header::ACCEPT_ENCODING, "gzip, br, zstd")];
        let (_, headers, body) = whole(self.ask(Method::GET, url, &fields, "").await?).await?;
        let coding =
            headers.get_all(header::CONTENT_ENCODING).next().and_then(Value::to_str).context("no content-encoding")?;
        Ok(format!("{coding}, {} bytes", body.len()))
    }

    async fn preflight(&self) -> anyhow::Result<String> {
        let url = format!("https://matrix.localhost:{}/_matrix/client/v3/login", self.secure);
        let fields = [(header::ORIGIN, "https://app.example"), (header::ACCESS_CONTROL_REQUEST_METHOD, "POST")];
        let (status, headers, _) = whole(self.ask(Method::OPTIONS, url, &fields, "").await?).await?;
        ensure!(status == 204 && headers.contains(header::ACCESS_CONTROL_ALLOW_HEADERS), "{status}");
        Ok("204".to_owned())
    }

    /// By the call service and by the homeserver, and clients learn of both.
    async fn call_tokens(&self) -> anyhow::Result<String> {
        self.call_token().await?;
        self.call_token_by_homeserver().await?;
        self.transports().await
    }

    async fn call_token(&self) -> anyhow::Result<()> {
        let url = format!("https://jwt.matrixrtc.localhost:{}/sfu/get", self.secure);
        let (status, _, body) = whole(self.ask(Method::POST, url, &[], "{}").await?).await?;
        let json: serde_json::Value = serde_json::from_slice(&body)?;
        ensure!(status == 200 && json["jwt"].is_string(), "/sfu/get: {status}");
        Ok(())
    }

    async fn call_token_by_homeserver(&self) -> anyhow::Result<()> {
        let url = format!("https://matrix.localhost:{}{}", self.secure, RTC_GET_TOKEN[0]);
        let fields = [(header::AUTHORIZATION, "Bearer demo")];
        let (status, _, body) = whole(self.ask(Method::POST, url, &fields, "{}").await?).await?;
        let json: serde_json::Value = serde_json::from_slice(&body)?;
        ensure!(status == 200 && json["jwt"].is_string(), "{}: {status}", RTC_GET_TOKEN[0]);
        Ok(())
    }

    /// The SFU is named as soon as the edge has asked the homeserver, which it does beside everything else.
    async fn transports(&self) -> anyhow::Result<String> {
        for _ in 0..TRIES {
            let url = format!("https://matrix.localhost:{}/_matrix/client/v1/rtc/transports", self.secure);
            let fields = [(header::AUTHORIZATION, "Bearer demo")];
            let (_, _, body) = whole(self.ask(Method::GET, url, &fields, "").await?).await?;
            let json: serde_json::Value = serde_json::from_slice(&body)?;
            if let Some(url) = json["transports"][0]["url"].as_str() {
                return Ok(url.to_owned());
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the list names no SFU")
    }

    async fn upgrade(&self, query: &str) -> anyhow::Result<Response> {
        let url = format!("https://matrixrtc.localhost:{}/rtc/v1{query}", self.secure);
        let fields = [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        self.ask(Method::GET, url, &fields, "").await
    }

    async fn websocket(&self) -> anyhow::Result<String> {
        let response = self.upgrade("?access_token=demo").await?;
        ensure!(response.status == StatusCode::SWITCHING_PROTOCOLS, "{}", response.status);
        let accept = response.fields.get(header::SEC_WEBSOCKET_ACCEPT).context("no accept key")?;
        ensure!(accept == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "wrong accept key (RFC 6455 section 1.3)");
        let takeover = response.takeover.context("no stream")?;
        let (mut near, far) = tokio::io::duplex(4096);
        let tunnel = takeover.run(Box::new(far), Bytes::new());
        let talk = async {
            near.write_all(b"\x81\x85\x01\x02\x03\x04igohn").await?;
            let mut echo = [0; 7];
            near.read_exact(&mut echo).await?;
            drop(near);
            anyhow::Ok(echo)
        };
        let (_, echo) = tokio::join!(tunnel, talk);
        match &echo? {
            b"\x81\x05hello" => Ok("hello".to_owned()),
            other => bail!("{other:?}"),
        }
    }

    async fn refused_upgrade(&self) -> anyhow::Result<String> {
        let (status, _, body) = whole(self.upgrade("").await?).await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "{status}");
        Ok(format!("401, {}", String::from_utf8_lossy(&body)))
    }

    async fn unknown_name(&self) -> anyhow::Result<String> {
        match self.get("unknown.localhost", "/").await {
            Ok((status, ..)) => bail!("{status}"),
            Err(error) if format!("{error:#}").contains(&FailureCause::NoCertificate.to_string()) => {
                Ok("unrecognized_name".to_owned())
            }
            Err(error) => Err(error),
        }
    }
}

async fn whole(response: Response) -> anyhow::Result<(StatusCode, Fields, Bytes)> {
    let Response { status, fields, mut body, .. } = response;
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            bytes.extend_from_slice(data);
        }
    }
    Ok((status, fields, bytes.freeze()))
}
