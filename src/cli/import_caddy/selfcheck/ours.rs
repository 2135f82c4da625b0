//! Our side: the plan of the text that is printed, as a function of a request.

use http::HeaderName;

use super::{Decision, Outcome, SampleRequest};
use crate::{
    app,
    config::{
        plan::{self, Action, Kind, Plan, Rewrite},
        template::{Part, Placeholder},
    },
    layer::access,
    route::{self, PathMatcher, Router},
};

/// The sites of a plan.
pub struct PlanRouter<'p> {
    plan: &'p Plan,
    router: Router<&'p plan::Site, &'p plan::Route>,
}

/// A decision of ours.
pub struct Ours {
    pub decision: Decision,
    /// The kind of the route that makes it.
    pub kind: Kind,
}

impl<'p> PlanRouter<'p> {
    pub fn new(plan: &'p Plan) -> Self {
        let sites = plan.sites.iter().map(|site| {
            let any_spelling = site.routes.iter().any(|route| !route.guard.is_open());
            let routes: Vec<(PathMatcher, &plan::Route)> =
                site.routes.iter().map(|route| (app::matcher(route, any_spelling), route)).collect();
            (site.host.authority().into(), site.port, site, routes)
        });
        Self { plan, router: Router::new(sites) }
    }

    /// The paths of the routes.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.plan.sites.iter().flat_map(|site| &site.routes).map(|route| route.prefix.as_str())
    }

    /// What we make of a request; `None` where that depends on more.
    pub fn decide(&self, sample: &SampleRequest) -> Option<Ours> {
        let nothing = |kind| Some(Ours { decision: open(Outcome::Nothing), kind });
        let Some(found) = self.router.site(&sample.host, sample.port) else { return nothing(Kind::Http) };
        if sample.plain != (found.site.tls == plan::SiteTls::Off) {
            return None;
        }
        if found.site.stream.is_some() {
            return None;
        }
        if let (Some(documents), Some(name)) =
            (&found.site.well_known, sample.path.strip_prefix("/.well-known/matrix/"))
        {
            let known = match name {
                "client" => documents.client.is_some(),
                "server" => documents.server.is_some(),
                _ => documents.support.is_some(),
            };
            return Some(Ours {
                decision: open(if known { Outcome::Document } else { Outcome::Nothing }),
                kind: Kind::Http,
            });
        }
        let Some(route) = found.route(&sample.path, |route| meets(&route.conditions, sample)) else {
            return nothing(Kind::Http);
        };
        let inner = match route.stripped() {
            Some(prefix) => route::strip(&sample.path, prefix),
            None => sample.path.clone(),
        };
        if !access::allows(&route.access, &inner, sample.client) {
            return nothing(route.kind);
        }
        let decision = Decision {
            basic_auth: route.guard.basic_auth.is_some(),
            forward_auth: route.guard.forward_auth.is_some(),
            outcome: outcome(route, inner, sample),
        };
        Some(Ours { decision, kind: route.kind })
    }
}

const fn open(outcome: Outcome) -> Decision {
    Decision { basic_auth: false, forward_auth: false, outcome }
}

fn meets(conditions: &plan::Conditions, sample: &SampleRequest) -> bool {
    let has = |(name, pattern): &(HeaderName, String)| {
        let own = |(known, value): &(String, String)| {
            known.eq_ignore_ascii_case(name.as_str()) && route::is_like(value.as_bytes(), pattern)
        };
        sample.fields.iter().any(own)
    };
    (conditions.methods.is_empty() || conditions.methods.iter().any(|method| method.as_str() == sample.method))
        && (conditions.from.is_empty() || conditions.from.iter().any(|network| network.contains(&sample.client)))
        && conditions.fields.iter().all(has)
}

fn outcome(route: &plan::Route, inner: String, sample: &SampleRequest) -> Outcome {
    let path = match &route.rewrite {
        Rewrite::Keep => inner,
        Rewrite::AddPrefix(prefix) => format!("{prefix}{inner}"),
        Rewrite::Path(path) => path.clone(),
    };
    match &route.action {
        Action::Proxy(_) if route.root_redirect.is_some() && sample.path == "/" => {
            Outcome::Redirect { to: format!("{}/", route.root_redirect.as_deref().unwrap_or_default()), status: 308 }
        }
        Action::Proxy(upstream) => Outcome::Proxy {
            servers: upstream.servers.iter().map(|server| super::usual(&server.to_string())).collect(),
            path,
        },
        Action::Redirect(origin) => Outcome::Redirect { to: format!("{origin}{}", sample.path), status: 308 },
        Action::RedirectTo { to, status } => {
            let part = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Placeholder(Placeholder::Path | Placeholder::Uri) => sample.path.clone(),
                Part::Placeholder(Placeholder::Host) => sample.host.clone(),
                Part::Placeholder(_) => String::new(),
            };
            let to = to.parts().iter().map(part).collect();
            Outcome::Redirect { to, status: status.as_u16() }
        }
        Action::Respond(fixed) => {
            Outcome::Respond { status: fixed.status.as_u16(), body: String::from_utf8_lossy(&fixed.body).into_owned() }
        }
        Action::Files(files) => Outcome::Files { root: files.root.display().to_string(), path, spa: files.spa },
        Action::Deny => Outcome::Refused,
        Action::NotFound => Outcome::Nothing,
    }
}
