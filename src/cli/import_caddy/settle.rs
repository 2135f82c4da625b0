//! What only the whole file tells: the ports, the server name, and which keys of `[matrix]` have to be said, because we
//! would derive something else.

use super::{
    Remark,
    emit::{Matrix, list, quote},
    model::{Action, Site, TargetConfig},
    options::Ports,
    write_routes::plain_of,
};
use crate::config::plan::Kind;

/// First labels of homeservers, which are not part of the server name.
const LABELS: [&str; 6] = ["matrix.", "synapse.", "homeserver.", "hs.", "chat.", "m."];

/// Settles the model.
pub fn settle(model: &mut TargetConfig, ports: Ports, remarks: &mut Vec<Remark>) -> Matrix {
    only_port(model, ports);
    shared_ports(model, ports, remarks);
    listen(model, ports);
    serve_something(model);
    let matrix = matrix(model, remarks);
    let server_name = matrix.iter().find(|(key, _)| *key == "server_name").map(|(_, value)| value.clone());
    for site in &mut model.sites {
        // These serve the documents by themselves.
        let by_default = server_name.is_some()
            && site.port.is_none()
            && (is_homeserver(site) || Some(quote(&site.host)) == server_name);
        site.well_known = site.well_known.filter(|serves| *serves != by_default && server_name.is_some());
    }
    matrix
}

/// Sites that are all on one port need not say it.
fn only_port(model: &mut TargetConfig, ports: Ports) {
    let Some(only) = model.https.first().copied().filter(|only| model.https.len() == 1 && *only != ports.https) else {
        return;
    };
    let elsewhere: Vec<String> =
        model.sites.iter().filter(|site| site.port != Some(only)).map(|site| site.host.clone()).collect();
    for site in model.sites.iter_mut().filter(|site| site.port == Some(only) && !elsewhere.contains(&site.host)) {
        site.port = None;
    }
}

/// Says that a port which Caddy has for some blocks only is open to all sites that are on every port.
fn shared_ports(model: &TargetConfig, ports: Ports, remarks: &mut Vec<Remark>) {
    for site in &model.sites {
        let others = model.sites.iter().any(|other| other.port.is_none() && other.host != site.host);
        if let Some(port) = site.port.filter(|port| others && ![ports.http, ports.https].contains(port)) {
            let text = format!("port {port}: the sites without a port in their name answer there as well");
            remarks.push(Remark::note(site.line, text));
        }
    }
}

fn listen(model: &mut TargetConfig, ports: Ports) {
    let bind = if model.bind.is_empty() { vec!["::".to_owned()] } else { std::mem::take(&mut model.bind) };
    let is_any = bind == ["::"];
    let any = |ports: &[u16]| {
        let address = |host: &String, port: &u16| {
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        };
        list(&ports.iter().flat_map(|port| bind.iter().map(move |host| address(host, port))).collect::<Vec<_>>())
    };
    let mut http = std::mem::take(&mut model.http);
    if !http.contains(&ports.http) {
        http.insert(0, ports.http);
    }
    let mut https = std::mem::take(&mut model.https);
    if https.is_empty() {
        https.push(ports.https);
    }
    https.sort_by_key(|port| *port != ports.https);
    let mut keys = Vec::new();
    if http != [80] || !is_any {
        keys.push(("listen", "http", any(&http)));
    }
    if https != [443] || !is_any {
        keys.push(("listen", "https", any(&https)));
    }
    // A port in the addresses of the sites is one that clients see; `https_port` is not.
    if !https.contains(&443) && ports.https == 443 {
        keys.push(("listen", "public_port", https[0].to_string()));
    }
    model.settings.splice(0..0, keys);
}

/// Every site needs something to serve: where Caddy had an empty answer, we have one.
fn serve_something(model: &mut TargetConfig) {
    for site in &mut model.sites {
        if site.root.is_none() && site.routes.is_empty() && site.well_known != Some(true) {
            site.routes.push(plain_of("/".into(), site.line, Action::Nothing));
        }
    }
}

fn is_homeserver(site: &Site) -> bool {
    matches!(&site.root, Some(Action::Proxy(Kind::Synapse, _)))
}

fn matrix(model: &TargetConfig, remarks: &mut Vec<Remark>) -> Matrix {
    let mut homeservers: Vec<&Site> = model.sites.iter().filter(|site| is_homeserver(site)).collect();
    prefer_every_port(&mut homeservers);
    let routed =
        |site: &&Site| site.routes.iter().any(|route| matches!(&route.action, Action::Proxy(Kind::Synapse, _)));
    let host = homeservers.first().copied().or_else(|| model.sites.iter().find(routed)).map(|site| site.host.clone());
    let at = homeservers.first().map(|site| site.name()).or_else(|| host.clone());
    let documents = &model.documents;
    let said = documents.homeserver.clone().filter(|url| url.starts_with("https://") || url.starts_with("http://"));
    let Some(homeserver) = said.or_else(|| at.map(|at| format!("https://{at}"))).or_else(|| delegated(model, remarks))
    else {
        return Matrix::new();
    };
    let host = host.unwrap_or_else(|| homeserver.split("://").last().unwrap_or_default().to_owned());
    let mut keys = vec![("server_name", quote(&server_name(model, &host, remarks)))];
    let derived = match homeservers.as_slice() {
        [one] => Some(format!("https://{}", one.name())),
        _ => None,
    };
    if derived.as_ref() != Some(&homeserver) {
        keys.push(("homeserver", quote(&homeserver)));
    }
    let (services, derived) = (rtc_services(model), derived_services(model));
    if !services.is_empty() && services != derived {
        let value = if services.len() == 1 { quote(&services[0]) } else { list(&services) };
        keys.push(("rtc_service", value));
    }
    let authority = homeserver.split("://").last().unwrap_or_default();
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:443") };
    if let Some(federation) = model.documents.federation.clone().filter(|federation| *federation != with_port) {
        keys.push(("federation", quote(&federation)));
    }
    keys
}

/// The homeserver of a file that has nothing but the document for other servers.
fn delegated(model: &TargetConfig, remarks: &mut Vec<Remark>) -> Option<String> {
    let host = model.documents.federation.as_ref()?.split(':').next()?;
    let site = model.sites.iter().find(|site| site.well_known == Some(true))?;
    let text = format!("the document for clients is served as well, with https://{host}: correct `matrix.homeserver`");
    remarks.push(Remark::note(site.line, text));
    Some(format!("https://{host}"))
}

/// Of sites on every port and sites on one, the former are what clients are told.
fn prefer_every_port(sites: &mut Vec<&Site>) {
    if sites.iter().any(|site| site.port.is_none()) {
        sites.retain(|site| site.port.is_none());
    }
}

/// What the client document said; else where lk-jwt-service is.
fn rtc_services(model: &TargetConfig) -> Vec<String> {
    if !model.documents.rtc_services.is_empty() {
        return model.documents.rtc_services.clone();
    }
    let mut found = Vec::new();
    for (host, at) in jwt_places(model) {
        // Several routes on one host are the paths of one service.
        let url = if at.ends_with("/sfu/get") || at.is_empty() {
            format!("https://{host}")
        } else {
            format!("https://{host}{at}")
        };
        let is_path = super::proxy::JWT_PATHS.contains(&at.as_str()) && at != "/sfu/get";
        if !is_path && !found.contains(&url) {
            found.push(url);
        }
    }
    found
}

/// What our configuration derives by itself: one address for each site or route.
fn derived_services(model: &TargetConfig) -> Vec<String> {
    jwt_places(model).into_iter().map(|(host, at)| format!("https://{host}{at}")).collect()
}

fn jwt_places(model: &TargetConfig) -> Vec<(String, String)> {
    let is_jwt = |action: &Action| matches!(action, Action::Proxy(Kind::LkJwt, _));
    let has_jwt =
        |site: &&Site| site.root.as_ref().is_some_and(is_jwt) || site.routes.iter().any(|route| is_jwt(&route.action));
    let mut sites: Vec<&Site> = model.sites.iter().filter(has_jwt).collect();
    prefer_every_port(&mut sites);
    let mut found = Vec::new();
    for site in sites {
        if site.root.as_ref().is_some_and(is_jwt) {
            found.push((site.name(), String::new()));
        }
        let routes = site.routes.iter().filter(|route| is_jwt(&route.action));
        found.extend(routes.map(|route| (site.name(), route.prefix.clone())));
    }
    found
}

/// The host that serves the documents and is not the homeserver; else what the homeserver's name suggests.
fn server_name(model: &TargetConfig, homeserver: &str, remarks: &mut Vec<Remark>) -> String {
    let (server, client) = &model.documents.hosts;
    let candidates: Vec<&String> = server
        .iter()
        .chain(client)
        .filter(|host| *host != homeserver && model.sites.iter().any(|site| site.host == **host))
        .collect();
    // `www` stands for the name itself.
    let bare = candidates
        .iter()
        .find(|host| host.strip_prefix("www.").is_some_and(|bare| candidates.iter().any(|other| *other == bare)));
    let bare = bare.and_then(|www| candidates.iter().find(|host| Some(host.as_str()) == www.strip_prefix("www.")));
    if let Some(host) = bare.or_else(|| candidates.first()) {
        if bare.is_some() {
            let line = model.sites.iter().find(|site| site.host == **host).map_or(1, |site| site.line);
            remarks.push(Remark::note(line, format!("assumed `matrix.server_name` to be {host}, not its `www` host")));
        }
        return (*host).clone();
    }
    let line = model.sites.iter().find(|site| site.host == homeserver).map_or(1, |site| site.line);
    let shorter = LABELS
        .iter()
        .find_map(|label| homeserver.strip_prefix(label))
        .filter(|rest| rest.contains(['.', super::lexer::ENV]));
    let name = shorter.unwrap_or(homeserver).to_owned();
    let named = model.sites.iter().any(|site| site.host == name);
    let text = if named || name == homeserver {
        format!("assumed `matrix.server_name` to be {name}: correct it if your user IDs end differently")
    } else {
        format!(
            "assumed `matrix.server_name` to be {name}, which has no site: clients and other homeservers first request \
             https://{name}/.well-known/matrix/, so add a site for it, or serve the documents on its web server"
        )
    };
    remarks.push(Remark::note(line, text));
    name
}
