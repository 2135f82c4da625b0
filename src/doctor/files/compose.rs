//! `compose.yaml`: the images, and the environment of lk-jwt-service.

use std::path::Path;

use super::{FileUnderTest, parse, yaml::Node};
use crate::{
    config::{
        plan::Kind,
        versions::{Assessment, Component, LIVEKIT, LK_JWT, SYNAPSE, Severity, Version},
    },
    doctor::names::origin,
};

/// The parts of a service of the file that are checked.
struct Service {
    line: usize,
    image: String,
    image_line: usize,
    /// Name, value and line, from the map form or the list form.
    environment: Vec<(String, String, usize)>,
}

impl Service {
    fn read(node: &Node) -> Option<Self> {
        let image = node.at(&["image"])?;
        let environment = node.at(&["environment"]);
        let map = environment.into_iter().flat_map(Node::members);
        let map = map.map(|(name, value)| (name.to_owned(), value.text().unwrap_or_default().to_owned(), value.line));
        let list = environment.into_iter().flat_map(Node::list).filter_map(|entry| {
            let (name, value) = entry.text()?.split_once('=')?;
            Some((name.to_owned(), value.to_owned(), entry.line))
        });
        Some(Self {
            line: node.line,
            image: image.text()?.to_owned(),
            image_line: image.line,
            environment: map.chain(list).collect(),
        })
    }

    fn variable(&self, name: &str) -> Option<(&str, usize)> {
        let found = self.environment.iter().find(|(key, ..)| key == name)?;
        Some((&found.1, found.2))
    }

    /// The version of the image; `None` for a floating tag, a digest or a variable.
    fn version(&self) -> Option<Version> {
        let (_, tag) = self.image.split_once('@').map_or(self.image.as_str(), |(name, _)| name).rsplit_once(':')?;
        Version::parse(tag)
    }

    fn floats(&self) -> bool {
        let name = self.image.rsplit('/').next().unwrap_or(&self.image);
        !name.contains('@') && !name.contains('$') && (name.ends_with(":latest") || !name.contains(':'))
    }
}

/// Checks the file.
pub fn assess(file: &mut FileUnderTest<'_>, root: &Node) {
    for service in &services(root) {
        let is_jwt = service.image.contains("lk-jwt-service");
        let is_livekit = service.image.contains("livekit-server");
        if (is_jwt || is_livekit) && service.floats() {
            let fact =
                format!("{} has no fixed version, and its settings have changed with every release", service.image);
            let fix = format!("pin it: {}, {}", LK_JWT.image, LIVEKIT.image);
            file.warn(service.image_line, "floating", fact, fix);
        }
        if is_jwt {
            jwt(file, service);
            version(file, service, &LK_JWT, "lk_jwt_old");
        }
        if is_livekit {
            version(file, service, &LIVEKIT, "livekit_old");
        }
        if service.image.split(['@', ':']).next().is_some_and(|name| name.ends_with("/synapse")) {
            version(file, service, &SYNAPSE, "synapse_old");
        }
    }
}

fn services(root: &Node) -> Vec<Service> {
    root.at(&["services"]).into_iter().flat_map(Node::members).filter_map(|(_, node)| Service::read(node)).collect()
}

/// The version of the image with this name, by its tag.
pub fn image_version(path: &Path, image: &str) -> Option<Version> {
    services(&parse(path).ok()?).iter().find(|service| service.image.contains(image))?.version()
}

/// Checks the version of an image for known faults.
fn version(file: &mut FileUnderTest<'_>, service: &Service, component: &Component, what: &str) {
    let Some(version) = service.version() else { return };
    let (name, fix) = (component.name, format!("use {}", component.image));
    match component.assess(version) {
        Assessment::Below(minimum) => {
            let fact = format!("{name} {version} {}", minimum.fault);
            match minimum.severity {
                Severity::Fail => file.fail(service.image_line, what, fact, fix),
                Severity::Warn => file.warn(service.image_line, what, fact, fix),
            }
        }
        Assessment::Untested => {
            let fact =
                format!("{name} {version} is older than {}, which this release was tested with", component.tested);
            file.warn(service.image_line, "untested", fact, fix);
        }
        Assessment::Current => {}
    }
}

fn jwt(file: &mut FileUnderTest<'_>, service: &Service) {
    if let Some((_, line)) = service.variable("LK_JWT_PORT") {
        let fix = "remove it, or use LIVEKIT_JWT_BIND=:8080";
        file.warn(line, "jwt_port", "lk-jwt-service ignores LK_JWT_PORT since 0.2", fix);
    }
    if let Some((_, line)) = service.variable("LIVEKIT_LOCAL_HOMESERVERS") {
        let fact = "lk-jwt-service ignores LIVEKIT_LOCAL_HOMESERVERS since 0.5";
        file.warn(line, "local_homeservers", fact, "use LIVEKIT_FULL_ACCESS_HOMESERVERS instead");
    }
    if service.variable("LIVEKIT_FULL_ACCESS_HOMESERVERS").is_none()
        && service.version().is_none_or(|version| version >= Version(0, 5, 0))
    {
        let name = file.plan.matrix.as_ref().map_or("example.org", |matrix| matrix.server_name.as_str());
        let fix = format!("set LIVEKIT_FULL_ACCESS_HOMESERVERS: {name}");
        let fact = "lk-jwt-service exits at start: LIVEKIT_FULL_ACCESS_HOMESERVERS is not set";
        file.fail(service.line, "full_access", fact, fix);
    }
    if let Some((names, line)) = service.variable("LIVEKIT_FULL_ACCESS_HOMESERVERS")
        && (names.trim() == "*" || names.split([',', ' ']).filter(|name| !name.is_empty()).count() > 1)
    {
        let fact = format!(
            "LIVEKIT_FULL_ACCESS_HOMESERVERS is {names:?}: more than one name is deprecated, and lets users of other servers start calls here"
        );
        let name = file.plan.matrix.as_ref().map_or("example.org", |matrix| matrix.server_name.as_str());
        file.warn(line, "full_access_wide", fact, format!("set it to your server name only: {name}"));
    }
    if service.variable("LIVEKIT_AS_REGISTRATION_FILE").is_none() && service.variable("LIVEKIT_AS_TOKEN").is_none() {
        let fact = "lk-jwt-service does not run as an application service of Synapse; any other setup is deprecated";
        let fix =
            "set LIVEKIT_AS_REGISTRATION_FILE and LIVEKIT_HS_SERVER_NAME (vestibule init SERVER_NAME --add calls)";
        file.warn(service.line, "application_service", fact, fix);
    }
    livekit_url(file, service);
}

fn livekit_url(file: &mut FileUnderTest<'_>, service: &Service) {
    let Some((url, line)) = service.variable("LIVEKIT_URL").filter(|(url, _)| !url.contains('$')) else { return };
    let served: Vec<String> = file
        .plan
        .sites
        .iter()
        .flat_map(|site| {
            let mounted = site.routes.iter().filter(|route| route.kind == Kind::Livekit && route.prefix != "/twirp");
            mounted
                .map(|route| format!("{}{}", origin(file.plan, site.host.as_str()), route.prefix.trim_end_matches('/')))
        })
        .collect();
    if !url.starts_with("wss://") && !url.starts_with("https://") {
        let fact = format!("LIVEKIT_URL is {url}, which a page on https cannot open");
        file.fail(line, "livekit_url", fact, "use the public address with wss://");
    } else if url.ends_with('/') {
        let fact =
            format!("LIVEKIT_URL is {url}, but the `url` of transports has no trailing slash: clients get no token");
        file.fail(line, "livekit_url", fact, "remove the slash");
    } else if let Some(first) = served.first()
        && !served.iter().any(|own| {
            own.split_once("://").map(|(_, rest)| rest)
                == url.trim_end_matches('/').split_once("://").map(|(_, rest)| rest)
        })
    {
        let fact =
            format!("LIVEKIT_URL is {url}, but vestibule serves LiveKit at {}", first.replacen("https", "wss", 1));
        file.fail(line, "livekit_url", fact, "set both to the same address");
    }
}
