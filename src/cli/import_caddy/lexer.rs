//! A Caddyfile into words: quotes, backticks, heredocs, escaped line ends, comments, and `{$NAME:default}`.

use super::SyntaxError;

/// A word of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// What it says; a variable of the environment stands between [`ENV`] and [`ENV_END`].
    pub text: String,
    /// The line that it begins on, from 1.
    pub line: usize,
    /// Nothing stands before it on its line.
    pub begins_line: bool,
    /// It stood in quotes, backticks or a heredoc: a brace in it is none.
    pub quoted: bool,
}

/// Begins the name of a variable inside a word. Private use characters, so that no word of a file has them.
pub const ENV: char = '\u{f8f0}';

/// Between the name and its default.
pub const ENV_DEFAULT: char = '\u{f8f1}';

/// Ends a variable.
pub const ENV_END: char = '\u{f8f2}';

/// Stands in a pattern of paths for one segment, of at least one byte.
pub const SEGMENT: char = '\u{f8f3}';

/// Splits a text into words.
pub fn lex(text: &str) -> Result<Vec<Token>, SyntaxError> {
    let text = text
        .strip_prefix('\u{feff}')
        .unwrap_or(text)
        .replace('\r', "")
        .replace([ENV, ENV_DEFAULT, ENV_END, SEGMENT], "\u{fffd}");
    let mut lexer = Lexer { rest: &text, line: 1 };
    let mut tokens = Vec::new();
    let mut end = 0;
    while let Some(token) = lexer.next()? {
        let begins_line = token.line != end;
        end = lexer.line;
        tokens.push(Token { text: variables(&token.text), begins_line, ..token });
    }
    Ok(tokens)
}

struct Lexer<'t> {
    rest: &'t str,
    line: usize,
}

impl Lexer<'_> {
    fn next(&mut self) -> Result<Option<Token>, SyntaxError> {
        self.skip();
        let line = self.line;
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let (text, quoted) = match first {
            '"' | '`' => (self.quoted(first)?, true),
            _ => match self.heredoc()? {
                Some(text) => (text, true),
                None => (self.bare(), false),
            },
        };
        Ok(Some(Token { text, line, begins_line: false, quoted }))
    }

    fn take(&mut self, len: usize) -> &str {
        let (taken, rest) = self.rest.split_at(len);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// Spaces, comments, and line ends that a backslash takes back.
    fn skip(&mut self) {
        loop {
            let spaces = self.rest.len() - self.rest.trim_start().len();
            self.take(spaces);
            if self.rest.starts_with('#') {
                self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
            } else if self.rest.starts_with("\\\n") {
                // The line goes on, so that what follows still counts as being on it.
                self.rest = &self.rest[2..];
            } else {
                return;
            }
        }
    }

    fn bare(&mut self) -> String {
        let end = self.rest.find(|c: char| c.is_whitespace()).unwrap_or(self.rest.len());
        let word = self.take(end).to_owned();
        match word.strip_suffix('\\').filter(|_| self.rest.starts_with('\n')) {
            Some(word) => {
                self.rest = &self.rest[1..];
                word.to_owned()
            }
            None => word,
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, SyntaxError> {
        let line = self.line;
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.take(at + 1);
                return Ok(text);
            }
            // Only a quote is escaped; `\n` is a backslash and an n.
            if c == '\\' && quote == '"' {
                match chars.next() {
                    Some((_, '"')) => text.push('"'),
                    Some((_, other)) => text.extend(['\\', other]),
                    None => break,
                }
            } else {
                text.push(c);
            }
        }
        Err(SyntaxError::new(line, format!("the {quote} on this line is not closed")))
    }

    /// `<<MARKER`, lines, and the marker again, whose indentation is taken off every line.
    fn heredoc(&mut self) -> Result<Option<String>, SyntaxError> {
        let Some((marker, body)) = self.rest.strip_prefix("<<").and_then(|rest| rest.split_once('\n')) else {
            return Ok(None);
        };
        if marker.is_empty() || !marker.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
            return Ok(None);
        }
        let mut lines = Vec::new();
        let mut at = self.rest.len() - body.len();
        for line in body.split_inclusive('\n') {
            let code = line.trim_start();
            let ends = code
                .strip_prefix(marker)
                .is_some_and(|after| after.is_empty() || after.starts_with(char::is_whitespace));
            if ends {
                let indent = &line[..line.len() - code.len()];
                let bare =
                    lines.iter().map(|line: &&str| line.strip_prefix(indent).unwrap_or_else(|| line.trim_start()));
                let text = bare.collect::<String>();
                self.take(at + indent.len() + marker.len());
                return Ok(Some(text.strip_suffix('\n').unwrap_or(&text).to_owned()));
            }
            lines.push(line);
            at += line.len();
        }
        Err(SyntaxError::new(self.line, format!("the text after <<{marker} has no end marker")))
    }
}

/// `{$NAME}`, `{$NAME:default}` and `{env.NAME}` into our own marks.
fn variables(text: &str) -> String {
    let text = text.replace("{env.", "{$");
    let mut out = String::new();
    let mut rest = &*text;
    while let Some(at) = rest.find("{$") {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let Some((inner, behind)) = after[2..].split_once('}') else {
            rest = after;
            break;
        };
        let (name, default) = inner.split_once(':').map_or((inner, None), |(name, default)| (name, Some(default)));
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            out.push_str(&after[..after.len() - behind.len()]);
        } else {
            out.push(ENV);
            out.push_str(name);
            if let Some(default) = default {
                out.push(ENV_DEFAULT);
                out.push_str(default);
            }
            out.push(ENV_END);
        }
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<(String, usize)> {
        lex(text).unwrap().into_iter().map(|token| (token.text, token.line)).collect()
    }

    #[test]
    fn words_are_those_of_caddy() {
        let text =
            "a \"b \\\" \\n c\" `d \"e`\n# comment\nf#g \\\n  h\nrespond <<END\n\t\tone\n\t\t  two\n\t\tEND 200\n";
        let expected = [
            ("a", 1),
            ("b \" \\n c", 1),
            ("d \"e", 1),
            ("f#g", 3),
            ("h", 3),
            ("respond", 4),
            ("one\n  two", 4),
            ("200", 7),
        ];
        // The line after an escaped line end counts as the line before it.
        let expected: Vec<_> = expected.map(|(word, line)| (word.to_owned(), line)).into();
        assert_eq!(words(text), expected);
        assert!(lex("x \"never").is_err() && lex("x <<END\nnever").is_err());
    }

    #[test]
    fn variables_are_marked() {
        let expected = format!("{ENV}HOST{ENV_DEFAULT}a.b{ENV_END}:{ENV}PORT{ENV_END}");
        assert_eq!(words("{$HOST:a.b}:{$PORT}"), [(expected, 1)]);
        assert_eq!(words("{$not closed")[0].0, "{$not");
        assert_eq!(words("{host} {$a-b}")[1].0, "{$a-b}");
    }
}
