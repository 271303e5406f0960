//! Choices among a few words.
//!
//! A choice of a run is an enum in `run.rs`, and its words are derived there. Reading, writing, the lists in messages
//! and in annotated files all take them from the enum.

use strum::VariantArray;

/// An enum without data, each of whose variants has a word.
pub(super) trait Word: VariantArray + Copy + Into<&'static str> {
    /// The word of this variant.
    fn word(self) -> &'static str {
        self.into()
    }

    /// All words, in the order of the variants.
    fn words() -> Vec<&'static str> {
        Self::VARIANTS.iter().map(|variant| variant.word()).collect()
    }

    /// The variant with this word.
    fn of_word(word: &str) -> Option<Self> {
        Self::VARIANTS.iter().copied().find(|variant| variant.word() == word)
    }
}

impl<T: VariantArray + Copy + Into<&'static str>> Word for T {}
