//! The versions of the services that this release was tested with, and below which each of them is known to be broken.
//!
//! `init` and the appliance run the tested ones; `doctor` reports what is older. This is the only place that names them
//! in code; a test compares the pinned versions with the minimums and with every file that repeats them.

use std::fmt;

/// A released version of a service, as its image tag or its own answer writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads `1.2.3`, `v1.2` and `1.2.3-suffix`; `None` for `latest` and anything else that is no number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let text = text.split(['-', '+', ' ']).next().unwrap_or(text);
        let mut parts = text.split('.');
        let first = parts.next()?.parse().ok()?;
        let mut next = || parts.next().map_or(Some(0), |part| part.parse().ok());
        Some(Self(first, next()?, next()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, patch) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// A service that a deployment is made of.
#[derive(Debug, PartialEq, Eq)]
pub struct Component {
    /// Its name in messages.
    pub name: &'static str,
    /// Its image, with the tag that `init` writes.
    pub image: &'static str,
    /// What this release was tested with.
    pub tested: Version,
    /// Below which it is known to be broken, the gravest first.
    pub minimums: &'static [Minimum],
}

/// A version below which something is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Minimum {
    /// The first version without the fault.
    pub version: Version,
    /// How grave the fault is.
    pub severity: Severity,
    /// What is wrong below it, as the end of a sentence that begins with the version.
    pub fault: &'static str,
}

/// How grave a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It does not work, or it is a hole.
    Fail,
    /// It works, and will not for ever.
    Warn,
}

/// What can be said of a version that runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Assessment {
    /// It is below a minimum.
    Below(&'static Minimum),
    /// Nothing is known against it, and it is older than what this release was tested with.
    Untested,
    /// It is the tested one, or newer.
    Current,
}

impl Component {
    /// Compares a version that runs with the minimums and with the tested one.
    #[must_use]
    pub fn assess(&self, running: Version) -> Assessment {
        match self.minimums.iter().find(|minimum| running < minimum.version) {
            Some(minimum) => Assessment::Below(minimum),
            None if running < self.tested => Assessment::Untested,
            None => Assessment::Current,
        }
    }
}

/// The advisory on lk-jwt-service below 0.8.
pub const LK_JWT_ADVISORY: &str = "GHSA-rq24-fh66-rq7x";

/// The homeserver.
pub const SYNAPSE: Component = Component {
    name: "Synapse",
    image: "ghcr.io/element-hq/synapse:v1.163.2",
    tested: Version(1, 163, 2),
    minimums: &[Minimum {
        version: Version(1, 161, 0),
        severity: Severity::Warn,
        fault: "has no MSC4512, so that it cannot hand out call tokens",
    }],
};

/// The MatrixRTC authorisation service.
pub const LK_JWT: Component = Component {
    name: "lk-jwt-service",
    image: "ghcr.io/element-hq/lk-jwt-service:0.10.0",
    tested: Version(0, 10, 0),
    minimums: &[
        Minimum {
            version: Version(0, 8, 0),
            severity: Severity::Fail,
            fault: "has the hole GHSA-rq24-fh66-rq7x: it does not verify OpenID answers fully on /get_token and /sfu/get",
        },
        Minimum {
            version: Version(0, 10, 0),
            severity: Severity::Warn,
            fault: "lacks the endpoints of MSC4195 that Element Call asks for",
        },
    ],
};

/// The SFU.
pub const LIVEKIT: Component = Component {
    name: "LiveKit",
    image: "livekit/livekit-server:v1.13.9",
    tested: Version(1, 13, 9),
    minimums: &[Minimum {
        version: Version(1, 9, 10),
        severity: Severity::Fail,
        fault: "has no /rtc/v1, which today's clients ask for",
    }],
};

/// The database of a new deployment.
pub const POSTGRES: &str = "postgres:17-alpine";

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const ALL: [Component; 3] = [SYNAPSE, LK_JWT, LIVEKIT];

    #[test]
    fn versions_are_read_as_tags_write_them() {
        for (text, expected) in [
            ("v1.13.9", Some(Version(1, 13, 9))),
            ("0.10.0", Some(Version(0, 10, 0))),
            ("v1.8", Some(Version(1, 8, 0))),
            ("1.163.2rc1", None),
            ("1.163.2 (b=develop)", Some(Version(1, 163, 2))),
            ("v1.13.9-alpine", Some(Version(1, 13, 9))),
            ("latest", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text}");
        }
        assert!(Version(0, 10, 0) > Version(0, 9, 9));
    }

    #[test]
    fn a_version_is_assessed_by_its_gravest_fault() {
        assert_eq!(LK_JWT.assess(Version(0, 7, 9)), Assessment::Below(&LK_JWT.minimums[0]));
        assert_eq!(LK_JWT.assess(Version(0, 9, 0)), Assessment::Below(&LK_JWT.minimums[1]));
        assert_eq!(LK_JWT.assess(Version(0, 10, 0)), Assessment::Current);
        assert_eq!(LIVEKIT.assess(Version(1, 13, 5)), Assessment::Untested);
        assert_eq!(LIVEKIT.assess(Version(2, 0, 0)), Assessment::Current);
    }

    /// The table of known minimums, written a second time: what we pin must satisfy it whatever happens to the first.
    #[test]
    fn no_pinned_version_is_below_a_known_minimum() {
        let minimums = [
            ("synapse", Version(1, 161, 0)),       // MSC4512
            ("lk-jwt-service", Version(0, 8, 0)),  // GHSA-rq24-fh66-rq7x
            ("lk-jwt-service", Version(0, 10, 0)), // the stable endpoints of MSC4195
            ("livekit-server", Version(1, 9, 10)), // /rtc/v1
        ];
        for (image, minimum) in minimums {
            let pinned = ALL.iter().find(|component| component.image.contains(&format!("/{image}:"))).unwrap();
            let tag = pinned.image.rsplit(':').next().unwrap();
            assert_eq!(Version::parse(tag), Some(pinned.tested), "{}", pinned.image);
            assert!(pinned.tested >= minimum, "{} is below {minimum}", pinned.image);
            assert_eq!(pinned.assess(pinned.tested), Assessment::Current);
        }
        assert!(LK_JWT.minimums[0].fault.contains(LK_JWT_ADVISORY));
    }

    /// Every file that repeats a version repeats the pinned one.
    #[test]
    fn every_file_names_the_pinned_versions() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut named = 0;
        for file in
            ["config/compose.yaml", "config/appliance/Dockerfile", "config/migrate.md", "config/calls.md", "README.md"]
        {
            let text = fs::read_to_string(root.join(file)).unwrap();
            for (number, line) in text.lines().enumerate() {
                for component in &ALL {
                    let (image, pinned) = component.image.rsplit_once('/').unwrap().1.split_once(':').unwrap();
                    let name = format!("{image}:");
                    let tags = line.split(&name).skip(1).map(|rest| {
                        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').next().unwrap_or_default()
                    });
                    let tags: Vec<_> = tags
                        .filter(|tag| *tag == "latest" || tag.contains('.') && Version::parse(tag).is_some())
                        .collect();
                    // A row about what the guide has names both.
                    let is_right = tags.is_empty() || tags.contains(&pinned);
                    assert!(is_right, "{file}:{}: {image}:{tags:?} is not {pinned}", number + 1);
                    named += usize::from(!tags.is_empty());
                }
            }
        }
        assert!(named >= 6, "the files name {named} versions");
    }
}
