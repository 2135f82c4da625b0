//! The fields of a message (RFC 9110 section 5), in the order in which they were said.
//!
//! A message has a dozen fields, is walked a few times and is gone after a moment. So its values stand behind each other in
//! one buffer, a look-up compares names one by one, and a thread uses its buffers again. An `http::HeaderMap` hashes every
//! name and makes of every value a reference that is counted: two of them took a fifth of the instructions of a small
//! exchange, and four of its allocations.

use std::{borrow::Cow, cell::RefCell};

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Room that is made at first, for values and for fields: what a browser sends. Both are below 1 KiB, up to which glibc's
/// allocator is quick.
const TEXT: usize = 768;
const LINES: usize = 20;

/// What a thread keeps: so many buffers, of up to so many bytes of values and so many fields.
const KEPT: usize = 64;
const KEPT_TEXT: usize = 4 * 1024;
const KEPT_LINES: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Buffers>> = const { RefCell::new(Vec::new()) };
}

/// The value of a field, which can be written as it is: no line ends, no NUL, nothing else that a reader could take for the
/// end of the field (RFC 9110 section 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a>(&'a [u8]);

/// Bytes that cannot be the value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a field value is malformed")]
pub struct InvalidValue;

impl<'a> Value<'a> {
    /// The value that these bytes are.
    ///
    /// # Errors
    /// There is a control character among them that is no tab.
    pub fn new(bytes: &'a [u8]) -> Result<Self, InvalidValue> {
        // All of them are looked at, whatever is found: so the compiler takes sixteen at a time.
        let valid = bytes.iter().fold(true, |valid, byte| valid & is_of_values(*byte));
        if valid { Ok(Self(bytes)) } else { Err(InvalidValue) }
    }

    /// A value that somebody has looked at as [`Value::new`] does.
    pub(crate) fn known(bytes: &'a [u8]) -> Self {
        debug_assert!(Self::new(bytes).is_ok(), "a field value is malformed");
        Self(bytes)
    }

    /// A value that is part of the program.
    ///
    /// # Panics
    /// At compile time in a constant, if the text cannot be a value.
    #[must_use]
    pub const fn from_static(text: &'static str) -> Value<'static> {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(is_of_values(bytes[at]), "a field value is malformed");
            at += 1;
        }
        Value(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Its text, if it is ASCII. What else it could be nobody has said (RFC 9110 section 5.5).
    #[must_use]
    pub fn to_str(self) -> Option<&'a str> {
        if self.0.is_ascii() { std::str::from_utf8(self.0).ok() } else { None }
    }

    /// A value that outlives its message.
    #[must_use]
    pub fn to_owned(self) -> HeaderValue {
        HeaderValue::from_bytes(self.0).expect("what may stand here is what the crate lets in")
    }

    /// The members of a list, without the space around them; empty ones are none (RFC 9110 section 5.6.1). A comma inside
    /// of a quoted string does not end a member.
    pub fn items(self) -> Items<'a> {
        Items { rest: self.0, quotes: Quotes::Escaped }
    }

    /// The members of a list of entity tags, in whose quotes a backslash is a character like any other (RFC 9110
    /// section 8.8.3).
    pub fn tags(self) -> Items<'a> {
        Items { rest: self.0, quotes: Quotes::Opaque }
    }
}

/// The members of a list.
#[derive(Debug, Clone)]
pub struct Items<'a> {
    rest: &'a [u8],
    quotes: Quotes,
}

/// What a backslash means between quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    /// The next byte is itself: a quoted string.
    Escaped,
    /// Nothing: an entity tag.
    Opaque,
    /// A quote has no end, and then no later one has (what would end one of them would end the first). They hide nothing.
    Open,
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let end = self.member_len();
            let member = self.rest[..end].trim_ascii();
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if !member.is_empty() {
                return Some(member);
            }
        }
        None
    }
}

impl Items<'_> {
    /// Where the first member ends: at a comma, or with the bytes.
    fn member_len(&mut self) -> usize {
        let mut at = 0;
        while let Some(found) = memchr::memchr2(b',', b'"', &self.rest[at..]) {
            at += found;
            if self.rest[at] == b',' {
                return at;
            }
            at += self.quoted_len(at);
        }
        self.rest.len()
    }

    /// The length of the quoted string that begins here, both quotes included; 1 if it has no end.
    fn quoted_len(&mut self, start: usize) -> usize {
        if self.quotes != Quotes::Open {
            let bytes = &self.rest[start..];
            let mut at = 1;
            while let Some(byte) = bytes.get(at) {
                match byte {
                    b'"' => return at + 1,
                    b'\\' if self.quotes == Quotes::Escaped => at += 2,
                    _ => at += 1,
                }
            }
            self.quotes = Quotes::Open;
        }
        1
    }
}

/// Fields whose value is a list that may be spread over several lines (RFC 9110 section 5.3), as far as the program looks
/// at them. The first line of such a field is not its value, so [`Fields::get`] does not give it.
static LISTS: [HeaderName; 23] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::ALLOW,
    header::CACHE_CONTROL,
    CDN_LOOP,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::EXPECT,
    header::FORWARDED,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VARY,
    header::VIA,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
];

/// `CDN-Loop` (RFC 8586).
pub const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

const fn is_of_values(byte: u8) -> bool {
    (byte >= b' ') & (byte != 0x7f) | (byte == b'\t')
}

impl<'a> From<&'a HeaderValue> for Value<'a> {
    fn from(value: &'a HeaderValue) -> Self {
        // What the crate lets in is what we let in.
        Self(value.as_bytes())
    }
}

impl PartialEq<str> for Value<'_> {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Value<'_> {
    fn eq(&self, other: &&str) -> bool {
        *self == **other
    }
}

/// See the head of this file. A name is a `HeaderName`; where one is looked up, a text will do, in any letter case.
#[derive(Default)]
pub struct Fields(Buffers);

#[derive(Default)]
struct Buffers {
    /// All values, and what has been replaced.
    text: Vec<u8>,
    lines: Vec<Line>,
}

#[derive(Clone)]
struct Line {
    name: HeaderName,
    /// Where the value stands.
    start: usize,
    end: usize,
}

impl Fields {
    /// No field, and no memory.
    #[must_use]
    pub const fn new() -> Self {
        Self(Buffers { text: Vec::new(), lines: Vec::new() })
    }

    /// How many there are, each said one counted.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.lines.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.lines.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, Value<'_>)> {
        self.0.lines.iter().map(|line| (&line.name, self.value(line)))
    }

    /// All names, as often as they are said.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.lines.iter().map(|line| &line.name)
    }

    /// The value of a field that is no list; the first one, if it is said several times.
    ///
    /// # Panics
    /// In a debug build, for a list: to read its first line and to [`insert`](Self::insert) it again would lose the others.
    /// Lists are read by [`items`](Self::items) or [`list`](Self::list), and get one more member by
    /// [`append`](Self::append).
    #[must_use]
    pub fn get<N>(&self, name: N) -> Option<Value<'_>>
    where
        HeaderName: PartialEq<N>,
    {
        debug_assert!(LISTS.iter().all(|list| *list != name), "the first line of a list is not its value");
        self.0.lines.iter().find(|line| line.name == name).map(|line| self.value(line))
    }

    /// All values of a name.
    pub fn get_all<N>(&self, name: N) -> impl Iterator<Item = Value<'_>>
    where
        HeaderName: PartialEq<N>,
    {
        self.0.lines.iter().filter(move |line| line.name == name).map(|line| self.value(line))
    }

    /// The members of a list, whatever lines they stand on (RFC 9110 section 5.3).
    pub fn items<N>(&self, name: N) -> impl Iterator<Item = &[u8]>
    where
        HeaderName: PartialEq<N>,
    {
        self.get_all(name).flat_map(Value::items)
    }

    /// The members of a list of entity tags, or `*`.
    pub fn tags<N>(&self, name: N) -> impl Iterator<Item = &[u8]>
    where
        HeaderName: PartialEq<N>,
    {
        self.get_all(name).flat_map(Value::tags)
    }

    /// A list on one line, or `None` where the name is not said.
    #[must_use]
    pub fn list<N>(&self, name: N) -> Option<Cow<'_, [u8]>>
    where
        HeaderName: PartialEq<N>,
    {
        let mut lines = self.get_all(name).map(Value::as_bytes);
        let first = lines.next()?;
        Some(lines.fold(Cow::Borrowed(first), |all, line| Cow::Owned([&all, b", ".as_slice(), line].concat())))
    }

    /// Whether a name is said.
    #[must_use]
    pub fn contains<N>(&self, name: N) -> bool
    where
        HeaderName: PartialEq<N>,
    {
        self.0.lines.iter().any(|line| line.name == name)
    }

    /// Says one more, behind all others.
    pub fn append(&mut self, name: HeaderName, value: Value<'_>) {
        let (start, end) = self.write(value);
        self.0.lines.push(Line { name, start, end });
    }

    /// Says a name once and anew, where it was said first.
    pub fn insert(&mut self, name: HeaderName, value: Value<'_>) {
        let (start, end) = self.write(value);
        self.place(Line { name, start, end });
    }

    /// Says a number.
    pub fn insert_number(&mut self, name: HeaderName, number: impl itoa::Integer) {
        self.insert(name, Value(itoa::Buffer::new().format(number).as_bytes()));
    }

    /// Says a name if nobody has.
    pub fn insert_if_absent(&mut self, name: HeaderName, value: Value<'_>) {
        if !self.contains(&name) {
            self.append(name, value);
        }
    }

    /// Says of one name what another has, if that is said.
    pub fn repeat(&mut self, of: &HeaderName, name: HeaderName) {
        if let Some(Line { start, end, .. }) = self.0.lines.iter().find(|line| line.name == of) {
            let (start, end) = (*start, *end);
            self.place(Line { name, start, end });
        }
    }

    /// Takes a name away, however often it is said.
    pub fn remove<N>(&mut self, name: N)
    where
        HeaderName: PartialEq<N>,
    {
        self.0.lines.retain(|line| line.name != name);
    }

    /// Keeps those of which this is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&HeaderName, Value<'_>) -> bool) {
        let Buffers { text, lines } = &mut self.0;
        lines.retain(|line| keep(&line.name, Value(&text[line.start..line.end])));
    }

    fn value(&self, line: &Line) -> Value<'_> {
        Value(&self.0.text[line.start..line.end])
    }

    fn write(&mut self, value: Value<'_>) -> (usize, usize) {
        if self.0.lines.capacity() == 0 {
            self.0 = Buffers::take();
        }
        let start = self.0.text.len();
        self.0.text.extend_from_slice(value.0);
        (start, self.0.text.len())
    }

    fn place(&mut self, line: Line) {
        match self.0.lines.iter().position(|known| known.name == line.name) {
            None => self.0.lines.push(line),
            Some(at) => {
                let name = line.name.clone();
                self.0.lines[at] = line;
                let mut index = 0;
                self.0.lines.retain(|line| {
                    index += 1;
                    index - 1 <= at || line.name != name
                });
            }
        }
    }
}

impl Buffers {
    fn take() -> Self {
        let spare = SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten();
        spare.unwrap_or_else(|| Self { text: Vec::with_capacity(TEXT), lines: Vec::with_capacity(LINES) })
    }

    fn give_back(mut self) {
        let fits = self.text.capacity() <= KEPT_TEXT && self.lines.capacity() <= KEPT_LINES;
        if self.lines.capacity() == 0 || !fits {
            return;
        }
        self.text.clear();
        self.lines.clear();
        // A thread that ends has no use for them.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < KEPT {
                spare.push(self);
            }
        });
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        std::mem::take(&mut self.0).give_back();
    }
}

impl Clone for Fields {
    fn clone(&self) -> Self {
        let mut clone = Self::new();
        if !self.is_empty() {
            clone.0 = Buffers::take();
            clone.0.text.extend_from_slice(&self.0.text);
            clone.0.lines.extend_from_slice(&self.0.lines);
        }
        clone
    }
}

/// Names only: what a value says may be a secret.
impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a> FromIterator<(HeaderName, Value<'a>)> for Fields {
    fn from_iter<T: IntoIterator<Item = (HeaderName, Value<'a>)>>(fields: T) -> Self {
        let mut all = Self::new();
        for (name, value) in fields {
            all.append(name, value);
        }
        all
    }
}

/// Trailers come as a map, since a frame of `http_body` has them so.
impl From<&HeaderMap> for Fields {
    fn from(map: &HeaderMap) -> Self {
        map.iter().map(|(name, value)| (name.clone(), value.into())).collect()
    }
}

/// For trailers, and for libraries that want a map.
impl From<&Fields> for HeaderMap {
    fn from(fields: &Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        for (name, value) in fields.iter() {
            // What we let in is what the crate lets in; and nobody has 24,000 fields.
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                let _ = map.try_append(name.clone(), value);
            }
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(all: &[(&'static str, &'static str)]) -> Fields {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), Value::from_static(value))).collect()
    }

    fn said(fields: &Fields) -> Vec<(&str, &str)> {
        fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn the_order_is_that_in_which_they_were_said() {
        let mut all = fields(&[("host", "a"), ("x-own", "1"), ("accept", "b"), ("x-own", "2, 3"), ("x-own", "")]);
        assert_eq!(all.get("X-Own").unwrap(), "1");
        assert_eq!(all.items("x-own").collect::<Vec<_>>(), [&b"1"[..], b"2", b"3"], "empty members are none");
        all.insert(HeaderName::from_static("x-own"), Value::from_static("4"));
        assert_eq!(said(&all), [("host", "a"), ("x-own", "4"), ("accept", "b")]);
        all.repeat(&header::HOST, header::ACCEPT);
        all.repeat(&header::AGE, header::ALLOW);
        all.insert_if_absent(header::HOST, Value::from_static("c"));
        all.insert_number(header::CONTENT_LENGTH, 17);
        assert_eq!(said(&all), [("host", "a"), ("x-own", "4"), ("accept", "a"), ("content-length", "17")]);
        all.remove("x-own");
        all.remove(header::VIA);
        assert_eq!((all.len(), all.contains(header::HOST), all.contains("x-own")), (3, true, false));
        all.retain(|name, value| *name == header::ACCEPT || value == "17");
        assert_eq!(said(&all), [("accept", "a"), ("content-length", "17")]);
    }

    #[test]
    fn a_list_is_split_at_commas_outside_of_quotes() {
        for (value, items, tags) in [
            ("a, b,,c , ", &["a", "b", "c"][..], &["a", "b", "c"][..]),
            (r#""a,b", W/"c,d""#, &[r#""a,b""#, r#"W/"c,d""#], &[r#""a,b""#, r#"W/"c,d""#]),
            (r#""a\", "b""#, &[r#""a\", "b""#], &[r#""a\""#, r#""b""#]),
            (r#""a\"b,c", d"#, &[r#""a\"b,c""#, "d"], &[r#""a\"b"#, r#"c""#, "d"]),
            (r#""open, close"#, &[r#""open"#, "close"], &[r#""open"#, "close"]),
            (r#""a,\"b,\"c"#, &[r#""a"#, r#"\"b"#, r#"\"c"#], &[r#""a,\"b"#, r#"\"c"#]),
            ("", &[], &[]),
            (",", &[], &[]),
        ] {
            let value = Value::from_static(value);
            let text = |items: Items<'static>| items.map(|i| std::str::from_utf8(i).unwrap()).collect::<Vec<_>>();
            assert_eq!((text(value.items()), text(value.tags())), (items.to_vec(), tags.to_vec()), "{value:?}");
        }
    }

    #[test]
    fn a_list_on_several_lines_is_one_list() {
        let all = fields(&[("vary", "Origin"), ("host", "a"), ("vary", "Cookie"), ("vary", "Accept")]);
        assert_eq!(all.list("vary").unwrap(), &b"Origin, Cookie, Accept"[..]);
        assert_eq!((all.list("via"), all.items("vary").count()), (None, 3));
    }

    #[test]
    #[should_panic(expected = "the first line of a list")]
    fn the_first_line_of_a_list_cannot_be_taken_for_its_value() {
        let _ = fields(&[("vary", "Origin"), ("vary", "Cookie")]).get(header::VARY);
    }

    #[test]
    fn buffers_are_used_again_and_empty() {
        for round in 0..3 * KEPT {
            let many: Vec<Fields> = (0..round).map(|_| fields(&[("host", "a")])).collect();
            assert!(many.iter().all(|fields| said(fields) == [("host", "a")]));
            let mut large = fields(&[("accept", "b")]);
            (0..2 * KEPT_LINES).for_each(|_| large.append(header::AGE, Value::from_static("1")));
            assert_eq!(large.clone(), large);
        }
        SPARE.with_borrow(|spare| {
            assert_eq!(spare.len(), KEPT);
            assert!(spare.iter().all(|buffers| buffers.lines.capacity() <= KEPT_LINES && buffers.lines.is_empty()));
        });
    }

    #[test]
    fn a_value_is_what_the_http_crate_takes_for_one() {
        for byte in 0..=u8::MAX {
            let bytes = [b'a', byte, b'b'];
            assert_eq!(Value::new(&bytes).is_ok(), HeaderValue::from_bytes(&bytes).is_ok(), "{byte}");
        }
        assert_eq!(Value::new("\u{e9}".as_bytes()).unwrap().to_str(), None);
    }

    #[test]
    fn a_map_and_back_is_the_same() {
        let all = fields(&[("x-a", "1"), ("x-a", "2"), ("x-b", "")]);
        assert_eq!(Fields::from(&HeaderMap::from(&all)), all);
        assert_eq!(format!("{all:?}"), r#"["x-a", "x-a", "x-b"]"#);
    }
}
