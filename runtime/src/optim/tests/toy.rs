//! A shard of two parameters for the tests of the optimizer.

use swarmline_kernels::{Backend, Cpu, CpuTensor};

use crate::config::Optimizer;
use crate::optim::{Contribution, ParameterMut, StageOptimizer};

/// Name, length and weight decay of each parameter.
const PARAMETERS: [(&str, usize, bool); 2] = [("matrix", 35, true), ("gain", 7, false)];

/// Numbers of both parameters, one after the other.
pub(super) const NUMBERS: usize = 42;

pub(super) struct Toy {
    pub(super) cpu: Cpu,
    pub(super) optimizer: StageOptimizer<Cpu>,
    weights: Vec<CpuTensor>,
    gradients: Vec<CpuTensor>,
}

impl Toy {
    pub(super) fn new(config: &Optimizer, gradient_accumulation_steps: usize) -> Self {
        let mut cpu = Cpu::new(1).unwrap();
        let names = PARAMETERS.map(|(name, len, _)| (name, len));
        let optimizer = StageOptimizer::new(&mut cpu, config, gradient_accumulation_steps, names).unwrap();
        let mut toy = Self { weights: tensors(&mut cpu), gradients: tensors(&mut cpu), cpu, optimizer };
        toy.set_weights(&numbers(0));
        toy
    }

    /// One microbatch whose gradients are `gradient`.
    pub(super) fn contribute(&mut self, gradient: &[f32], staleness: u64) -> Contribution {
        upload(&mut self.cpu, &mut self.gradients, gradient);
        let mut parameters = lent(&mut self.weights, &mut self.gradients);
        let contribution = self.optimizer.contribute(&mut self.cpu, &mut parameters, staleness).unwrap();
        assert_eq!(download(&mut self.cpu, &self.gradients), [0.0; NUMBERS], "gradients are consumed");
        contribution
    }

    /// A step with the contributions that wait. Returns how many there were.
    pub(super) fn step_rest(&mut self) -> usize {
        let mut parameters = lent(&mut self.weights, &mut self.gradients);
        self.optimizer.step_rest(&mut self.cpu, &mut parameters).unwrap()
    }

    pub(super) fn weights(&mut self) -> Vec<f32> {
        download(&mut self.cpu, &self.weights)
    }

    pub(super) fn set_weights(&mut self, weights: &[f32]) {
        upload(&mut self.cpu, &mut self.weights, weights);
    }
}

fn lent<'a>(
    weights: &'a mut [CpuTensor],
    gradients: &'a mut [CpuTensor],
) -> Vec<ParameterMut<'a, CpuTensor>> {
    let tensors = PARAMETERS.iter().zip(weights.iter_mut().zip(gradients));
    let parameter =
        |(&(name, len, decays), (weight, gradient))| ParameterMut { name, weight, gradient, len, decays };
    tensors.map(parameter).collect()
}

/// Numbers between -1 and 1 on a grid of 1/64, so that small sums of them are exact.
pub(super) fn numbers(seed: u32) -> Vec<f32> {
    (0..NUMBERS as u32).map(|i| ((i * 37 + seed * 101 + i * i * seed) % 129) as f32 / 64.0 - 1.0).collect()
}

pub(super) fn norm(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn tensors(cpu: &mut Cpu) -> Vec<CpuTensor> {
    PARAMETERS.iter().map(|&(_, len, _)| cpu.zeros(len).unwrap()).collect()
}

fn upload(cpu: &mut Cpu, tensors: &mut [CpuTensor], mut numbers: &[f32]) {
    for (tensor, (_, len, _)) in tensors.iter_mut().zip(PARAMETERS) {
        let (head, tail) = numbers.split_at(len);
        cpu.upload(tensor, head).unwrap();
        numbers = tail;
    }
}

fn download(cpu: &mut Cpu, tensors: &[CpuTensor]) -> Vec<f32> {
    let mut numbers = vec![0.0; NUMBERS];
    let mut rest = &mut numbers[..];
    for (tensor, (_, len, _)) in tensors.iter().zip(PARAMETERS) {
        let (head, tail) = rest.split_at_mut(len);
        cpu.download(head, tensor).unwrap();
        rest = tail;
    }
    numbers
}
