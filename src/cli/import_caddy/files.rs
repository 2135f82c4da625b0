//! `import` of other files: their words take the place of the directive, as in Caddy. What a pattern fits is found by the
//! function that the caller passes in.

use std::collections::HashSet;

use super::{
    Remark, SyntaxError,
    lexer::{self, Token},
    parser,
};

/// Files that import each other are not followed deeper than this.
const MAX_DEPTH: usize = 16;

/// No Caddyfile is put together of more words than this.
const MAX_WORDS: usize = 200_000;

/// No Caddyfile is put together of more files than this.
const MAX_FILES: usize = 1_000;

/// The lines of each file have numbers of their own: those of the n-th file begin here, n times.
pub const LINES_PER_FILE: usize = 1 << 24;

/// Finds the files that a pattern in a file means, each with its name and its text; an error says why there is none.
pub type Find<'f> = &'f dyn Fn(&str, &str) -> Result<Vec<(String, String)>, String>;

/// The words of a Caddyfile with those of the files that it imports, whose names are added to `names`.
pub fn expanded(
    text: &str,
    names: &mut Vec<String>,
    find: Find<'_>,
    remarks: &mut Vec<Remark>,
) -> Result<Vec<Token>, SyntaxError> {
    let tokens = lexer::lex(text)?;
    let mut reader = Reader { names, find, remarks, words: 0 };
    reader.expand(tokens, 0, 0)
}

struct Reader<'r> {
    names: &'r mut Vec<String>,
    find: Find<'r>,
    remarks: &'r mut Vec<Remark>,
    words: usize,
}

impl Reader<'_> {
    fn expand(&mut self, tokens: Vec<Token>, file: usize, depth: usize) -> Result<Vec<Token>, SyntaxError> {
        let snippets: HashSet<String> = tokens
            .iter()
            .filter_map(|token| Some(token.text.strip_prefix('(')?.strip_suffix(')')?.to_owned()))
            .collect();
        let mut found: Vec<Token> = Vec::new();
        let mut rest = tokens.into_iter().peekable();
        let mut end = 0;
        while let Some(token) = rest.next() {
            let is_import = token.text == "import" && !token.quoted && token.line != end;
            end = token.end;
            let named = is_import
                .then(|| rest.peek().filter(|next| next.line == token.end && is_file(&next.text, &snippets)))
                .flatten();
            let Some(pattern) = named.map(|next| next.text.clone()) else {
                self.words += 1;
                found.push(token);
                continue;
            };
            let mut args = Vec::new();
            while let Some(next) = rest.next_if(|next| next.line == end) {
                end = next.end;
                args.push(next);
            }
            args.remove(0);
            found.extend(self.import(&token, &pattern, &args, file, depth)?);
        }
        Ok(found)
    }

    fn import(
        &mut self,
        at: &Token,
        pattern: &str,
        args: &[Token],
        file: usize,
        depth: usize,
    ) -> Result<Vec<Token>, SyntaxError> {
        let mut lost = |why: &str| self.remarks.push(Remark::lost(at.line, format!("`import {pattern}`: {why}")));
        if depth >= MAX_DEPTH || self.words > MAX_WORDS || self.names.len() > MAX_FILES {
            lost("the files import too many others");
            return Ok(Vec::new());
        }
        let files = match (self.find)(&self.names[file], pattern) {
            Ok(files) => files,
            Err(why) => {
                lost(&why);
                return Ok(Vec::new());
            }
        };
        if files.is_empty() {
            self.remarks.push(Remark::note(at.line, format!("`import {pattern}`: no file fits")));
        }
        let mut all = Vec::new();
        for (name, text) in files {
            self.names.push(name);
            let number = self.names.len() - 1;
            let of_file = |line: usize| line + number * LINES_PER_FILE;
            let words = lexer::lex(&text).map_err(|error| SyntaxError::new(of_file(error.line), error.message))?;
            let mut filled = Vec::new();
            for token in words {
                let token = Token { line: of_file(token.line), end: of_file(token.end), ..token };
                if token.text == "{args[:]}" {
                    filled.extend(args.iter().map(|arg| Token { line: token.line, end: token.end, ..arg.clone() }));
                } else {
                    filled.push(Token { text: parser::numbered(&token.text, args), ..token });
                }
            }
            all.extend(self.expand(filled, number, depth + 1)?);
        }
        Ok(all)
    }
}

/// Whether an import means files: what is no snippet, and looks like none that is defined elsewhere.
fn is_file(text: &str, snippets: &HashSet<String>) -> bool {
    !snippets.contains(text) && text.contains(['/', '.', '*'])
}
