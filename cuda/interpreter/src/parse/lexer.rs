//! Text to tokens.

use crate::error::{Error, Result};

/// A token. Opcodes with their modifiers, register names, directives and numbers are words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'t> {
    Word(&'t str),
    Quoted(&'t str),
    Mark(char),
}

/// A module's text, in tokens and lines.
pub(crate) struct Source<'t> {
    pub module: &'t str,
    pub lines: Vec<&'t str>,
    /// Each with its line, from 1.
    pub tokens: Vec<(u32, Token<'t>)>,
}

impl<'t> Source<'t> {
    /// The tokens of `text`; comments are dropped.
    pub fn new(module: &'t str, text: &'t str) -> Result<Self> {
        let mut source = Self { module, lines: text.lines().collect(), tokens: Vec::new() };
        let (mut rest, mut line) = (text, 1);
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
                _ if rest.starts_with("/*") => {
                    2 + 2 + rest[2..].find("*/").ok_or_else(|| source.error(line, "a comment without end"))?
                }
                _ if first.is_whitespace() => first.len_utf8(),
                '"' => {
                    let end = 1 + rest[1..].find('"').ok_or_else(|| source.error(line, "a string without end"))?;
                    source.tokens.push((line, Token::Quoted(&rest[1..end])));
                    end + 1
                }
                _ if is_word(first) => {
                    let length = word_length(rest);
                    source.tokens.push((line, Token::Word(&rest[..length])));
                    length
                }
                ',' | ';' | ':' | '{' | '}' | '(' | ')' | '[' | ']' | '<' | '>' | '|' | '!' | '@' | '+' | '-' | '=' => {
                    source.tokens.push((line, Token::Mark(first)));
                    1
                }
                _ => return Err(source.error(line, format!("the character {first:?}"))),
            };
            line += rest[..length].matches('\n').count() as u32;
            rest = &rest[length..];
        }
        Ok(source)
    }

    /// An error of this module at `line`.
    pub fn error(&self, line: u32, what: impl Into<String>) -> Error {
        let text = self.text(line).to_string();
        Error::Load { module: self.module.to_string(), line, text, what: what.into() }
    }

    /// The line without the white space around it.
    pub fn text(&self, line: u32) -> &'t str {
        self.lines.get(line as usize - 1).map_or("", |l| l.trim())
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// A word ends at the first other character; a double colon belongs to it (`L1::no_allocate`), a single one ends a
/// label. One that begins with a dot ends at the next dot, as in `.reg.b32`.
fn word_length(text: &str) -> usize {
    if let Some(directive) = text.strip_prefix('.') {
        return 1 + directive.find(|c| !is_word(c) || c == '.').unwrap_or(directive.len());
    }
    let mut length = 0;
    loop {
        length += text[length..].find(|c| !is_word(c)).unwrap_or(text.len() - length);
        match text[length..].strip_prefix("::") {
            Some(after) if after.starts_with(is_word) => length += 2,
            _ => return length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_marks_and_lines() {
        let source = Source::new("m", "ld.L1::x.v2 {%r1,_}, [%rd2+-4]; // c\n/* a\nb */$L:.reg.b32").unwrap();
        let words: Vec<_> = source.tokens.iter().map(|&(line, t)| (line, format!("{t:?}"))).collect();
        let expected = "Word(\"ld.L1::x.v2\") Mark('{') Word(\"%r1\") Mark(',') Word(\"_\") Mark('}') Mark(',') Mark('[') \
                        Word(\"%rd2\") Mark('+') Mark('-') Word(\"4\") Mark(']') Mark(';') Word(\"$L\") Mark(':') Word(\".reg\") Word(\".b32\")";
        assert_eq!(words.iter().map(|w| w.1.as_str()).collect::<Vec<_>>().join(" "), expected);
        assert_eq!((words[0].0, words[14].0), (1, 3));
    }

    #[test]
    fn errors_name_the_line() {
        let error = Source::new("m", "\n  add ^ 3;").map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "m:2: the character '^': `add ^ 3;`");
        let error = Source::new("m", "/* x").map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "m:1: a comment without end: `/* x`");
    }
}
