use std::path::Path;

use strum::VariantArray;
use swarmline_kernels::{Backend, Cpu};
use swarmline_scheduler::MicrobatchId;

use super::{CodeError, Codec, Direction, TokenCodec, TokenError};
use crate::config::{Kind, Packing, Run};
use crate::model::tests::tiny;

fn with_vocab(vocab: usize) -> Run {
    let mut run = tiny(Kind::Identity, Packing::F32);
    run.model.vocab_size = vocab;
    run
}

#[test]
fn token_ids_survive_in_the_fewest_bytes() {
    for (vocab, id_bytes) in [(256, 1), (257, 2), (65_536, 2), (65_537, 4), (200_000, 4)] {
        let codec = TokenCodec::new(&with_vocab(vocab));
        let mut ids: Vec<u32> = (0..codec.ids() as u32).collect();
        ids[0] = vocab as u32 - 1;
        let bytes = codec.encode(&ids).unwrap();
        assert_eq!((bytes.len(), codec.id_bytes()), (codec.byte_len(), id_bytes));
        let tokens = codec.decode(&bytes).unwrap();
        assert_eq!(tokens.inputs(), [&ids[..5], &ids[6..11]].concat());
        assert_eq!(tokens.targets(), [&ids[1..6], &ids[7..]].concat());
    }
}

#[test]
fn wrong_token_ids_are_errors() {
    let codec = TokenCodec::new(&with_vocab(11));
    let expected = codec.byte_len();
    for found in [0, expected - 1, expected + 1] {
        assert_eq!(codec.decode(&vec![0; found]), Err(TokenError::Length { expected, found }));
    }
    assert_eq!(codec.decode(&vec![11; expected]), Err(TokenError::OutOfRange { id: 11, vocab: 11 }));
    assert_eq!(codec.encode(&[0]), Err(TokenError::Count { expected: 12, found: 1 }));
}

#[test]
fn a_text_is_the_first_sequence_and_a_longer_one_is_an_error() {
    let codec = TokenCodec::new(&with_vocab(11));
    let tokens = codec.decode(&codec.encode_text(&[3, 1, 4]).unwrap()).unwrap();
    assert_eq!(tokens.inputs(), [3, 1, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(codec.encode_text(&[1; 6]), Err(TokenError::Count { expected: 5, found: 6 }));
}

#[test]
fn a_resent_tensor_has_the_same_bytes_and_every_tensor_its_own_rounding() {
    let run = tiny(Kind::Subspace, Packing::Q4);
    let (codec, other_cut) = (Codec::in_front_of(&run, 2), Codec::in_front_of(&run, 3));
    let mut cpu = Cpu::new(1).unwrap();
    let numbers: Vec<f32> = (0..run.tokens_per_microbatch() * 4).map(|i| (i as f32).sin()).collect();
    let mut x = cpu.zeros(numbers.len()).unwrap();
    cpu.upload(&mut x, &numbers).unwrap();
    let mut bytes =
        |codec: &Codec, id, direction| codec.encode(&mut cpu, &x, MicrobatchId(id), direction).unwrap();
    let first = bytes(&codec, 1, Direction::Forward);
    assert_eq!(first.len(), codec.byte_len());
    assert_eq!(first, bytes(&codec, 1, Direction::Forward));
    assert_ne!(first, bytes(&codec, 2, Direction::Forward));
    assert_ne!(first, bytes(&codec, 1, Direction::Backward));
    assert_ne!(first, bytes(&other_cut, 1, Direction::Forward));
}

#[test]
fn numbers_that_are_not_finite_are_not_sent() {
    let run = tiny(Kind::Identity, Packing::Q8);
    let codec = Codec::in_front_of(&run, 2);
    let mut cpu = Cpu::new(1).unwrap();
    let mut x = cpu.zeros(run.tokens_per_microbatch() * 16).unwrap();
    cpu.fill(&mut x, f32::INFINITY, 1).unwrap();
    let outcome = codec.encode(&mut cpu, &x, MicrobatchId(1), Direction::Forward);
    assert!(matches!(outcome, Err(CodeError::NonFinite { row: 0 })));
}

#[test]
fn lengths_follow_from_the_run() {
    let rows = 10;
    for (packing, per_row) in [(Packing::F32, 16), (Packing::Bf16, 8), (Packing::Q8, 6), (Packing::Q4, 4)] {
        let run = tiny(Kind::Subspace, packing);
        let lens = [0, 1, 2, 3, 4].map(|layer| Codec::in_front_of(&run, layer).byte_len());
        assert_eq!(lens, [0, rows * per_row, rows * per_row, rows * per_row, 0], "{packing:?}");
    }
    let none = tiny(Kind::None, Packing::Q8);
    assert_eq!(Codec::in_front_of(&none, 2).byte_len(), 0);
}

#[test]
fn every_code_has_the_length_that_its_codec_tells() {
    let mut cpu = Cpu::new(1).unwrap();
    for kind in [Kind::Identity, Kind::Subspace, Kind::None] {
        for &packing in Packing::VARIANTS {
            let run = tiny(kind, packing);
            let x = cpu.zeros(run.tokens_per_microbatch() * run.model.hidden_size).unwrap();
            for layer in 0..=run.model.num_hidden_layers {
                let codec = Codec::in_front_of(&run, layer);
                let bytes = codec.encode(&mut cpu, &x, MicrobatchId(1), Direction::Forward).unwrap();
                assert_eq!(bytes.len(), codec.byte_len(), "{kind:?} {packing:?} in front of layer {layer}");
            }
        }
    }
}

/// The header of the file says so.
#[test]
fn the_laptop_run_sends_18_bytes_a_token() {
    // Relative to the folder of the package, where cargo starts tests.
    let run = Run::load(Path::new("../examples/configs/laptop.toml")).unwrap();
    assert_eq!(Codec::in_front_of(&run, 2).byte_len(), 18 * run.tokens_per_microbatch());
}
