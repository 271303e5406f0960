//! Errors of reading text.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Reasons why text cannot be used. Messages name the file and the remedy.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A path that does not exist.
    #[error("{}: no such file or directory. Correct `data.paths`; paths are relative to the run file", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// A file or directory that could not be read.
    #[error("{}: cannot be read: {cause}. Check its permissions, or leave it out of `data.paths`", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// Neither file nor directory.
    #[error("{}: neither a file nor a directory. Name text files, or a directory of them", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file named in the run file is empty.
    #[error("{}: the file is empty. Leave it out of `data.paths`", path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// A file named in the run file is not text.
    #[error("{}: not text: {reason}. Name text files; binary files inside a directory are left out by themselves", path.display())]
    Binary {
        /// The path.
        path: PathBuf,
        /// The sign that it is binary.
        reason: &'static str,
    },
    /// A directory without any usable file.
    #[error("{}: no text found: {found}. Correct `data.paths` or `data.extensions`", path.display())]
    NoFiles {
        /// The directory.
        path: PathBuf,
        /// The file endings looked for, and the files found.
        found: String,
    },
    /// The text exceeds the limit of text in memory.
    #[error("the text has more than {limit_bytes} bytes; it is held in memory. Name fewer files")]
    TooMuchText {
        /// The limit, in bytes.
        limit_bytes: u64,
    },
    /// One of the two sides has less than one sequence.
    #[error(
        "too little text: {tokens} tokens are {side}, but one sequence takes {needed} (model.max_position_embeddings + 1). \
         Add text to `data.paths` or lower `model.max_position_embeddings`"
    )]
    TooLittleText {
        /// The side: "left to train on" or "held out".
        side: &'static str,
        /// Tokens on that side.
        tokens: usize,
        /// Tokens of one sequence.
        needed: usize,
    },
    /// The file is not a tokenizer.
    #[error("{}: not a tokenizer: {cause}. Give a tokenizer.json of the `tokenizers` library, or \"bytes\"", path.display())]
    BadTokenizer {
        /// The path.
        path: PathBuf,
        /// Error of the `tokenizers` library.
        cause: String,
    },
    /// The tokenizer could not encode a file.
    #[error("{}: the tokenizer cannot encode it: {cause}. Leave the file out or use tokenizer = \"bytes\"", path.display())]
    Unencodable {
        /// The path.
        path: PathBuf,
        /// Error of the `tokenizers` library.
        cause: String,
    },
    /// The text has an id outside the model's vocabulary.
    #[error("{}: token {id} is outside model.vocab_size = {vocab}. Raise `model.vocab_size`, or leave it out", path.display())]
    OutsideVocabulary {
        /// The file.
        path: PathBuf,
        /// The first such id.
        id: u32,
        /// Entries of the model's vocabulary.
        vocab: usize,
    },
    /// A run names no text, and this machine has no sources.
    #[error("no Rust sources found in {}. Name text of your own with --data PATH", path.display())]
    NoSources {
        /// The folder that was searched.
        path: PathBuf,
    },
}
