//! Two small LLaMA models: logits, loss, every gradient and ten AdamW steps must equal PyTorch's.

use swarmline::config::{
    Averaging, Batch, Boundary, Data, Feed, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing,
    Pipeline, Policy, Run, Tokenizer,
};
use swarmline::error::WeightsError;
use swarmline::generate::Decoder;
use swarmline::model::{Shard, Upstream};
use swarmline::optim::{Contribution, ParameterMut, StageOptimizer};
use swarmline::packing::{TokenCodec, Tokens};
use swarmline::weights::Weights;
use swarmline_kernels::{Cpu, Result};
use swarmline_scheduler::{MicrobatchId, WeightsPolicy};

use crate::fixture::{Fixture, assert_close};

/// Relative error of logits, losses and gradients. f32 sums over a few dozen numbers and layers leave about 1e-6;
/// a wrong epsilon, angle or scale shows far above this.
const TOLERANCE: f64 = 1e-5;

/// Relative error of the losses of ten steps. Adam divides by the size of the gradient, so entries that are nearly
/// zero magnify rounding.
const TRAINED_TOLERANCE: f64 = 2e-5;

const FIXTURES: [&str; 2] = ["llama_equal_heads", "llama_grouped_queries"];

/// One shard of all layers with the fixture's weights.
struct Case {
    name: &'static str,
    fixture: Fixture,
    run: Run,
    shard: Shard<Cpu>,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        FIXTURES.into_iter().map(Self::open)
    }

    fn open(name: &'static str) -> Self {
        let run = run(&Fixture::open(name).config());
        Self::of(name, run)
    }

    /// The same weights in a model with sequences of `context` tokens.
    fn shortened(&self, context: usize) -> Self {
        let mut run = self.run.clone();
        run.model.max_position_embeddings = context;
        Self::of(self.name, run)
    }

    fn of(name: &'static str, run: Run) -> Self {
        let fixture = Fixture::open(name);
        let mut shard = Shard::new(Cpu::new(1).unwrap(), &run, 0..run.model.num_hidden_layers, 1).unwrap();
        let names = fixture.names("weight.");
        assert_eq!(names.len(), shard.params().iter().len());
        for parameter in names {
            shard.upload(&parameter, &fixture.floats(&format!("weight.{parameter}"))).unwrap();
        }
        Self { name, fixture, run, shard }
    }

    /// Token ids `[B, T + 1]` of each microbatch.
    fn microbatches(&self) -> Vec<Vec<u32>> {
        let ids = TokenCodec::new(&self.run).ids();
        self.fixture.integers("tokens").chunks_exact(ids).map(<[u32]>::to_vec).collect()
    }

    fn tokens(&self, ids: &[u32]) -> Tokens {
        TokenCodec::new(&self.run).tokens(ids).unwrap()
    }

    /// Forward and backward of a microbatch; the mean loss in nats.
    fn loss_and_backward(&mut self, ids: &[u32]) -> f32 {
        let tokens = self.tokens(ids);
        let outcome = self.shard.loss_and_backward(MicrobatchId(0), &tokens, &[]).unwrap();
        (outcome.loss.sum / f64::from(outcome.loss.tokens)) as f32
    }

    /// Summed loss of a microbatch, in nats.
    fn evaluate(&mut self, ids: &[u32]) -> f64 {
        let tokens = self.tokens(ids);
        self.shard.evaluate_loss(MicrobatchId(0), &tokens, &[], Upstream::Connected).unwrap().sum
    }
}

#[test]
fn the_loss_and_every_gradient_are_those_of_torch() {
    for mut case in Case::all() {
        let first = case.microbatches()[0].clone();
        let loss = case.loss_and_backward(&first);
        assert_close(case.name, &[loss], &case.fixture.floats("losses")[..1], TOLERANCE);
        for parameter in case.fixture.names("gradient.") {
            let found = case.shard.download_gradient(&parameter).unwrap().unwrap();
            let expected = case.fixture.floats(&format!("gradient.{parameter}"));
            assert_close(&format!("{}: {parameter}", case.name), &found, &expected, TOLERANCE);
        }
    }
}

/// Attention is causal, so every position is the last of a shorter model.
#[test]
fn the_logits_of_every_position_are_those_of_torch() {
    for case in Case::all() {
        let (context, vocab) = (case.run.model.max_position_embeddings, case.run.model.vocab_size);
        let ids = case.microbatches()[0].clone();
        let logits = case.fixture.floats("logits");
        for position in 0..context {
            let mut short = case.shortened(position + 1);
            let ids: Vec<u32> = ids
                .chunks_exact(context + 1)
                .flat_map(|sequence| &sequence[..position + 2])
                .copied()
                .collect();
            for sequence in 0..case.run.batch.sequences {
                let row = (sequence * context + position) * vocab;
                let expected: Vec<f32> =
                    logits[row..row + vocab].iter().map(|logit| logit - logits[row]).collect();
                let what = format!("{}: logits of position {position}", case.name);
                assert_close(&what, &last_logits(&mut short, &ids, sequence), &expected, TOLERANCE);
            }
        }
    }
}

/// The last target of a sequence is no input. So the losses with each id in its place give the logits of that position,
/// up to a constant that the softmax does not see: here the logit of id 0 is 0.
fn last_logits(case: &mut Case, ids: &[u32], sequence: usize) -> Vec<f32> {
    let (context, vocab) = (case.run.model.max_position_embeddings, case.run.model.vocab_size);
    let mut ids = ids.to_vec();
    let mut loss_of = |id: usize| {
        ids[sequence * (context + 1) + context] = id as u32;
        case.evaluate(&ids)
    };
    let reference = loss_of(0);
    (0..vocab).map(|id| (reference - loss_of(id)) as f32).collect()
}

/// The weights of a fixture.
struct FixtureWeights {
    fixture: Fixture,
    model: Model,
}

impl Weights for FixtureWeights {
    fn model(&self) -> &Model {
        &self.model
    }

    fn read(&mut self, name: &str) -> std::result::Result<Vec<f32>, WeightsError> {
        Ok(self.fixture.floats(&format!("weight.{name}")))
    }
}

#[test]
fn the_logits_of_text_that_is_generated_are_those_of_torch() {
    for case in Case::all() {
        let (context, vocab) = (case.run.model.max_position_embeddings, case.run.model.vocab_size);
        let mut weights = FixtureWeights { fixture: Fixture::open(case.name), model: case.run.model };
        let expected = case.fixture.floats("logits");
        let mut expected = expected.chunks_exact(vocab);
        for sequence in case.microbatches()[0].chunks_exact(context + 1) {
            let mut decoder = Decoder::new(Cpu::new(1).unwrap(), &mut weights).unwrap();
            for (position, &id) in sequence[..context].iter().enumerate() {
                let what = format!("{}: logits of position {position}", case.name);
                assert_close(&what, &decoder.feed(&[id]).unwrap(), expected.next().unwrap(), TOLERANCE);
            }
        }
    }
}

#[test]
fn ten_steps_of_adamw_are_those_of_torch() {
    for mut case in Case::all() {
        let mut optimizer = optimizer_of(&mut case).unwrap();
        let mut losses = Vec::new();
        for ids in case.microbatches() {
            losses.push(case.loss_and_backward(&ids));
            let contribution = step(&mut case.shard, &mut optimizer).unwrap();
            assert!(matches!(contribution, Contribution::Stepped { .. }));
        }
        let expected = case.fixture.floats("losses");
        for (step, (found, expected)) in losses.iter().zip(&expected).enumerate() {
            let what = format!("{}: loss of step {}", case.name, step + 1);
            assert_close(&what, &[*found], &[*expected], TRAINED_TOLERANCE);
        }
        assert_eq!(losses.len(), expected.len());
    }
}

fn optimizer_of(case: &mut Case) -> Result<StageOptimizer<Cpu>> {
    let (backend, params) = case.shard.backend_and_params();
    let parameters = params.iter().map(|parameter| (parameter.name.as_str(), parameter.len()));
    StageOptimizer::new(backend, &case.run.optimizer, 1, parameters)
}

fn step(shard: &mut Shard<Cpu>, optimizer: &mut StageOptimizer<Cpu>) -> Result<Contribution> {
    let (backend, params) = shard.backend_and_params();
    let lent = params.iter_mut().map(|parameter| ParameterMut {
        len: parameter.len(),
        name: &parameter.name,
        weight: &mut parameter.weight,
        gradient: &mut parameter.gradient,
        decays: parameter.decays,
    });
    optimizer.contribute(backend, &mut lent.collect::<Vec<_>>(), 0)
}

/// A run of one stage with the sizes in `config`, under the names of `generate.py`.
fn run(config: &serde_json::Value) -> Run {
    let count = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let number = |key: &str| config[key].as_f64().unwrap() as f32;
    let model = Model {
        hidden_size: count("width"),
        num_hidden_layers: count("layers"),
        num_attention_heads: count("heads"),
        num_key_value_heads: count("kv_heads"),
        intermediate_size: count("ffn"),
        max_position_embeddings: count("context"),
        vocab_size: count("vocab"),
        rope_theta: number("rope_theta"),
        rms_norm_eps: number("norm_epsilon"),
    };
    Run {
        name: "torch".into(),
        seed: 0,
        pipeline: pipeline(model.num_hidden_layers),
        boundary: Boundary {
            kind: Kind::Identity,
            rank: model.hidden_size,
            packing: Packing::F32,
            anchor_scale: 0.0,
        },
        model,
        batch: Batch { sequences: count("sequences") },
        optimizer: Optimizer::plain(OptimizerKind::AdamW, 1e-3, 10),
        averaging: Averaging { interval: 0, fragments: 20 },
        data: Data {
            paths: Vec::new(),
            extensions: Vec::new(),
            tokenizer: Tokenizer::Bytes,
            heldout: 0.0,
            heldout_microbatches: 1,
        },
        policy: Policy { join: Join::Anyone, feed: Feed::First, weights: WeightsPolicy::Open },
    }
}

fn pipeline(layers: usize) -> Pipeline {
    Pipeline {
        stages: 1,
        replicas: 1,
        layers_per_stage: vec![layers],
        mode: Mode::Synchronous,
        max_in_flight: 1,
        initial_in_flight: 1,
        gradient_accumulation_steps: 1,
        activation_checkpointing: false,
        router: Default::default(),
    }
}
