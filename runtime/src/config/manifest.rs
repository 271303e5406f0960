//! The manifest: the part of a run that all its processes must agree on.

use std::path::{Path, PathBuf};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

use super::annotate::{Style, write_sections};
use super::document::Document;
use super::error::{ConfigError, Violation};
use super::fields::{BYTES, SECTIONS, text};
use super::{Join, Run, Tokenizer, check, limits, resolve};
use crate::data::TextTokenizer;

/// Version of the rules that peers share beside the run: frames, messages, initial weights, random numbers.
///
/// It changes whenever two programs with equal manifests could compute different numbers.
pub const PROTOCOL: u64 = 6;

/// Name used in messages about a manifest.
const SOURCE: &str = "manifest";
/// The word for a tokenizer file, beside [`BYTES`].
const FILE: &str = "file";
/// Stands for the path of a tokenizer file, which only the feeder has.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// The part of a run that all its processes must agree on: the run without the coordinator's own choices (data paths,
/// the peers that may join), the digest of the tokenizer, and the protocol version.
///
/// The canonical bytes are TOML without comments: every field, in a fixed order. Two manifests are equal exactly when
/// their bytes are equal. A peer never executes or opens any part of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    run: Run,
    tokenizer: [u8; 32],
    tokenizer_vocab: usize,
}

impl Manifest {
    /// The manifest of a run whose paths are relative to `base`.
    ///
    /// # Errors
    /// The tokenizer cannot be loaded, or `run` was built in code and breaks a rule.
    pub fn of(run: &Run, base: &Path) -> Result<Self, ConfigError> {
        let tokenizer = TextTokenizer::load(&run.data.tokenizer, base)
            .map_err(|cause| ConfigError::Tokenizer { file: run.name.clone(), line: 1, cause })?;
        let manifest = Self {
            run: without_own_choices(run),
            tokenizer: tokenizer.digest(),
            tokenizer_vocab: tokenizer.vocab(),
        };
        Self::from_bytes(&manifest.to_bytes())
    }

    /// Reads a manifest from a peer, under the same rules and limits as a run file.
    ///
    /// # Errors
    /// Bytes that are too many, not text, not TOML, incomplete, not canonical, for another protocol, or values that
    /// break a rule.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > limits::MANIFEST_BYTES_MAX {
            let (bytes, limit) = (bytes.len(), limits::MANIFEST_BYTES_MAX);
            return Err(ConfigError::TooLong { file: SOURCE.to_owned(), bytes, limit });
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| ConfigError::NotText { file: SOURCE.to_owned(), line: 1 })?;
        let manifest = Self::parse(&Document::parse(text, SOURCE)?)?;
        if manifest.to_bytes() != bytes {
            return Err(ConfigError::NotCanonical { file: SOURCE.to_owned() });
        }
        Ok(manifest)
    }

    fn parse(document: &Document<'_>) -> Result<Self, ConfigError> {
        document.refuse_unknown(&known_fields())?;
        let theirs = document.number("", "protocol")?.unwrap_or(0);
        if theirs != PROTOCOL {
            return Err(ConfigError::Protocol { file: SOURCE.to_owned(), theirs, ours: PROTOCOL });
        }
        let is_file = document.word("", "tokenizer", &[BYTES, FILE])? == Some(FILE);
        let tokenizer =
            if is_file { Tokenizer::File(PathBuf::from(TOKENIZER_FILE)) } else { Tokenizer::Bytes };
        // Only the feeder has the file; the manifest states the size of its vocabulary.
        let tokenizer_vocab = document.count("", "tokenizer_vocab")?.unwrap_or(0);
        let run = resolve::read_run(document, tokenizer, tokenizer_vocab)?;
        check::run(&run, tokenizer_vocab).map_err(|violation| resolve::impossible(document, violation))?;
        Ok(Self { run, tokenizer: read_digest(document)?, tokenizer_vocab })
    }

    /// The run, without data paths and as if any peer may join.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Digest of the tokenizer: of its file, or of its name for a tokenizer without a file.
    #[must_use]
    pub fn tokenizer_digest(&self) -> [u8; 32] {
        self.tokenizer
    }

    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let kind = match self.run.data.tokenizer {
            Tokenizer::Bytes => BYTES,
            Tokenizer::File(_) => FILE,
        };
        let head = format!(
            "protocol = {PROTOCOL}\ntokenizer = {}\ntokenizer_digest = {}\ntokenizer_vocab = {}\n",
            text(kind),
            text(&HEXLOWER.encode(&self.tokenizer)),
            self.tokenizer_vocab,
        );
        (head + &write_sections(&self.run, |field| field.shared, Style::Bare)).into_bytes()
    }

    /// blake3 of the canonical bytes; part of every handshake.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }
}

fn without_own_choices(run: &Run) -> Run {
    let mut run = run.clone();
    run.data.paths.clear();
    run.policy.join = Join::Anyone;
    if let Tokenizer::File(path) = &mut run.data.tokenizer {
        *path = PathBuf::from(TOKENIZER_FILE);
    }
    run
}

fn known_fields() -> Vec<(&'static str, Vec<&'static str>)> {
    let shared = SECTIONS.iter().map(|section| {
        let names = section.fields.iter().filter(|field| field.shared).map(|field| field.name);
        (section.name, names.collect())
    });
    let own = ["protocol", "tokenizer", "tokenizer_digest", "tokenizer_vocab"];
    std::iter::once(("", own.to_vec()))
        .chain(shared)
        .filter(|(_, fields): &(_, Vec<_>)| !fields.is_empty())
        .collect()
}

fn read_digest(document: &Document<'_>) -> Result<[u8; 32], ConfigError> {
    let written = document.text("", "tokenizer_digest")?.unwrap_or_default();
    let bytes = HEXLOWER_PERMISSIVE.decode(written.as_bytes()).unwrap_or_default();
    <[u8; 32]>::try_from(bytes).map_err(|_| {
        let violation = Violation {
            field: "tokenizer_digest".to_owned(),
            problem: "is not a digest".to_owned(),
            allowed: "64 hexadecimal digits".to_owned(),
            remedy: "Ask the coordinator for the manifest again".to_owned(),
        };
        resolve::impossible(document, violation)
    })
}
