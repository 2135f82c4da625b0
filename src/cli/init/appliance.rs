//! The configuration of the appliance: the files for compose, with all services on the loopback of one container.
//! They are rewritten at every start; the secrets of the first start are kept.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;

use super::{
    Outcome,
    render::{
        Addresses, Deployment, File, LIVEKIT_KEY, REGISTRATION, Secrets, Turn, env, homeserver_lines, livekit,
        registration, vestibule_toml,
    },
    resolution::lead_to_one_machine,
    validate, write_new,
};

/// The addresses of the services inside the container; for PostgreSQL, the directory of its socket.
pub fn addresses() -> Addresses {
    Addresses {
        synapse: "127.0.0.1:8008".into(),
        lk_jwt: "127.0.0.1:8080".into(),
        livekit: "127.0.0.1:7880".into(),
        postgres: "/run/postgresql".into(),
        bind: "127.0.0.1".into(),
        registration: format!("/data/config/{REGISTRATION}"),
    }
}

/// A public address, used only to find the local address of the route to it. Nothing is sent (RFC 5737).
const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The relay, if its name resolves to the address of the homeserver: before that, no certificate can be obtained for it, and an
/// appliance that is older than the relay may never get that name.
pub fn turn(server_name: &str, homeserver: &str) -> Option<Turn> {
    let host = Turn::in_compose(server_name).host;
    if lead_to_one_machine(homeserver, &host) { Some(Turn { host, address: own_address()? }) } else { None }
}

/// The address of this container, at which the relay reaches LiveKit.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(OUTSIDE).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// The secrets of the first start, or new ones, which are stored. A deployment that is older than call tokens from
/// the homeserver lacks the tokens for them; they are generated, and the rest stays.
///
/// # Errors
/// The directory cannot be read or written, or its `.env` lacks a secret.
pub fn secrets(dir: &Path) -> anyhow::Result<Secrets> {
    let path = dir.join(".env");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secrets = Secrets::generate()?;
            fs::create_dir_all(dir)?;
            replace(dir, &File { name: ".env", mode: 0o600, text: env(&secrets) + &token_lines(&secrets) })?;
            return Ok(secrets);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let find = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    let value = |name: &str| find(name).with_context(|| format!("{} has no {name}", path.display()));
    let (livekit, postgres) = (value("LIVEKIT_SECRET")?, value("POSTGRES_PASSWORD")?);
    if let (Some(as_token), Some(hs_token)) = (find("LIVEKIT_AS_TOKEN"), find("LIVEKIT_HS_TOKEN")) {
        return Ok(Secrets { livekit, postgres, as_token, hs_token });
    }
    let secrets = Secrets { livekit, postgres, ..Secrets::generate()? };
    replace(dir, &File { name: ".env", mode: 0o600, text: text + &token_lines(&secrets) })?;
    Ok(secrets)
}

/// The lines of `.env` for the registration of lk-jwt-service, which is a separate file under compose.
fn token_lines(secrets: &Secrets) -> String {
    format!("LIVEKIT_AS_TOKEN={}\nLIVEKIT_HS_TOKEN={}\n", secrets.as_token, secrets.hs_token)
}

/// Writes all files except the one with the secrets.
///
/// # Errors
/// The names conflict, or the directory cannot be written.
pub fn write(dir: &Path, deployment: &Deployment) -> Outcome {
    let files = render(deployment);
    validate(&files)?;
    for file in &files {
        replace(dir, file)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(deployment: &Deployment) -> Vec<File> {
    let file = |name, mode, text| File { name, mode, text };
    vec![
        file("vestibule.toml", 0o644, vestibule_toml(deployment)),
        file("livekit.yaml", 0o644, livekit(deployment)),
        file("livekit.env", 0o600, format!("LIVEKIT_KEYS=\"{LIVEKIT_KEY}: {}\"\n", deployment.secrets.livekit)),
        file("lk-jwt.env", 0o600, lk_jwt_env(deployment)),
        file("homeserver-lines.yaml", 0o644, homeserver_lines(deployment)),
        // For Synapse, to whose group the start gives it; lk-jwt-service has the tokens in its environment.
        file(REGISTRATION, 0o640, registration(deployment)),
        file("hosts", 0o644, format!("127.0.0.1 {}\n", deployment.hosts().join(" "))),
    ]
}

fn lk_jwt_env(deployment: &Deployment) -> String {
    let Deployment { server_name, addresses, secrets, .. } = deployment;
    format!(
        "LIVEKIT_URL={}\nLIVEKIT_KEY={LIVEKIT_KEY}\nLIVEKIT_SECRET={}\nLIVEKIT_JWT_BIND={}\n\
         LIVEKIT_FULL_ACCESS_HOMESERVERS={server_name}\nLIVEKIT_CS_API_URL_OVERRIDES={server_name}=http://{}\n\
         LIVEKIT_HS_SERVER_NAME={server_name}\n{}",
        deployment.sfu_url(),
        secrets.livekit,
        addresses.lk_jwt,
        addresses.synapse,
        token_lines(secrets),
    )
}

/// Replaces a file atomically.
fn replace(dir: &Path, file: &File) -> anyhow::Result<()> {
    let (path, new) = (dir.join(file.name), dir.join(format!("{}.new", file.name)));
    let written = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write_new(&new, file)?;
        fs::rename(&new, &path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{super::render::Layout, *};
    use crate::config;

    #[test]
    fn the_secrets_of_the_first_start_stay() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        let first = secrets(&dir).unwrap();
        let second = secrets(&dir).unwrap();
        assert_eq!((first.livekit.len(), &first.livekit, &first.postgres), (64, &second.livekit, &second.postgres));
        assert_eq!((first.as_token.len(), &first.as_token, &first.hs_token), (64, &second.as_token, &second.hs_token));
        // Of an appliance from before: what it has stays, and what it lacks is made once.
        fs::write(dir.join(".env"), "# by hand\nLIVEKIT_SECRET=l\nPOSTGRES_PASSWORD=p\n").unwrap();
        let third = secrets(&dir).unwrap();
        let text = fs::read_to_string(dir.join(".env")).unwrap();
        assert!(text.starts_with("# by hand\nLIVEKIT_SECRET=l\nPOSTGRES_PASSWORD=p\nLIVEKIT_AS_TOKEN="), "{text}");
        assert_eq!((third.livekit.as_str(), &third.as_token), ("l", &secrets(&dir).unwrap().as_token));
        fs::write(dir.join(".env"), "POSTGRES_PASSWORD=x\n").unwrap();
        let said = secrets(&dir).unwrap_err().to_string();
        assert!(said.ends_with(".env has no LIVEKIT_SECRET"), "{said}");
    }

    #[test]
    fn one_container_has_everything_on_its_loopback() {
        let secrets = Secrets {
            livekit: "l".repeat(64),
            postgres: "p".repeat(64),
            as_token: "a".repeat(64),
            hs_token: "h".repeat(64),
        };
        let deployment = Deployment {
            server_name: "example.org".into(),
            homeserver: "matrix.example.org".into(),
            layout: Layout::ThreeHosts,
            turn: Some(Turn { host: "turn.example.org".into(), address: [172, 17, 0, 2].into() }),
            email: None,
            addresses: addresses(),
            secrets,
        };
        let files = render(&deployment);
        let text = |name: &str| &files.iter().find(|file| file.name == name).unwrap().text;
        let parsed = config::parse("vestibule.toml", text("vestibule.toml"), "/".into(), &|_| None);
        assert_eq!(parsed.unwrap().1.render(), "");
        assert!(text("homeserver-lines.yaml").contains("host: /run/postgresql,"));
        assert!(text("homeserver-lines.yaml").contains("bind_addresses: [\"127.0.0.1\"]"));
        assert!(
            text("homeserver-lines.yaml")
                .contains("app_service_config_files: [\"/data/config/rtc-registration.yaml\"]")
        );
        assert!(text(REGISTRATION).contains("proxy_url: http://127.0.0.1:8080\n"));
        assert!(text("lk-jwt.env").contains("LIVEKIT_HS_SERVER_NAME=example.org\nLIVEKIT_AS_TOKEN=aaaa"));
        assert!(text("lk-jwt.env").contains("LIVEKIT_URL=wss://matrixrtc.example.org\n"));
        assert_eq!(text("hosts").split_whitespace().count(), 6);
        assert!(text("vestibule.toml").contains("upstream = \"tcp://127.0.0.1:5349\""));
        assert!(text("livekit.yaml").contains("allow_restricted_peer_cidrs: [\"172.17.0.2/32\"]"));
        for file in &files {
            assert_eq!(file.text.contains("llll"), file.mode == 0o600, "{}", file.name);
            assert_eq!(file.text.contains("aaaa"), ["lk-jwt.env", REGISTRATION].contains(&file.name), "{}", file.name);
        }
    }
}
