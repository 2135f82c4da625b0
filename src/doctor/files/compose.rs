//! `compose.yaml`: images and the environment of lk-jwt-service.

use super::{FileUnderTest, yaml::Node};
use crate::{config::plan::Kind, doctor::names::origin};

/// The first LiveKit with `/rtc/v1`.
const LIVEKIT: (u32, u32, u32) = (1, 9, 10);

/// One service of the file, as far as it matters here.
struct Service {
    line: usize,
    image: String,
    image_line: usize,
    /// Name, value, line; of the map form and of the list form alike.
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

    /// The version of the image; `None` where it floats or is a digest or a variable.
    fn version(&self) -> Option<(u32, u32, u32)> {
        let (_, tag) = self.image.split_once('@').map_or(self.image.as_str(), |(name, _)| name).rsplit_once(':')?;
        let mut parts = tag.trim_start_matches('v').split('.').map(str::parse);
        let first = parts.next()?.ok()?;
        let mut next = || parts.next().and_then(Result::ok).unwrap_or(0);
        Some((first, next(), next()))
    }

    fn floats(&self) -> bool {
        let name = self.image.rsplit('/').next().unwrap_or(&self.image);
        !name.contains('@') && !name.contains('$') && (name.ends_with(":latest") || !name.contains(':'))
    }
}

/// Judges the file.
pub fn assess(file: &mut FileUnderTest<'_>, root: &Node) {
    let services: Vec<Service> = root
        .at(&["services"])
        .into_iter()
        .flat_map(Node::members)
        .filter_map(|(_, node)| Service::read(node))
        .collect();
    for service in &services {
        let is_jwt = service.image.contains("lk-jwt-service");
        let is_livekit = service.image.contains("livekit-server");
        if (is_jwt || is_livekit) && service.floats() {
            let fact = format!("{} changes under you: its settings have changed with every release", service.image);
            file.warn(service.image_line, "floating", fact, "pin it: lk-jwt-service 0.6.0, livekit-server v1.13.5");
        }
        if is_jwt {
            jwt(file, service);
        }
        if is_livekit && service.version().is_some_and(|version| version < LIVEKIT) {
            let fact = format!("{} has no /rtc/v1, which today's clients ask for", service.image);
            file.fail(service.image_line, "livekit_old", fact, "use livekit/livekit-server:v1.13.5");
        }
    }
}

fn jwt(file: &mut FileUnderTest<'_>, service: &Service) {
    if let Some((_, line)) = service.variable("LK_JWT_PORT") {
        let fix = "remove it, or write LIVEKIT_JWT_BIND=:8080";
        file.warn(line, "jwt_port", "LK_JWT_PORT is read by nothing since 0.2", fix);
    }
    if let Some((_, line)) = service.variable("LIVEKIT_LOCAL_HOMESERVERS") {
        let fact = "LIVEKIT_LOCAL_HOMESERVERS is read by nothing since 0.5";
        file.warn(line, "local_homeservers", fact, "write LIVEKIT_FULL_ACCESS_HOMESERVERS in its place");
    }
    if service.variable("LIVEKIT_FULL_ACCESS_HOMESERVERS").is_none() && service.version().is_none_or(|v| v >= (0, 5, 0))
    {
        let name = file.plan.matrix.as_ref().map_or("example.org", |matrix| matrix.server_name.as_str());
        let fix = format!("set LIVEKIT_FULL_ACCESS_HOMESERVERS: {name}");
        let fact = "lk-jwt-service ends at once: LIVEKIT_FULL_ACCESS_HOMESERVERS is not set";
        file.fail(service.line, "full_access", fact, fix);
    }
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
        let fact = format!("LIVEKIT_URL is {url}, which a page on https may not open");
        file.fail(line, "livekit_url", fact, "write the public address with wss://");
    } else if let Some(first) = served.first()
        && !served.iter().any(|own| {
            own.split_once("://").map(|(_, rest)| rest)
                == url.trim_end_matches('/').split_once("://").map(|(_, rest)| rest)
        })
    {
        let fact =
            format!("LIVEKIT_URL is {url}, and the edge serves LiveKit at {}", first.replacen("https", "wss", 1));
        file.fail(line, "livekit_url", fact, "let both be the same address");
    }
}
