//! What can be wrong with a run file.

use std::io;

use thiserror::Error;

use crate::data::DataError;

/// A value that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{field}` {problem}. Allowed: {allowed}. {remedy}")]
pub struct Violation {
    /// Path of the field, e.g. `model.hidden_size`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub allowed: String,
    /// What to do.
    pub remedy: String,
}

/// Why a run file or a manifest was refused. Every message names the file, where it can the line and the field,
/// what is wrong and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{file}: cannot be read: {cause}. Check the path and its permissions")]
    Unreadable {
        /// The run file.
        file: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The file is longer than any run file has reason to be.
    #[error("{file}: has {bytes} bytes, more than the {limit} of a run file. Is it the right file?")]
    TooLong {
        /// The run file.
        file: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The text is not UTF-8.
    #[error("{file}:{line}: not UTF-8 text. Save the file as UTF-8")]
    NotText {
        /// The run file.
        file: String,
        /// Line of the first bad byte, from 1.
        line: usize,
    },
    /// The text is not TOML.
    #[error("{file}:{line}:{column}: not valid TOML: {problem}. Correct the line; see https://toml.io")]
    Syntax {
        /// The run file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Character in the line, from 1.
        column: usize,
        /// What the parser expected.
        problem: String,
    },
    /// A field or section nobody knows.
    #[error("{file}:{line}: unknown field `{field}`. {suggestion}Known here: {known}")]
    UnknownField {
        /// The run file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Path of the field, e.g. `model.widht`.
        field: String,
        /// "Did you mean ...? ", or nothing.
        suggestion: String,
        /// The fields of that section.
        known: String,
    },
    /// A field that has no default is not there.
    #[error("{file}:{line}: `{field}` is missing. Add {remedy}")]
    Missing {
        /// The run file.
        file: String,
        /// Line of the section, from 1.
        line: usize,
        /// Path of the field.
        field: String,
        /// What to write.
        remedy: String,
    },
    /// A value of the wrong type.
    #[error("{file}:{line}: `{field}` is {found}, but must be {expected}")]
    WrongType {
        /// The run file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Path of the field.
        field: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A value of the right type that makes no sense.
    #[error("{file}:{line}: {violation}")]
    Impossible {
        /// The run file.
        file: String,
        /// Line of the field, or of its section where the value is a default; from 1.
        line: usize,
        /// The rule that is broken.
        violation: Box<Violation>,
    },
    /// The tokenizer named by `data.tokenizer` could not be used.
    #[error("{file}:{line}: `data.tokenizer`: {cause}")]
    Tokenizer {
        /// The run file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What went wrong.
        cause: DataError,
    },
    /// A manifest for another version of the protocol.
    #[error(
        "{file}: is for protocol {theirs}, this program speaks {ours}. Use the version of swarmline the run uses"
    )]
    Protocol {
        /// Where the manifest came from.
        file: String,
        /// Version it names.
        theirs: u64,
        /// Version of this program.
        ours: u64,
    },
    /// A manifest that says the right things in another way than every other peer would.
    #[error("{file}: the manifest is not in canonical form. Ask the coordinator for the bytes it signed")]
    NotCanonical {
        /// Where the manifest came from.
        file: String,
    },
}

impl ConfigError {
    /// Line of the mistake, from 1, where there is one.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::NotText { line, .. }
            | Self::Syntax { line, .. }
            | Self::UnknownField { line, .. }
            | Self::Missing { line, .. }
            | Self::WrongType { line, .. }
            | Self::Impossible { line, .. }
            | Self::Tokenizer { line, .. } => Some(*line),
            Self::Unreadable { .. }
            | Self::TooLong { .. }
            | Self::Protocol { .. }
            | Self::NotCanonical { .. } => None,
        }
    }

    /// Path of the field that is wrong, e.g. `model.hidden_size`, where there is one.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::UnknownField { field, .. }
            | Self::Missing { field, .. }
            | Self::WrongType { field, .. } => Some(field),
            Self::Impossible { violation, .. } => Some(&violation.field),
            Self::Tokenizer { .. } => Some("data.tokenizer"),
            Self::Unreadable { .. }
            | Self::TooLong { .. }
            | Self::NotText { .. }
            | Self::Syntax { .. }
            | Self::Protocol { .. }
            | Self::NotCanonical { .. } => None,
        }
    }
}
