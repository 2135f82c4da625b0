//! Names for characters that a reader of the file cannot see, as they come with text copied from a web page.

/// What the character is, if it cannot be seen. A space, a tab and the ends of lines are not meant.
pub fn name(c: char) -> Option<&'static str> {
    Some(match c {
        '\u{a0}' | '\u{2007}' | '\u{202f}' => "a no-break space",
        c if is_space(c) => "a space that is not U+0020",
        '\u{ad}' => "a soft hyphen",
        '\u{200b}' => "a zero-width space",
        '\u{200c}' => "a zero-width non-joiner",
        '\u{200d}' => "a zero-width joiner",
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            "a mark of the writing direction"
        }
        '\u{2028}' | '\u{2029}' => "a line separator",
        '\u{2060}'..='\u{2064}' => "a word joiner",
        '\u{fe00}'..='\u{fe0f}' => "a variation selector",
        '\u{feff}' => "a byte order mark",
        '\t' | '\n' | '\r' => return None,
        c if c.is_control() => "a control character",
        _ => return None,
    })
}

/// Whether it looks like a space.
pub fn is_space(c: char) -> bool {
    matches!(c, '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}')
}

/// The first character of a text that cannot be seen, in words.
pub fn first(text: &str) -> Option<String> {
    text.chars().find_map(|c| Some(format!("U+{:04X}, {}", u32::from(c), name(c)?)))
}

/// A line in which every such character can be seen, for a report.
pub fn shown(line: &str) -> String {
    let one = |c: char| if name(c).is_some() { format!("<U+{:04X}>", u32::from(c)) } else { c.to_string() };
    line.chars().map(one).collect()
}
