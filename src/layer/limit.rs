//! Bounds on request bodies, and what Synapse cannot take: a body without a length (a short one is given its length), a
//! head over 16 KiB.
//!
//! Synapse drops the connection in both cases without a word, and a browser then reports a CORS
//! error. Judged here, before a byte goes upstream, the client hears the reason.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::header;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{
    config::plan::{BodyPath, BodyRule, Kind as SiteKind},
    error::{Kind, ProxyError},
    message::{Body, BodyError, Fields, Request},
};

/// Twisted closes the connection when the request line and the fields are more than this, line ends included
/// (`twisted.web.http.HTTPChannel.totalHeadersSize`).
const SYNAPSE_HEAD: usize = 16 * 1024;

/// The longest body without a length that is gathered for Synapse, so that it has one: longer than any JSON that a client
/// sends. Who uploads media knows its length.
const MAX_GATHERED: usize = 64 * 1024;

/// Limits the body of a request that is about to go upstream.
///
/// # Errors
/// [`Kind::BodyTooLarge`].
pub fn bound_body(request: &mut Request, rules: &[BodyRule]) -> Result<(), ProxyError> {
    if request.body.is_empty() {
        return Ok(());
    }
    let length = request.body.size_hint().exact();
    let path = request.uri.path();
    let Some(limit) = rules.iter().find(|rule| applies(rule.path, path)).and_then(|rule| rule.limit) else {
        return Ok(());
    };
    match length {
        Some(length) if length > limit => Err(Kind::BodyTooLarge.into()),
        Some(_) => Ok(()),
        None => {
            let inner = std::mem::take(&mut request.body);
            request.body = Body::stream(LimitedBody { inner, left: limit });
            Ok(())
        }
    }
}

/// Whether a body has to be given its length before it goes upstream.
#[must_use]
pub fn lacks_length(request: &Request, kind: SiteKind) -> bool {
    kind == SiteKind::Synapse && request.body.size_hint().exact().is_none()
}

/// Gathers a body without a length, so that it has one.
///
/// # Errors
/// [`Kind::LengthRequired`] once it is too long for that; whatever ends the body early.
pub async fn give_length(request: &mut Request) -> Result<(), ProxyError> {
    let mut body = std::mem::take(&mut request.body);
    let mut gathered = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        // Synapse has no use for trailers.
        let Ok(data) = frame?.into_data() else { continue };
        if gathered.len() + data.len() > MAX_GATHERED {
            return Err(Kind::LengthRequired.into());
        }
        gathered.extend_from_slice(&data);
    }
    // Said even where it is 0: a length was expected (RFC 9110 section 8.6). The client has been told to go on.
    request.fields.insert_number(header::CONTENT_LENGTH, gathered.len());
    request.fields.remove(header::EXPECT);
    request.fields.remove(header::TRAILER);
    request.body = Body::full(gathered.freeze());
    Ok(())
}

/// Checks the head as it will be written upstream.
///
/// # Errors
/// [`Kind::TargetTooLong`] where the target is most of it, else [`Kind::HeadTooLarge`].
pub fn bound_head(request: &Request, kind: SiteKind) -> Result<(), ProxyError> {
    if kind != SiteKind::Synapse {
        return Ok(());
    }
    let target = request.target().len();
    let fields = fields_len(&request.fields);
    let line = request.method.as_str().len() + target + b"  HTTP/1.1\r\n\r\n".len();
    if line + fields <= SYNAPSE_HEAD {
        Ok(())
    } else if target > fields {
        Err(Kind::TargetTooLong.into())
    } else {
        Err(Kind::HeadTooLarge.into())
    }
}

fn fields_len(fields: &Fields) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.as_bytes().len() + b": \r\n".len()).sum()
}

fn applies(rule: BodyPath, path: &str) -> bool {
    match rule {
        BodyPath::Any => true,
        BodyPath::MatrixMedia => is_media_upload(path),
    }
}

/// `/_matrix/media/VERSION/upload` with or without a media id after it, and the same under `/_matrix/client/VERSION`.
fn is_media_upload(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/_matrix/") else { return false };
    let mut segments = rest.split('/');
    match segments.next() {
        Some("media") => segments.nth(1) == Some("upload"),
        Some("client") => segments.nth(1) == Some("media") && segments.next() == Some("upload"),
        _ => false,
    }
}

/// A body that may not pass a length which it did not announce.
struct LimitedBody {
    inner: Body,
    left: u64,
}

impl HttpBody for LimitedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref) {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => return Poll::Ready(Some(Err(BodyError::TooLarge))),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::message::Value;

    fn request(path: &str, body: Body) -> Request {
        http::Request::post(path).body(body).unwrap().into()
    }

    const RULES: [BodyRule; 2] =
        [BodyRule { path: BodyPath::MatrixMedia, limit: Some(64) }, BodyRule { path: BodyPath::Any, limit: Some(16) }];

    #[test]
    fn media_may_be_larger_than_the_rest() {
        for (path, len, fits) in [
            ("/_matrix/media/v3/upload", 64, true),
            ("/_matrix/media/v3/upload/example.org/id", 64, true),
            ("/_matrix/media/v3/upload", 65, false),
            ("/_matrix/media/v3/download/upload", 17, false),
            ("/_matrix/client/v3/rooms/upload", 17, false),
            ("/other", 16, true),
        ] {
            let mut request = request(path, Body::full(vec![0; len]));
            assert_eq!(bound_body(&mut request, &RULES).is_ok(), fits, "{path} {len}");
        }
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_watched() {
        let chunks = |n| futures_util::stream::iter((0..n).map(|_| Ok(Frame::data(Bytes::from_static(b"12345678")))));
        let body = |n| Body::stream(http_body_util::StreamBody::new(chunks(n)));
        let mut fits = request("/", body(2));
        bound_body(&mut fits, &RULES).unwrap();
        assert_eq!(fits.body.collect().await.unwrap().to_bytes().len(), 16);
        let mut over = request("/", body(3));
        bound_body(&mut over, &RULES).unwrap();
        assert_eq!(over.body.collect().await.unwrap_err(), BodyError::TooLarge);
    }

    #[tokio::test]
    async fn a_short_body_is_given_its_length() {
        let body = |pieces: usize| {
            let pieces = (0..pieces).map(|_| Ok(Frame::data(Bytes::from_static(&[b'x'; 1024]))));
            request("/", Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter(pieces))))
        };
        for pieces in [0, 1, 64] {
            let mut short = body(pieces);
            assert!(lacks_length(&short, SiteKind::Synapse) && !lacks_length(&short, SiteKind::Http));
            give_length(&mut short).await.unwrap();
            assert_eq!(short.body.size_hint().exact(), Some(1024 * pieces as u64));
            assert_eq!(short.fields.get(header::CONTENT_LENGTH).unwrap(), (1024 * pieces).to_string().as_str());
            assert!(!lacks_length(&short, SiteKind::Synapse));
        }
        assert_eq!(give_length(&mut body(65)).await.unwrap_err().kind, Kind::LengthRequired);
        let cut = futures_util::stream::iter([Err(BodyError::Truncated)]);
        let mut cut = request("/", Body::stream(http_body_util::StreamBody::new(cut)));
        assert_eq!(give_length(&mut cut).await.unwrap_err().kind, Kind::ClientGone);
    }

    #[test]
    fn a_head_that_synapse_would_choke_on_is_refused() {
        let head = |target: usize, field: usize| {
            let mut request = request(&format!("/{}", "a".repeat(target)), Body::empty());
            request.fields.insert(HeaderName::from_static("x"), Value::new("b".repeat(field).as_bytes()).unwrap());
            bound_head(&request, SiteKind::Synapse).map_err(|error| error.kind)
        };
        assert_eq!(head(10, 16_300), Ok(()));
        assert_eq!(head(16_300, 10), Ok(()));
        assert_eq!(head(10, 16_384), Err(Kind::HeadTooLarge));
        assert_eq!(head(16_384, 10), Err(Kind::TargetTooLong));
    }
}
