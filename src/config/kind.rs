//! What `synapse`, `lk-jwt` and `livekit` mean: which paths pass, and how much a body may weigh.

use ipnet::IpNet;

use super::plan::{AccessRule, BodyPath, BodyRule, Kind, PathMatch, Verdict};

const MIB: u64 = 1 << 20;

/// Synapse's own default for media is 50 MB; the edge must not be what stands in the way of a raised one.
const SYNAPSE_MEDIA: u64 = 64 * MIB;

/// Synapse takes 200 events of 64 KiB, which is 12.5 MiB.
const SYNAPSE_OTHER: u64 = 16 * MIB;

/// lk-jwt-service reads no more.
const LK_JWT_BODY: u64 = MIB;

/// The paths that are open on a route of this kind.
pub fn access(kind: Kind, admin_from: Vec<IpNet>) -> Vec<AccessRule> {
    let pass = |path| AccessRule { path, verdict: Verdict::Pass };
    match kind {
        Kind::Synapse => vec![
            pass(PathMatch::Under("/_matrix/")),
            pass(PathMatch::Under("/_synapse/client/")),
            AccessRule { path: PathMatch::Under("/_synapse/admin/"), verdict: Verdict::PassFrom(admin_from) },
            pass(PathMatch::Exact("/health")),
        ],
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
        Kind::Http => vec![pass(PathMatch::Any)],
    }
}

/// How much a body may weigh on a route of this kind, unless the route says otherwise.
pub fn max_body(kind: Kind) -> Vec<BodyRule> {
    let any = |limit| BodyRule { path: BodyPath::Any, limit: Some(limit) };
    match kind {
        Kind::Synapse => vec![BodyRule { path: BodyPath::MatrixMedia, limit: Some(SYNAPSE_MEDIA) }, any(SYNAPSE_OTHER)],
        Kind::LkJwt => vec![any(LK_JWT_BODY)],
        Kind::Livekit | Kind::Http => Vec::new(),
    }
}
