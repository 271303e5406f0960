//! The cached path against the forward pass of training.

use std::path::Path;

use swarmline_kernels::Cpu;
use swarmline_scheduler::MicrobatchId;

use super::*;
use crate::config::{Kind, Model, Packing, Run, Tokenizer};
use crate::model::tests::tiny;
use crate::model::{Shard, Upstream};
use crate::packing::TokenCodec;
use crate::weights::{WeightsError, dense_parameters};

const TOLERANCE: f32 = 1e-4;
const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 10];

/// The weights of a shard of all layers, initial but larger, so that logits differ by much.
struct Whole {
    run: Run,
    shard: Shard<Cpu>,
}

impl Whole {
    /// A model of `layers` layers that reads texts of `tokens` tokens.
    fn new(layers: usize, tokens: usize) -> Self {
        let mut run = tiny(Kind::Identity, Packing::F32);
        let model = Model { num_hidden_layers: layers, max_position_embeddings: tokens, ..run.model };
        run = run.in_one_piece(model);
        run.batch.sequences = 1;
        let mut shard = Shard::new(Cpu::new(1).unwrap(), &run, 0..layers, 0).unwrap();
        for parameter in dense_parameters(&model) {
            let mut values = shard.download(&parameter.name).unwrap().unwrap();
            let signs = (0..values.len()).map(|i| (i as f32 * 0.7).sin());
            values.iter_mut().zip(signs).for_each(|(value, sign)| *value = *value * 8.0 + 0.1 * sign);
            shard.upload(&parameter.name, &values).unwrap();
        }
        Self { run, shard }
    }

    /// Logits behind `ids`, as many as the model reads, above that of id 0: the last target is no input, so the losses
    /// with each id in its place tell them.
    fn logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let codec = TokenCodec::new(&self.run);
        let mut loss_of = |target: u32| {
            let tokens = codec.tokens(&[ids, &[target]].concat()).unwrap();
            self.shard.evaluate_loss(MicrobatchId(0), &tokens, &[], Upstream::Connected).unwrap().sum
        };
        let reference = loss_of(0);
        (0..self.run.model.vocab_size as u32).map(|id| (reference - loss_of(id)) as f32).collect()
    }
}

impl Weights for Whole {
    fn model(&self) -> &Model {
        &self.run.model
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        Ok(self.shard.download(name).unwrap().unwrap())
    }
}

/// Logits behind ids fed in pieces of these lengths, above that of id 0.
fn cached(whole: &mut Whole, ids: &[u32], pieces: &[usize]) -> Vec<f32> {
    let mut decoder = Decoder::new(Cpu::new(1).unwrap(), whole).unwrap();
    let (mut rest, mut logits) = (ids, Vec::new());
    for &piece in pieces {
        let (next, after) = rest.split_at(piece);
        (logits, rest) = (decoder.feed(next).unwrap(), after);
    }
    assert!(rest.is_empty());
    logits.iter().map(|logit| logit - logits[0]).collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    let pairs = found.iter().zip(expected);
    let distance = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let size = expected.iter().copied().map(f32::abs).fold(0.0, f32::max);
    assert!(distance <= TOLERANCE && size > 1.0, "{distance}: {found:?} for {expected:?}");
}

#[test]
fn the_cached_logits_are_those_of_the_training_forward_at_every_position() {
    for tokens in 1..=IDS.len() {
        let ids = &IDS[..tokens];
        let expected = Whole::new(3, tokens).logits(ids);
        // The same weights with room for more tokens.
        let mut whole = Whole::new(3, IDS.len());
        assert_close(&cached(&mut whole, ids, &[tokens]), &expected);
        assert_close(&cached(&mut whole, ids, &vec![1; tokens]), &expected);
        assert_close(
            &cached(&mut whole, ids, &[tokens / 2, tokens - tokens / 2][usize::from(tokens < 2)..]),
            &expected,
        );
    }
}

#[test]
fn a_prompt_that_takes_several_passes_has_the_same_logits() {
    let ids: Vec<u32> = (0..150).map(|i| (i * i + 1) % 11).collect();
    let mut whole = Whole::new(2, ids.len());
    let expected = whole.logits(&ids);
    assert_close(&cached(&mut whole, &ids, &[150]), &expected);
    assert_close(&cached(&mut whole, &ids, &[1, 70, 79]), &expected);
}

/// In a model of one layer a token depends on the tokens in the window and no others.
#[test]
fn behind_the_longest_text_of_training_a_token_sees_as_many_tokens_as_that() {
    let mut whole = Whole::new(1, 4);
    let expected = whole.logits(&IDS[5..]);
    assert_close(&cached(&mut whole, &IDS, &[9]), &expected);
    assert_close(&cached(&mut whole, &IDS, &[1; 9]), &expected);
}

fn bytes() -> TextTokenizer {
    TextTokenizer::load(&Tokenizer::Bytes, Path::new("")).unwrap()
}

/// The pieces in which the text of these bytes comes out.
fn pieces(text: &[u8]) -> Vec<String> {
    let tokenizer = bytes();
    let mut stream = TextStream::behind(&tokenizer, &[0xE6, 0xBC]);
    let mut pieces: Vec<String> = text.iter().map(|&byte| stream.push(byte.into()).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn bytes_that_are_no_character_yet_wait_for_the_rest() {
    assert_eq!(pieces("aä".as_bytes()), ["a", "", "ä", ""]);
    assert_eq!(pieces("漢\u{10FFFF}".as_bytes()), ["", "", "漢", "", "", "", "\u{10FFFF}", ""]);
}

#[test]
fn bytes_that_never_become_a_character_come_out_replaced() {
    assert_eq!(pieces(b"\xFFa"), ["", "\u{FFFD}a", ""]);
    assert_eq!(pieces(b"a\xE6\xBC"), ["a", "", "", "\u{FFFD}"]);
    let text = pieces(b"\xFF\xFF\xFF\xFF\xFF\xE6\xBC\xA2!").concat();
    assert_eq!(text, "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}漢!");
}

#[test]
fn a_prompt_without_a_token_is_refused() {
    let model = TextModel { weights: Box::new(Whole::new(1, 4)), tokenizer: bytes(), ends: Vec::new() };
    let error = generate(model, "", 1, Sampling::default(), 1, |_| {}).unwrap_err();
    assert!(error.to_string().contains("prompt"), "{error}");
}

#[test]
fn a_text_ends_at_its_length_or_at_an_id_that_ends_it() {
    let model = |ends| TextModel { weights: Box::new(wide()), tokenizer: bytes(), ends };
    let generate = |ends| {
        let mut told = String::new();
        let report = generate(model(ends), "ab", 12, Sampling::default(), 1, |text| told += text).unwrap();
        assert_eq!(told, report.text);
        report.ids
    };
    let ids = generate(Vec::new());
    assert_eq!(ids.len(), 12);
    let end = ids[5];
    let before: Vec<u32> = ids.iter().copied().take_while(|&id| id != end).collect();
    assert_eq!(generate(vec![end]), before);
}

/// A model of bytes.
fn wide() -> Whole {
    let mut run = tiny(Kind::Identity, Packing::F32);
    run = run.in_one_piece(Model { num_hidden_layers: 1, vocab_size: 256, ..run.model });
    let shard = Shard::new(Cpu::new(1).unwrap(), &run, 0..1, 0).unwrap();
    Whole { run, shard }
}
