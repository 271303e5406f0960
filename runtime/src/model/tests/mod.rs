//! Shards against each other, against finite differences, and against hostile bytes.

mod count;
mod cut;
mod golden;
mod gradient;
mod hostile;
mod snapshot;
mod stash;

use std::collections::BTreeMap;

use swarmline_kernels::Cpu;
use swarmline_scheduler::{Loss, MicrobatchId, StageIndex, WeightVersion, WeightsPolicy};

use crate::config::{
    Averaging, Batch, Boundary, Data, Feed, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing,
    Pipeline, Policy, Run, Tokenizer,
};
use crate::model::{Shard, Upstream};
use crate::packing::{TokenCodec, Tokens};

const KINDS: [Kind; 3] = [Kind::Identity, Kind::Subspace, Kind::None];
const FIRST: MicrobatchId = MicrobatchId(1);
const SECOND: MicrobatchId = MicrobatchId(2);

/// Four layers of width 16 in three stages; a column space of rank 4; two sequences of five tokens.
pub(crate) fn tiny(kind: Kind, packing: Packing) -> Run {
    Run {
        name: "tiny".into(),
        seed: 7,
        model: Model {
            hidden_size: 16,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            intermediate_size: 24,
            max_position_embeddings: 5,
            vocab_size: 11,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
        },
        pipeline: Pipeline {
            replicas: 1,
            stages: 3,
            layers_per_stage: vec![2, 1, 1],
            mode: Mode::Asynchronous,
            max_in_flight: 6,
            initial_in_flight: 6,
            gradient_accumulation_steps: 1,
            activation_checkpointing: false,
            router: Default::default(),
        },
        boundary: Boundary { kind, rank: 4, packing, anchor_scale: 0.02 },
        batch: Batch { sequences: 2 },
        optimizer: Optimizer::of(OptimizerKind::NAdamW, Mode::Asynchronous, 10),
        averaging: Averaging { interval: 16, fragments: 20 },
        data: Data {
            paths: Vec::new(),
            extensions: Vec::new(),
            tokenizer: Tokenizer::Bytes,
            heldout: 0.05,
            heldout_microbatches: 8,
        },
        policy: Policy { join: Join::Anyone, feed: Feed::First, weights: WeightsPolicy::Open },
    }
}

pub(crate) fn cpu() -> Cpu {
    Cpu::new(1).unwrap()
}

/// Some token ids of a microbatch.
pub(crate) fn tokens(run: &Run, microbatch: MicrobatchId) -> Tokens {
    let codec = TokenCodec::new(run);
    let id = |i: usize| ((i * i + 3 * i + 5 * microbatch.0 as usize) % run.model.vocab_size) as u32;
    codec.tokens(&(0..codec.ids()).map(id).collect::<Vec<_>>()).unwrap()
}

/// The whole model in one shard, with weights large enough that every gradient is far above rounding.
pub(super) fn whole(run: &Run) -> Shard<Cpu> {
    let mut shard = Shard::new(cpu(), run, 0..run.model.num_hidden_layers, 2).unwrap();
    enlarge(&mut shard);
    shard
}

pub(crate) fn stage(run: &Run, stage: u16) -> Shard<Cpu> {
    let mut shard = Shard::for_stage(cpu(), run, StageIndex(stage), 2).unwrap();
    enlarge(&mut shard);
    shard
}

fn enlarge(shard: &mut Shard<Cpu>) {
    let matrices: Vec<String> = shard
        .params()
        .iter()
        .filter(|parameter| parameter.decays)
        .map(|parameter| parameter.name.clone())
        .collect();
    for name in matrices {
        let mut value = shard.download(&name).unwrap().unwrap();
        value.iter_mut().for_each(|number| *number *= 10.0);
        shard.upload(&name, &value).unwrap();
    }
}

/// The stages of a run, one after the other.
pub(super) struct Chain {
    pub(super) shards: Vec<Shard<Cpu>>,
}

impl Chain {
    pub(super) fn new(run: &Run) -> Self {
        Self { shards: (0..run.pipeline.stages).map(|index| stage(run, index as u16)).collect() }
    }

    pub(super) fn train(&mut self, microbatch: MicrobatchId, tokens: &Tokens) -> Loss {
        let (last, before) = self.shards.split_last_mut().unwrap();
        let mut code = Vec::new();
        for shard in before.iter_mut() {
            code = shard.forward(microbatch, WeightVersion(3), tokens, &code).unwrap();
        }
        let end = last.loss_and_backward(microbatch, tokens, &code).unwrap();
        let mut gradient = end.gradient;
        for shard in before.iter_mut().rev() {
            let backward = shard.backward(microbatch, &gradient).unwrap();
            assert_eq!(backward.version, WeightVersion(3));
            gradient = backward.gradient;
        }
        assert!(gradient.is_empty(), "nothing lies before the embedding");
        end.loss
    }

    pub(super) fn loss(&mut self, microbatch: MicrobatchId, tokens: &Tokens, upstream: Upstream) -> Loss {
        let (last, before) = self.shards.split_last_mut().unwrap();
        let mut code = Vec::new();
        for shard in before.iter_mut() {
            code = shard.evaluate(microbatch, tokens, &code).unwrap();
        }
        last.evaluate_loss(microbatch, tokens, &code, upstream).unwrap()
    }

    pub(super) fn gradients(&mut self) -> BTreeMap<String, Vec<f32>> {
        self.shards.iter_mut().flat_map(gradients).collect()
    }
}

pub(super) fn gradients(shard: &mut Shard<Cpu>) -> BTreeMap<String, Vec<f32>> {
    let names: Vec<String> = shard.params().iter().map(|parameter| parameter.name.clone()).collect();
    let gradient = |name: String| {
        let gradient = shard.download_gradient(&name).unwrap().unwrap();
        (name, gradient)
    };
    names.into_iter().map(gradient).collect()
}

/// `|a - b| / |b|`
pub(super) fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |numbers: &mut dyn Iterator<Item = f32>| {
        numbers.map(|number| f64::from(number) * f64::from(number)).sum::<f64>().sqrt()
    };
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(f64::MIN_POSITIVE)
}
