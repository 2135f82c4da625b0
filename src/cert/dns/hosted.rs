//! Hosted providers of DNS: a table of what the API of each wants to be asked, and the one way of asking.
//!
//! No crate, because the one that is kept best (`dns-update`) brings an HTTP client with a TLS verifier of its own, which
//! finds no roots in an image without them, and fixes the address of each API, so that none of its calls could be tested.

use std::{sync::Arc, time::Duration};

use http::{Method, Uri, header};
use http_body_util::BodyExt as _;
use serde_json::Value as Json;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::timeout,
};

use super::{DnsError, command::Action};
use crate::{
    config::plan::{AcmeDns, DnsHost, HostedDns},
    conn::Fetch,
    error::chain,
    message::{Body, Request, Value},
};

/// Bound on one request, in addition to that of the client.
const LIMIT: Duration = Duration::from_secs(30);

/// What an API says beyond this is no use in a message.
const MAX_WORDS: usize = 300;

/// What asks the APIs. All orders share it, so that changes to one set of records follow each other.
#[derive(Clone)]
pub struct Api {
    fetch: Fetch,
    turn: Arc<Mutex<()>>,
}

impl Api {
    /// A client for all APIs; its turns are those of an earlier one.
    pub fn new(fetch: Fetch, before: Option<&Self>) -> Self {
        Self { fetch, turn: before.map(|before| before.turn.clone()).unwrap_or_default() }
    }

    /// The turn to have a record at acme-dns, which keeps two values and forgets older ones.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Adds a record or removes it; others of the same name stay.
    pub async fn change(&self, host: &HostedDns, action: Action, name: &str, value: &str) -> Result<(), DnsError> {
        let _turn = self.turn.lock().await;
        let account = Account::new(self, host)?;
        let change = Change { account: &account, name, value };
        change.make(action).await.map_err(|reason| DnsError::Api { api: host.host.as_str(), reason })
    }

    /// Sets a value at acme-dns.
    pub async fn update_acme_dns(&self, account: &AcmeDns, value: &str) -> Result<(), DnsError> {
        let password = account.password.read().map_err(|(path, source)| DnsError::Secret { path, source })?;
        let failed = |reason| DnsError::Api { api: "acme-dns", reason };
        let mut request =
            Request::new(Body::full(serde_json::json!({ "subdomain": account.subdomain, "txt": value }).to_string()));
        request.method = Method::POST;
        let url = format!("{}/update", account.url.trim_end_matches('/'));
        request.uri = url.parse().map_err(|_| failed(format!("{url} is not a URL")))?;
        for (field, value) in [("x-api-user", &account.username), ("x-api-key", &password)] {
            let value = Value::new(value.as_bytes()).map_err(|_| failed(format!("{field} cannot be sent")))?;
            request.fields.append(header::HeaderName::from_static(field), value);
        }
        request.fields.append(header::CONTENT_TYPE, Value::from_static("application/json"));
        let (status, body) = ask(&self.fetch, request).await.map_err(failed)?;
        if (200..300).contains(&status) { Ok(()) } else { Err(failed(words(status, &body, &[&password]))) }
    }
}

async fn ask(fetch: &Fetch, request: Request) -> Result<(u16, String), String> {
    let asked = async {
        let response = fetch(request).await.map_err(|error| chain(&error))?;
        let body = response.body.collect().await.map_err(|error| chain(&error))?.to_bytes();
        Ok((response.status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
    };
    timeout(LIMIT, asked).await.unwrap_or_else(|_| Err("it does not answer".into()))
}

/// What an API said, as one short line and without our secrets, which some repeat.
fn words(status: u16, body: &str, secrets: &[&str]) -> String {
    let mut said = body.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        said = said.replace(secret, "******").replace(&escaped(secret), "******");
    }
    let said: String = said.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    match status {
        401 | 403 => format!("it refuses our key (HTTP {status}): {said}"),
        _ => format!("HTTP {status}: {said}"),
    }
}

/// A request, with what stands in braces to be filled in.
struct Call {
    method: Method,
    path: &'static str,
    body: &'static str,
}

const fn call(method: Method, path: &'static str, body: &'static str) -> Call {
    Call { method, path, body }
}

/// How a zone is found and named in further calls (`{id}`).
enum Zone {
    /// The call succeeds for a zone that is there, and its own name names it.
    Named(Call),
    /// A list: where in the answer (RFC 6901), and which members are its name and its id.
    Listed { call: Call, at: &'static str, name: &'static str, id: &'static str },
}

/// How a value is added and removed.
enum Records {
    /// Each record has an id, by which it is removed (`{record}`).
    Each { add: Call, list: Call, at: &'static str, id: &'static str, value: &'static str, remove: Call },
    /// One call each.
    Values { add: Call, remove: Call },
    /// All values of a name are one (`{values}`).
    Set { read: Call, at: &'static str, write: Call, clear: Call },
}

/// An API.
struct Interface {
    host: DnsHost,
    url: &'static str,
    /// The fields that hold the key.
    fields: &'static [(&'static str, &'static str)],
    zone: Zone,
    records: Records,
}

const BEARER: &[(&str, &str)] = &[("authorization", "Bearer {token}")];
const PORKBUN_KEYS: &str = r#"{"apikey":"{token}","secretapikey":"{secret}"}"#;
const NONE: &str = "";

const fn get(path: &'static str) -> Call {
    call(Method::GET, path, NONE)
}

const fn post(path: &'static str, body: &'static str) -> Call {
    call(Method::POST, path, body)
}

const fn put(path: &'static str, body: &'static str) -> Call {
    call(Method::PUT, path, body)
}

const fn delete(path: &'static str) -> Call {
    call(Method::DELETE, path, NONE)
}

static INTERFACES: [Interface; 12] = [
    Interface {
        host: DnsHost::Bunny,
        url: "https://api.bunny.net",
        fields: &[("accesskey", "{token}")],
        zone: Zone::Listed { call: get("/dnszone?search={zone}"), at: "/Items", name: "Domain", id: "Id" },
        records: Records::Each {
            add: put("/dnszone/{id}/records", r#"{"Type":3,"Name":"{sub}","Value":"{value}","Ttl":60}"#),
            list: get("/dnszone/{id}"),
            at: "/Records",
            id: "Id",
            value: "Value",
            remove: delete("/dnszone/{id}/records/{record}"),
        },
    },
    Interface {
        host: DnsHost::Cloudflare,
        url: "https://api.cloudflare.com/client/v4",
        fields: BEARER,
        zone: Zone::Listed { call: get("/zones?name={zone}"), at: "/result", name: "name", id: "id" },
        records: Records::Each {
            add: post("/zones/{id}/dns_records", r#"{"type":"TXT","name":"{name}","content":"\"{value}\"","ttl":60}"#),
            list: get("/zones/{id}/dns_records?type=TXT&name={name}"),
            at: "/result",
            id: "id",
            value: "content",
            remove: delete("/zones/{id}/dns_records/{record}"),
        },
    },
    Interface {
        host: DnsHost::Desec,
        url: "https://desec.io/api/v1",
        fields: &[("authorization", "Token {token}")],
        zone: Zone::Named(get("/domains/{zone}/")),
        records: Records::Set {
            read: get("/domains/{zone}/rrsets/{sub}/TXT/"),
            at: "/records",
            // An hour is the shortest that it takes.
            write: put(
                "/domains/{zone}/rrsets/",
                r#"[{"subname":"{sub}","type":"TXT","ttl":3600,"records":{values}}]"#,
            ),
            clear: delete("/domains/{zone}/rrsets/{sub}/TXT/"),
        },
    },
    Interface {
        host: DnsHost::DigitalOcean,
        url: "https://api.digitalocean.com",
        fields: BEARER,
        zone: Zone::Named(get("/v2/domains/{zone}")),
        records: Records::Each {
            add: post("/v2/domains/{zone}/records", r#"{"type":"TXT","name":"{sub}","data":"{value}","ttl":60}"#),
            list: get("/v2/domains/{zone}/records?type=TXT&name={name}&per_page=200"),
            at: "/domain_records",
            id: "id",
            value: "data",
            remove: delete("/v2/domains/{zone}/records/{record}"),
        },
    },
    Interface {
        host: DnsHost::DnSimple,
        url: "https://api.dnsimple.com",
        fields: BEARER,
        zone: Zone::Named(get("/v2/{account}/zones/{zone}")),
        records: Records::Each {
            add: post(
                "/v2/{account}/zones/{zone}/records",
                r#"{"type":"TXT","name":"{sub}","content":"{value}","ttl":60}"#,
            ),
            list: get("/v2/{account}/zones/{zone}/records?type=TXT&name={sub}&per_page=100"),
            at: "/data",
            id: "id",
            value: "content",
            remove: delete("/v2/{account}/zones/{zone}/records/{record}"),
        },
    },
    Interface {
        host: DnsHost::Gandi,
        url: "https://api.gandi.net/v5/livedns",
        fields: BEARER,
        zone: Zone::Named(get("/domains/{zone}")),
        records: Records::Set {
            read: get("/domains/{zone}/records/{sub}/TXT"),
            at: "/rrset_values",
            write: put("/domains/{zone}/records/{sub}/TXT", r#"{"rrset_ttl":300,"rrset_values":{values}}"#),
            clear: delete("/domains/{zone}/records/{sub}/TXT"),
        },
    },
    Interface {
        host: DnsHost::Hetzner,
        url: "https://api.hetzner.cloud/v1",
        fields: BEARER,
        zone: Zone::Named(get("/zones/{zone}")),
        records: Records::Values {
            add: post(
                "/zones/{zone}/rrsets/{sub}/TXT/actions/add_records",
                r#"{"ttl":60,"records":[{"value":"\"{value}\""}]}"#,
            ),
            remove: post(
                "/zones/{zone}/rrsets/{sub}/TXT/actions/remove_records",
                r#"{"records":[{"value":"\"{value}\""}]}"#,
            ),
        },
    },
    Interface {
        host: DnsHost::Ionos,
        url: "https://api.hosting.ionos.com/dns",
        fields: &[("x-api-key", "{token}")],
        zone: Zone::Listed { call: get("/v1/zones"), at: "", name: "name", id: "id" },
        records: Records::Each {
            add: post(
                "/v1/zones/{id}/records",
                r#"[{"name":"{name}","type":"TXT","content":"{value}","ttl":60,"prio":0,"disabled":false}]"#,
            ),
            list: get("/v1/zones/{id}?recordName={name}&recordType=TXT"),
            at: "/records",
            id: "id",
            value: "content",
            remove: delete("/v1/zones/{id}/records/{record}"),
        },
    },
    Interface {
        host: DnsHost::Linode,
        url: "https://api.linode.com/v4",
        fields: BEARER,
        zone: Zone::Listed { call: get("/domains?page_size=500"), at: "/data", name: "domain", id: "id" },
        records: Records::Each {
            add: post("/domains/{id}/records", r#"{"type":"TXT","name":"{sub}","target":"{value}","ttl_sec":300}"#),
            list: get("/domains/{id}/records?page_size=500"),
            at: "/data",
            id: "id",
            value: "target",
            remove: delete("/domains/{id}/records/{record}"),
        },
    },
    Interface {
        host: DnsHost::Netlify,
        url: "https://api.netlify.com/api/v1",
        fields: BEARER,
        zone: Zone::Listed { call: get("/dns_zones"), at: "", name: "name", id: "id" },
        records: Records::Each {
            add: post(
                "/dns_zones/{id}/dns_records",
                r#"{"type":"TXT","hostname":"{name}","value":"{value}","ttl":60}"#,
            ),
            list: get("/dns_zones/{id}/dns_records"),
            at: "",
            id: "id",
            value: "value",
            remove: delete("/dns_zones/{id}/dns_records/{record}"),
        },
    },
    Interface {
        host: DnsHost::Porkbun,
        url: "https://api.porkbun.com/api/json/v3",
        fields: &[],
        zone: Zone::Named(post("/dns/retrieveByNameType/{zone}/NS", PORKBUN_KEYS)),
        records: Records::Each {
            add: post(
                "/dns/create/{zone}",
                r#"{"apikey":"{token}","secretapikey":"{secret}","type":"TXT","name":"{sub}","content":"{value}","ttl":"600"}"#,
            ),
            list: post("/dns/retrieveByNameType/{zone}/TXT/{sub}", PORKBUN_KEYS),
            at: "/records",
            id: "id",
            value: "content",
            remove: post("/dns/delete/{zone}/{record}", PORKBUN_KEYS),
        },
    },
    Interface {
        host: DnsHost::Vultr,
        url: "https://api.vultr.com",
        fields: BEARER,
        zone: Zone::Named(get("/v2/domains/{zone}")),
        records: Records::Each {
            add: post("/v2/domains/{zone}/records", r#"{"type":"TXT","name":"{sub}","data":"\"{value}\"","ttl":120}"#),
            list: get("/v2/domains/{zone}/records?per_page=500"),
            at: "/records",
            id: "id",
            value: "data",
            remove: delete("/v2/domains/{zone}/records/{record}"),
        },
    },
];

fn interface(host: DnsHost) -> &'static Interface {
    INTERFACES.iter().find(|one| one.host == host).expect("every host has an interface, as a test shows")
}

/// An account at a provider, with its secrets read.
struct Account<'a> {
    fetch: &'a Fetch,
    host: &'a HostedDns,
    interface: &'static Interface,
    token: String,
    secret: String,
}

impl<'a> Account<'a> {
    fn new(api: &'a Api, host: &'a HostedDns) -> Result<Self, DnsError> {
        let secret = |(path, source)| DnsError::Secret { path, source };
        let token = host.token.read().map_err(secret)?;
        let second = host.secret.as_ref().map(|second| second.read().map_err(secret)).transpose()?.unwrap_or_default();
        Ok(Self { fetch: &api.fetch, host, interface: interface(host.host), token, secret: second })
    }
}

/// A record that is to be added or removed.
struct Change<'a> {
    account: &'a Account<'a>,
    name: &'a str,
    value: &'a str,
}

/// What a call is about, beside the record.
#[derive(Default, Clone)]
struct About {
    zone: String,
    id: String,
    record: String,
    values: String,
}

impl Change<'_> {
    async fn make(&self, action: Action) -> Result<(), String> {
        let about = self.zone().await?;
        match (&self.account.interface.records, action) {
            (Records::Each { add, .. } | Records::Values { add, .. }, Action::Present) => self.made(add, &about).await,
            (Records::Values { remove, .. }, Action::Cleanup) => self.made(remove, &about).await,
            (Records::Each { list, at, id, value, remove, .. }, Action::Cleanup) => {
                let listed = self.call(list, &about).await?.unwrap_or_default();
                for record in array(&listed, at).filter(|record| text(&record[*value]).is_some_and(|v| self.is(&v))) {
                    let record = text(&record[*id]).ok_or("a record has no id")?;
                    self.call(remove, &About { record, ..about.clone() }).await?;
                }
                Ok(())
            }
            (Records::Set { read, at, write, clear }, action) => {
                let there = self.call(read, &about).await?.unwrap_or_default();
                let mut values: Vec<_> = array(&there, at).filter_map(text).filter(|value| !self.is(value)).collect();
                if action == Action::Present {
                    values.push(format!("\"{}\"", self.value));
                }
                let call = if values.is_empty() { clear } else { write };
                self.call(call, &About { values: Json::from(values).to_string(), ..about }).await.map(drop)
            }
        }
    }

    /// Whether a value in an answer is ours; some quote it as a zone file does.
    fn is(&self, value: &str) -> bool {
        value.trim_matches('"') == self.value
    }

    /// The zone that the record is in: the configured one, or the closest one above it that the account has.
    async fn zone(&self) -> Result<About, String> {
        let above = std::iter::successors(self.name.split_once('.').map(|(_, parent)| parent), |zone| {
            zone.split_once('.').map(|(_, parent)| parent).filter(|parent| parent.contains('.'))
        });
        let zones: Vec<_> = match &self.account.host.zone {
            Some(zone) => vec![zone.as_str()],
            None => above.collect(),
        };
        for zone in &zones {
            let about = About { zone: (*zone).to_owned(), ..About::default() };
            match &self.account.interface.zone {
                Zone::Named(call) => {
                    if self.probe(call, &about).await?.is_some() {
                        return Ok(about);
                    }
                }
                Zone::Listed { call, at, name, id } => {
                    let listed = self.probe(call, &about).await?.unwrap_or_default();
                    let found = array(&listed, at).find(|one| one[*name].as_str() == Some(zone));
                    if let Some(id) = found.and_then(|one| text(&one[*id])) {
                        return Ok(About { id, ..about });
                    }
                }
            }
        }
        Err(format!("the account has no zone for {} (asked for {})", self.name, zones.join(", ")))
    }

    /// A call that has to succeed.
    async fn made(&self, call: &Call, about: &About) -> Result<(), String> {
        let done = self.call(call, about).await?;
        done.map(drop).ok_or_else(|| format!("{} is not there (HTTP 404)", about.zone))
    }

    /// The answer; nothing where there is no such thing.
    async fn call(&self, call: &Call, about: &About) -> Result<Option<Json>, String> {
        match self.send(call, about).await? {
            (200..300, body) => Ok(Some(serde_json::from_str(&body).unwrap_or_default())),
            (404, _) => Ok(None),
            (status, body) => Err(words(status, &body, &[&self.account.token, &self.account.secret])),
        }
    }

    /// The same for a zone that may not be one, which APIs say in several ways.
    async fn probe(&self, call: &Call, about: &About) -> Result<Option<Json>, String> {
        match self.send(call, about).await? {
            (400 | 404 | 422, _) => Ok(None),
            (200..300, body) => Ok(Some(serde_json::from_str(&body).unwrap_or_default())),
            (status, body) => Err(words(status, &body, &[&self.account.token, &self.account.secret])),
        }
    }

    async fn send(&self, call: &Call, about: &About) -> Result<(u16, String), String> {
        let account = self.account;
        let base = account.host.url.as_deref().unwrap_or(account.interface.url).trim_end_matches('/');
        let url = format!("{base}{}", self.filled(call.path, about, str::to_owned));
        let mut request = Request::new(Body::full(self.filled(call.body, about, escaped)));
        request.method = call.method.clone();
        request.uri = url.parse::<Uri>().map_err(|_| format!("{url} is not a URL"))?;
        for (field, template) in account.interface.fields {
            let value = self.filled(template, about, str::to_owned);
            let value = Value::new(value.as_bytes()).map_err(|_| "the key cannot be sent in a field".to_owned())?;
            request.fields.append(header::HeaderName::from_static(field), value);
        }
        request.fields.append(header::ACCEPT, Value::from_static("application/json"));
        if !call.body.is_empty() {
            request.fields.append(header::CONTENT_TYPE, Value::from_static("application/json"));
        }
        ask(account.fetch, request).await
    }

    fn filled(&self, template: &str, about: &About, escape: impl Fn(&str) -> String) -> String {
        let suffix = format!(".{}", about.zone);
        let sub = self.name.strip_suffix(suffix.as_str()).unwrap_or("@");
        let account = self.account.host.account.as_deref().unwrap_or_default();
        let filled = template
            .replace("{zone}", &about.zone)
            .replace("{id}", &about.id)
            .replace("{record}", &about.record)
            .replace("{name}", self.name)
            .replace("{sub}", sub)
            .replace("{value}", self.value)
            .replace("{values}", &about.values)
            .replace("{account}", account);
        filled.replace("{token}", &escape(&self.account.token)).replace("{secret}", &escape(&self.account.secret))
    }
}

/// As it stands inside of a string of JSON.
fn escaped(text: &str) -> String {
    let quoted = Json::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn array<'a>(answer: &'a Json, at: &str) -> impl Iterator<Item = &'a Json> {
    answer.pointer(at).and_then(Json::as_array).into_iter().flatten()
}

/// A string, or a number as one.
fn text(value: &Json) -> Option<String> {
    value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|number| number.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as StdMutex;

    use http::StatusCode;

    use super::*;
    use crate::{config::plan::Secret, message::Response};

    /// An API that has the zone `example.org`, with the id 7, and one record of ours, with the id 9, beside another.
    struct FakeApi(Arc<StdMutex<Vec<String>>>);

    impl FakeApi {
        fn fetch(&self) -> Fetch {
            let seen = self.0.clone();
            Arc::new(move |request: Request| {
                let seen = seen.clone();
                Box::pin(async move {
                    let (method, uri) = (request.method.clone(), request.uri.clone());
                    let key: Vec<_> = ["authorization", "accesskey", "x-api-key"]
                        .iter()
                        .filter_map(|name| Some(request.fields.get(*name)?.to_str()?.to_owned()))
                        .collect();
                    let body = request.body.collect().await.unwrap().to_bytes();
                    let body = String::from_utf8(body.to_vec()).unwrap();
                    let line = format!("{method} {} {} {body}", uri.path_and_query().unwrap(), key.concat());
                    let known = !line.contains("/a.example.org");
                    seen.lock().unwrap().push(line);
                    let status = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    Ok(Response { status, ..Response::new(Body::full(answer().to_string())) })
                })
            })
        }
    }

    /// What every API would say, in one document; a list at the top is the one exception.
    fn answer() -> Json {
        serde_json::json!({
            "result": [{ "id": "7", "name": "example.org", "content": "\"other\"" }, { "id": "9", "content": "\"value\"" }],
            "Items": [{ "Id": 7, "Domain": "example.org" }],
            "Records": [{ "Id": 8, "Value": "other" }, { "Id": 9, "Value": "value" }],
            "records": [{ "id": 9, "data": "\"value\"", "content": "value" }, "\"value\"", "\"other\""],
            "rrset_values": ["\"other\"", "\"value\""],
            "domain_records": [{ "id": 9, "data": "value" }, { "id": 8, "data": "other" }],
            "data": [{ "id": 7, "domain": "example.org", "target": "x" }, { "id": 9, "target": "value", "content": "value" }],
        })
    }

    fn hosted(host: DnsHost) -> HostedDns {
        HostedDns {
            host,
            token: Secret::Text("t\"oken".into()),
            secret: Some(Secret::Text("s3cret".into())),
            account: Some("42".into()),
            zone: None,
            url: None,
        }
    }

    async fn requests(host: DnsHost, action: Action) -> Vec<String> {
        let fake = FakeApi(Arc::default());
        let api = Api::new(fake.fetch(), None);
        api.change(&hosted(host), action, "_acme-challenge.a.example.org", "value").await.unwrap();
        fake.0.lock().unwrap().clone()
    }

    #[test]
    fn every_host_has_an_interface() {
        for host in DnsHost::ALL {
            assert_eq!(interface(host).host, host);
        }
    }

    /// Every API but the two whose lists stand at the top of the answer, by its last request.
    #[tokio::test]
    async fn every_api_is_asked_as_it_documents() {
        for (host, added, removed) in [
            (
                DnsHost::Bunny,
                r#"PUT /dnszone/7/records t"oken {"Type":3,"Name":"_acme-challenge.a","Value":"value","Ttl":60}"#,
                r#"DELETE /dnszone/7/records/9 t"oken "#,
            ),
            (
                DnsHost::Cloudflare,
                r#"POST /client/v4/zones/7/dns_records Bearer t"oken {"type":"TXT","name":"_acme-challenge.a.example.org","content":"\"value\"","ttl":60}"#,
                r#"DELETE /client/v4/zones/7/dns_records/9 Bearer t"oken "#,
            ),
            (
                DnsHost::Desec,
                r#"PUT /api/v1/domains/example.org/rrsets/ Token t"oken [{"subname":"_acme-challenge.a","type":"TXT","ttl":3600,"records":["\"other\"","\"value\""]}]"#,
                r#"PUT /api/v1/domains/example.org/rrsets/ Token t"oken [{"subname":"_acme-challenge.a","type":"TXT","ttl":3600,"records":["\"other\""]}]"#,
            ),
            (
                DnsHost::DigitalOcean,
                r#"POST /v2/domains/example.org/records Bearer t"oken {"type":"TXT","name":"_acme-challenge.a","data":"value","ttl":60}"#,
                r#"DELETE /v2/domains/example.org/records/9 Bearer t"oken "#,
            ),
            (
                DnsHost::DnSimple,
                r#"POST /v2/42/zones/example.org/records Bearer t"oken {"type":"TXT","name":"_acme-challenge.a","content":"value","ttl":60}"#,
                r#"DELETE /v2/42/zones/example.org/records/9 Bearer t"oken "#,
            ),
            (
                DnsHost::Gandi,
                r#"PUT /v5/livedns/domains/example.org/records/_acme-challenge.a/TXT Bearer t"oken {"rrset_ttl":300,"rrset_values":["\"other\"","\"value\""]}"#,
                r#"PUT /v5/livedns/domains/example.org/records/_acme-challenge.a/TXT Bearer t"oken {"rrset_ttl":300,"rrset_values":["\"other\""]}"#,
            ),
            (
                DnsHost::Hetzner,
                r#"POST /v1/zones/example.org/rrsets/_acme-challenge.a/TXT/actions/add_records Bearer t"oken {"ttl":60,"records":[{"value":"\"value\""}]}"#,
                r#"POST /v1/zones/example.org/rrsets/_acme-challenge.a/TXT/actions/remove_records Bearer t"oken {"records":[{"value":"\"value\""}]}"#,
            ),
            (
                DnsHost::Linode,
                r#"POST /v4/domains/7/records Bearer t"oken {"type":"TXT","name":"_acme-challenge.a","target":"value","ttl_sec":300}"#,
                r#"DELETE /v4/domains/7/records/9 Bearer t"oken "#,
            ),
            (
                DnsHost::Porkbun,
                r#"POST /api/json/v3/dns/create/example.org  {"apikey":"t\"oken","secretapikey":"s3cret","type":"TXT","name":"_acme-challenge.a","content":"value","ttl":"600"}"#,
                r#"POST /api/json/v3/dns/delete/example.org/9  {"apikey":"t\"oken","secretapikey":"s3cret"}"#,
            ),
            (
                DnsHost::Vultr,
                r#"POST /v2/domains/example.org/records Bearer t"oken {"type":"TXT","name":"_acme-challenge.a","data":"\"value\"","ttl":120}"#,
                r#"DELETE /v2/domains/example.org/records/9 Bearer t"oken "#,
            ),
        ] {
            assert_eq!(requests(host, Action::Present).await.last().unwrap(), added);
            assert_eq!(requests(host, Action::Cleanup).await.last().unwrap(), removed);
        }
    }

    #[tokio::test]
    async fn a_list_at_the_top_of_an_answer_is_read() {
        for (host, path) in
            [(DnsHost::Ionos, "/dns/v1/zones/7/records/9"), (DnsHost::Netlify, "/api/v1/dns_zones/7/dns_records/9")]
        {
            let seen: Arc<StdMutex<Vec<String>>> = Arc::default();
            let log = seen.clone();
            let fetch: Fetch = Arc::new(move |request: Request| {
                let target = request.target().to_owned();
                log.lock().unwrap().push(format!("{} {target}", request.method));
                let record = serde_json::json!({ "id": "9", "content": "\"value\"", "value": "value" });
                let answer = match target {
                    target if target.contains("recordName") => serde_json::json!({ "records": [record] }),
                    target if target.ends_with("zones") => serde_json::json!([{ "id": "7", "name": "example.org" }]),
                    _ => serde_json::json!([record]),
                };
                Box::pin(async move { Ok(Response::new(Body::full(answer.to_string()))) })
            });
            let api = Api::new(fetch, None);
            api.change(&hosted(host), Action::Present, "_acme-challenge.example.org", "value").await.unwrap();
            api.change(&hosted(host), Action::Cleanup, "_acme-challenge.example.org", "value").await.unwrap();
            let seen = seen.lock().unwrap().clone();
            assert_eq!(seen.last().unwrap(), &format!("DELETE {path}"));
            assert!(seen.iter().any(|line| line.starts_with("POST ") && line.contains("/7/")), "{seen:?}");
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_without_the_key() {
        let fetch: Fetch = Arc::new(|_| {
            let body = Body::full(r#"{"message":"no such key t\"oken t"oken"}"#);
            Box::pin(async move { Ok(Response { status: StatusCode::FORBIDDEN, ..Response::new(body) }) })
        });
        let api = Api::new(fetch, None);
        let host = hosted(DnsHost::Hetzner);
        let refused = api.change(&host, Action::Present, "_acme-challenge.a.example.org", "value");
        let told = chain(&refused.await.unwrap_err());
        assert!(told.contains("hetzner") && told.contains("refuses our key (HTTP 403)"), "{told}");
        assert!(!told.contains("t\"oken"), "{told}");
    }

    #[tokio::test]
    async fn a_zone_that_the_account_does_not_have_is_told() {
        let fetch: Fetch = Arc::new(|_| Box::pin(async { Ok(Response::of(StatusCode::NOT_FOUND)) }));
        let api = Api::new(fetch, None);
        let host = hosted(DnsHost::Desec);
        let asked = api.change(&host, Action::Present, "_acme-challenge.a.example.org", "value");
        let told = chain(&asked.await.unwrap_err());
        assert!(
            told.contains("no zone for _acme-challenge.a.example.org (asked for a.example.org, example.org)"),
            "{told}"
        );
    }
}
