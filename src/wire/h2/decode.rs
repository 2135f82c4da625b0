//! From a block of fields to the head of a request (RFC 7541 section 3, RFC 9113 section 8.3).
//!
//! The dynamic table holds what has been understood and not bytes, so that a field which is only named costs a reference
//! and no second look.

use std::{cell::RefCell, collections::VecDeque, sync::LazyLock};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header, uri::PathAndQuery};

use super::{
    super::head::content_length,
    FIRST_TABLE, HpackError, huffman, integer,
    table::{FIRST_DYNAMIC, OVERHEAD, STATIC},
};
use crate::message::Fields;

/// Fields that HTTP/2 has frames for, so that a message which says them means to be read in two ways (section 8.2.2).
pub static OF_HTTP1: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The `:scheme` of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `http` or `https`. Which of them does not matter: what counts is how the connection is made.
    Http,
    /// Any other.
    Other,
}

/// The `:protocol` of an extended CONNECT (RFC 8441 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `websocket`.
    WebSocket,
    /// Any other.
    Other,
}

/// A block of fields, read.
#[derive(Debug, Default)]
pub struct Head {
    /// `:method`.
    pub method: Option<Method>,
    /// `:scheme`.
    pub scheme: Option<Scheme>,
    /// `:authority`.
    pub authority: Option<HeaderValue>,
    /// `:path`.
    pub path: Option<PathAndQuery>,
    /// `:protocol`.
    pub protocol: Option<Protocol>,
    /// The fields, less those with an underscore in their name.
    pub fields: Fields,
    /// How many fields were dropped for an underscore; see [`RequestHead::dropped`](crate::wire::RequestHead::dropped).
    pub dropped: usize,
    /// Why it is no request, or no trailers. The first reason.
    pub malformed: Option<&'static str>,
    /// It is larger than allowed; what is above that is not here.
    pub too_large: bool,
    size: usize,
}

impl Head {
    fn add(&mut self, field: &Field) {
        let filled = match field {
            Field::Regular(name, value) => return self.fields.append(name.clone(), value.into()),
            Field::Underscored => {
                self.dropped += 1;
                return;
            }
            Field::Unfit(why) => return self.is_malformed(why),
            _ if self.dropped > 0 || !self.fields.is_empty() => {
                return self.is_malformed("a pseudo-field comes after a field");
            }
            Field::Method(method) => self.method.replace(method.clone()).is_some(),
            Field::Scheme(scheme) => self.scheme.replace(*scheme).is_some(),
            Field::Authority(authority) => self.authority.replace(authority.clone()).is_some(),
            Field::Path(path) => self.path.replace(path.clone()).is_some(),
            Field::Protocol(protocol) => self.protocol.replace(*protocol).is_some(),
        };
        if filled {
            self.is_malformed("a pseudo-field is said twice");
        }
    }

    /// Whether it is a request: nothing is malformed, and every pseudo-field is there that has to be (section 8.3.1). A
    /// head that is too large may lack what it had.
    #[must_use]
    pub fn is_request(&self) -> bool {
        let is_tunnel = self.method == Some(Method::CONNECT) && self.protocol.is_none();
        let names_its_target = self.scheme.is_some() && self.path.is_some();
        self.too_large || self.malformed.is_none() && self.method.is_some() && (is_tunnel || names_its_target)
    }

    /// What the body is to have, where that is said; `ended` tells that there is no body.
    pub fn content_length(&mut self, ended: bool) -> Option<u64> {
        let Ok(length) = content_length(&mut self.fields) else {
            self.is_malformed("Content-Length is malformed");
            return None;
        };
        if ended && length.is_some_and(|length| length > 0) {
            self.is_malformed("the body is shorter than Content-Length");
        }
        length
    }

    fn is_malformed(&mut self, why: &'static str) {
        self.malformed = self.malformed.or(Some(why));
    }

    /// Whether there is a pseudo-field, which trailers may not have (section 8.1).
    #[must_use]
    pub const fn has_pseudo_fields(&self) -> bool {
        self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.protocol.is_some()
    }
}

/// A field that has been understood.
#[derive(Debug, Clone)]
enum Field {
    Method(Method),
    Scheme(Scheme),
    Authority(HeaderValue),
    Path(PathAndQuery),
    Protocol(Protocol),
    Regular(HeaderName, HeaderValue),
    /// CGI-like upstreams cannot tell `x_real_ip` from `x-real-ip`.
    Underscored,
    Unfit(&'static str),
}

/// The name of a field that has been understood.
#[derive(Debug, Clone)]
enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Regular(HeaderName),
    Underscored,
    Unfit(&'static str),
}

impl Name {
    fn parse(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            [b':', ..] => Self::Unfit("a pseudo-field is unknown"),
            _ => match HeaderName::from_lowercase(name) {
                Err(_) => Self::Unfit("a field name is malformed"),
                Ok(name) if name.as_str().contains('_') => Self::Underscored,
                Ok(name) if OF_HTTP1.contains(&name) => Self::Unfit("a field belongs to HTTP/1.1"),
                Ok(name) => Self::Regular(name),
            },
        }
    }

    fn with(&self, value: &[u8]) -> Field {
        let field = match self {
            Self::Method => Method::from_bytes(value).ok().map(Field::Method),
            Self::Scheme => Some(Field::Scheme(scheme(value))),
            Self::Authority => HeaderValue::from_bytes(value).ok().map(Field::Authority),
            Self::Path => path(value).map(Field::Path),
            Self::Protocol if value.eq_ignore_ascii_case(b"websocket") => Some(Field::Protocol(Protocol::WebSocket)),
            Self::Protocol => Some(Field::Protocol(Protocol::Other)),
            Self::Regular(name) if *name == header::TE && value != b"trailers" => None,
            Self::Regular(name) => HeaderValue::from_bytes(value).ok().map(|value| Field::Regular(name.clone(), value)),
            Self::Underscored => Some(Field::Underscored),
            Self::Unfit(why) => Some(Field::Unfit(why)),
        };
        field.unwrap_or(Field::Unfit(match self {
            Self::Method => "the method is no token",
            Self::Path => "the target is not a path",
            Self::Authority => ":authority is malformed",
            _ => "a field value is malformed",
        }))
    }
}

fn scheme(value: &[u8]) -> Scheme {
    if value.eq_ignore_ascii_case(b"https") || value.eq_ignore_ascii_case(b"http") {
        Scheme::Http
    } else {
        Scheme::Other
    }
}

/// The target without any of the changes that a URL library would make: `http` cuts fragments silently, and makes a
/// slash of nothing.
fn path(value: &[u8]) -> Option<PathAndQuery> {
    if value.is_empty() || value.contains(&b'#') {
        return None;
    }
    PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(value)).ok()
}

/// An entry of a table.
#[derive(Debug, Clone)]
struct Entry {
    name: Name,
    field: Field,
    name_len: usize,
    /// As RFC 7541 section 4.1 counts it.
    size: usize,
}

impl Entry {
    fn new(name: Name, name_len: usize, value: &[u8]) -> Self {
        let field = name.with(value);
        Self { name, field, name_len, size: name_len + value.len() + OVERHEAD }
    }
}

static KNOWN: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let known = STATIC.iter();
    known.map(|(name, value)| Entry::new(Name::parse(name.as_bytes()), name.len(), value.as_bytes())).collect()
});

thread_local! {
    /// Strings that are written in the Huffman code, while they are read.
    static PLAIN: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Reads the blocks of one connection, in order.
#[derive(Debug)]
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
    list_limit: usize,
}

impl Decoder {
    /// A decoder whose heads hold fields of so many bytes, counted as section 6.5.2 counts `MAX_HEADER_LIST_SIZE`.
    #[must_use]
    pub const fn new(list_limit: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: FIRST_TABLE, list_limit }
    }

    /// Reads a block. A head that is malformed or too large leaves the table as it is to be.
    ///
    /// # Errors
    /// The block cannot be read, and so no later one can.
    pub fn decode(&mut self, mut block: &[u8]) -> Result<Head, HpackError> {
        let mut head = Head::default();
        let mut at_start = true;
        while let Some(first) = block.first() {
            match first {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    let entry = self.entry(index)?;
                    if has_room(&mut head, entry.size, self.list_limit) {
                        head.add(&entry.field);
                    }
                }
                0x20..0x40 => {
                    // Only where a block begins (section 4.2).
                    let limit = integer(&mut block, 5)?;
                    if !at_start || limit > FIRST_TABLE {
                        return Err(HpackError);
                    }
                    self.limit = limit;
                    self.evict(limit);
                    continue;
                }
                first => {
                    let is_kept = first & 0x40 != 0;
                    let entry = self.literal(&mut block, if is_kept { 6 } else { 4 })?;
                    if has_room(&mut head, entry.size, self.list_limit) {
                        head.add(&entry.field);
                    }
                    if is_kept {
                        self.keep(entry);
                    }
                }
            }
            at_start = false;
        }
        Ok(head)
    }

    fn entry(&self, index: usize) -> Result<&Entry, HpackError> {
        let at = index.checked_sub(1).ok_or(HpackError)?;
        KNOWN.get(at).or_else(|| self.entries.get(index - FIRST_DYNAMIC)).ok_or(HpackError)
    }

    fn literal(&self, block: &mut &[u8], prefix: u8) -> Result<Entry, HpackError> {
        let whole = *block;
        PLAIN.with_borrow_mut(|(plain_name, plain_value)| {
            let mut rest = whole;
            let (name, name_len) = match integer(&mut rest, prefix)? {
                0 => {
                    let name = string(&mut rest, plain_name)?;
                    (Name::parse(name), name.len())
                }
                index => {
                    let entry = self.entry(index)?;
                    (entry.name.clone(), entry.name_len)
                }
            };
            let entry = Entry::new(name, name_len, string(&mut rest, plain_value)?);
            *block = &whole[whole.len() - rest.len()..];
            Ok(entry)
        })
    }

    fn keep(&mut self, entry: Entry) {
        // One that is larger than the table empties it (section 4.4).
        self.evict(self.limit.saturating_sub(entry.size));
        if entry.size <= self.limit {
            self.size += entry.size;
            self.entries.push_front(entry);
        }
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size;
        }
    }
}

/// Whether a field is within what a head may hold. A field of the table that is named a thousand times costs nothing.
const fn has_room(head: &mut Head, size: usize, limit: usize) -> bool {
    head.size = head.size.saturating_add(size);
    head.too_large |= head.size > limit;
    !head.too_large
}

/// Takes a string off the front (section 5.2).
fn string<'a>(block: &mut &'a [u8], plain: &'a mut Vec<u8>) -> Result<&'a [u8], HpackError> {
    let is_huffman = block.first().ok_or(HpackError)? & 0x80 != 0;
    let len = integer(block, 7)?;
    let (string, rest) = block.split_at_checked(len).ok_or(HpackError)?;
    *block = rest;
    if !is_huffman {
        return Ok(string);
    }
    plain.clear();
    huffman::decode(string, plain)?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    }

    fn said(head: &Head) -> String {
        let fields = head.fields.iter().map(|(name, value)| format!(" {name}={}", value.to_str().unwrap()));
        format!(
            "{} {:?} {} {}{}",
            head.method.as_ref().unwrap(),
            head.scheme.unwrap(),
            head.authority.as_ref().unwrap().to_str().unwrap(),
            head.path.as_ref().unwrap(),
            fields.collect::<String>()
        )
    }

    #[test]
    fn requests_are_those_of_the_rfc() {
        // RFC 7541 appendices C.3 and C.4: the same three requests, plain and in the Huffman code.
        for blocks in [
            [
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ],
            [
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ],
        ] {
            let mut decoder = Decoder::new(1 << 15);
            let heads: Vec<String> = blocks.iter().map(|block| said(&decoder.decode(&hex(block)).unwrap())).collect();
            assert_eq!(
                heads,
                [
                    "GET Http www.example.com /",
                    "GET Http www.example.com / cache-control=no-cache",
                    "GET Http www.example.com /index.html custom-key=custom-value",
                ]
            );
            assert_eq!((decoder.entries.len(), decoder.size), (3, 164));
        }
    }

    fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
        let mut out = vec![first];
        for text in [name, value] {
            super::super::put_integer(&mut out, 0, 7, text.len());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }

    #[test]
    fn what_is_malformed_stays_so_where_it_is_only_named() {
        for (name, value) in [
            ("X-Upper", "a"),
            ("x a", "a"),
            ("", "a"),
            ("x", "a\r\nb"),
            ("x", "a\0"),
            ("connection", "close"),
            ("keep-alive", "5"),
            ("te", "gzip"),
            (":unknown", "a"),
            (":status", "200"),
            (":path", ""),
            (":path", "/a#b"),
            (":path", "/a b"),
            (":method", "G ET"),
            (":authority", "a\nb"),
        ] {
            let mut decoder = Decoder::new(1 << 15);
            assert!(decoder.decode(&literal(0x40, name, value)).unwrap().malformed.is_some(), "{name}: {value:?}");
            assert!(decoder.decode(&[0xbe]).unwrap().malformed.is_some(), "{name}: {value:?} by its index");
        }
        let mut decoder = Decoder::new(1 << 15);
        assert_eq!(decoder.decode(&literal(0x40, "x_y", "a")).unwrap().dropped, 1);
        assert_eq!(decoder.decode(&[0xbe]).unwrap().dropped, 1);
        assert!(decoder.decode(&[0x82, 0x82]).unwrap().malformed.is_some(), "twice");
        assert!(decoder.decode(&[&literal(0, "a", "b")[..], &[0x82]].concat()).unwrap().malformed.is_some(), "late");
    }

    #[test]
    fn a_field_that_is_named_often_is_a_head_that_is_too_large() {
        let mut decoder = Decoder::new(10_000);
        let mut block = literal(0x40, "x-bomb", &"b".repeat(3_900));
        block.extend([0xbe; 4_000]);
        let head = decoder.decode(&block).unwrap();
        assert!(head.too_large && head.fields.len() == 2);
        assert!(!decoder.decode(&[0xbe]).unwrap().too_large, "the table is what it was");
    }

    #[test]
    fn the_table_is_as_large_as_was_agreed() {
        let mut decoder = Decoder::new(1 << 20);
        for n in 0..1_000 {
            decoder.decode(&literal(0x40, "x-name", &format!("{n:0100}"))).unwrap();
            assert!(decoder.size <= FIRST_TABLE);
        }
        assert_eq!(decoder.entries.len(), FIRST_TABLE / 138);
        decoder.decode(&literal(0x40, "x-large", &"x".repeat(FIRST_TABLE))).unwrap();
        assert_eq!((decoder.entries.len(), decoder.size), (0, 0));
        assert_eq!(decoder.decode(&[0xbe]).unwrap_err(), HpackError);
        let resize = |size| {
            let mut out = Vec::new();
            super::super::put_integer(&mut out, 0x20, 5, size);
            out
        };
        decoder.decode(&resize(0)).unwrap();
        decoder.decode(&literal(0x40, "x", "y")).unwrap();
        assert_eq!(decoder.entries.len(), 0);
        decoder.decode(&resize(FIRST_TABLE)).unwrap();
        assert!(decoder.decode(&resize(FIRST_TABLE + 1)).is_err());
        assert!(decoder.decode(&[&[0x82][..], &resize(0)].concat()).is_err());
    }
}
