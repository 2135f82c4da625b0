//! Files of a folder. `tower_http` reads them, with ranges and precompressed variants; which files may be read is decided
//! here: none that is hidden, none outside the folder, whatever links lead there. All of it off the request's thread.

use std::{
    io,
    path::{Component, Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, header, uri::PathAndQuery};
use http_body::{Body as HttpBody, Frame, SizeHint};
use percent_encoding::percent_decode_str;
use tower_http::services::{ServeDir, fs::ServeFileSystemResponseBody};

use super::redirect;
use crate::{
    config::plan,
    error::{Kind, ProxyError},
    message::{Body, BodyError, Fields, Request, Response, Value},
};

/// Variants of a file that a build may have compressed.
const PRECOMPRESSED: [&str; 3] = ["br", "zst", "gz"];

/// The only hidden folder whose files are served (RFC 8615).
const WELL_KNOWN: &str = ".well-known";

/// Larger pieces cost fewer switches to the thread that reads; nginx reads as much at once.
const PIECE: usize = 128 * 1024;

/// The files of a folder.
#[derive(Clone)]
pub struct Files {
    root: PathBuf,
    spa: bool,
    serve: ServeDir,
}

/// What a path leads to.
enum Found {
    File,
    Folder,
    Nothing,
    /// A hidden file, or one outside the folder.
    Closed,
}

impl Files {
    /// The files that a plan names.
    #[must_use]
    pub fn new(plan: &plan::Files) -> Self {
        let serve = ServeDir::new(&plan.root).with_buf_chunk_size(PIECE);
        let serve = serve.precompressed_br().precompressed_zstd().precompressed_gzip();
        Self { root: plan.root.clone(), spa: plan.spa, serve }
    }

    /// Answers with the file that `path` names, the path without what the route strips. `accepted` is `Accept-Encoding` as
    /// the client sent it.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub async fn answer(
        mut self,
        request: Request,
        path: String,
        accepted: Option<http::HeaderValue>,
    ) -> Result<Response, ProxyError> {
        if !matches!(request.method, Method::GET | Method::HEAD) {
            let mut response = Response::of(StatusCode::METHOD_NOT_ALLOWED);
            response.fields.insert(header::ALLOW, Value::from_static("GET, HEAD"));
            return Ok(response);
        }
        let (root, wanted) = (self.root.clone(), path.clone());
        let found = tokio::task::spawn_blocking(move || find(&root, &wanted)).await;
        let path = match found.map_err(|error| ProxyError::new(Kind::Internal, error))? {
            Found::File => path,
            Found::Folder if path.ends_with('/') => path,
            Found::Folder => return to_folder(&request),
            Found::Nothing if self.spa => "/".to_owned(),
            Found::Nothing | Found::Closed => return Err(Kind::NoRoute.into()),
        };
        let asked = asked(&request, &path, accepted)?;
        let answer = self.serve.try_call(asked).await.map_err(|error| ProxyError::new(Kind::Internal, error))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Err(Kind::NoRoute.into()),
            _ => Ok(response(answer, &request.fields)),
        }
    }
}

/// Looks at the file, the index of a folder, and their precompressed variants.
fn find(root: &Path, path: &str) -> Found {
    let Ok(decoded) = percent_decode_str(path.trim_start_matches('/')).decode_utf8() else { return Found::Nothing };
    let relative = Path::new(&*decoded);
    let is_open = relative.components().enumerate().all(|(at, part)| match part {
        Component::Normal(name) => {
            let name = name.as_encoded_bytes();
            !name.starts_with(b".") || (at == 0 && name == WELL_KNOWN.as_bytes())
        }
        _ => false,
    });
    if !is_open || decoded.contains(['\0', '\\']) {
        return Found::Closed;
    }
    let Ok(root) = root.canonicalize() else { return Found::Nothing };
    let whole = root.join(relative);
    let Ok(metadata) = whole.metadata() else { return Found::Nothing };
    let file = if metadata.is_dir() { whole.join("index.html") } else { whole };
    let variants = PRECOMPRESSED.iter().map(|ending| {
        let mut name = file.clone().into_os_string();
        name.push(format!(".{ending}"));
        PathBuf::from(name)
    });
    let leads_out = |path: PathBuf| path.canonicalize().is_ok_and(|real| !real.starts_with(&root));
    if std::iter::once(file.clone()).chain(variants).any(leads_out) {
        return Found::Closed;
    }
    match (metadata.is_dir(), file.is_file()) {
        (true, true) => Found::Folder,
        (false, true) => Found::File,
        // A folder without an index, a pipe, a device.
        (_, false) => Found::Nothing,
    }
}

/// A folder is asked for with a slash at the end, or what it links to would be looked for beside it.
fn to_folder(request: &Request) -> Result<Response, ProxyError> {
    let path = request.uri.path();
    if path.starts_with("//") {
        // It would be read as the name of another host.
        return Err(Kind::NoRoute.into());
    }
    let query = request.uri.query().map_or_else(String::new, |query| format!("?{query}"));
    redirect::location(&format!("{path}/{query}"), StatusCode::PERMANENT_REDIRECT)
}

/// The request as `tower_http` takes it: with the fields that it knows.
fn asked(
    request: &Request,
    path: &str,
    accepted: Option<http::HeaderValue>,
) -> Result<http::Request<Body>, ProxyError> {
    let bad = |error: http::Error| ProxyError::new(Kind::BadRequest("the path cannot be a file"), error);
    // One slash: two would be the beginning of a host.
    let target = format!("/{}", path.trim_start_matches('/'));
    let target = PathAndQuery::try_from(target).map_err(|error| bad(error.into()))?;
    let mut fields = HeaderMap::new();
    // A range of a file that may have changed needs a comparison; without it, the whole file is always right.
    let conditional = request.fields.contains(header::IF_RANGE);
    let known = [header::RANGE, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE];
    for name in known.into_iter().filter(|name| !(conditional && *name == header::RANGE)) {
        // `If-None-Match` has precedence (RFC 9110 section 13.2.2).
        if name == header::IF_MODIFIED_SINCE && request.fields.contains(header::IF_NONE_MATCH) {
            continue;
        }
        fields.extend(request.fields.get(&name).map(|value| (name, value.to_owned())));
    }
    fields.extend(accepted.map(|value| (header::ACCEPT_ENCODING, value)));
    let mut asked = http::Request::builder()
        .method(request.method.clone())
        .uri(Uri::from(target))
        .body(Body::empty())
        .map_err(bad)?;
    *asked.headers_mut() = fields;
    Ok(asked)
}

fn response(answer: http::Response<ServeFileSystemResponseBody>, asked: &Fields) -> Response {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Body::stream(FileBody(body)));
    response.status = head.status;
    for (name, value) in &head.headers {
        if let Ok(value) = Value::new(value.as_bytes()) {
            response.fields.append(name.clone(), value);
        }
    }
    with_charset(&mut response.fields);
    let Some(tag) = tag(&head.headers) else { return response };
    if let Ok(value) = Value::new(tag.as_bytes()) {
        response.fields.insert(header::ETAG, value);
    }
    let bare = tag.trim_start_matches("W/").as_bytes();
    let same = |known: &[u8]| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == bare;
    if head.status.is_success() && asked.tags(header::IF_NONE_MATCH).any(same) {
        response.status = StatusCode::NOT_MODIFIED;
        response.body = Body::empty();
        for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_RANGE, header::CONTENT_ENCODING] {
            response.fields.remove(name);
        }
    }
    response
}

/// Text without a charset is read as anything; files are UTF-8 today.
fn with_charset(fields: &mut Fields) {
    let plain = fields.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str());
    let text = plain
        .filter(|kind| kind.starts_with("text/") && !kind.contains(';'))
        .map(|kind| format!("{kind}; charset=utf-8"));
    if let Some(Ok(value)) = text.as_ref().map(|text| Value::new(text.as_bytes())) {
        fields.insert(header::CONTENT_TYPE, value);
    }
}

/// A tag of the time and the length of the whole file, and of its encoding.
fn tag(fields: &HeaderMap) -> Option<String> {
    let text = |name: header::HeaderName| fields.get(name).and_then(|value| value.to_str().ok());
    let modified = httpdate::parse_http_date(text(header::LAST_MODIFIED)?).ok()?;
    let seconds = modified.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let length = text(header::CONTENT_RANGE)
        .and_then(|range| range.rsplit('/').next())
        .or_else(|| text(header::CONTENT_LENGTH))?;
    let encoding = text(header::CONTENT_ENCODING).map_or_else(String::new, |encoding| format!("-{encoding}"));
    Some(format!("W/\"{seconds:x}-{length}{encoding}\""))
}

/// The body of a file; one that cannot be read to its end is cut.
struct FileBody(ServeFileSystemResponseBody);

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame: Option<Result<_, io::Error>> = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(|_| BodyError::Truncated)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
