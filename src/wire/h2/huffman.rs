//! The Huffman code of RFC 7541 appendix B. It is canonical (shorter codes first, equal lengths in the order of their
//! symbols), so the lengths say all of it.

use super::HpackError;

/// The length of the code of each byte, and of the end-of-string symbol.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const SYMBOLS: usize = 257;
const END_OF_STRING: u16 = 256;
const LONGEST: usize = 30;

/// Codes up to this length are looked up by their bits.
const SHORT: u32 = 8;

/// What is made of the lengths.
struct Code {
    /// For each way to begin: the symbol and the length of its code; 0 where the code is longer.
    short: [(u8, u8); 1 << SHORT],
    /// For each length: the first code that is longer than that, as the upper bits of 32.
    beyond: [u64; LONGEST + 1],
    /// For each length: what is added to a code to find its symbol in `symbols`.
    offset: [i32; LONGEST + 1],
    /// In the order of their codes.
    symbols: [u16; SYMBOLS],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut made =
        Code { short: [(0, 0); 1 << SHORT], beyond: [0; LONGEST + 1], offset: [0; LONGEST + 1], symbols: [0; SYMBOLS] };
    let (mut next, mut found, mut len) = (0_u32, 0, 1);
    while len <= LONGEST {
        next <<= 1;
        made.offset[len] = found as i32 - next as i32;
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == len {
                made.symbols[found] = symbol as u16;
                found += 1;
                if len <= SHORT as usize {
                    let free = SHORT as usize - len;
                    let mut tail = 0;
                    while tail < 1 << free {
                        made.short[((next as usize) << free) + tail] = (symbol as u8, len as u8);
                        tail += 1;
                    }
                }
                next += 1;
            }
            symbol += 1;
        }
        made.beyond[len] = (next as u64) << (32 - len);
        len += 1;
    }
    made
}

/// Appends what the bits say.
///
/// # Errors
/// The end-of-string symbol, or a padding that is more than seven ones (RFC 7541 section 5.2).
pub fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    // The upper `count` bits of `bits` are the next ones.
    let (mut bits, mut count) = (0_u64, 0);
    let mut bytes = bytes.iter();
    loop {
        while count <= 56
            && let Some(byte) = bytes.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let (symbol, len) = CODE.short[(bits >> (64 - SHORT)) as usize];
        let (symbol, len) = if len > 0 { (u16::from(symbol), u32::from(len)) } else { long((bits >> 32) as u32) };
        if len > count {
            break;
        }
        if symbol == END_OF_STRING {
            return Err(HpackError);
        }
        out.push(symbol as u8);
        bits <<= len;
        count -= len;
    }
    let all_ones = count == 0 || bits >> (64 - count) == (1 << count) - 1;
    if count < 8 && all_ones { Ok(()) } else { Err(HpackError) }
}

/// The symbol whose code these bits begin with, and the length of it.
fn long(bits: u32) -> (u16, u32) {
    let mut len = SHORT as usize + 1;
    while len < LONGEST && u64::from(bits) >= CODE.beyond[len] {
        len += 1;
    }
    let at = (bits >> (32 - len)) as i32 + CODE.offset[len];
    (CODE.symbols[at as usize], len as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the code of bytes.
    fn encode(bytes: &[u8]) -> Vec<u8> {
        let mut codes = [(0_u32, 0_u8); SYMBOLS];
        for len in 1..=LONGEST {
            for (at, symbol) in CODE.symbols.iter().enumerate() {
                if usize::from(LENGTHS[usize::from(*symbol)]) == len {
                    let code = i32::try_from(at).unwrap() - CODE.offset[len];
                    codes[usize::from(*symbol)] = (code.try_into().unwrap(), len.try_into().unwrap());
                }
            }
        }
        let mut bits: Vec<bool> = Vec::new();
        for byte in bytes {
            let (code, len) = codes[usize::from(*byte)];
            bits.extend((0..len).rev().map(|bit| code >> bit & 1 == 1));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push(true);
        }
        bits.chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>, HpackError> {
        let mut out = Vec::new();
        decode(bytes, &mut out).map(|()| out)
    }

    #[test]
    fn strings_are_those_of_the_rfc() {
        // RFC 7541 appendices C.4 and C.6.
        for (code, text) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
            (&[0x64, 0x02], "302"),
            (
                &[
                    0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66,
                    0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff,
                ],
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
        ] {
            assert_eq!(decoded(code).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), code);
        }
    }

    #[test]
    fn every_byte_has_a_code() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        assert_eq!(decoded(&encode(&all)).unwrap(), all);
        for byte in 0..=255 {
            assert_eq!(decoded(&encode(&[byte])).unwrap(), [byte]);
        }
        assert_eq!(decoded(b"").unwrap(), b"");
    }

    #[test]
    fn a_padding_is_up_to_seven_ones() {
        for bad in [&[0xff][..], &[0x1f, 0xff], &[0x00], &[0x1e], &[0xff; 4], &[0xff; 30]] {
            assert_eq!(decoded(bad), Err(HpackError), "{bad:x?}");
        }
        assert_eq!(decoded(&[0x1f]).unwrap(), b"a");
    }
}
