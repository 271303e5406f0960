//! Mistakes in a run file or a manifest.

use std::io;

use thiserror::Error;

use crate::data::DataError;

/// A value that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{field}` {problem}. Allowed: {allowed}. {remedy}")]
pub struct Violation {
    /// Path of the field, e.g. `model.hidden_size`.
    pub field: String,
    /// The mistake, as the rest of a sentence that begins with the field.
    pub problem: String,
    /// The values that the rule allows.
    pub allowed: String,
    /// The remedy, as a sentence.
    pub remedy: String,
}

/// A mistake in a run file or a manifest. Every message names the file, the mistake and the remedy, and the line and
/// the field where the mistake has one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{file}: cannot be read: {cause}. Check the path and its permissions")]
    Unreadable {
        /// The run file.
        file: String,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// The file is longer than a run file may be.
    #[error("{file}: has {bytes} bytes, more than the {limit} of a run file. Is it the right file?")]
    TooLong {
        /// The run file.
        file: String,
        /// Its length in bytes, or one more than the limit if it was not read to its end.
        bytes: usize,
        /// The limit in bytes.
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
        /// Complaint of the parser.
        problem: String,
    },
    /// A field or section that a run file does not have.
    #[error("{file}:{line}: unknown field `{field}`. {suggestion}Known here: {known}")]
    UnknownField {
        /// The run file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Path of the field, e.g. `model.hiden_size`.
        field: String,
        /// A sentence such as "Did you mean `model.hidden_size`? ", or empty.
        suggestion: String,
        /// Names of the fields of that section.
        known: String,
    },
    /// A field without a default is missing.
    #[error("{file}:{line}: `{field}` is missing. Add {remedy}")]
    Missing {
        /// The run file.
        file: String,
        /// Line of the section, from 1.
        line: usize,
        /// Path of the field.
        field: String,
        /// Text to add.
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
        /// The value, described.
        found: String,
        /// The type that the field takes.
        expected: String,
    },
    /// A value of the right type that breaks a rule.
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
        /// Why the tokenizer cannot be used.
        cause: DataError,
    },
    /// A manifest for another version of the protocol.
    #[error(
        "{file}: is for protocol {theirs}, this program speaks {ours}. Use the version of swarmline the run uses"
    )]
    Protocol {
        /// The source of the manifest.
        file: String,
        /// Protocol version of the manifest.
        theirs: u64,
        /// Protocol version of this program.
        ours: u64,
    },
    /// A valid manifest whose bytes are not the canonical ones.
    #[error("{file}: the manifest is not in canonical form. Ask the coordinator for the bytes it signed")]
    NotCanonical {
        /// The source of the manifest.
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
