//! `basic_auth`: users and the hashes of their passwords, as Caddy, htpasswd and argon2 write them.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use toml::de::DeValue;

use super::{
    plan::{Argon2id, BasicAuth, PasswordHash, User},
    tree::{Item, Problem, Section, boolean, kind_of, string},
};

/// Each step doubles the time: 14 is Caddy's, about a second; 17 is eight.
const MAX_BCRYPT_COST: u32 = 17;

/// What one verification of argon2id may take.
const MAX_ARGON2_KIB: u32 = 1 << 20;
const MAX_ARGON2_PASSES: u32 = 64;

/// Lanes are computed one after the other.
const MAX_ARGON2_LANES: u32 = 16;

const REALM: &str = "restricted";

const HELP: &str = "write { users = { alice = \"$2y$…\" } }; `htpasswd -nbB alice PASSWORD` prints a hash";

/// Reads `{ users = { NAME = "HASH" }, realm, pass_authorization }`; `None` for `false`.
pub fn read(section: &Section<'_, '_, '_>, item: &Item<'_>) -> Result<Option<BasicAuth>, Problem> {
    let table = match item.get_ref() {
        DeValue::Table(table) => table,
        DeValue::Boolean(false) => return Ok(None),
        other => return Err(Problem::new(format!("expected a table or false, found {}", kind_of(other))).help(HELP)),
    };
    let inner = Section::new(section.reader, section.path("basic_auth"), table, item.span());
    let users = inner.get("users", users);
    let is_missing = inner.item("users").is_none();
    let auth = BasicAuth {
        realm: inner.get("realm", realm).map_or_else(|| REALM.to_owned(), |at| at.value),
        pass_authorization: inner.get("pass_authorization", boolean).is_some_and(|at| at.value),
        users: users.map(|at| at.value).unwrap_or_default(),
    };
    inner.finish();
    if is_missing {
        return Err(Problem::new("`basic_auth` needs `users`").help(HELP));
    }
    Ok(Some(auth))
}

fn realm(item: &Item<'_>) -> Result<String, Problem> {
    let text = string(item)?;
    if text.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
        return Err(Problem::new("a realm has no quotes, backslashes or control characters"));
    }
    Ok(text.to_owned())
}

fn users(item: &Item<'_>) -> Result<Vec<User>, Problem> {
    let DeValue::Table(table) = item.get_ref() else {
        return Err(Problem::new(format!("expected a table, found {}", kind_of(item.get_ref()))).help(HELP));
    };
    let (mut users, mut problems) = (Vec::new(), Vec::new());
    for (name, item) in table.iter() {
        let text = name.get_ref();
        // RFC 7617 section 2.
        if text.is_empty() || text.chars().any(|c| c == ':' || c.is_control()) {
            problems.push(Problem::new("a user name has no colon and no control characters").at(name.span()));
            continue;
        }
        match string(item).and_then(password) {
            Ok(password) => users.push(User { name: text.as_ref().into(), password }),
            Err(problem) => problems.push(problem.at(item.span())),
        }
    }
    match Problem::all(problems) {
        Some(problem) => Err(problem),
        None if users.is_empty() => Err(Problem::new("there is no user, so that nobody could come").help(HELP)),
        None => Ok(users),
    }
}

/// A hash in modular crypt format.
pub fn password(text: &str) -> Result<PasswordHash, Problem> {
    let mut parts = text.split('$').skip(1);
    match parts.next() {
        Some("2a" | "2b" | "2x" | "2y") => bcrypt(text, parts.next(), parts.next()),
        Some("argon2id") => argon2id(&parts.collect::<Vec<_>>()).map(PasswordHash::Argon2id),
        _ => {
            Err(Problem::new("this is no hash of bcrypt or argon2id: a password is never written as it is").help(HELP))
        }
    }
}

fn bcrypt(text: &str, cost: Option<&str>, rest: Option<&str>) -> Result<PasswordHash, Problem> {
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/');
    // 16 bytes of salt and 23 of hash.
    let is_whole = rest.is_some_and(|rest| rest.len() == 53 && rest.bytes().all(is_base64));
    if !is_whole || text.matches('$').count() != 3 {
        return Err(Problem::new("this hash of bcrypt is not whole")
            .help("it is \"$2y$\", two digits, \"$\" and 53 characters"));
    }
    match cost.filter(|cost| cost.len() == 2).and_then(|cost| cost.parse().ok()) {
        Some(4..=MAX_BCRYPT_COST) => Ok(PasswordHash::Bcrypt(text.into())),
        _ => Err(Problem::new(format!("the cost of a hash of bcrypt is from 04 to {MAX_BCRYPT_COST}"))),
    }
}

/// `$argon2id$v=19$m=65536,t=3,p=4$SALT$HASH`, without its first part.
fn argon2id(parts: &[&str]) -> Result<Argon2id, Problem> {
    let whole = || {
        let help = "it is \"$argon2id$v=19$m=65536,t=3,p=4$SALT$HASH\", salt and hash in base64";
        Problem::new("this hash of argon2id is not whole").help(help)
    };
    let ["v=19", parameters, salt, hash] = parts else { return Err(whole()) };
    let mut numbers =
        parameters.split(',').zip(["m=", "t=", "p="]).map(|(text, name)| text.strip_prefix(name)?.parse().ok());
    let mut number = || numbers.next().flatten().ok_or_else(whole);
    let (memory, passes, lanes) = (number()?, number()?, number()?);
    let decoded = |text| STANDARD_NO_PAD.decode(text).map_err(|_| whole());
    let (salt, hash) = (decoded(salt)?, decoded(hash)?);
    // RFC 9106 section 3.1.
    if lanes == 0 || passes == 0 || memory < 8 * lanes || salt.len() < 8 || !(16..=64).contains(&hash.len()) {
        return Err(whole());
    }
    if memory > MAX_ARGON2_KIB || passes > MAX_ARGON2_PASSES || lanes > MAX_ARGON2_LANES {
        let most = format!("at most m={MAX_ARGON2_KIB} (KiB), t={MAX_ARGON2_PASSES}, p={MAX_ARGON2_LANES}");
        return Err(Problem::new("this hash of argon2id takes too much to verify").help(most));
    }
    Ok(Argon2id { memory, passes, lanes, salt, hash })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2a$10$NA58hrQzHcs3916Cy.DbjuALa2HkEBTX3PrHqWZMLhkySBgMOb1ia";
    const ARGON2ID: &str = "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$nLCvFnLYnpDu7FbHzHKGXv1rqHyxrWxCvOTjNhRPmVE";

    #[test]
    fn hashes_of_bcrypt_and_argon2id_are_read() {
        assert_eq!(password(BCRYPT).unwrap(), PasswordHash::Bcrypt(BCRYPT.into()));
        let PasswordHash::Argon2id(found) = password(ARGON2ID).unwrap() else { panic!("{ARGON2ID}") };
        assert_eq!((found.memory, found.passes, found.lanes, found.hash.len()), (64, 1, 1, 32));
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "secret",
            "",
            "$",
            "$1$abc$def",
            "$apr1$abc$def",
            "$2a$14$abc",
            &BCRYPT[..BCRYPT.len() - 1],
            &format!("{BCRYPT}x"),
            &BCRYPT.replace("$10$", "$31$"),
            &BCRYPT.replace("$10$", "$3$"),
            &ARGON2ID.replace("argon2id", "argon2i"),
            &ARGON2ID.replace("m=64", "m=99999999"),
            &ARGON2ID.replace("m=64", "m=1"),
            &ARGON2ID.replace("p=1", "p=0"),
            &ARGON2ID.replace("v=19", "v=16"),
            "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$",
        ] {
            assert!(password(text).is_err(), "{text}");
        }
    }
}
