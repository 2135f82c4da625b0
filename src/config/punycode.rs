//! The ASCII form of an internationalized host name (RFC 3492, RFC 5891), for a suggestion in a diagnostic.

const BASE: u32 = 36;
const T_MIN: u32 = 1;
const T_MAX: u32 = 26;
const SKEW: u32 = 38;
const DAMP: u32 = 700;
const INITIAL_BIAS: u32 = 72;
const INITIAL_N: u32 = 128;

/// The name with every label that is not ASCII as `xn--…`. `None` where a label holds something other than letters,
/// digits and hyphens: mapping it takes the tables of UTS 46, and no suggestion is better than a wrong one.
pub fn to_ascii(name: &str) -> Option<String> {
    let label = |label: &str| {
        if label.is_ascii() {
            return Some(label.to_owned());
        }
        let plain = label.chars().all(|c| c.is_alphanumeric() || c == '-');
        plain.then(|| encode(label)).flatten().map(|encoded| format!("xn--{encoded}"))
    };
    let labels: Option<Vec<_>> = name.to_lowercase().split(['.', '。']).map(label).collect();
    labels.map(|labels| labels.join("."))
}

/// RFC 3492 section 6.3.
fn encode(label: &str) -> Option<String> {
    let mut out: String = label.chars().filter(char::is_ascii).collect();
    let basic = u32::try_from(out.len()).ok()?;
    if basic > 0 {
        out.push('-');
    }
    let (mut n, mut delta, mut bias, mut handled) = (INITIAL_N, 0_u32, INITIAL_BIAS, basic);
    while handled < u32::try_from(label.chars().count()).ok()? {
        let next = label.chars().map(u32::from).filter(|c| *c >= n).min()?;
        delta = delta.checked_add((next - n).checked_mul(handled + 1)?)?;
        n = next;
        for c in label.chars().map(u32::from) {
            if c < n {
                delta += 1;
            } else if c == n {
                variable_length(&mut out, delta, bias);
                bias = adapt(delta, handled + 1, handled == basic);
                delta = 0;
                handled += 1;
            }
        }
        delta += 1;
        n += 1;
    }
    Some(out)
}

fn variable_length(out: &mut String, mut q: u32, bias: u32) {
    let mut k = BASE;
    loop {
        let t = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
        if q < t {
            out.push(digit(q));
            return;
        }
        out.push(digit(t + (q - t) % (BASE - t)));
        q = (q - t) / (BASE - t);
        k += BASE;
    }
}

/// `a` to `z`, then `0` to `9`.
fn digit(value: u32) -> char {
    let code = if value < 26 { u32::from('a') + value } else { u32::from('0') + value - 26 };
    char::from_u32(code).unwrap_or('?')
}

/// RFC 3492 section 6.1.
fn adapt(delta: u32, points: u32, first: bool) -> u32 {
    let mut delta = if first { delta / DAMP } else { delta / 2 };
    delta += delta / points;
    let mut k = 0;
    while delta > ((BASE - T_MIN) * T_MAX) / 2 {
        delta /= BASE - T_MIN;
        k += BASE;
    }
    k + (BASE - T_MIN + 1) * delta / (delta + SKEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_form_that_dns_takes() {
        for (name, ascii) in [
            ("Bücher.example", "xn--bcher-kva.example"),
            ("مثال.إختبار", "xn--mgbh0fb.xn--kgbechtv"),
            ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
            ("matrix.münchen.example", "matrix.xn--mnchen-3ya.example"),
        ] {
            assert_eq!(to_ascii(name).as_deref(), Some(ascii));
        }
        assert_eq!(to_ascii("a b.ü "), None);
        assert_eq!(to_ascii("x\u{200b}.example"), None);
    }
}
