//! `Accept-Encoding` in its full grammar (RFC 9110 section 12.5.3): weights, the asterisk, several fields, any case.

use http::header;

use crate::{config::plan::Encoding, message::Fields};

/// A weight in thousandths.
type Weight = u16;

/// The coding that the client likes best of those we offer, ours deciding on a tie; `None` is the body as it is. Never a
/// 406: a client that refuses even that gets it all the same, since an error would help it less.
#[must_use]
pub fn negotiate(fields: &Fields, offered: &[Encoding]) -> Option<Encoding> {
    let (mut weights, mut any, mut identity) = ([None; 3], None, None);
    for item in fields.items(header::ACCEPT_ENCODING) {
        let Some((coding, weight)) = parse(item) else { continue };
        let slot = match coding.to_ascii_lowercase().as_slice() {
            b"zstd" => &mut weights[0],
            b"br" => &mut weights[1],
            b"gzip" | b"x-gzip" => &mut weights[2],
            b"identity" => &mut identity,
            b"*" => &mut any,
            _ => continue,
        };
        // Said twice, the first counts.
        slot.get_or_insert(weight);
    }
    let weight = |encoding: Encoding| {
        let own = match encoding {
            Encoding::Zstd => weights[0],
            Encoding::Brotli => weights[1],
            Encoding::Gzip => weights[2],
        };
        own.or(any).unwrap_or(0)
    };
    let mut best: Option<(Encoding, Weight)> = None;
    for encoding in offered {
        let weight = weight(*encoding);
        if weight > best.map_or(0, |(_, best)| best) {
            best = Some((*encoding, weight));
        }
    }
    best.filter(|(_, weight)| *weight >= identity.unwrap_or(0)).map(|(encoding, _)| encoding)
}

/// A coding and its weight; nothing for what is malformed.
fn parse(item: &[u8]) -> Option<(&[u8], Weight)> {
    let mut parts = item.split(|b| *b == b';');
    let coding = parts.next()?.trim_ascii();
    if coding.is_empty() || coding.iter().any(u8::is_ascii_whitespace) {
        return None;
    }
    let mut weight = 1_000;
    for part in parts {
        let part = part.trim_ascii();
        let value = part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q="))?;
        weight = thousandths(value)?;
    }
    Some((coding, weight))
}

/// `0`, `1`, or either with up to three digits behind a point.
fn thousandths(value: &[u8]) -> Option<Weight> {
    let (whole, fraction) = match value {
        [whole] | [whole, b'.'] => (*whole, &[][..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (*whole, fraction),
        _ => return None,
    };
    let mut weight = match whole {
        b'0' => 0,
        b'1' => 1_000,
        _ => return None,
    };
    for (place, digit) in [100, 10, 1].into_iter().zip(fraction) {
        weight += place * Weight::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    (weight <= 1_000).then_some(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Value;

    const OURS: [Encoding; 3] = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip];
    const Z: Option<&str> = Some("zstd");
    const B: Option<&str> = Some("br");
    const G: Option<&str> = Some("gzip");
    const N: Option<&str> = None;

    fn chosen(fields: &[&str]) -> Option<&'static str> {
        let mut headers = Fields::new();
        for field in fields {
            headers.append(header::ACCEPT_ENCODING, Value::new(field.as_bytes()).unwrap());
        }
        negotiate(&headers, &OURS).map(Encoding::as_str)
    }

    #[test]
    fn the_client_is_understood() {
        let rows: &[(&str, Option<&str>)] = &[
            ("", N),
            ("gzip", G),
            ("GZIP", G),
            ("x-gzip", G),
            ("X-GZip", G),
            ("br", B),
            ("Br", B),
            ("zstd", Z),
            ("ZSTD", Z),
            ("deflate", N),
            ("compress", N),
            ("identity", N),
            ("*", Z),
            ("gzip, deflate", G),
            ("gzip,deflate,br", B),
            ("gzip, deflate, br, zstd", Z),
            ("br, gzip", B),
            ("gzip, br", B),
            ("gzip;q=1, br;q=0.5", G),
            ("gzip;q=0.5, br;q=1", B),
            ("gzip;q=0.5, br;q=0.5", B),
            ("gzip;q=0.501, br;q=0.5", G),
            ("gzip;q=0.500, br;q=0.5", B),
            ("gzip;q=0", N),
            ("gzip;q=0.0", N),
            ("gzip;q=0.000", N),
            ("gzip;q=0.001", G),
            ("gzip;q=1.0", G),
            ("gzip;q=1.000", G),
            ("gzip;q=1.", G),
            ("gzip;q=0., br", B),
            ("gzip ; q=0.7", G),
            ("gzip;\tq=0.7", G),
            ("gzip;Q=0.7", G),
            (" gzip ", G),
            (",gzip,,", G),
            ("gzip;q=2", N),
            ("gzip;q=1.001", N),
            ("gzip;q=0.1234", N),
            ("gzip;q=-1", N),
            ("gzip;q=", N),
            ("gzip;q", N),
            ("gzip;q=a", N),
            ("gzip;q=.5", N),
            ("gzip;x=1", N),
            ("gz ip", N),
            ("gzip, gzip;q=0", G),
            ("gzip;q=0, gzip", N),
            ("*;q=0", N),
            ("*;q=0.5", Z),
            ("*, zstd;q=0", B),
            ("*, zstd;q=0, br;q=0", G),
            ("*;q=0, gzip", G),
            ("gzip;q=0.5, *;q=0.8", Z),
            ("gzip;q=0.9, *;q=0.8", G),
            ("identity;q=0", N),
            ("identity;q=0, gzip", G),
            ("identity, gzip", G),
            ("identity;q=1, gzip;q=0.5", N),
            ("identity;q=0.5, gzip;q=1", G),
            ("identity;q=0.5, gzip;q=0.5", G),
            ("identity;q=0, *;q=0", N),
            ("identity;q=0.5, *;q=0", N),
            ("sdch, gzip", G),
            ("gzipx, br;q=0.1", B),
            ("\"gzip\"", N),
        ];
        assert!(rows.len() >= 60);
        for (field, expected) in rows {
            assert_eq!(chosen(&[field]), *expected, "{field:?}");
        }
    }

    #[test]
    fn several_fields_are_one_list() {
        assert_eq!(chosen(&["gzip", "br"]), B);
        assert_eq!(chosen(&["gzip;q=0", "*;q=0.1"]), Z);
        assert_eq!(chosen(&[]), N);
    }

    #[test]
    fn only_what_is_offered_is_chosen() {
        let headers = Fields::from_iter([(header::ACCEPT_ENCODING, Value::from_static("zstd, gzip;q=0.1"))]);
        assert_eq!(negotiate(&headers, &[Encoding::Gzip]), Some(Encoding::Gzip));
        assert_eq!(negotiate(&headers, &[]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_field_makes_it_panic_or_choose_what_is_refused(field in "[a-z*;=q0-9., \t-]{0,40}") {
            let refused = format!("{field}, gzip;q=0, br;q=0, zstd;q=0");
            let first = chosen(&[&refused]);
            // Said before with a weight, a coding may still be chosen; never one that was not named at all.
            if let Some(coding) = first {
                let named = field.contains(coding) || field.contains('*') || (coding == "gzip" && field.contains("gzip"));
                proptest::prop_assert!(named, "{coding} from {field:?}");
            }
        }
    }
}
