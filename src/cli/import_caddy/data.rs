//! Caddy's own folder: `certificates/CA/HOST/HOST.{crt,key,json}` and `acme/CA/users/EMAIL/NAME.{json,key}`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    cert::{self, Foreign, Store},
    clock::Clock,
    config::{Plan, plan::SiteTls},
};

/// Takes over what the sites of a plan can use; what came of it, in words. Nothing in the folder is changed.
///
/// # Errors
/// The folder is none of Caddy's.
pub fn take_over(dir: &Path, plan: &Plan, store: &Store, clock: &Clock) -> anyhow::Result<Vec<String>> {
    // `/data` of its container, or the folder in it.
    let mut places = [dir.to_owned(), dir.join("caddy"), dir.join("data/caddy")].into_iter();
    let Some(dir) = places.find(|dir| dir.join("certificates").is_dir() || dir.join("acme").is_dir()) else {
        anyhow::bail!(
            "{} holds neither `certificates` nor `acme`: give the folder that Caddy has as /data",
            dir.display()
        );
    };
    let mut said = Vec::new();
    let mut directories: BTreeSet<String> =
        plan.acme.directories.iter().map(|directory| directory.url.clone()).collect();
    for site in plan.sites.iter().filter(|site| site.tls == SiteTls::Acme) {
        let host = site.host.as_str();
        let mut found = certificates(&dir, host);
        if found.is_empty() {
            said.push(format!("{host}: Caddy has no certificate of a CA; one will be ordered"));
        }
        directories.extend(found.iter().map(|one| one.directory.clone()));
        // The last is the newest, if there are several: each is only taken over an older one.
        found.sort_by(|a, b| a.directory.cmp(&b.directory));
        for foreign in found {
            let directory = foreign.directory.clone();
            said.push(match cert::take_over(store, foreign, clock.now()) {
                Ok(until) => format!("{host}: certificate taken over, good until {}", httpdate::fmt_http_date(until)),
                Err(error) => format!("{host}: the certificate of {directory} was not taken over: {}", words(error)),
            });
        }
    }
    for directory in directories {
        if let Some((url, key)) = account(&dir, &directory, plan.acme.email.as_deref()) {
            said.push(match cert::take_over_account(store, &directory, &url, &key) {
                Ok(()) => format!("{directory}: account taken over"),
                Err(error) => format!("{directory}: the account was not taken over: {}", words(error)),
            });
        }
    }
    Ok(said)
}

fn words(error: cert::TakeOverError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn certificates(dir: &Path, host: &str) -> Vec<Foreign> {
    let read = |issuer: PathBuf| {
        let file = |kind: &str| fs::read_to_string(issuer.join(host).join(format!("{host}.{kind}"))).ok();
        let facts: Value = serde_json::from_str(&file("json")?).ok()?;
        // Caddy's internal CA has no directory; devices trust ours by its own root.
        let directory = facts["issuer_data"]["ca"].as_str()?.to_owned();
        Some(Foreign { host: host.to_owned(), directory, chain: file("crt")?, key: file("key")? })
    };
    folders(&dir.join("certificates")).into_iter().filter_map(read).collect()
}

/// The URL of an account and its key: that of the e-mail address, or else the first.
fn account(dir: &Path, directory: &str, email: Option<&str>) -> Option<(String, String)> {
    let mut users = folders(&dir.join("acme").join(folder_of(directory)).join("users"));
    users.sort_by_key(|user| user.file_name().and_then(|name| name.to_str()) != email);
    users.iter().find_map(|user| {
        let files = fs::read_dir(user).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        files.filter(|path| path.extension().is_some_and(|kind| kind == "json")).find_map(|path| {
            let facts: Value = serde_json::from_str(&fs::read_to_string(&path).ok()?).ok()?;
            let valid = facts["status"].as_str().is_none_or(|status| status == "valid");
            let url = facts["location"].as_str().filter(|url| valid && !url.is_empty())?.to_owned();
            Some((url, fs::read_to_string(path.with_extension("key")).ok()?))
        })
    })
}

/// How Caddy calls the folder of a directory.
fn folder_of(directory: &str) -> String {
    let bare = directory.split_once("://").map_or(directory, |(_, rest)| rest);
    bare.trim_end_matches('/').to_lowercase().replace([':', '/'], "-")
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_called_as_caddy_calls_them() {
        for (directory, folder) in [
            ("https://acme-v02.api.letsencrypt.org/directory", "acme-v02.api.letsencrypt.org-directory"),
            ("https://acme.zerossl.com/v2/DV90", "acme.zerossl.com-v2-dv90"),
            ("https://localhost:14000/dir", "localhost-14000-dir"),
        ] {
            assert_eq!(folder_of(directory), folder);
        }
    }
}
