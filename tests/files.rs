//! Files of a folder: what is served, how it may be asked for, and what stays closed.

use std::{fs, os::unix::fs::symlink, path::Path};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::support::{Client, Edge};

const HOST: &str = "a.example.org";

fn tree(folder: &Path) {
    let root = folder.join("www");
    fs::create_dir_all(root.join("sub")).unwrap();
    fs::create_dir_all(root.join(".well-known")).unwrap();
    for (name, text) in [
        ("index.html", "<p>index</p>"),
        ("sub/index.html", "<p>sub</p>"),
        ("app.js", "let plain;"),
        ("app.js.br", "brotli"),
        ("app.js.gz", "gzip"),
        (".htpasswd", "secret"),
        (".well-known/x", "known"),
        ("a b.txt", "0123456789"),
    ] {
        fs::write(root.join(name), text).unwrap();
    }
    fs::write(folder.join("outside.txt"), "secret").unwrap();
    symlink(folder.join("outside.txt"), root.join("link.txt")).unwrap();
    symlink(folder, root.join("up")).unwrap();
    symlink(root.join("app.js"), root.join("inside.js")).unwrap();
}

async fn ask<IO: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Client<IO>,
    target: &str,
    fields: &str,
) -> crate::support::client::Answer {
    client.ask(&format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await
}

#[tokio::test]
async fn files_are_served_with_ranges_tags_and_their_compressed_variants() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    let root = folder.path().join("www");
    let edge = Edge::start(&format!(
        "[sites.\"{HOST}\"]\nfiles = {root:?}\n[sites.\"{HOST}\".routes]\n\"/panel\" = {{ files = {root:?}, strip_prefix = true, spa = true }}\n"
    ));
    let mut client = Client::tls(&edge, HOST).await;
    let index = ask(&mut client, "/", "").await;
    assert_eq!((index.status, index.text()), (200, "<p>index</p>".into()));
    assert_eq!(index.field("content-type").unwrap(), "text/html; charset=utf-8");
    let (tag, modified) = (index.field("etag").unwrap(), index.field("last-modified").unwrap());
    assert_eq!(ask(&mut client, "/", &format!("If-None-Match: {tag}\r\n")).await.status, 304);
    assert_eq!(ask(&mut client, "/", &format!("If-Modified-Since: {modified}\r\n")).await.status, 304);
    assert_eq!(ask(&mut client, "/", "If-None-Match: \"other\"\r\n").await.status, 200);
    let part = ask(&mut client, "/a%20b.txt", "Range: bytes=2-4\r\n").await;
    assert_eq!(
        (part.status, part.text(), part.field("content-range").unwrap()),
        (206, "234".into(), "bytes 2-4/10".into())
    );
    assert_eq!(ask(&mut client, "/a%20b.txt", "Range: bytes=2-4\r\nIf-Range: \"old\"\r\n").await.text(), "0123456789");
    assert_eq!(ask(&mut client, "/a%20b.txt", "Range: bytes=20-\r\n").await.status, 416);
    let plain = ask(&mut client, "/app.js", "").await;
    assert_eq!((plain.text(), plain.field("content-encoding")), ("let plain;".into(), None));
    let br = ask(&mut client, "/app.js", "Accept-Encoding: gzip, br\r\n").await;
    assert_eq!((br.text(), br.field("content-encoding").unwrap()), ("brotli".into(), "br".into()));
    assert_ne!(plain.field("etag"), br.field("etag"));
    let folder_answer = ask(&mut client, "/sub?x", "").await;
    assert_eq!((folder_answer.status, folder_answer.field("location").unwrap()), (308, "/sub/?x".into()));
    assert_eq!(ask(&mut client, "/sub/", "").await.text(), "<p>sub</p>");
    assert_eq!(client.ask(&format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n")).await.status, 405);
    // An application with paths of its own.
    assert_eq!(ask(&mut client, "/panel/app.js", "").await.text(), "let plain;");
    assert_eq!(ask(&mut client, "/panel/room/x", "").await.text(), "<p>index</p>");
    assert_eq!(ask(&mut client, "/panel/sub", "").await.field("location").unwrap(), "/panel/sub/");
}

#[tokio::test]
async fn nothing_hidden_and_nothing_outside_the_folder_is_served() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    let edge = Edge::start(&format!("[sites.\"{HOST}\"]\nfiles = {:?}\n", folder.path().join("www")));
    let mut client = Client::tls(&edge, HOST).await;
    for closed in [
        "/.htpasswd",
        "/%2ehtpasswd",
        "/link.txt",
        "/up/outside.txt",
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/sub/..%2f..%2foutside.txt",
        "/..%5coutside.txt",
        "/nothing",
        "/app.js/",
        "//../outside.txt",
        "/%00",
        "/sub//../../outside.txt",
    ] {
        let answer = ask(&mut client, closed, "").await;
        assert_eq!(answer.status, 404, "{closed}");
        assert!(!answer.text().contains("secret"), "{closed}");
    }
    assert_eq!(ask(&mut client, "/.well-known/x", "").await.text(), "known");
    assert_eq!(ask(&mut client, "/inside.js", "").await.text(), "let plain;");
}
