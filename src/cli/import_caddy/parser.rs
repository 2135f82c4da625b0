//! Words into sites and directives, with snippets filled in where they are imported.

use std::collections::HashMap;

use super::{Remark, SyntaxError, lexer::Token};

/// Blocks are not nested deeper than this in any file that a person wrote.
const MAX_DEPTH: usize = 32;

/// No file imports its snippets into more directives than this.
const MAX_DIRECTIVES: usize = 20_000;

/// A word that arguments make longer than this is left as it is.
const MAX_WORD: usize = 16 * 1024;

/// More arguments than this are not filled in.
const MAX_ARGS: usize = 200;

/// A directive with its arguments and what stands between its braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Its name.
    pub name: String,
    /// What stands behind it on the line.
    pub args: Vec<Token>,
    /// Its block.
    pub block: Option<Vec<Self>>,
    /// Its line.
    pub line: usize,
}

/// A site: what stands before the brace, and what stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteBlock {
    /// Its addresses.
    pub addresses: Vec<Token>,
    /// Its directives.
    pub body: Vec<Directive>,
}

/// The file.
#[derive(Debug, Default)]
pub struct File {
    /// The block without a name that may stand first.
    pub options: Vec<Directive>,
    /// The sites.
    pub sites: Vec<SiteBlock>,
    /// What could not be understood.
    pub remarks: Vec<Remark>,
}

/// Reads words.
pub fn parse(tokens: &[Token]) -> Result<File, SyntaxError> {
    let mut parser = Parser { tokens, at: 0 };
    let mut file = File::default();
    let mut snippets = HashMap::new();
    let mut blocks = Vec::new();
    if parser.opens_block() {
        parser.at += 1;
        file.options = parser.block(1)?;
    }
    while parser.at < tokens.len() {
        let addresses = parser.addresses()?;
        let first = addresses.first().map(|token| (token.text.clone(), token.line)).unwrap_or_default();
        if first.0 == "import" {
            file.remarks.push(Remark::lost(first.1, "`import` at the top level of what is no file"));
            continue;
        }
        let body = if parser.opens_block() {
            parser.at += 1;
            parser.block(1)?
        } else if blocks.is_empty() && snippets.is_empty() {
            // A file with one site needs no braces.
            parser.directives(0)?
        } else {
            return Err(SyntaxError::new(first.1, format!("`{}` is not followed by a block", first.0)));
        };
        match first.0.strip_prefix('(').and_then(|name| name.strip_suffix(')')) {
            Some(name) => {
                snippets.insert(name.to_owned(), body);
            }
            None if first.0.starts_with("&(") => {
                file.remarks.push(Remark::lost(first.1, "named routes are not supported"));
            }
            None => blocks.push(SiteBlock { addresses, body }),
        }
    }
    let mut importer = Importer { snippets: &snippets, within: Vec::new(), count: 0, remarks: Vec::new() };
    file.options = importer.fill(&file.options);
    for site in blocks {
        file.sites.push(SiteBlock { body: importer.fill(&site.body), ..site });
    }
    file.remarks.append(&mut importer.remarks);
    Ok(file)
}

struct Parser<'t> {
    tokens: &'t [Token],
    at: usize,
}

impl Parser<'_> {
    fn is(&self, text: &str) -> bool {
        self.tokens.get(self.at).is_some_and(|token| !token.quoted && token.text == text)
    }

    /// A brace opens a block where nothing follows it on its line.
    fn opens_block(&self) -> bool {
        let next = self.tokens.get(self.at + 1);
        self.is("{") && next.is_none_or(|next| next.line != self.tokens[self.at].line)
    }

    /// The words before a block, over several lines where commas say so.
    fn addresses(&mut self) -> Result<Vec<Token>, SyntaxError> {
        let mut found: Vec<Token> = Vec::new();
        let mut goes_on = true;
        while let Some(token) = self.tokens.get(self.at) {
            let same_line = found.last().is_none_or(|last| last.end == token.line);
            if self.opens_block() || !(same_line || goes_on) {
                break;
            }
            if token.text == "}" && !token.quoted {
                return Err(SyntaxError::new(token.line, "this `}` closes no block"));
            }
            goes_on = token.text.ends_with(',');
            found.extend(
                token
                    .text
                    .split(',')
                    .filter(|part| !part.is_empty())
                    .map(|part| Token { text: part.to_owned(), ..token.clone() }),
            );
            self.at += 1;
        }
        match (found.is_empty(), self.tokens.get(self.at)) {
            (true, Some(token)) => Err(SyntaxError::new(token.line, "only the first block can be without a name")),
            _ => Ok(found),
        }
    }

    /// Directives up to the brace that closes them, which is taken.
    fn block(&mut self, depth: usize) -> Result<Vec<Directive>, SyntaxError> {
        let opened = self.tokens[self.at - 1].line;
        let found = self.directives(depth)?;
        if !self.is("}") {
            return Err(SyntaxError::new(opened, "the block that begins here is not closed: a `}` is missing"));
        }
        self.at += 1;
        Ok(found)
    }

    fn directives(&mut self, depth: usize) -> Result<Vec<Directive>, SyntaxError> {
        let mut found = Vec::new();
        while let Some(first) = self.tokens.get(self.at).filter(|_| !self.is("}")) {
            if depth > MAX_DEPTH {
                return Err(SyntaxError::new(first.line, "blocks are nested too deeply"));
            }
            self.at += 1;
            let mut directive = Directive { name: first.text.clone(), args: Vec::new(), block: None, line: first.line };
            let mut end = first.end;
            while let Some(token) = self.tokens.get(self.at).filter(|token| token.line == end) {
                if self.opens_block() {
                    self.at += 1;
                    directive.block = Some(self.block(depth + 1)?);
                    break;
                }
                if self.is("}") {
                    break;
                }
                end = token.end;
                directive.args.push(token.clone());
                self.at += 1;
            }
            found.push(directive);
        }
        Ok(found)
    }
}

struct Importer<'s> {
    snippets: &'s HashMap<String, Vec<Directive>>,
    within: Vec<String>,
    count: usize,
    remarks: Vec<Remark>,
}

impl Importer<'_> {
    fn fill(&mut self, directives: &[Directive]) -> Vec<Directive> {
        let mut found = Vec::new();
        for directive in directives {
            self.count += 1;
            if self.count > MAX_DIRECTIVES {
                return found;
            }
            if directive.name == "import" {
                found.extend(self.import(directive));
            } else {
                let block = directive.block.as_ref().map(|block| self.fill(block));
                found.push(Directive { block, ..directive.clone() });
            }
        }
        found
    }

    fn import(&mut self, directive: &Directive) -> Vec<Directive> {
        let name = directive.args.first().map(|token| token.text.clone()).unwrap_or_default();
        let Some(body) = self.snippets.get(&name) else {
            let text = format!(
                "`import {name}`: there is no snippet with this name (a file is named with its folder: `import ./{name}`)"
            );
            self.remarks.push(Remark::lost(directive.line, text));
            return Vec::new();
        };
        if self.within.contains(&name) || self.within.len() >= MAX_DEPTH {
            self.remarks.push(Remark::lost(directive.line, format!("the snippet `{name}` imports itself")));
            return Vec::new();
        }
        let args: Vec<_> = directive.args.iter().skip(1).cloned().collect();
        let given = self.with_args(body, &args, directive.block.as_deref().unwrap_or_default());
        self.within.push(name);
        let found = self.fill(&given);
        self.within.pop();
        found
    }

    /// A snippet with `{args[0]}`, `{args[:]}` and `{block}` filled in. Snippets of snippets could grow without end.
    fn with_args(&mut self, body: &[Directive], args: &[Token], block: &[Directive]) -> Vec<Directive> {
        let mut found = Vec::new();
        for directive in body {
            self.count += if directive.name == "{block}" { size(block) } else { 1 };
            if self.count > MAX_DIRECTIVES {
                return found;
            }
            if directive.name == "{block}" {
                found.extend(block.iter().cloned());
                continue;
            }
            let mut filled = Vec::new();
            for token in &directive.args {
                if token.text == "{args[:]}" || token.text == "{args.*}" {
                    let room = MAX_ARGS.saturating_sub(filled.len());
                    filled.extend(args.iter().take(room).map(|arg| Token { line: token.line, ..arg.clone() }));
                } else {
                    filled.push(Token { text: numbered(&token.text, args), ..token.clone() });
                }
            }
            found.push(Directive {
                name: numbered(&directive.name, args),
                args: filled,
                block: directive.block.as_ref().map(|inner| self.with_args(inner, args, block)),
                line: directive.line,
            });
        }
        found
    }
}

/// The number of directives in a tree.
fn size(directives: &[Directive]) -> usize {
    directives.iter().map(|directive| 1 + directive.block.as_deref().map_or(0, size)).sum()
}

/// A word with `{args[0]}` and its like filled in.
pub fn numbered(text: &str, args: &[Token]) -> String {
    let mut text = text.to_owned();
    if text.contains("{args") && text.len() < MAX_WORD {
        for (index, arg) in args.iter().enumerate() {
            text =
                text.replace(&format!("{{args[{index}]}}"), &arg.text).replace(&format!("{{args.{index}}}"), &arg.text);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::lexer::lex, *};

    fn read(text: &str) -> Result<File, SyntaxError> {
        parse(&lex(text)?)
    }

    #[test]
    fn snippets_are_filled_in() {
        let text = "(up) {\n\thandle {args[0]}* {\n\t\treverse_proxy {args[1]}\n\t}\n}\na.b, c.d\n{\n\timport up /x app:80\n}\n";
        let file = read(text).unwrap();
        let addresses: Vec<_> = file.sites[0].addresses.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(addresses, ["a.b", "c.d"]);
        let handle = &file.sites[0].body[0];
        assert_eq!((handle.name.as_str(), handle.args[0].text.as_str(), handle.line), ("handle", "/x*", 2));
        assert_eq!(handle.block.as_ref().unwrap()[0].args[0].text, "app:80");
    }

    #[test]
    fn a_snippet_that_imports_itself_ends() {
        let file =
            read("(a) {\n import b\n import b\n}\n(b) {\n import a\n}\nx.y {\n import a\n import none.conf\n}\n")
                .unwrap();
        assert_eq!(file.remarks.len(), 3, "{:?}", file.remarks);
    }

    #[test]
    fn what_is_not_closed_is_named() {
        assert_eq!(read("a.b {\n\trespond x\n").unwrap_err().line, 1);
        assert_eq!(read("a.b {\n}\n}\n").unwrap_err().line, 3);
        assert!(read(&"x {\n".repeat(1000)).is_err());
        assert_eq!(read("a.b\nrespond `{` 200\n").unwrap().sites[0].body[0].args.len(), 2);
    }
}
