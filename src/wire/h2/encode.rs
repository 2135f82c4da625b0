//! From the head of an answer to a block of fields (RFC 7541 section 6).
//!
//! What services say again and again is named by its place in the dynamic table, one byte instead of thirty. It is found
//! by a hash, in four steps or not at all: a field that is missed is only said once more. Strings are not Huffman-coded;
//! that would save a fifth of what is said once a connection, and cost more than all the rest of it.

use std::collections::VecDeque;

use http::{HeaderName, StatusCode, header};

use super::{
    FIRST_TABLE,
    decode::OF_HTTP1,
    put_integer,
    table::{FIRST_DYNAMIC, OVERHEAD, STATIC, STATUS, index_of},
};
use crate::message::Fields;

/// Fields whose values are not seen twice. An entry of theirs would push out another that is.
static FLEETING: [HeaderName; 8] = [
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LOCATION,
    header::AGE,
    header::EXPIRES,
    HeaderName::from_static("x-request-id"),
];

/// Fields that no table may remember, here or further on, since what is in it can be guessed at (RFC 7541 section 7.1.3).
static SECRET: [HeaderName; 3] = [header::SET_COOKIE, header::WWW_AUTHENTICATE, header::AUTHORIZATION];

/// The forms of a field that is written out: it goes into the table, it does not, it never may.
const KEPT: (u8, u8) = (0x40, 6);
const PASSING: (u8, u8) = (0x00, 4);
const NEVER: (u8, u8) = (0x10, 4);

/// A hash leads to a group of places. With one place each, two of an answer's eight fields met in it every third time, and
/// drove each other out for as long as they were said.
const GROUPS: usize = 32;
const GROUP: usize = 4;

/// How many fields of a block are looked for where the last one had them.
const ORDERED: usize = 16;

/// An entry larger than this share of the table is not worth what it pushes out.
const LARGEST_SHARE: usize = 4;

/// Writes the blocks of one connection, in order.
#[derive(Debug)]
pub struct Encoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
    /// The smallest limit since the last block, if it changed (section 4.2).
    lowest: Option<usize>,
    /// How many entries there have been.
    inserted: u64,
    /// The entry of each hash, counted from 1.
    places: Box<[[u64; GROUP]; GROUPS]>,
    /// The entry that each field of the last block was: a service says nearly the same every time, in the same order, and
    /// to look there first is a third of the way by the hash.
    last: [u64; ORDERED],
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    name_len: usize,
    bytes: Box<[u8]>,
}

impl Entry {
    const fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    fn is(&self, name: &str, value: &[u8]) -> bool {
        self.name_len == name.len() && self.bytes.split_at(self.name_len) == (name.as_bytes(), value)
    }
}

impl Default for Encoder {
    fn default() -> Self {
        let places = Box::new([[0; GROUP]; GROUPS]);
        Self {
            entries: VecDeque::new(),
            size: 0,
            limit: FIRST_TABLE,
            lowest: None,
            inserted: 0,
            places,
            last: [0; ORDERED],
        }
    }
}

impl Encoder {
    /// The peer keeps a table of so many bytes. More than 4,096 are not used.
    pub fn resize(&mut self, limit: usize) {
        let limit = limit.min(FIRST_TABLE);
        if limit == self.limit {
            return;
        }
        self.lowest = Some(self.lowest.unwrap_or(self.limit).min(limit));
        self.limit = limit;
        self.evict(limit);
    }

    /// Appends the head of an answer, less what HTTP/2 has no use for (RFC 9113 section 8.2.2).
    pub fn response(&mut self, out: &mut Vec<u8>, status: StatusCode, fields: &Fields) {
        self.announce(out);
        let own = STATIC[STATUS - 1..STATUS + 6].iter().position(|(_, known)| *known == status.as_str());
        match own {
            Some(at) => put_integer(out, 0x80, 7, STATUS + at),
            None => {
                self.known_or_kept(out, ":status", status.as_str().as_bytes());
            }
        }
        self.fields(out, fields);
    }

    /// Appends trailers.
    pub fn trailers(&mut self, out: &mut Vec<u8>, trailers: &Fields) {
        self.announce(out);
        self.fields(out, trailers);
    }

    fn announce(&mut self, out: &mut Vec<u8>) {
        if let Some(lowest) = self.lowest.take() {
            put_integer(out, 0x20, 5, lowest);
            if lowest < self.limit {
                put_integer(out, 0x20, 5, self.limit);
            }
        }
    }

    fn fields(&mut self, out: &mut Vec<u8>, fields: &Fields) {
        for (at, (name, value)) in fields.iter().enumerate() {
            let number = self.field(out, self.last.get(at).copied(), name, value.as_bytes());
            if let Some(last) = self.last.get_mut(at) {
                *last = number;
            }
        }
    }

    /// Appends a field, which may be this entry; the entry that it is now, or 0.
    fn field(&mut self, out: &mut Vec<u8>, likely: Option<u64>, name: &HeaderName, value: &[u8]) -> u64 {
        // Whatever the table knows may be named, so nothing else has to be asked of it.
        if let Some(number) = likely
            && self.entry(number).is_some_and(|entry| entry.is(name.as_str(), value))
        {
            put_integer(out, 0x80, 7, self.index(number));
            return number;
        }
        if OF_HTTP1.contains(name) {
            return 0;
        }
        match form(name) {
            KEPT => self.known_or_kept(out, name.as_str(), value),
            form => literal(out, name.as_str(), value, form),
        }
    }

    /// Names a field by its entry, or makes it one if it is small enough.
    fn known_or_kept(&mut self, out: &mut Vec<u8>, name: &str, value: &[u8]) -> u64 {
        if name.len() + value.len() + OVERHEAD > self.limit / LARGEST_SHARE {
            return literal(out, name, value, PASSING);
        }
        let hash = hash(name.as_bytes(), value);
        if let Some(number) = self.find(hash, name, value) {
            put_integer(out, 0x80, 7, self.index(number));
            return number;
        }
        self.insert(hash, name, value);
        literal(out, name, value, KEPT);
        self.inserted
    }

    /// The entry of a number, if it is still there.
    fn entry(&self, number: u64) -> Option<&Entry> {
        usize::try_from(self.inserted - number).ok().and_then(|age| self.entries.get(age))
    }

    /// Where an entry that is there stands now.
    fn index(&self, number: u64) -> usize {
        FIRST_DYNAMIC + usize::try_from(self.inserted - number).unwrap_or(usize::MAX)
    }

    fn find(&self, hash: u64, name: &str, value: &[u8]) -> Option<u64> {
        let is_it = |entry: &Entry| entry.hash == hash && entry.is(name, value);
        self.places[group(hash)].iter().copied().find(|number| self.entry(*number).is_some_and(is_it))
    }

    fn insert(&mut self, hash: u64, name: &str, value: &[u8]) {
        let entry = Entry { hash, name_len: name.len(), bytes: [name.as_bytes(), value].concat().into() };
        self.evict(self.limit - entry.size());
        self.size += entry.size();
        self.entries.push_front(entry);
        self.inserted += 1;
        let oldest = self.places[group(hash)].iter_mut().min().expect("a group has places");
        *oldest = self.inserted;
    }

    fn evict(&mut self, limit: usize) {
        while self.size > limit {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size();
        }
    }
}

/// Writes a field out; its entry, which is none.
fn literal(out: &mut Vec<u8>, name: &str, value: &[u8], (first, prefix): (u8, u8)) -> u64 {
    match index_of(name) {
        Some(index) => put_integer(out, first, prefix, index),
        None => {
            put_integer(out, first, prefix, 0);
            put_string(out, name.as_bytes());
        }
    }
    put_string(out, value);
    0
}

fn form(name: &HeaderName) -> (u8, u8) {
    if SECRET.contains(name) {
        NEVER
    } else if FLEETING.contains(name) {
        PASSING
    } else {
        KEPT
    }
}

const fn group(hash: u64) -> usize {
    (hash >> 32) as usize % GROUPS
}

/// Not for a table that somebody could fill on purpose: one who does only has his own fields written out.
fn hash(name: &[u8], value: &[u8]) -> u64 {
    // Of a name, its length and its end tell most; a value is read whole.
    let mut hash = (name.len() as u64) << 32 | value.len() as u64;
    let mut mix = |word: u64| hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mix(tail(name));
    let (words, rest) = value.as_chunks::<8>();
    for word in words {
        mix(u64::from_le_bytes(*word));
    }
    mix(tail(rest));
    hash ^ hash >> 29
}

/// The last eight bytes as a number.
fn tail(bytes: &[u8]) -> u64 {
    match bytes.last_chunk::<8>() {
        Some(last) => u64::from_le_bytes(*last),
        None => bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_integer(out, 0, 7, bytes.len());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::{super::Decoder, *};
    use crate::message::Value;

    /// The fields of a block, as a decoder of requests understands them; `:status` is none of a request.
    fn read(decoder: &mut Decoder, block: &[u8]) -> Vec<(String, String)> {
        let head = decoder.decode(block).unwrap();
        let fields = head.fields.iter();
        fields.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn headers(fields: &[(&str, &str)]) -> Fields {
        fields.iter().map(|(n, v)| (n.parse().unwrap(), Value::new(v.as_bytes()).unwrap())).collect()
    }

    #[test]
    fn what_is_said_twice_is_named() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(1 << 15));
        let fields = [("server", "Synapse/1.1"), ("x-own", "a"), ("content-length", "12"), ("set-cookie", "a=b")];
        let mut lens = Vec::new();
        for _ in 0..3 {
            let mut out = Vec::new();
            encoder.trailers(&mut out, &headers(&fields));
            lens.push(out.len());
            let expected: Vec<_> = fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            assert_eq!(read(&mut decoder, &out), expected);
        }
        // Two by their index, a length of five bytes, a cookie of six.
        assert_eq!(lens, [13 + 9 + 5 + 6, 13, 13]);
    }

    #[test]
    fn fields_do_not_drive_each_other_out() {
        for round in 0..1_000 {
            let mut encoder = Encoder::default();
            let fields: Vec<_> = (0..10).map(|n| (format!("x-{n}"), format!("{round} of {n}"))).collect();
            let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            encoder.trailers(&mut Vec::new(), &headers(&fields));
            let mut again = Vec::new();
            encoder.trailers(&mut again, &headers(&fields));
            assert_eq!(again.len(), fields.len(), "each is named by its index, in round {round}");
        }
    }

    #[test]
    fn a_status_has_an_index_or_is_said() {
        let mut encoder = Encoder::default();
        for (status, expected) in [(200, &[0x88][..]), (500, &[0x8e]), (421, b"\x48\x03421"), (421, &[0xbe])] {
            let mut out = Vec::new();
            encoder.response(&mut out, StatusCode::from_u16(status).unwrap(), &Fields::new());
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn fields_of_one_hop_are_not_said() {
        let mut out = Vec::new();
        let fields = [("connection", "close"), ("keep-alive", "5"), ("transfer-encoding", "chunked"), ("upgrade", "x")];
        Encoder::default().trailers(&mut out, &headers(&fields));
        assert_eq!(out, b"");
    }

    #[test]
    fn both_tables_stay_the_same_whatever_is_said() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(1 << 20));
        let mut state = 1_u64;
        for round in 0..5_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = usize::try_from(state >> 40).unwrap();
            if round % 97 == 0 {
                encoder.resize([0, 100, 1_000, 4_096, 65_536][random % 5]);
                encoder.resize([50, 4_096, 2_000][random % 3]);
            }
            let value = format!("{:0width$}", random % 70, width = random % 200);
            let name = format!("x-{}", random % 13);
            let fields = [("date", value.as_str()), (name.as_str(), "again"), ("etag", &value), (&name, &value)];
            let mut out = Vec::new();
            encoder.trailers(&mut out, &headers(&fields));
            let map = headers(&fields);
            let expected: Vec<_> = map.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
            assert_eq!(read(&mut decoder, &out), expected, "{round}");
        }
    }
}
