//! The tokenizer files of a folder.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Model, Tokenizer};
use crate::weights::WeightsError;

/// The `tokenizer.json` of a run whose paths start from `base`: the run's own, or one that encodes each byte to itself.
pub(super) fn file_of(tokenizer: &Tokenizer, base: &Path) -> Result<Vec<u8>, WeightsError> {
    match tokenizer {
        Tokenizer::Bytes => Ok(format!("{:#}\n", byte_tokenizer()).into_bytes()),
        Tokenizer::File(path) => {
            let path = base.join(path);
            std::fs::read(&path).map_err(WeightsError::file("read the tokenizer", &path))
        }
    }
}

/// The `tokenizer_config.json` beside it.
pub(super) fn config(model: &Model) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_position_embeddings,
        "clean_up_tokenization_spaces": false,
        "added_tokens_decoder": {},
    })
}

/// A `tokenizer.json` in which byte *b* is token *b*: a byte-level vocabulary without merges.
fn byte_tokenizer() -> Value {
    let vocab: Map<String, Value> =
        (0..=u8::MAX).map(|byte| (stand_in(byte).to_string(), json!(byte))).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level(),
        "post_processor": null,
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": [],
        },
    })
}

fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false })
}

/// The visible character that stands for a byte in byte-level vocabularies (GPT-2): the byte's own in Latin-1, or the
/// next one from U+0100 on where that is blank.
fn stand_in(byte: u8) -> char {
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_visible(&byte) {
        return char::from(byte);
    }
    let blank_before = (0..byte).filter(|byte| !is_visible(byte)).count() as u32;
    char::from_u32(0x100 + blank_before).unwrap_or(char::REPLACEMENT_CHARACTER)
}
