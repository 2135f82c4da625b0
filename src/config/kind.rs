//! What each kind opens and limits: the paths that pass, and the size of request bodies.

use ipnet::IpNet;

use super::plan::{Access, AccessRule, BodyPath, BodyRule, Kind, PathMatch};

const MIB: u64 = 1 << 20;

/// Synapse's own default for media is 50 MB; the edge must not be what stands in the way of a raised one.
const SYNAPSE_MEDIA: u64 = 64 * MIB;

/// Synapse takes 200 events of 64 KiB, which is 12.5 MiB.
const SYNAPSE_OTHER: u64 = 16 * MIB;

/// lk-jwt-service reads no more.
const LK_JWT_BODY: u64 = MIB;

/// The paths that are open on a route of this kind.
pub fn access(kind: Kind, admin_from: Vec<IpNet>) -> Vec<AccessRule> {
    let pass = |path| AccessRule { path, verdict: Access::Pass };
    match kind {
        Kind::Synapse => vec![
            // Synapse answers a browser here: it sends it to its page under `/_matrix/static/`.
            pass(PathMatch::Exact("/")),
            pass(PathMatch::Under("/_matrix/")),
            pass(PathMatch::Under("/_synapse/client/")),
            AccessRule { path: PathMatch::Under("/_synapse/admin/"), verdict: Access::PassFrom(admin_from) },
            pass(PathMatch::Exact("/health")),
        ],
        // Administration is within `/_matrix/` or has paths of its own, which a route opens.
        Kind::Homeserver => vec![pass(PathMatch::Under("/_matrix/"))],
        Kind::LkJwt => ["/sfu/get", "/get_token", "/delegate_delayed_leave", "/healthz", "/sfu_webhook"]
            .map(|path| pass(PathMatch::Exact(path)))
            .into(),
        // `/debug` is open on a server that runs with --dev, and shows its memory to the world.
        Kind::Livekit => vec![
            pass(PathMatch::Exact("/")),
            pass(PathMatch::Under("/rtc")),
            pass(PathMatch::Under("/twirp/")),
            pass(PathMatch::Under("/settings/")),
        ],
        // Its pages have many paths, and more with each release. What administers it is for few.
        Kind::Mas => vec![
            AccessRule { path: PathMatch::Under("/api/admin"), verdict: Access::PassFrom(admin_from) },
            pass(PathMatch::Any),
        ],
        Kind::Http => vec![pass(PathMatch::Any)],
    }
}

/// Whether a path of this pattern can be at or below a prefix.
pub fn meets(pattern: &PathMatch, prefix: &str) -> bool {
    let below = |path: &str, prefix: &str| {
        path.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match pattern {
        PathMatch::Exact(path) => below(path, prefix),
        PathMatch::Under(path) => below(path, prefix) || below(prefix, path),
        PathMatch::Any => true,
    }
}

/// The limits of request bodies on a route of this kind, unless the route sets its own.
pub fn max_body(kind: Kind) -> Vec<BodyRule> {
    let any = |limit| BodyRule { path: BodyPath::Any, limit: Some(limit) };
    match kind {
        Kind::Synapse => vec![BodyRule { path: BodyPath::MatrixMedia, limit: Some(SYNAPSE_MEDIA) }, any(SYNAPSE_OTHER)],
        Kind::LkJwt => vec![any(LK_JWT_BODY)],
        Kind::Homeserver | Kind::Livekit | Kind::Mas | Kind::Http => Vec::new(),
    }
}
