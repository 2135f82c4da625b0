//! The examples below the help of each command.

pub const ALL: &str = "\
Examples:
  vestibule init example.org --dir matrix   write a complete deployment
  vestibule check                           validate ./vestibule.toml
  vestibule run                             serve
  vestibule doctor                          find out what is broken

Documentation of every key: vestibule reference
Exit status: 0 success, 1 failure or a check found a fault, 2 wrong usage, 78 invalid configuration";

pub const RUN: &str = "\
Examples:
  vestibule run
  vestibule run --config /etc/vestibule/vestibule.toml
  vestibule run --takeover                             replace the running process
  RUST_LOG=debug vestibule run";

pub const CHECK: &str = "\
Examples:
  vestibule check
  vestibule check matrix/vestibule.toml
  vestibule check --json | jq .diagnostics";

pub const DOCTOR: &str = "\
Examples:
  vestibule doctor
  vestibule doctor --user alice --slow
  vestibule doctor --compose compose.yaml --livekit livekit.yaml --homeserver homeserver.yaml
  vestibule doctor --resolve '*:443:127.0.0.1'   before DNS is set up";

pub const DEMO: &str = "\
Examples:
  vestibule demo            serve until Ctrl-C
  vestibule demo --check    run the checks and exit";

pub const INIT: &str = "\
Examples:
  vestibule init example.org --dir matrix --email admin@example.org
  vestibule init example.org --one-host";

pub const IMPORT_CADDY: &str = "\
Examples:
  vestibule import-caddy Caddyfile > vestibule.toml
  vestibule import-caddy Caddyfile --data caddy-data > vestibule.toml   with its certificates";

pub const CA: &str = "\
Examples:
  vestibule ca > root.pem
  curl --cacert root.pem https://matrix.example.org/";

pub const DNS_RECORD: &str = "\
Examples:
  vestibule dns-record matrix.example.org";

pub const RELOAD: &str = "\
Examples:
  vestibule reload
  vestibule check && vestibule reload";

pub const RENEW: &str = "\
Examples:
  vestibule renew matrix.example.org";

pub const STATUS: &str = "\
Examples:
  vestibule status
  vestibule status --json | jq .unready";

pub const DASHBOARD: &str = "\
Examples:
  vestibule dashboard
  vestibule dashboard --port 9181";

pub const HEALTHCHECK: &str = "\
Examples:
  vestibule healthcheck && echo up";

pub const SCHEMA: &str = "\
Examples:
  vestibule schema > vestibule.schema.json";

pub const REFERENCE: &str = "\
Examples:
  vestibule reference | less";

pub const MAN: &str = "\
Examples:
  vestibule man | man -l -
  vestibule man check > vestibule-check.1";

pub const COMPLETIONS: &str = "\
Examples:
  vestibule completions bash > /etc/bash_completion.d/vestibule
  vestibule completions zsh > \"${fpath[1]}/_vestibule\"";
