//! A cut changes nothing: neither outputs nor gradients nor initial weights.

use swarmline_kernels::{Backend, Cpu};
use swarmline_scheduler::StageIndex;

use super::{Chain, FIRST, KINDS, SECOND, cpu, gradients, relative_distance, stage, tiny, tokens, whole};
use crate::config::{Kind, Packing, Run};
use crate::model::{Shard, Upstream};
use crate::subspace::Subspace;

#[test]
fn the_stages_together_are_bit_equal_to_the_whole_model() {
    for kind in KINDS {
        let run = tiny(kind, Packing::F32);
        let (mut chain, mut whole) = (Chain::new(&run), whole(&run));
        for microbatch in [FIRST, SECOND] {
            let tokens = tokens(&run, microbatch);
            let cut = chain.train(microbatch, &tokens);
            let one_piece = whole.loss_and_backward(microbatch, &tokens, &[]).unwrap();
            assert_eq!(cut, one_piece.loss, "{kind:?}");
            assert_eq!(chain.loss(microbatch, &tokens, Upstream::Connected), cut, "{kind:?}");
        }
        assert_eq!(chain.gradients(), gradients(&mut whole), "{kind:?}");
    }
}

#[test]
fn a_cut_between_any_two_layers_is_bit_equal_to_none() {
    for kind in [Kind::Identity, Kind::Subspace] {
        let run = tiny(kind, Packing::F32);
        let tokens = tokens(&run, FIRST);
        let one_piece =
            Shard::new(cpu(), &run, 0..4, 0).unwrap().loss_and_backward(FIRST, &tokens, &[]).unwrap();
        for cut in 1..4 {
            let mut front = Shard::new(cpu(), &run, 0..cut, 1).unwrap();
            let mut back = Shard::new(cpu(), &run, cut..4, 0).unwrap();
            let code = front.evaluate(FIRST, &tokens, &[]).unwrap();
            assert_eq!(code.len(), front.output_codec().byte_len());
            let outcome = back.loss_and_backward(FIRST, &tokens, &code).unwrap();
            assert_eq!(outcome.loss, one_piece.loss, "{kind:?} in front of layer {cut}");
            assert_eq!(outcome.gradient.len(), back.input_codec().byte_len());
        }
    }
}

#[test]
fn initial_weights_do_not_depend_on_the_cut() {
    let cuts: [&[usize]; 3] = [&[4], &[2, 1, 1], &[1, 1, 1, 1]];
    let digests = cuts.map(|layers_per_stage| {
        let mut run = tiny(Kind::Identity, Packing::F32);
        run.pipeline.stages = layers_per_stage.len();
        run.pipeline.layers_per_stage = layers_per_stage.to_vec();
        let digests_of =
            |stage| Shard::for_stage(cpu(), &run, StageIndex(stage), 1).unwrap().digests().unwrap();
        (0..layers_per_stage.len() as u16).flat_map(digests_of).collect::<Vec<_>>()
    });
    assert_eq!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2]);
}

#[test]
fn initial_values_have_the_promised_spread() {
    let mut run = tiny(Kind::Subspace, Packing::F32);
    (run.model.hidden_size, run.model.intermediate_size, run.boundary.rank, run.model.vocab_size) =
        (64, 128, 16, 500);
    let mut shard = Shard::new(cpu(), &run, 0..4, 0).unwrap();
    let mut std = |name: &str| {
        let value = shard.download(name).unwrap().unwrap();
        let squares: f64 = value.iter().map(|&number| f64::from(number) * f64::from(number)).sum();
        (squares / value.len() as f64).sqrt()
    };
    let dense_writer = 0.02 / 8f64.sqrt();
    for (name, expected) in [
        ("embed", 0.04),
        ("head", 0.02),
        ("layers.0.attention.wq", 0.02),
        ("layers.0.attention.wo", 2.0 * dense_writer),
        ("layers.3.attention.wo", dense_writer),
        ("layers.2.ffn.down", 2.0 * dense_writer),
        ("norm", 1.0),
    ] {
        assert!((std(name) / expected - 1.0).abs() < 0.05, "{name}: {} for {expected}", std(name));
    }
}

#[test]
fn one_stage_constrains_nothing() {
    let mut run = tiny(Kind::Subspace, Packing::F32);
    (run.pipeline.stages, run.pipeline.layers_per_stage) = (1, vec![4]);
    assert_eq!(run.parameter_specs(0..4), tiny(Kind::Identity, Packing::F32).parameter_specs(0..4));
}

#[test]
fn the_loss_notices_a_cut_upstream_unless_nothing_crosses() {
    for kind in KINDS {
        let run = tiny(kind, Packing::Q8);
        let (mut chain, tokens) = (Chain::new(&run), tokens(&run, FIRST));
        let connected = chain.loss(FIRST, &tokens, Upstream::Connected);
        let cut = chain.loss(FIRST, &tokens, Upstream::Cut);
        assert_eq!(connected == cut, kind == Kind::None, "{kind:?}: {connected:?}, {cut:?}");
    }
}

#[test]
fn nothing_is_sent_and_nothing_upstream_learns() {
    let run = tiny(Kind::None, Packing::Q8);
    let mut chain = Chain::new(&run);
    let code = chain.shards[0].evaluate(FIRST, &tokens(&run, FIRST), &[]).unwrap();
    assert!(code.is_empty());
    chain.train(FIRST, &tokens(&run, FIRST));
    for (name, gradient) in chain.gradients() {
        let learns = name.starts_with("layers.3") || name == "norm" || name == "head";
        assert_eq!(gradient.iter().any(|&number| number != 0.0), learns, "{name}");
    }
}

#[test]
fn eight_bits_change_gradients_by_a_few_percent() {
    for kind in [Kind::Identity, Kind::Subspace] {
        let exact = tiny(kind, Packing::F32);
        let tokens = tokens(&exact, FIRST);
        let (mut a, mut b) = (Chain::new(&exact), Chain::new(&tiny(kind, Packing::Q8)));
        let (loss_a, loss_b) = (a.train(FIRST, &tokens), b.train(FIRST, &tokens));
        assert!((loss_a.sum - loss_b.sum).abs() < 0.02 * loss_a.sum, "{loss_a:?} {loss_b:?}");
        let quantized = b.gradients();
        for (name, gradient) in a.gradients() {
            let distance = relative_distance(&quantized[&name], &gradient);
            assert!(distance < 0.1, "{kind:?} {name}: {distance}");
        }
    }
}

/// The dense model whose writers are `U A` computes the stream that the coordinates stand for, and that stream
/// minus its anchor lies in the column space.
#[test]
fn constrained_stages_stay_within_the_column_space() {
    let run = tiny(Kind::Subspace, Packing::F32);
    let (d, k, v) = (run.model.hidden_size, run.boundary.rank, run.model.vocab_size);
    let mut constrained = stage(&run, 0);
    let (basis, anchor) = basis_and_anchor(&run);

    let mut dense = stage(&tiny(Kind::Identity, Packing::F32), 0);
    let names: Vec<String> = dense.params().iter().map(|parameter| parameter.name.clone()).collect();
    for name in names {
        let value = constrained.download(&name).unwrap().unwrap();
        let value = match name.rsplit('.').next().unwrap() {
            "embed" => {
                let mut table = product(&value, &basis, v, k, d);
                table.iter_mut().zip(&anchor).for_each(|(x, anchor)| *x += anchor);
                table
            }
            "wo" => product(&transposed(&basis, k, d), &value, d, k, d),
            "down" => product(&transposed(&basis, k, d), &value, d, k, run.model.intermediate_size),
            _ => value,
        };
        dense.upload(&name, &value).unwrap();
    }

    let tokens = tokens(&run, FIRST);
    let x = floats(&dense.evaluate(FIRST, &tokens, &[]).unwrap());
    let z = floats(&constrained.evaluate(FIRST, &tokens, &[]).unwrap());
    let rows = run.tokens_per_microbatch();
    let mut offset = x;
    for (row, &id) in offset.chunks_exact_mut(d).zip(tokens.inputs()) {
        row.iter_mut().zip(&anchor[id as usize * d..]).for_each(|(x, anchor)| *x -= anchor);
    }
    assert!(relative_distance(&product(&z, &basis, rows, k, d), &offset) < 1e-4);
    let coordinates = product(&offset, &transposed(&basis, k, d), rows, d, k);
    assert!(relative_distance(&product(&coordinates, &basis, rows, k, d), &offset) < 1e-4);
}

/// `U^T[k,d]`, read off by lifting unit vectors, and `E0[V,d]`.
fn basis_and_anchor(run: &Run) -> (Vec<f32>, Vec<f32>) {
    let (d, k, rows) = (run.model.hidden_size, run.boundary.rank, run.tokens_per_microbatch());
    let mut cpu = cpu();
    let space = Subspace::<Cpu>::new(&mut cpu, run).unwrap();
    let mut units = vec![0.0; rows * k];
    (0..k).for_each(|i| units[i * k + i] = 1.0);
    let mut z = cpu.zeros(rows * k).unwrap();
    cpu.upload(&mut z, &units).unwrap();
    let (mut x, zero) = (cpu.zeros(rows * d).unwrap(), cpu.zeros(rows * d).unwrap());
    space.lift(&mut cpu, &mut x, &z, &zero).unwrap();
    let mut basis = vec![0.0; k * d];
    cpu.download(&mut basis, &x).unwrap();

    let vocab = run.model.vocab_size;
    let ids = cpu.ids(&(0..vocab as u32).collect::<Vec<_>>(), vocab).unwrap();
    let mut table = cpu.zeros(vocab * d).unwrap();
    space.anchor(&mut cpu, &mut table, &ids).unwrap();
    let mut anchor = vec![0.0; vocab * d];
    cpu.download(&mut anchor, &table).unwrap();
    (basis, anchor)
}

/// `a[n,m] b[m,p]`
fn product(a: &[f32], b: &[f32], n: usize, m: usize, p: usize) -> Vec<f32> {
    let entry = |i: usize| (0..m).map(|j| a[i / p * m + j] * b[j * p + i % p]).sum();
    (0..n * p).map(entry).collect()
}

/// `a[n,m]^T`
fn transposed(a: &[f32], n: usize, m: usize) -> Vec<f32> {
    (0..n * m).map(|i| a[i % n * m + i / n]).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
