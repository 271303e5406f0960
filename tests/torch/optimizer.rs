//! 25 steps of given gradients: our weights must equal those of `torch.optim`.

use swarmline::config::{Optimizer, OptimizerKind};
use swarmline::optim::{Contribution, ParameterMut, StageOptimizer};
use swarmline_kernels::{Backend, Cpu, CpuTensor};

use crate::fixture::{Fixture, assert_close};

/// Relative error of weights after up to 25 steps: f32 rounding, about 1e-7, accumulates over the steps. The
/// change of the steps is 1e-2 and more of the weights.
const WEIGHTS_TOLERANCE: f64 = 1e-6;

/// Relative error of the total change of the steps, where a wrong coefficient would show.
const CHANGE_TOLERANCE: f64 = 2e-5;

#[test]
fn adamw_is_that_of_torch() {
    check("adamw", OptimizerKind::AdamW);
}

#[test]
fn nadamw_is_that_of_torch() {
    check("nadamw", OptimizerKind::NAdamW);
}

/// One parameter, as the model would hold it.
struct Held {
    name: &'static str,
    decays: bool,
    start: Vec<f32>,
    gradients: Vec<f32>,
    weight: CpuTensor,
    gradient: CpuTensor,
}

impl Held {
    fn new(cpu: &mut Cpu, fixture: &Fixture, name: &'static str, decays: bool) -> Self {
        let start = fixture.floats(&format!("weight.{name}"));
        let gradients = fixture.floats(&format!("gradients.{name}"));
        let mut weight = cpu.zeros(start.len()).unwrap();
        cpu.upload(&mut weight, &start).unwrap();
        let gradient = cpu.zeros(start.len()).unwrap();
        Self { name, decays, start, gradients, weight, gradient }
    }

    fn lend(&mut self) -> ParameterMut<'_, CpuTensor> {
        ParameterMut {
            name: self.name,
            weight: &mut self.weight,
            gradient: &mut self.gradient,
            len: self.start.len(),
            decays: self.decays,
        }
    }

    fn check(&self, cpu: &mut Cpu, kind: &str, step: usize, expected: &[f32]) {
        let mut found = vec![0.0; self.start.len()];
        cpu.download(&mut found, &self.weight).unwrap();
        let what = format!("{kind}: {} after step {step}", self.name);
        assert_close(&what, &found, expected, WEIGHTS_TOLERANCE);
        let change =
            |weights: &[f32]| weights.iter().zip(&self.start).map(|(w, s)| w - s).collect::<Vec<f32>>();
        assert_close(&format!("{what}, its change"), &change(&found), &change(expected), CHANGE_TOLERANCE);
    }
}

fn check(kind: &str, rule: OptimizerKind) {
    let config = Optimizer::plain(rule, 0.01, 25);
    let fixture = Fixture::open("optimizer");
    let mut cpu = Cpu::new(1).unwrap();
    let mut held =
        [("matrix", true), ("gain", false)].map(|(name, decays)| Held::new(&mut cpu, &fixture, name, decays));
    let lengths = held.each_ref().map(|held| (held.name, held.start.len()));
    let mut optimizer = StageOptimizer::new(&mut cpu, &config, 1, lengths).unwrap();

    let saved_steps: Vec<usize> = fixture.integers("saved_steps").iter().map(|&step| step as usize).collect();
    for step in 1..=saved_steps[saved_steps.len() - 1] {
        for held in &mut held {
            let gradient = held.gradients.chunks_exact(held.start.len()).nth(step - 1).unwrap();
            cpu.upload(&mut held.gradient, gradient).unwrap();
        }
        let contribution = optimizer.contribute(&mut cpu, &mut held.each_mut().map(Held::lend), 0).unwrap();
        assert!(matches!(contribution, Contribution::Stepped { .. }));

        let Some(row) = saved_steps.iter().position(|&saved| saved == step) else { continue };
        for held in &held {
            let saved = fixture.floats(&format!("{kind}.{}", held.name));
            held.check(&mut cpu, kind, step, saved.chunks_exact(held.start.len()).nth(row).unwrap());
        }
    }
}
