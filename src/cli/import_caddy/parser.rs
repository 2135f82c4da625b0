//! Words into sites and directives.

use super::{Remark, SyntaxError, imports::opens_block, lexer::Token};

/// Blocks are not nested deeper than this in any file that a person wrote.
const MAX_DEPTH: usize = 32;

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
    if parser.opens_block() {
        parser.at += 1;
        file.options = parser.block(1)?;
    }
    while parser.at < tokens.len() {
        let addresses = parser.addresses()?;
        let first = addresses.first().map(|token| (token.text.clone(), token.line)).unwrap_or_default();
        let body = if parser.opens_block() {
            parser.at += 1;
            parser.block(1)?
        } else if file.sites.is_empty() {
            // A file with one site needs no braces.
            parser.directives(0)?
        } else {
            return Err(SyntaxError::new(first.1, format!("`{}` is not followed by a block", first.0)));
        };
        if first.0.starts_with("&(") {
            file.remarks.push(Remark::lost(first.1, "named routes are not supported"));
        } else {
            file.sites.push(SiteBlock { addresses, body });
        }
    }
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

    fn opens_block(&self) -> bool {
        opens_block(self.tokens, self.at)
    }

    /// The words before a block, over several lines where commas say so.
    fn addresses(&mut self) -> Result<Vec<Token>, SyntaxError> {
        let mut found: Vec<Token> = Vec::new();
        let mut goes_on = true;
        while let Some(token) = self.tokens.get(self.at) {
            let same_line = found.is_empty() || !token.begins_line;
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
            while let Some(token) = self.tokens.get(self.at).filter(|token| !token.begins_line) {
                if self.opens_block() {
                    self.at += 1;
                    directive.block = Some(self.block(depth + 1)?);
                    break;
                }
                if self.is("}") {
                    break;
                }
                directive.args.push(token.clone());
                self.at += 1;
            }
            found.push(directive);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::lexer::lex, *};

    fn read(text: &str) -> Result<File, SyntaxError> {
        parse(&lex(text)?)
    }

    #[test]
    fn sites_have_addresses_and_directives() {
        let file = read("a.b, c.d\n{\n\thandle /x* {\n\t\treverse_proxy app:80\n\t}\n}\n").unwrap();
        let addresses: Vec<_> = file.sites[0].addresses.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(addresses, ["a.b", "c.d"]);
        let handle = &file.sites[0].body[0];
        assert_eq!((handle.name.as_str(), handle.args[0].text.as_str(), handle.line), ("handle", "/x*", 3));
        assert_eq!(handle.block.as_ref().unwrap()[0].args[0].text, "app:80");
    }

    #[test]
    fn what_is_not_closed_is_named() {
        assert_eq!(read("a.b {\n\trespond x\n").unwrap_err().line, 1);
        assert_eq!(read("a.b {\n}\n}\n").unwrap_err().line, 3);
        assert!(read(&"x {\n".repeat(1000)).is_err());
        assert_eq!(read("a.b\nrespond `{` 200\n").unwrap().sites[0].body[0].args.len(), 2);
    }
}
