//! Text from bytes that arrive a few at a time.

/// Turns a stream of bytes into valid pieces of text: what one token leaves unfinished waits for the next.
///
/// All pieces together are `String::from_utf8_lossy` of all bytes: each maximal invalid sequence becomes one U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Takes `bytes` in; appends to `text` what is complete, and U+FFFD for what can no longer become a character.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("checked up to here"));
                    rest = invalid;
                    // None: the bytes end within a character.
                    let Some(len) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        let taken = self.pending.len() - rest.len();
        self.pending.drain(..taken);
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut stream = Utf8Stream::default();
        let mut pieces = Vec::new();
        for chunk in chunks {
            let mut text = String::new();
            stream.push(chunk, &mut text);
            pieces.push(text);
        }
        let mut text = String::new();
        stream.finish(&mut text);
        pieces.push(text);
        pieces
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        assert_eq!(
            pieces("a\u{e9}\u{20ac}\u{1f600}b".as_bytes().chunks(1)),
            ["a", "", "\u{e9}", "", "", "\u{20ac}", "", "", "", "\u{1f600}", "b", ""]
        );
    }

    #[test]
    fn what_cannot_become_a_character_does_not_wait() {
        // A continuation byte alone, a lead byte followed by a letter, a surrogate's second byte, and an end within a character.
        assert_eq!(
            pieces([b"\x80", &b"\xE2\x82"[..], b"x", b"\xED", b"\xA0", b"\xF0\x9F"]),
            ["\u{fffd}", "", "\u{fffd}x", "", "\u{fffd}\u{fffd}", "", "\u{fffd}"]
        );
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_text(
            parts in prop::collection::vec(prop_oneof![
                any::<char>().prop_map(|c| c.to_string().into_bytes()),
                prop::collection::vec(any::<u8>(), 0..4),
                // Beginnings of characters, which random bytes seldom hit.
                any::<char>().prop_map(|c| { let b = c.to_string().into_bytes(); b[..b.len() - 1].to_vec() }),
            ], 0..20),
            cut in 1usize..5,
        ) {
            let bytes = parts.concat();
            prop_assert_eq!(pieces(bytes.chunks(cut)).concat(), String::from_utf8_lossy(&bytes));
        }
    }
}
