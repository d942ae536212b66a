//! Text made harmless, so that what a model or a file name says can never be markup.

use std::fmt::{self, Display, Write};

/// Shows a text in HTML or XML, as content or within double quotes.
///
/// `& < > " '` become references. Control bytes become their pictures (U+2400 and on) but for line feed and tab; what XML cannot
/// hold otherwise becomes U+FFFD. Marks that turn the direction of what follows become U+FFFD too: they would reach beyond
/// the text.
pub struct Text<T>(pub T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaped(f), "{}", self.0)
    }
}

struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.write_str("&amp;")?,
                '<' => self.0.write_str("&lt;")?,
                '>' => self.0.write_str("&gt;")?,
                '"' => self.0.write_str("&quot;")?,
                '\'' => self.0.write_str("&#39;")?,
                '\n' | '\t' => self.0.write_char(c)?,
                '\0'..='\x1f' => self.0.write_char(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'))?,
                '\x7f' => self.0.write_char('\u{2421}')?,
                '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    self.0.write_char('\u{fffd}')?
                }
                c if c as u32 & 0xfffe == 0xfffe => self.0.write_char('\u{fffd}')?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A text of at most `chars` characters, with a sign where it was cut.
pub fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some(_) => text.chars().take(chars.saturating_sub(1)).chain(['\u{2026}']).collect(),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_could_be_markup() {
        let text =
            "<script>alert(\"x\" & 'y')</script>\u{0}\u{1b}[31m\r\n\t\u{7f}\u{85}\u{202e}\u{fffe}\u{fffd}\u{1f600}";
        let shown = Text(text).to_string();
        let expected = "&lt;script&gt;alert(&quot;x&quot; &amp; &#39;y&#39;)&lt;/script&gt;\u{2400}\u{241b}[31m\u{240d}\n\t\
                        \u{2421}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{1f600}";
        assert_eq!(shown, expected);
        // Every character, one at a time: what comes back from an XML parser is one character, and none is markup.
        for c in (0..=0x10ffff).filter_map(char::from_u32) {
            let shown = format!("<a b=\"{0}\">{0}</a>", Text(c));
            if c as u32 > 0x2100 && c as u32 & 0xff > 4 && c as u32 & 0xff < 0xf0 {
                continue; // a sample of the far planes is enough
            }
            let parsed = roxmltree::Document::parse(&shown).unwrap_or_else(|e| panic!("U+{:04X}: {e}", c as u32));
            let text = parsed.root_element().text().unwrap();
            assert_eq!(text.chars().count(), 1, "U+{:04X}: {text:?}", c as u32);
        }
    }

    #[test]
    fn cutting_counts_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("\u{e9}\u{e9}\u{e9}\u{e9}", 3), "\u{e9}\u{e9}\u{2026}");
        assert_eq!(cut("", 0), "");
    }
}
