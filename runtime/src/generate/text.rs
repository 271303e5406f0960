//! From ids to text, as soon as the characters are whole.

use crate::data::TextTokenizer;

/// Most tokens that wait for the rest of a character: UTF-8 has four bytes for one.
const WAITING_MAX: usize = 4;

/// The text of ids that come one by one. Bytes that are no UTF-8 yet wait for the rest.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t TextTokenizer,
    /// The ids behind the text that has come out: some tokenizers decode an id by the ids before it.
    shown: Vec<u32>,
    waiting: Vec<u32>,
}

impl<'t> TextStream<'t> {
    /// The text behind `ids`.
    #[must_use]
    pub fn behind(tokenizer: &'t TextTokenizer, ids: &[u32]) -> Self {
        let start = ids.len().saturating_sub(WAITING_MAX);
        Self { tokenizer, shown: ids[start..].to_vec(), waiting: Vec::new() }
    }

    /// The text that `id` makes whole; empty while bytes wait.
    ///
    /// # Errors
    /// Error of the tokenizer.
    pub fn push(&mut self, id: u32) -> Result<String, String> {
        self.waiting.push(id);
        let waiting = self.waiting.len();
        let text = self.text(waiting)?;
        if !text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(self.show(waiting, text));
        }
        if waiting < WAITING_MAX {
            return Ok(String::new());
        }
        // A character that began with the first of them would be whole by now.
        let text = self.text(1)?;
        Ok(self.show(1, text))
    }

    /// The text of the bytes that still wait; what is no UTF-8 becomes the replacement character.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(&mut self) -> Result<String, String> {
        let waiting = self.waiting.len();
        let text = self.text(waiting)?;
        Ok(self.show(waiting, text))
    }

    /// The text of the first `count` ids that wait, behind those shown.
    fn text(&self, count: usize) -> Result<String, String> {
        let before = self.tokenizer.decode(&self.shown)?;
        let all = self.tokenizer.decode(&[&self.shown[..], &self.waiting[..count]].concat())?;
        match all.strip_prefix(before.as_str()) {
            Some(text) => Ok(text.to_owned()),
            None => self.tokenizer.decode(&self.waiting[..count]),
        }
    }

    /// Notes that the `text` of the first `count` ids comes out.
    fn show(&mut self, count: usize, text: String) -> String {
        if count > 0 {
            self.shown = self.waiting.drain(..count).collect();
        }
        text
    }
}
