//! The chunked transfer coding (RFC 9112 section 7.1), read strictly.

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{BodyFrame, WireError};

/// Longest chunk-size line, extensions included. Nobody uses extensions; long ones are an attack on the reader
/// (CVE-2023-39326).
const MAX_SIZE_LINE: usize = 256;

/// Sum of all extension bytes of one body, for the same reason.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Largest trailer section in bytes, and in fields.
const MAX_TRAILER_BYTES: usize = 8 * 1024;
const MAX_TRAILER_FIELDS: usize = 32;

/// Reads one chunked body.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    extensions: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

impl Decoder {
    /// The next piece, or `None` if more bytes are needed first.
    ///
    /// # Errors
    /// The coding is malformed, or its overhead is over the limits of this file.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<BodyFrame>, WireError> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = line_len(buf, MAX_SIZE_LINE)? else { return Ok(None) };
                    let (size, extension) = parse_size(&buf[..line])?;
                    self.extensions += extension;
                    if self.extensions > MAX_EXTENSIONS {
                        return Err(WireError::Malformed("too many chunk extensions"));
                    }
                    buf.advance(line + 2);
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(left) => {
                    if buf.is_empty() {
                        return Ok(None);
                    }
                    let take = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Some(BodyFrame::Data(buf.split_to(take).freeze())));
                }
                State::DataEnd => match buf.get(..2) {
                    Some(b"\r\n") => {
                        buf.advance(2);
                        self.state = State::Size;
                    }
                    None if buf.is_empty() || buf[0] == b'\r' => return Ok(None),
                    _ => return Err(WireError::Malformed("chunk data does not end with CRLF")),
                },
                State::Trailers => return trailers(buf),
            }
        }
    }
}

/// Length of the first line without its CRLF.
fn line_len(buf: &[u8], limit: usize) -> Result<Option<usize>, WireError> {
    match memchr::memchr2(b'\n', b'\r', &buf[..buf.len().min(limit)]) {
        None if buf.len() >= limit => Err(WireError::Malformed("chunk size line is too long")),
        None => Ok(None),
        Some(at) if buf[at] == b'\n' => Err(WireError::Malformed("bare LF in the chunked coding")),
        Some(at) => match buf.get(at + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some(at)),
            Some(_) => Err(WireError::Malformed("bare CR in the chunked coding")),
        },
    }
}

/// The size, and how many bytes of extension follow it.
fn parse_size(line: &[u8]) -> Result<(u64, usize), WireError> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    match line.get(digits) {
        None | Some(b';') => {}
        Some(_) => return Err(WireError::Malformed("chunk size is not hexadecimal digits")),
    }
    // Sixteen digits fill 64 bits; the top ones are refused as well, so that no sum of sizes can overflow.
    if digits == 0 || digits > 15 {
        return Err(WireError::Malformed("chunk size is empty or too large"));
    }
    let size = line[..digits].iter().fold(0u64, |n, b| n << 4 | u64::from(hex(*b)));
    Ok((size, line.len() - digits))
}

const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

fn trailers(buf: &mut BytesMut) -> Result<Option<BodyFrame>, WireError> {
    if buf.starts_with(b"\r\n") {
        buf.advance(2);
        return Ok(Some(BodyFrame::End));
    }
    let Some(end) = memchr::memmem::find(buf, b"\r\n\r\n") else {
        if buf.len() > MAX_TRAILER_BYTES {
            return Err(WireError::Malformed("trailer section is too large"));
        }
        return match memchr::memchr_iter(b'\n', buf).find(|at| *at == 0 || buf[at - 1] != b'\r') {
            Some(_) => Err(WireError::Malformed("bare LF in the trailers")),
            None => Ok(None),
        };
    };
    let section = buf.split_to(end + 4);
    if memchr::memchr_iter(b'\n', &section).any(|at| at == 0 || section[at - 1] != b'\r') {
        return Err(WireError::Malformed("bare LF in the trailers"));
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&section, &mut fields) else {
        return Err(WireError::Malformed("trailers are malformed"));
    };
    let mut map = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) else {
            return Err(WireError::Malformed("trailers are malformed"));
        };
        map.append(name, value);
    }
    Ok(Some(BodyFrame::Trailers(map)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in steps of `step` bytes; the content, the trailers, and what was left.
    fn read(wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), WireError> {
        let (mut decoder, mut buf, mut content) = (Decoder::default(), BytesMut::new(), Vec::new());
        let mut rest = wire;
        loop {
            match decoder.decode(&mut buf)? {
                Some(BodyFrame::Data(bytes)) => content.extend_from_slice(&bytes),
                Some(BodyFrame::Trailers(map)) => return Ok((content, Some(map), buf.len() + rest.len())),
                Some(BodyFrame::End) => return Ok((content, None, buf.len() + rest.len())),
                None if rest.is_empty() => return Err(WireError::Malformed("unfinished")),
                None => {
                    let (now, later) = rest.split_at(step.min(rest.len()));
                    buf.extend_from_slice(now);
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn a_body_is_read_whatever_the_size_of_the_pieces() {
        let wire = b"4\r\nWiki\r\n6;x=y\r\npedia \r\nB\r\nin \r\nchunks\r\n0\r\n\r\nGET ";
        for step in 1..wire.len() {
            let (content, trailers, left) = read(wire, step).unwrap();
            assert_eq!(content, b"Wikipedia in \r\nchunks");
            assert!(trailers.is_none());
            assert_eq!(left, 4, "the next request is not touched");
        }
    }

    #[test]
    fn trailers_are_read() {
        let wire = b"1\r\na\r\n0\r\nGrpc-Status: 0\r\nX: y\r\n\r\n";
        for step in 1..wire.len() {
            let (_, trailers, _) = read(wire, step).unwrap();
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
    }

    #[test]
    fn what_another_reader_could_take_differently_is_refused() {
        for wire in [
            &b"4\nWiki\r\n0\r\n\r\n"[..],
            b"4\r\nWiki\n0\r\n\r\n",
            b"4 \r\nWiki\r\n0\r\n\r\n",
            b" 4\r\nWiki\r\n0\r\n\r\n",
            b"+4\r\nWiki\r\n0\r\n\r\n",
            b"0x4\r\nWiki\r\n0\r\n\r\n",
            b"\r\nWiki\r\n0\r\n\r\n",
            b"4\rX\nWiki\r\n0\r\n\r\n",
            b"5\r\nWiki\r\n0\r\n\r\n",
            b"3\r\nWiki\r\n0\r\n\r\n",
            b"FFFFFFFFFFFFFFFF\r\nx",
            b"10000000000000004\r\nWiki\r\n0\r\n\r\n",
            b"4;\nWiki\r\n0\r\n\r\n",
            b"0\r\nA: b\n\r\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
        ] {
            for step in [1, 2, wire.len()] {
                assert!(read(wire, step).is_err(), "{:?}", String::from_utf8_lossy(wire));
            }
        }
    }

    #[test]
    fn extensions_cannot_be_the_body() {
        let line = [b"1;".as_slice(), &[b'x'; 300], b"\r\na\r\n"].concat();
        assert!(read(&line, 64).is_err());
        let many = [b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\na\r\n".as_slice(); 1000].concat();
        assert!(read(&many, 64).is_err());
    }

    proptest! {
        #[test]
        fn the_cut_of_the_bytes_changes_nothing(pieces in prop::collection::vec(prop::sample::select(
            vec!["5\r\nhello\r\n", "0\r\n\r\n", "1;x\r\na\r\n", "A: b\r\n", "\n", "\r\n", "0\r\n", "ff", "\r", "2\r\n", ";", "g"]), 0..12), step in 1usize..9)
        {
            let wire = pieces.concat().into_bytes();
            let whole = read(&wire, wire.len().max(1));
            let cut = read(&wire, step);
            match (whole, cut) {
                (Ok((content, trailers, left)), Ok(other)) => prop_assert_eq!((content, trailers, left), other),
                (whole, cut) => prop_assert_eq!(whole.is_err(), cut.is_err()),
            }
        }
    }
}
