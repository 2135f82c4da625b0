//! From the bytes of a file to TOML text: rejects what is not UTF-8, and recognizes the files of other programs.

use super::diagnostic::{Diagnostic, Report};

/// The text of a file.
///
/// # Errors
/// It is not UTF-8.
pub fn decode(name: &str, bytes: &[u8]) -> Result<String, Box<Report>> {
    let error = match std::str::from_utf8(bytes) {
        Ok(text) => return Ok(text.to_owned()),
        Err(error) => error,
    };
    let at = error.valid_up_to();
    let (message, help) = if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        ("the file is UTF-16, not UTF-8".to_owned(), "save it as UTF-8".to_owned())
    } else {
        let byte = bytes[at];
        let help = match char::from(byte) {
            // Most files that are not UTF-8 are Latin-1, whose bytes are the first code points of Unicode.
            c if c.is_alphanumeric() => format!("in Latin-1 it is `{c}`; save the file as UTF-8"),
            _ => "save the file as UTF-8".to_owned(),
        };
        (format!("the file is not UTF-8: the byte 0x{byte:02X}"), help)
    };
    // Before the first wrong byte the lossy text has the same places as the file.
    let text = String::from_utf8_lossy(bytes).into_owned();
    let why = Diagnostic::error(at..at + char::REPLACEMENT_CHARACTER.len_utf8(), message).help(help);
    Err(Box::new(Report::unreadable(name.to_owned(), text, why)))
}

/// What a text is that is not TOML, if it is the file of a program from the same deployment.
pub fn foreign(text: &str) -> Option<Diagnostic> {
    let lines = || text.lines().map(str::trim_end).filter(|line| !line.trim_start().starts_with('#'));
    let first = lines().find(|line| !line.is_empty())?;
    let has_key = |keys: &[&str]| {
        lines().any(|line| line.split_once(':').is_some_and(|(key, _)| keys.contains(&key)) && !line.contains(" = "))
    };
    let opens_block = |line: &str| line.ends_with('{') && !line.contains('=');
    let caddy = ["reverse_proxy ", "handle_path ", "handle ", "file_server", "respond ", "redir ", "import "];
    let is_caddy = lines().any(|line| caddy.iter().any(|directive| line.trim_start().starts_with(directive)));
    let is_nginx = lines().any(|line| line.ends_with(';')) && lines().any(opens_block);
    let (message, help) = if is_nginx {
        ("this is an nginx configuration, not a vestibule.toml", WRITE_ONE)
    } else if is_caddy && !first.starts_with('[') {
        let help = "`vestibule import-caddy CADDYFILE > vestibule.toml` converts it";
        ("this is a Caddyfile, not a vestibule.toml", help)
    } else if has_key(&["services"]) {
        ("this is a compose file, not a vestibule.toml", WRITE_ONE)
    } else if has_key(&["server_name", "listeners", "signing_key_path"]) {
        ("this is Synapse's homeserver.yaml, not a vestibule.toml", WRITE_ONE)
    } else if has_key(&["rtc", "keys", "port"]) {
        ("this is LiveKit's YAML file, not a vestibule.toml", WRITE_ONE)
    } else if first.starts_with('{') && text.trim_end().ends_with('}') && text.contains("\":") {
        ("this is JSON, not a vestibule.toml", WRITE_ONE)
    } else {
        return None;
    };
    let at = text.find(first).unwrap_or_default();
    Some(Diagnostic::error(at..at + first.len(), message.into()).help(help))
}

const WRITE_ONE: &str = "name the TOML file with --config, or write one with `vestibule init SERVER_NAME`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_programs_are_recognized() {
        for (text, what) in [
            ("example.org {\n\treverse_proxy synapse:8008\n}\n", "a Caddyfile"),
            ("{\n\temail a@b.c\n}\n# x\nexample.org {\n\trespond 404\n}\n", "a Caddyfile"),
            ("example.org\nreverse_proxy synapse:8008\n", "a Caddyfile"),
            ("# mine\nservices:\n  synapse:\n    image: x\n", "a compose file"),
            ("version: \"3\"\nservices:\n  a: {}\n", "a compose file"),
            ("server {\n  listen 443 ssl;\n}\n", "an nginx"),
            ("server_name: example.org\nlisteners:\n", "homeserver.yaml"),
            ("port: 7880\nrtc:\n  tcp_port: 7881\n", "LiveKit's"),
            ("{ \"apps\": { \"http\": {} } }", "JSON"),
        ] {
            let found = foreign(text).map(|diagnostic| diagnostic.message).unwrap_or_default();
            assert!(found.contains(what), "{text}: {found}");
        }
        for text in ["", "[matrix\nserver_name = \"example.org\"\n", "[acme]\nemail = \"a:b\n", "x = {\n"] {
            assert_eq!(foreign(text), None, "{text}");
        }
    }
}
