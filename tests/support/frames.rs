//! HTTP/2 frames written by hand (RFC 9113 section 4, RFC 7541), for what no library would send.

/// The connection preface and empty SETTINGS.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A field as a literal without indexing; nothing about it is checked.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    string(&mut out, name);
    string(&mut out, value);
    out
}

/// A field as a literal that goes into the dynamic table, where its index is 62 until the next one comes.
pub fn indexed(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = field(name, value);
    out[0] = 0x40;
    out
}

/// A block of fields.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

/// A request without fields of its own.
pub fn request(id: u32, flags: u8, method: &str, host: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "https"), (":path", path), (":authority", host)];
    frame(HEADERS, END_HEADERS | flags, id, &block(&fields))
}

/// The pseudo-fields of a GET.
pub fn get(host: &str) -> Vec<u8> {
    block(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", host)])
}

/// A length with a prefix of seven bits, and the bytes.
fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = bytes.len();
    if len < 127 {
        out.push(u8::try_from(len).unwrap());
    } else {
        out.push(127);
        let mut rest = len - 127;
        while rest >= 128 {
            out.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        out.push(u8::try_from(rest).unwrap());
    }
    out.extend_from_slice(bytes);
}
