//! HTTP/2 as it stands on the wire (RFC 9113): frame headers, settings, reasons, and HPACK (RFC 7541). Pure: bytes in,
//! words out. What a frame means for a connection is `serve`'s.

pub mod connection;
pub mod cost;
mod decode;
mod encode;
mod huffman;
mod table;

pub use connection::Connection;
pub use decode::{Decoder, Head, Protocol, Scheme};
pub use encode::Encoder;

/// What a client says first (section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame header (section 4.1).
pub const FRAME_HEADER: usize = 9;

/// The largest frame that everybody takes, and the largest that there can be (section 4.2).
pub const LEAST_FRAME: usize = 1 << 14;
/// See [`LEAST_FRAME`].
pub const LARGEST_FRAME: usize = (1 << 24) - 1;

/// A window before anybody has said otherwise, and the largest that there can be (sections 6.9.1 and 6.9.2).
pub const FIRST_WINDOW: u32 = (1 << 16) - 1;
/// See [`FIRST_WINDOW`].
pub const LARGEST_WINDOW: i64 = (1 << 31) - 1;

/// The dynamic table of either direction, where nobody has said otherwise (section 6.5.2).
pub const FIRST_TABLE: usize = 4096;

/// The types of frames (section 6).
pub mod kind {
    #![expect(missing_docs, reason = "the names of RFC 9113 section 6")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// The flags of frames (section 6).
pub mod flag {
    #![expect(missing_docs, reason = "the names of RFC 9113 section 6")]
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// The settings (section 6.5.2, RFC 8441 section 3).
pub mod setting {
    #![expect(missing_docs, reason = "the names of RFC 9113 section 6.5.2")]
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// Why a stream or a connection ends (section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub u32);

impl Reason {
    #![expect(missing_docs, reason = "the names of RFC 9113 section 7")]
    pub const NO_ERROR: Self = Self(0);
    pub const PROTOCOL_ERROR: Self = Self(1);
    pub const INTERNAL_ERROR: Self = Self(2);
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    pub const STREAM_CLOSED: Self = Self(5);
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    pub const REFUSED_STREAM: Self = Self(7);
    pub const CANCEL: Self = Self(8);
    pub const COMPRESSION_ERROR: Self = Self(9);
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

/// The header of a frame (section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the payload.
    pub len: usize,
    /// One of [`kind`], or one that nobody knows.
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// 0 is the connection. Without the reserved bit.
    pub stream: u32,
}

impl FrameHeader {
    /// What nine bytes say.
    #[must_use]
    pub const fn parse(bytes: &[u8; FRAME_HEADER]) -> Self {
        let [a, b, c, kind, flags, d, e, f, g] = *bytes;
        Self {
            len: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([d, e, f, g]) & (u32::MAX >> 1),
        }
    }

    /// What the first nine bytes say, once they are there.
    #[must_use]
    pub fn parse_first(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(Self::parse)
    }

    /// The nine bytes.
    ///
    /// # Panics
    /// The payload is over [`LARGEST_FRAME`].
    #[must_use]
    pub fn bytes(self) -> [u8; FRAME_HEADER] {
        assert!(self.len <= LARGEST_FRAME, "a frame of {} bytes", self.len);
        let [_, a, b, c] = (self.len as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A payload without its padding; nothing where the padding is longer than what is padded (section 6.1).
#[must_use]
pub fn unpadded(header: FrameHeader, payload: &[u8]) -> Option<&[u8]> {
    if !header.has(flag::PADDED) {
        return Some(payload);
    }
    let (padding, rest) = payload.split_first()?;
    rest.len().checked_sub(usize::from(*padding)).map(|len| &rest[..len])
}

/// Why a block of fields cannot be read; the tables of both sides differ from there on, so the connection is over
/// (RFC 7541 section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a block of fields cannot be decompressed")]
pub struct HpackError;

/// The largest integer that anybody needs; RFC 7541 section 5.1 asks for a bound.
const LARGEST_INTEGER: usize = 1 << 24;

/// Takes an integer whose prefix has `bits` bits off the front (RFC 7541 section 5.1).
fn integer(bytes: &mut &[u8], bits: u8) -> Result<usize, HpackError> {
    let (first, mut rest) = bytes.split_first().ok_or(HpackError)?;
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*first) & most;
    if value == most {
        let mut shift = 0;
        loop {
            let (byte, after) = rest.split_first().ok_or(HpackError)?;
            rest = after;
            // Zeros without an end are as long as any number.
            if shift > 21 {
                return Err(HpackError);
            }
            value += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *bytes = rest;
    if value > LARGEST_INTEGER { Err(HpackError) } else { Ok(value) }
}

/// Writes an integer behind the bits of `first` that are not its prefix.
fn put_integer(out: &mut Vec<u8>, first: u8, bits: u8, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_the_rfc() {
        // RFC 7541 appendix C.1.
        for (value, bits, bytes) in [(10, 5, &[0x0a][..]), (1337, 5, &[0x1f, 0x9a, 0x0a]), (42, 8, &[0x2a])] {
            let mut out = Vec::new();
            put_integer(&mut out, 0, bits, value);
            assert_eq!(out, bytes);
            let mut read = bytes;
            assert_eq!(integer(&mut read, bits), Ok(value));
            assert!(read.is_empty());
        }
    }

    #[test]
    fn integers_have_an_end() {
        for bytes in [&b""[..], b"\x1f", b"\x1f\x80", b"\x1f\xff\xff\xff\xff\x0f", b"\x1f\x80\x80\x80\x80\x80\x80\x00"]
        {
            assert_eq!(integer(&mut &*bytes, 5), Err(HpackError), "{bytes:?}");
        }
    }

    #[test]
    fn a_frame_header_is_what_it_was() {
        let header = FrameHeader { len: 0x01_02_03, kind: kind::DATA, flags: flag::END_STREAM, stream: 5 };
        assert_eq!(FrameHeader::parse(&header.bytes()), header);
        assert_eq!(FrameHeader::parse(&[0, 0, 0, 0, 0, 0x80, 0, 0, 1]).stream, 1);
    }
}
