//! `import` of snippets and of other files: their words take the place of the directive, as in Caddy, wherever it stands.
//! What a pattern fits is found by the function that the caller passes in.

use std::{collections::HashMap, ops::Range};

use super::{
    Remark, SyntaxError,
    lexer::{self, Token},
};

/// Imports are not followed deeper than this; Caddyfiles that people wrote have three levels.
const MAX_DEPTH: usize = 16;

/// No Caddyfile is put together of more words than this: snippets of snippets could grow without end.
const MAX_WORDS: usize = 200_000;

/// No Caddyfile is put together of more files than this.
const MAX_FILES: usize = 1_000;

/// A word that arguments make longer than this is left as it is.
const MAX_WORD: usize = 16 * 1024;

/// The lines of each file have numbers of their own: those of the n-th file begin here, n times.
pub const LINES_PER_FILE: usize = 1 << 24;

/// Finds the files that a pattern in a file means, each with its name and its text; an error says why there is none.
pub type Find<'f> = &'f dyn Fn(&str, &str) -> Result<Vec<(String, String)>, String>;

/// The words of a Caddyfile with those of the snippets and files that it imports. The names of the files are added to `names`.
pub fn expanded(
    text: &str,
    names: &mut Vec<String>,
    find: Find<'_>,
    remarks: &mut Vec<Remark>,
) -> Result<Vec<Token>, SyntaxError> {
    let tokens = lexer::lex(text)?;
    let mut importer =
        Importer { names, find, remarks, snippets: HashMap::new(), words: 0, braces: 0, within: Vec::new() };
    let mut found = Vec::new();
    importer.expand(&tokens, &mut found)?;
    Ok(found)
}

struct Importer<'r> {
    names: &'r mut Vec<String>,
    find: Find<'r>,
    remarks: &'r mut Vec<Remark>,
    snippets: HashMap<String, Vec<Token>>,
    /// How many words were looked at.
    words: usize,
    /// How many blocks are open where the next word stands.
    braces: usize,
    /// What is being imported, from the outside in.
    within: Vec<String>,
}

impl Importer<'_> {
    /// Appends words, with what they import.
    fn expand(&mut self, tokens: &[Token], found: &mut Vec<Token>) -> Result<(), SyntaxError> {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            self.words += 1;
            if self.words > MAX_WORDS {
                return Err(SyntaxError::new(token.line, "the imports have too many words"));
            }
            let snippet = snippet_name(token).filter(|_| self.braces == 0 && opens_block(tokens, at + 1));
            if let Some(name) = snippet {
                let body = block(tokens, at + 1)?;
                at = body.end + 1;
                self.snippets.insert(name.to_owned(), tokens[body].to_vec());
                continue;
            }
            if token.text == "import" && !token.quoted && token.begins_line {
                at = self.import(tokens, at, found)?;
                continue;
            }
            if opens_block(tokens, at) {
                self.braces += 1;
            } else if token.text == "}" && !token.quoted {
                self.braces = self.braces.saturating_sub(1);
            }
            found.push(token.clone());
            at += 1;
        }
        Ok(())
    }

    /// Takes the place of the directive that stands there; where the words after it begin.
    fn import(&mut self, tokens: &[Token], at: usize, found: &mut Vec<Token>) -> Result<usize, SyntaxError> {
        let directive = &tokens[at];
        let same_line = tokens[at + 1..].iter().take_while(|token| !token.begins_line).count();
        let mut end = at + 1 + same_line;
        let mut given = &tokens[at + 1..end];
        let mut inner: &[Token] = &[];
        if same_line > 0 && opens_block(tokens, end - 1) {
            let body = block(tokens, end - 1)?;
            (given, inner) = (&tokens[at + 1..end - 1], &tokens[body.clone()]);
            end = body.end + 1;
        }
        let Some((name, args)) = given.split_first() else {
            self.lost(directive, "", "it names nothing");
            return Ok(end);
        };
        let name = &name.text;
        if let Some(body) = self.snippets.get(name).cloned() {
            if self.within.contains(name) {
                self.remarks.push(Remark::lost(directive.line, format!("the snippet `{name}` imports itself")));
                return Ok(end);
            }
            self.splice(name, &filled(&body, args, inner), found)?;
        } else if name.contains(['/', '.', '*']) {
            self.files(directive, name, args, inner, found)?;
        } else {
            let why =
                format!("there is no snippet with this name (a file is named with its folder: `import ./{name}`)");
            self.lost(directive, name, &why);
        }
        Ok(end)
    }

    fn files(
        &mut self,
        directive: &Token,
        pattern: &str,
        args: &[Token],
        inner: &[Token],
        found: &mut Vec<Token>,
    ) -> Result<(), SyntaxError> {
        if self.within.len() >= MAX_DEPTH || self.names.len() > MAX_FILES {
            self.lost(directive, pattern, "the files import too many others");
            return Ok(());
        }
        let importing = &self.names[directive.line / LINES_PER_FILE];
        let files = match (self.find)(importing, pattern) {
            Ok(files) => files,
            Err(why) => {
                self.lost(directive, pattern, &why);
                return Ok(());
            }
        };
        if files.is_empty() {
            self.remarks.push(Remark::note(directive.line, format!("`import {pattern}`: no file fits")));
        }
        for (name, text) in files {
            self.names.push(name.clone());
            let number = self.names.len() - 1;
            let of_file = |line: usize| line + number * LINES_PER_FILE;
            let words = lexer::lex(&text).map_err(|error| SyntaxError::new(of_file(error.line), error.message))?;
            let words: Vec<_> = words.into_iter().map(|token| Token { line: of_file(token.line), ..token }).collect();
            self.splice(&name, &filled(&words, args, inner), found)?;
        }
        Ok(())
    }

    fn splice(&mut self, name: &str, tokens: &[Token], found: &mut Vec<Token>) -> Result<(), SyntaxError> {
        self.within.push(name.to_owned());
        let done = self.expand(tokens, found);
        self.within.pop();
        done
    }

    fn lost(&mut self, directive: &Token, name: &str, why: &str) {
        self.remarks.push(Remark::lost(directive.line, format!("`import {name}`: {why}")));
    }
}

/// `(name)`, which begins a snippet.
fn snippet_name(token: &Token) -> Option<&str> {
    token.text.strip_prefix('(')?.strip_suffix(')').filter(|_| token.begins_line && !token.quoted)
}

/// A brace opens a block where nothing follows it on its line.
pub fn opens_block(tokens: &[Token], at: usize) -> bool {
    let is_brace = tokens.get(at).is_some_and(|token| token.text == "{" && !token.quoted);
    is_brace && tokens.get(at + 1).is_none_or(|next| next.begins_line)
}

/// The words between the brace that stands there and the one that closes it.
fn block(tokens: &[Token], opened: usize) -> Result<Range<usize>, SyntaxError> {
    let mut depth = 1;
    for at in opened + 1..tokens.len() {
        if opens_block(tokens, at) {
            depth += 1;
        } else if tokens[at].text == "}" && !tokens[at].quoted {
            depth -= 1;
        }
        if depth == 0 {
            return Ok(opened + 1..at);
        }
    }
    Err(SyntaxError::new(tokens[opened].line, "the block that begins here is not closed: a `}` is missing"))
}

/// Words with `{args[0]}`, `{args[1:]}` and `{block}` filled in.
fn filled(tokens: &[Token], args: &[Token], inner: &[Token]) -> Vec<Token> {
    let mut found = Vec::new();
    let mut room = MAX_WORDS;
    for token in tokens {
        let put = |many: &[Token]| -> Vec<Token> {
            let first = |at: usize| token.begins_line && at == 0;
            let of_line =
                |(at, arg): (usize, &Token)| Token { line: token.line, begins_line: first(at), ..arg.clone() };
            many.iter().enumerate().map(of_line).collect()
        };
        let words = match &*token.text {
            "{block}" if !token.quoted => inner.to_vec(),
            text => match range(text, args.len()) {
                Some(range) => put(&args[range]),
                None => vec![Token { text: numbered(text, args), ..token.clone() }],
            },
        };
        // What would be longer is an error of `expand`, which counts as well.
        room = room.saturating_sub(words.len());
        found.extend(words);
        if room == 0 {
            break;
        }
    }
    found
}

/// The arguments that `{args[:]}`, `{args[1:]}`, `{args[:2]}` or `{args.*}` stands for.
fn range(text: &str, count: usize) -> Option<Range<usize>> {
    if text == "{args.*}" {
        return Some(0..count);
    }
    let (from, to) = text.strip_prefix("{args[")?.strip_suffix("]}")?.split_once(':')?;
    let number = |text: &str, otherwise| if text.is_empty() { Some(otherwise) } else { text.parse().ok() };
    let (from, to) = (number(from, 0)?, number(to, count)?);
    (from <= to && to <= count).then_some(from..to)
}

/// A word with `{args[0]}` and its like filled in.
fn numbered(text: &str, args: &[Token]) -> String {
    let mut text = text.to_owned();
    if text.contains("{args") {
        for (index, arg) in args.iter().enumerate() {
            if text.len() > MAX_WORD {
                break;
            }
            text =
                text.replace(&format!("{{args[{index}]}}"), &arg.text).replace(&format!("{{args.{index}}}"), &arg.text);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> (String, Vec<Remark>) {
        let mut remarks = Vec::new();
        let tokens = expanded(text, &mut vec!["Caddyfile".into()], &|_, _| Ok(Vec::new()), &mut remarks).unwrap();
        let mut out = String::new();
        for token in tokens {
            out += if token.begins_line { "\n" } else { " " };
            out += &token.text;
        }
        (out.trim_start().to_owned(), remarks)
    }

    #[test]
    fn a_snippet_takes_the_place_of_its_import() {
        let (text, _) = expand(
            "(up) {\n\thandle {args[0]}* {\n\t\treverse_proxy {args[1:]}\n\t}\n}\na.b {\n\timport up /x app:80 app:81\n}\n",
        );
        assert_eq!(text, "a.b {\nhandle /x* {\nreverse_proxy app:80 app:81\n}\n}");
        // Each begins a line of its own, however often.
        let (text, _) = expand("(f) {\n\theader {args[:]}\n}\na.b {\n\timport f X 1\n\timport f Y 2\n}\n");
        assert_eq!(text, "a.b {\nheader X 1\nheader Y 2\n}");
    }

    #[test]
    fn a_snippet_may_be_a_site_and_take_a_block() {
        let (text, remarks) = expand(
            "(site) {\n\t{args[0]}.example.org {\n\t\tencode\n\t\t{block}\n\t}\n}\nimport site a {\n\treverse_proxy a:80\n}\nimport site b\n",
        );
        assert_eq!(text, "a.example.org {\nencode\nreverse_proxy a:80\n}\nb.example.org {\nencode\n}");
        assert!(remarks.is_empty());
    }

    #[test]
    fn ranges_of_arguments_are_those_of_caddy() {
        assert_eq!(range("{args[:]}", 3), Some(0..3));
        assert_eq!(range("{args[1:]}", 3), Some(1..3));
        assert_eq!(range("{args[:2]}", 3), Some(0..2));
        assert_eq!(range("{args[1:2]}", 3), Some(1..2));
        assert_eq!(range("{args.*}", 1), Some(0..1));
        for text in ["{args[2:1]}", "{args[0:4]}", "{args[0]}", "x{args[:]}", "{args[a:]}"] {
            assert_eq!(range(text, 3), None, "{text}");
        }
    }

    #[test]
    fn a_snippet_that_imports_itself_ends() {
        let (_, remarks) =
            expand("(a) {\n import b\n import b\n}\n(b) {\n import a\n}\nx.y {\n import a\n import none\n}\n");
        assert_eq!(remarks.len(), 3, "{remarks:?}");
        let grows: String = (0..40).map(|n| format!("(s{}) {{\n import s{n}\n import s{n}\n}}\n", n + 1)).collect();
        let text = format!("(s0) {{\n x y\n}}\n{grows}a.b {{\n import s40\n}}\n");
        assert!(expanded(&text, &mut vec!["c".into()], &|_, _| Ok(Vec::new()), &mut Vec::new()).is_err());
    }
}
