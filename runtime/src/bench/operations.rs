//! Every operation of the backend, forward and backward, at the shapes a model has.

use std::time::Duration;

use serde::Serialize;
use strum::VariantArray as _;
use swarmline_kernels::{AdamStep, Backend as _, Cpu, CpuIds, CpuTensor, Result, RoundingKey, Write, random};

use super::flops;
use super::peaks::{Peaks, product_gflops_now};
use super::size::Size;
use super::timing::{self, Bounds};
use crate::config::Packing;
use crate::model::Sizes;
use crate::packing::packed_format;

/// Bounds of one operation; a benchmark measures about sixty.
const BOUNDS: Bounds = Bounds { samples_min: 3, samples_max: 25, time: Duration::from_millis(100) };
/// Limit of the numbers that the operations of the optimizer run over; more would take longer at the same rate.
const OPTIMIZER_NUMBERS_MAX: usize = 1 << 24;

/// Least work of one call.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes read and written, each once. In caches the rate may exceed that of any memory.
    Bytes(f64),
}

impl Work {
    /// Most work per second of the machine: for products measured now, for streams from `peaks`.
    fn peak(self, peaks: &Peaks) -> f64 {
        match self {
            Self::Flops(_) => 1e9 * product_gflops_now(peaks.threads),
            Self::Bytes(_) => 1e9 * peaks.stream_gb_s,
        }
    }

    pub(super) fn amount(self) -> f64 {
        match self {
            Self::Flops(amount) | Self::Bytes(amount) => amount,
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Flops(_) => "GFLOP/s",
            Self::Bytes(_) => "GB/s",
        }
    }
}

/// Figures of one operation at one shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperationReport {
    /// Name of the operation in the backend, and its role in the model.
    pub name: String,
    /// `rows x inputs x outputs` of a product, numbers otherwise.
    pub shape: String,
    /// Median seconds of a call.
    pub seconds: f64,
    /// Seconds of the fastest call.
    pub seconds_best: f64,
    /// Least work of a call.
    pub work: Work,
    /// GFLOP/s or GB/s of the median call.
    pub rate: f64,
    /// Share of the product peak, measured before and after, or of the stream bandwidth, that the median call reaches.
    pub share_of_peak: f64,
    /// The same of the fastest call. On a busy machine it tells more about the operation: the peaks are the best of
    /// several measurements too.
    pub share_of_peak_best: f64,
    /// Calls in a step; 0 for an operation that a model in one stage does not use.
    pub calls_per_step: f64,
}

impl OperationReport {
    /// Seconds of a step that go into this operation.
    #[must_use]
    pub fn seconds_per_step(&self) -> f64 {
        self.seconds * self.calls_per_step
    }
}

/// Measures every operation.
///
/// # Errors
/// If the device fails.
pub(super) fn measure(cpu: &mut Cpu, size: Size, peaks: &Peaks) -> Result<Vec<OperationReport>> {
    let mut bench = Bench { cpu, size, sizes: size.sizes(), peaks, reports: Vec::new() };
    bench.products()?;
    bench.attention()?;
    bench.norms()?;
    bench.elementwise()?;
    bench.tokens()?;
    bench.optimizer()?;
    bench.boundary()?;
    Ok(bench.reports)
}

struct Bench<'a> {
    cpu: &'a mut Cpu,
    size: Size,
    sizes: Sizes,
    peaks: &'a Peaks,
    reports: Vec<OperationReport>,
}

impl Bench<'_> {
    fn time(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<String>,
        work: Work,
        calls_per_step: f64,
        mut call: impl FnMut(&mut Cpu) -> Result<()>,
    ) -> Result<()> {
        let before = work.peak(self.peaks);
        let timing = timing::time(BOUNDS, || call(self.cpu))?;
        let peak = f64::midpoint(before, work.peak(self.peaks));
        let rate = |seconds: f64| work.amount() / seconds;
        let share = |seconds: f64| rate(seconds) / peak;
        self.reports.push(OperationReport {
            name: name.into(),
            shape: shape.into(),
            seconds: timing.median_s,
            seconds_best: timing.best_s,
            work,
            rate: rate(timing.median_s) / 1e9,
            share_of_peak: share(timing.median_s),
            share_of_peak_best: share(timing.best_s),
            calls_per_step,
        });
        Ok(())
    }

    fn layers(&self) -> f64 {
        self.sizes.model.num_hidden_layers as f64
    }

    fn products(&mut self) -> Result<()> {
        let (model, layers) = (self.sizes.model, self.layers());
        let (d, f, g) = (model.hidden_size, model.intermediate_size, self.sizes.model.kv_width());
        // Writers to the stream add to it; the second and later readers of a norm add to its gradient.
        self.product("wq", d, d, layers, Write::Set, Write::Set)?;
        self.product("wk, wv", d, g, 2.0 * layers, Write::Set, Write::Add)?;
        self.product("wo", d, d, layers, Write::Add, Write::Set)?;
        self.product("gate, up", d, f, 2.0 * layers, Write::Set, Write::Add)?;
        self.product("down", f, d, layers, Write::Add, Write::Set)?;
        self.product("head", d, model.vocab_size, 1.0, Write::Set, Write::Set)
    }

    fn product(
        &mut self,
        role: &str,
        inputs: usize,
        outputs: usize,
        calls: f64,
        forward: Write,
        backward: Write,
    ) -> Result<()> {
        let shape = self.sizes.linear(inputs, outputs);
        let rows = shape.rows;
        let (x, w, dy) =
            (numbers(rows * inputs, 1), numbers(inputs * outputs, 2), numbers(rows * outputs, 3));
        let (mut y, mut dx, mut dw) = (zeros(rows * outputs), zeros(rows * inputs), zeros(inputs * outputs));
        let work = Work::Flops(flops::linear(shape));
        let sizes = format!("{rows} x {inputs} x {outputs}");
        self.time(format!("linear {role}"), &sizes, work, calls, |cpu| {
            cpu.linear(&mut y, &x, &w, shape, forward)
        })?;
        self.time(format!("linear_backward_input {role}"), &sizes, work, calls, |cpu| {
            cpu.linear_backward_input(&mut dx, &dy, &w, shape, backward)
        })?;
        self.time(format!("linear_backward_weight {role}"), &sizes, work, calls, |cpu| {
            cpu.linear_backward_weight(&mut dw, &dy, &x, shape, Write::Add)
        })
    }

    fn attention(&mut self) -> Result<()> {
        let (shape, layers) = (self.sizes.attention(), self.layers());
        let (wide, narrow) =
            (self.sizes.rows * self.sizes.model.hidden_size, self.sizes.rows * self.sizes.model.kv_width());
        let (q, k, v, dout) = (numbers(wide, 1), numbers(narrow, 2), numbers(narrow, 3), numbers(wide, 4));
        let (mut out, mut lse) = (zeros(wide), zeros(self.sizes.rows * shape.heads));
        let (mut dq, mut dk, mut dv) = (zeros(wide), zeros(narrow), zeros(narrow));
        let sizes =
            format!("{} x {} heads x {} x {}", shape.batch, shape.heads, shape.tokens, shape.head_width);
        self.time("attention", &sizes, Work::Flops(flops::attention(shape)), layers, |cpu| {
            cpu.attention(&mut out, &mut lse, &q, &k, &v, shape)
        })?;
        let work = Work::Flops(flops::attention_backward(shape));
        self.time("attention_backward", &sizes, work, layers, |cpu| {
            cpu.attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, shape)
        })
    }

    fn norms(&mut self) -> Result<()> {
        let (rows, width, layers) = (self.sizes.rows, self.sizes.model.hidden_size, self.layers());
        let (len, epsilon) = (rows * width, self.sizes.model.rms_norm_eps);
        let (x, gain, dy) = (numbers(len, 1), numbers(width, 2), numbers(len, 3));
        let (mut y, mut rstd, mut dgain) = (zeros(len), zeros(rows), zeros(width));
        let sizes = format!("{rows} x {width}");
        self.time("rmsnorm", &sizes, moved(2 * len), 2.0 * layers + 1.0, |cpu| {
            cpu.rmsnorm(&mut y, &mut rstd, &x, &gain, rows, width, epsilon)
        })?;
        self.time("rmsnorm_apply", &sizes, moved(2 * len), 2.0 * layers, |cpu| {
            cpu.rmsnorm_apply(&mut y, &x, &gain, &rstd, rows, width)
        })?;
        self.time("rmsnorm_backward", &sizes, moved(4 * len), 2.0 * layers + 1.0, |cpu| {
            cpu.rmsnorm_backward(&mut y, &mut dgain, &dy, &x, &gain, &rstd, rows, width, Write::Add)
        })
    }

    fn elementwise(&mut self) -> Result<()> {
        let (rows, model, layers) = (self.sizes.rows, self.sizes.model, self.layers());
        let len = rows * model.intermediate_size;
        let (gate, up, dh) = (numbers(len, 1), numbers(len, 2), numbers(len, 3));
        let (mut h, mut dgate, mut dup) = (zeros(len), zeros(len), zeros(len));
        // Backward computes the hidden layer again.
        self.time("swiglu", len.to_string(), moved(3 * len), 2.0 * layers, |cpu| {
            cpu.swiglu(&mut h, &gate, &up, len)
        })?;
        self.time("swiglu_backward", len.to_string(), moved(5 * len), layers, |cpu| {
            cpu.swiglu_backward(&mut dgate, &mut dup, &dh, &gate, &up, len)
        })?;
        let len = rows * model.hidden_size;
        let (x, mut y) = (numbers(len, 1), zeros(len));
        self.time("copy", len.to_string(), moved(2 * len), 2.0 * layers, |cpu| cpu.copy(&mut y, &x, len))
    }

    fn tokens(&mut self) -> Result<()> {
        let (rows, model) = (self.sizes.rows, self.sizes.model);
        let (width, vocab) = (model.hidden_size, model.vocab_size);
        let ids = ids(self.cpu, rows, vocab)?;
        let (mut x, table, mut dtable) =
            (numbers(rows * width, 1), numbers(vocab * width, 2), zeros(vocab * width));
        let sizes = format!("{rows} x {width} of {vocab}");
        self.time("embedding", &sizes, moved(2 * rows * width), 1.0, |cpu| {
            cpu.embedding(&mut x, &ids, &table, width, Write::Set)
        })?;
        self.time("embedding_backward", &sizes, moved(3 * rows * width), 1.0, |cpu| {
            cpu.embedding_backward(&mut dtable, &x, &ids, width)
        })?;
        let (mut losses, mut logits) = (zeros(rows), numbers(rows * vocab, 3));
        let scale = 1.0 / rows as f32;
        self.time("cross_entropy", format!("{rows} x {vocab}"), moved(2 * rows * vocab), 1.0, |cpu| {
            cpu.cross_entropy(&mut losses, &mut logits, &ids, vocab, scale)
        })
    }

    fn optimizer(&mut self) -> Result<()> {
        let all = self.size.parameters();
        let len = all.min(OPTIMIZER_NUMBERS_MAX);
        let calls = all as f64 / len as f64;
        let (mut w, mut m, mut v, mut g) = (numbers(len, 1), zeros(len), zeros(len), numbers(len, 2));
        let step = AdamStep {
            beta1: 0.99,
            beta2: 0.999,
            bias_correction2: 0.5,
            epsilon: 1e-8,
            gradient_scale: 0.5,
            decay: 1e-4,
            gradient_rate: 1e-5,
            momentum_rate: 1e-4,
        };
        let sizes = len.to_string();
        self.time("sum_squares", &sizes, moved(len), calls, |cpu| cpu.sum_squares(&g, len).map(drop))?;
        self.time("adam_update", &sizes, moved(7 * len), calls, |cpu| {
            cpu.adam_update(&mut w, &mut m, &mut v, &g, len, step)
        })?;
        self.time("add_scaled", &sizes, moved(3 * len), 0.0, |cpu| cpu.add_scaled(&mut w, &g, 1e-6, len))?;
        self.time("fill", &sizes, moved(len), calls, |cpu| cpu.fill(&mut g, 0.0, len))
    }

    fn boundary(&mut self) -> Result<()> {
        let (rows, width, rank) = (self.sizes.rows, self.sizes.model.hidden_size, self.size.rank());
        let ids = ids(self.cpu, rows, self.sizes.model.vocab_size)?;
        let basis = random::orthonormal_rows(1, rank, width).into();
        let (anchor, mut x, mut z) = (numbers(rows * width, 1), numbers(rows * width, 2), zeros(rows * rank));
        let sizes = format!("{rows} x {width}");
        self.time("anchor", &sizes, moved(rows * width), 0.0, |cpu| {
            cpu.anchor(&mut x, &ids, 1, width, 0.02)
        })?;
        let work = Work::Flops(flops::linear(self.sizes.linear(width, rank)));
        let product = format!("{rows} x {width} x {rank}");
        self.time("project", &product, work, 0.0, |cpu| {
            cpu.project(&mut z, &x, &basis, rows, width, rank, Write::Set)
        })?;
        self.time("reconstruct", &product, work, 0.0, |cpu| {
            cpu.reconstruct(&mut x, &z, &basis, &anchor, rows, width, rank)
        })?;
        let key = RoundingKey { run: 1, tensor: 2 };
        for &packing in Packing::VARIANTS {
            let (name, format): (&str, _) = (packing.into(), packed_format(packing));
            let (mut bytes, mut back) = (Vec::new(), zeros(rows * width));
            self.time(format!("pack {name}"), &sizes, moved(rows * width), 0.0, |cpu| {
                cpu.pack(&mut bytes, &anchor, rows, width, format, key)
            })?;
            self.time(format!("unpack {name}"), &sizes, moved(rows * width), 0.0, |cpu| {
                cpu.unpack(&mut back, &bytes, rows, width, format, key)
            })?;
            self.time(format!("project_pack {name}"), &product, work, 0.0, |cpu| {
                cpu.project_pack(&mut bytes, &anchor, &basis, rows, width, rank, format, key)
            })?;
            self.time(format!("unpack_reconstruct {name}"), &product, work, 0.0, |cpu| {
                cpu.unpack_reconstruct(&mut back, &bytes, &basis, &anchor, rows, width, rank, format, key)
            })?;
        }
        Ok(())
    }
}

/// A pass over `count` f32.
fn moved(count: usize) -> Work {
    Work::Bytes((size_of::<f32>() * count) as f64)
}

fn numbers(len: usize, stream: u64) -> CpuTensor {
    let mut x = vec![0.0; len];
    random::fill_normal(&mut x, 1, stream, 0.5);
    x.into()
}

fn zeros(len: usize) -> CpuTensor {
    vec![0.0; len].into()
}

fn ids(cpu: &mut Cpu, count: usize, vocab: usize) -> Result<CpuIds> {
    let ids: Vec<u32> =
        (0..count as u64).map(|i| (random::uniform_u64(1, 9, i) % vocab as u64) as u32).collect();
    cpu.ids(&ids, vocab)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::peaks::PeakPlan;

    #[test]
    fn every_operation_of_the_trial_model_is_measured_and_adds_up_to_the_step() {
        let peaks = Peaks::measure(1, PeakPlan { repeats: 1, rounds: 1000, array_bytes: 4096 });
        let reports = measure(&mut Cpu::new(1).unwrap(), Size::T, &peaks).unwrap();
        assert!(reports.iter().all(|report| report.seconds > 0.0 && report.share_of_peak.is_finite()));
        let in_step = |report: &&OperationReport| matches!(report.work, Work::Flops(_));
        let counted: f64 =
            reports.iter().filter(in_step).map(|report| report.work.amount() * report.calls_per_step).sum();
        // Backward of attention computes its scores again, which the step does not count.
        let again =
            Size::T.model().num_hidden_layers as f64 * flops::attention(Size::T.sizes().attention()) * 0.5;
        assert_eq!(counted, flops::step(Size::T) + again);
    }
}
