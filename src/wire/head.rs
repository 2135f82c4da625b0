//! Heads of requests and responses, and the framing that their fields announce.

use std::{mem::MaybeUninit, sync::LazyLock};

use bytes::Bytes;
use http::{Method, StatusCode, Uri, Version, header};
use memchr::memmem;

use super::{Framing, WireError, names};
use crate::message::{Fields, Value};

/// Most fields that any configuration can allow; a head is parsed into an array of this size on the stack.
const MAX_FIELDS: usize = 512;

/// What a head may weigh.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes of all fields together.
    pub bytes: usize,
    /// Number of fields; at most 512.
    pub fields: usize,
    /// Bytes of the request target; at most 65,534 (`http::Uri`).
    pub target: usize,
}

impl HeadLimits {
    /// The most bytes that may be read before a head must have ended.
    #[must_use]
    pub const fn total(&self) -> usize {
        // Method, version and line ends are allowed another 64 bytes.
        self.bytes + self.target + 64
    }
}

/// The head of a request and how its body is framed. `Transfer-Encoding` is not among the fields any more.
#[derive(Debug)]
pub struct RequestHead {
    /// The method, any token.
    pub method: Method,
    /// The target as it was sent.
    pub target: Uri,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// The fields as they were sent, less `Transfer-Encoding`; equal `Content-Length` fields are one.
    pub fields: Fields,
    /// How the body is framed.
    pub framing: Framing,
    /// Whether the client lets the connection be used again (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// How many fields were dropped because their name has an underscore: CGI-like upstreams cannot tell `X_Real_IP`
    /// from `X-Real-IP`.
    pub dropped: usize,
}

/// The head of a response and how its body is framed. `Transfer-Encoding` is not among the fields any more.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status, 100 to 999.
    pub status: StatusCode,
    /// The fields as they were sent, less `Transfer-Encoding`.
    pub fields: Fields,
    /// How the body is framed.
    pub framing: Framing,
    /// Whether the connection may be used again once the body has been read.
    pub keep_alive: bool,
}

/// Length of the head at the start of `buf`, its empty line included, once all of it is there. `scanned` remembers how
/// far earlier calls have looked; it starts at 0.
///
/// # Errors
/// A line ends in a bare LF.
pub fn head_len(buf: &[u8], scanned: &mut usize) -> Result<Option<usize>, WireError> {
    static EMPTY_LINE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\r\n\r\n"));
    // The empty line may have begun in what is known.
    let from = scanned.saturating_sub(3);
    let len = EMPTY_LINE.find(&buf[from..]).map(|at| from + at + 4);
    if has_bare_lf(&buf[scanned.saturating_sub(1)..len.unwrap_or(buf.len())], *scanned == 0) {
        return Err(WireError::Malformed("a line ends in a bare LF"));
    }
    if len.is_none() {
        *scanned = buf.len();
    }
    Ok(len)
}

/// All of it is looked at, so that the compiler takes sixteen bytes at a time.
fn has_bare_lf(bytes: &[u8], at_start: bool) -> bool {
    let Some(rest) = bytes.get(1..) else { return false };
    let pairs = bytes.iter().zip(rest);
    let bare = pairs.fold(0, |bare, (before, byte)| bare | u8::from(*byte == b'\n') & u8::from(*before != b'\r'));
    bare != 0 || at_start && bytes[0] == b'\n'
}

/// Parses the head of a request, which [`head_len`] has found to be whole.
///
/// # Errors
/// The grammar is broken, two readings are possible, or a limit is passed.
pub fn parse_request(head: &[u8], limits: &HeadLimits) -> Result<RequestHead, WireError> {
    // A target over the limit is told apart from fields over the limit, since they have different statuses.
    let line = memchr::memchr(b'\r', head).unwrap_or(head.len());
    if line > limits.target + 64 {
        return Err(WireError::TargetTooLong);
    }
    if head.len() - line > limits.bytes {
        return Err(WireError::HeadTooLarge);
    }
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut room[..limits.fields.min(MAX_FIELDS)]) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(WireError::Malformed("the head is not whole")),
        Err(error) => return Err(malformed(error)),
    }
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(WireError::Malformed("the request line is malformed"));
    };
    if target.len() > limits.target {
        return Err(WireError::TargetTooLong);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| WireError::Malformed("the method is no token"))?;
    let target = parse_target(target)?;
    let old = parsed.version == Some(0);
    let (mut fields, seen) = collect(parsed.headers, Underscores::Drop)?;
    let framing = if seen.framing { request_framing(&mut fields, old)? } else { Framing::None };
    let keep_alive = if seen.connection { keep_alive(&fields, old) } else { !old };
    let version = if old { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(RequestHead { method, target, version, fields, framing, keep_alive, dropped: seen.dropped })
}

/// Parses the head of the answer to a request with this method.
///
/// # Errors
/// The grammar is broken, or two readings are possible.
pub fn parse_response(head: &[u8], asked: &Method, limits: &HeadLimits) -> Result<ResponseHead, WireError> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let room = &mut room[..limits.fields.min(MAX_FIELDS)];
    match config.parse_response_with_uninit_headers(&mut parsed, head, room) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(WireError::Malformed("the head is not whole")),
        Err(error) => return Err(malformed(error)),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status else { return Err(WireError::Malformed("the status is no status")) };
    let old = parsed.version == Some(0);
    let (mut fields, seen) = collect(parsed.headers, Underscores::Pass)?;
    let framing = response_framing(&mut fields, status, asked, old)?;
    let keep_alive = if seen.connection { keep_alive(&fields, old) } else { !old };
    let keep_alive = keep_alive && framing != Framing::UntilClose;
    Ok(ResponseHead { status, fields, framing, keep_alive })
}

fn malformed(error: httparse::Error) -> WireError {
    match error {
        httparse::Error::TooManyHeaders => WireError::HeadTooLarge,
        httparse::Error::HeaderName => WireError::Malformed("a field name is malformed"),
        httparse::Error::HeaderValue => WireError::Malformed("a field value is malformed"),
        httparse::Error::Version => WireError::Malformed("the version is not HTTP/1.0 or HTTP/1.1"),
        httparse::Error::Status => WireError::Malformed("the status line is malformed"),
        httparse::Error::NewLine | httparse::Error::Token => WireError::Malformed("the first line is malformed"),
    }
}

/// The target without any of the changes that a URL library would make. A fragment never travels (RFC 9110 section
/// 4.2.5), and `http::Uri` would cut it silently.
fn parse_target(target: &str) -> Result<Uri, WireError> {
    if target.contains('#') {
        return Err(WireError::Malformed("the target has a fragment"));
    }
    Uri::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes()))
        .map_err(|_| WireError::Malformed("the target has characters that a URI may not have"))
}

/// What becomes of names with an underscore; see [`RequestHead::dropped`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Underscores {
    Drop,
    Pass,
}

/// What a walk over the fields notes by the way, so that nobody looks up what is not there.
#[derive(Default)]
struct HeaderScan {
    dropped: usize,
    /// `Content-Length` or `Transfer-Encoding`.
    framing: bool,
    /// `Connection`.
    connection: bool,
}

/// Copies the fields.
fn collect(parsed: &[httparse::Header<'_>], underscores: Underscores) -> Result<(Fields, HeaderScan), WireError> {
    let mut fields = Fields::new();
    let mut seen = HeaderScan::default();
    for field in parsed {
        if underscores == Underscores::Drop && field.name.contains('_') {
            seen.dropped += 1;
            continue;
        }
        let name = names::name(field.name.as_bytes()).map_err(|_| WireError::Malformed("a field name is malformed"))?;
        // The parser has looked at every byte of it.
        let value = Value::known(field.value);
        seen.framing |= name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING;
        seen.connection |= name == header::CONNECTION;
        fields.append(name, value);
    }
    Ok((fields, seen))
}

fn request_framing(fields: &mut Fields, old: bool) -> Result<Framing, WireError> {
    let length = content_length(fields)?;
    match (transfer_encoding(fields)?, length) {
        (true, _) if old => Err(WireError::Malformed("Transfer-Encoding in HTTP/1.0")),
        (true, Some(_)) => Err(WireError::Malformed("Content-Length beside Transfer-Encoding")),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(n)) => Ok(Framing::Length(n)),
        (false, None) => Ok(Framing::None),
    }
}

fn response_framing(fields: &mut Fields, status: StatusCode, asked: &Method, old: bool) -> Result<Framing, WireError> {
    let length = content_length(fields)?;
    let chunked = transfer_encoding(fields)?;
    if chunked && (old || length.is_some()) {
        return Err(WireError::Malformed("the framing of the response can be read in two ways"));
    }
    let bodiless = asked == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    Ok(match (chunked, length) {
        _ if bodiless => Framing::None,
        (true, _) => Framing::Chunked,
        (false, Some(n)) => Framing::Length(n),
        (false, None) => Framing::UntilClose,
    })
}

/// The length, if it is said once, or several times alike. Lists, signs and spaces are refused (RFC 9110 section 8.6).
pub(super) fn content_length(fields: &mut Fields) -> Result<Option<u64>, WireError> {
    let mut said = fields.get_all(header::CONTENT_LENGTH);
    let Some(first) = said.next() else { return Ok(None) };
    let digits = first.as_bytes();
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(WireError::Malformed("Content-Length is not a number"));
    }
    let mut repeated = false;
    for other in said {
        if other != first {
            return Err(WireError::Malformed("Content-Length is said twice, differently"));
        }
        repeated = true;
    }
    let length = digits.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0'));
    if repeated {
        fields.insert_number(header::CONTENT_LENGTH, length);
    }
    Ok(Some(length))
}

/// Whether the body is chunked; the field is taken away, since framing is ours to say again on the next hop. Any coding
/// but a single `chunked` is refused.
fn transfer_encoding(fields: &mut Fields) -> Result<bool, WireError> {
    let mut codings = fields.get_all(header::TRANSFER_ENCODING);
    let Some(coding) = codings.next() else { return Ok(false) };
    if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(WireError::Malformed("the only transfer coding is chunked, once"));
    }
    drop(codings);
    fields.remove(header::TRANSFER_ENCODING);
    Ok(true)
}

fn keep_alive(fields: &Fields, old: bool) -> bool {
    let says = |word: &str| fields.items(header::CONNECTION).any(|token| token.eq_ignore_ascii_case(word.as_bytes()));
    if old { says("keep-alive") && !says("close") } else { !says("close") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 32 * 1024, fields: 128, target: 65_534 };

    fn request(head: &str) -> Result<RequestHead, WireError> {
        request_bytes(head.as_bytes())
    }

    fn request_bytes(head: &[u8]) -> Result<RequestHead, WireError> {
        let len = head_len(head, &mut 0)?.ok_or(WireError::Malformed("unfinished"))?;
        parse_request(&head[..len], &LIMITS)
    }

    #[test]
    fn a_head_is_found_wherever_it_is_cut() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for cut in 0..head.len() {
            let mut scanned = 0;
            let early = head_len(&head[..cut], &mut scanned).unwrap();
            assert_eq!(early.is_some(), cut >= 27);
            assert_eq!(head_len(head, &mut scanned.min(cut)).unwrap(), Some(27));
        }
    }

    #[test]
    fn targets_are_kept_byte_for_byte() {
        for target in ["/%2F%21%3A", "//a//b", "/./a/../b", "/a;b=c+d", "/?", "/a?x=1&x=1&y", "/%zz", "/\u{e9}", "*"] {
            let head = request(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
            assert_eq!(head.target.to_string(), target);
        }
        let head = request("GET http://a.example/b?c HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
        assert_eq!(head.target.path_and_query().unwrap(), "/b?c");
    }

    #[test]
    fn framing_is_read_once() {
        let framing = |fields: &str| request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|h| h.framing);
        assert_eq!(framing(""), Ok(Framing::None));
        assert_eq!(framing("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("Content-Length: 5\r\nContent-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
        for bad in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding: chunked\r\n X: folded\r\n",
        ] {
            assert!(matches!(framing(bad), Err(WireError::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_http_is_refused() {
        for head in [
            &b"GET / HTTP/1.1\nHost: a\n\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n",
            b"GET / HTTP/1.1\r\n: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\tfold\r\n\r\n",
            b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /#f HTTP/1.1\r\nHost: a\r\n\r\n",
            b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(request_bytes(head).is_err(), "{:?}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn names_with_an_underscore_are_dropped() {
        let head = request("GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 1.2.3.4\r\nA-B: c\r\n\r\n").unwrap();
        assert_eq!((head.dropped, head.fields.len()), (1, 2));
    }

    #[test]
    fn limits_have_their_own_errors() {
        let long = |n| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(n));
        assert!(request(&long(65_000)).is_ok());
        assert_eq!(request(&long(65_534)).unwrap_err(), WireError::TargetTooLong);
        assert_eq!(request(&long(100_000)).unwrap_err(), WireError::TargetTooLong);
        let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(33_000));
        assert_eq!(request(&big).unwrap_err(), WireError::HeadTooLarge);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(129));
        assert_eq!(request(&many).unwrap_err(), WireError::HeadTooLarge);
    }

    #[test]
    fn connections_are_kept_as_the_version_has_it() {
        let keep = |line: &str| request(&format!("{line}\r\n\r\n")).unwrap().keep_alive;
        assert!(keep("GET / HTTP/1.1\r\nHost: a"));
        assert!(!keep("GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, Close"));
        assert!(!keep("GET / HTTP/1.0\r\nHost: a"));
        assert!(keep("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive"));
    }

    #[test]
    fn responses_are_framed_by_what_was_asked() {
        let parse = |asked: Method, head: &str| parse_response(head.as_bytes(), &asked, &LIMITS);
        let framing = |asked, head: &str| parse(asked, head).map(|h| (h.framing, h.keep_alive));
        assert_eq!(
            framing(Method::GET, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"),
            Ok((Framing::Length(3), true))
        );
        assert_eq!(framing(Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"), Ok((Framing::None, true)));
        assert_eq!(
            framing(Method::GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n"),
            Ok((Framing::None, true))
        );
        assert_eq!(framing(Method::GET, "HTTP/1.1 200\r\n\r\n"), Ok((Framing::UntilClose, false)));
        assert_eq!(
            framing(Method::GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Ok((Framing::Chunked, true))
        );
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 99 Odd\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert!(framing(Method::GET, bad).is_err(), "{bad:?}");
        }
    }

    /// Bytes that look like requests more often than chance would have it.
    fn nearly_a_request() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop::sample::select(vec![
            "GET / HTTP/1.1",
            "POST /a?b HTTP/1.1",
            "HTTP/1.0",
            "\r\n",
            "\r\n",
            "\n",
            "\r",
            " ",
            "\t",
            ":",
            "Host: a",
            "Host:",
            "Content-Length: 5",
            "Content-Length: 6",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: gzip",
            "Connection: close",
            "X_Y: z",
            "\0",
            "\u{e9}",
            "*",
            "#",
            "a",
            "\r\n\r\n",
        ]);
        prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_read_the_same_way_when_it_is_written_again(bytes in nearly_a_request()) {
            let Ok(head) = request_bytes(&bytes) else { return Ok(()) };
            let mut again = Vec::new();
            let mut fields = head.fields.clone();
            if head.framing == Framing::Chunked {
                fields.insert(header::TRANSFER_ENCODING, Value::from_static("chunked"));
            }
            crate::wire::request_head(&mut again, &head.method, head.target.to_string().as_bytes(), &fields);
            let second = request_bytes(&again).unwrap();
            prop_assert_eq!(second.framing, head.framing);
            prop_assert_eq!(second.target, head.target);
            prop_assert_eq!(&second.fields, &head.fields);
            prop_assert!(!again.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = request_bytes(&[&bytes, b"\r\n\r\n".as_slice()].concat());
            let _ = parse_response(&bytes, &Method::GET, &LIMITS);
        }
    }
}
