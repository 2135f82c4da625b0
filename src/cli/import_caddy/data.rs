//! Caddy's own folder: `certificates/CA/HOST/HOST.{crt,key,json}` and `acme/CA/users/EMAIL/NAME.{json,key}`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    cert::{self, ImportedCertificate, Store},
    clock::Clock,
    config::{Plan, plan::SiteTls},
};

/// Takes over what the sites of a plan can use; what came of it, in words. Nothing in the folder is changed.
///
/// # Errors
/// The folder is none of Caddy's.
pub fn import(dir: &Path, plan: &Plan, store: &Store, clock: &Clock) -> anyhow::Result<Vec<String>> {
    // `/data` of its container, or the folder in it.
    let mut places = [dir.to_owned(), dir.join("caddy"), dir.join("data/caddy")].into_iter();
    let Some(dir) = places.find(|dir| dir.join("certificates").is_dir() || dir.join("acme").is_dir()) else {
        anyhow::bail!(
            "{} contains neither `certificates` nor `acme`: pass the directory that Caddy uses as /data",
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
            said.push(format!("{host}: Caddy has no certificate of a public CA; vestibule will order one"));
        }
        // What another CA has signed, a staging for one, is of use only where there is nothing better.
        let wanted =
            |one: &ImportedCertificate| plan.acme.directories.iter().any(|directory| directory.url == one.directory);
        if found.iter().any(wanted) {
            found.retain(wanted);
        }
        directories.extend(found.iter().map(|one| one.directory.clone()));
        for foreign in found {
            let directory = foreign.directory.clone();
            said.push(match cert::import(store, foreign, clock.now()) {
                Ok(until) => format!("{host}: certificate imported, valid until {}", httpdate::fmt_http_date(until)),
                Err(error) => format!("{host}: the certificate of {directory} was not imported: {}", words(error)),
            });
        }
    }
    for directory in directories {
        if let Some((url, key)) = account(&dir, &directory, plan.acme.email.as_deref()) {
            said.push(match cert::import_account(store, &directory, &url, &key) {
                Ok(()) => format!("{directory}: account imported"),
                Err(error) => format!("{directory}: the account was not imported: {}", words(error)),
            });
        }
    }
    Ok(said)
}

fn words(error: cert::ImportError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn certificates(dir: &Path, host: &str) -> Vec<ImportedCertificate> {
    let read = |issuer: PathBuf| {
        let file = |kind: &str| fs::read_to_string(issuer.join(host).join(format!("{host}.{kind}"))).ok();
        let facts: Value = serde_json::from_str(&file("json")?).ok()?;
        // Caddy's internal CA has no directory; devices trust ours by its own root.
        let directory = facts["issuer_data"]["ca"].as_str()?.to_owned();
        Some(ImportedCertificate { host: host.to_owned(), directory, chain: file("crt")?, key: file("key")? })
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
    fn a_staging_certificate_does_not_stand_in_for_a_real_one() {
        let folder = tempfile::tempdir().unwrap();
        let host = "a.example.org";
        for (directory, year) in
            [("acme-staging-v02.api.letsencrypt.org", 2041), ("acme-v02.api.letsencrypt.org", 2040)]
        {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let dir = folder.path().join("certificates").join(format!("{directory}-directory")).join(host);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("{host}.crt")), params.self_signed(&key).unwrap().pem()).unwrap();
            fs::write(dir.join(format!("{host}.key")), key.serialize_pem()).unwrap();
            let facts = serde_json::json!({ "issuer_data": { "ca": format!("https://{directory}/directory") } });
            fs::write(dir.join(format!("{host}.json")), facts.to_string()).unwrap();
        }
        let text = format!("[sites.\"{host}\"]\nupstream = \"http://a:1\"\n");
        let (plan, _) = crate::config::parse("a", &text, PathBuf::new(), &|_| None).unwrap();
        let store = Store::new(folder.path().join("state"));
        let said = import(folder.path(), &plan, &store, &Clock::system()).unwrap();
        assert_eq!(said, ["a.example.org: certificate imported, valid until Sun, 01 Jan 2040 00:00:00 GMT"]);
    }

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
