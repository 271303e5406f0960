//! A report as a table.

use std::fmt;

use swarmline_kernels::Profile;

use super::comparison::Comparison;
use super::kernels::{ProfileReport, Report, SizeReport};
use super::operations::OperationReport;
use super::statistics::Spread;

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let cpu = machine.cpu.as_deref().unwrap_or("unknown CPU");
        writeln!(out, "machine  {cpu}, {} cores, {}", machine.cores, machine.features.join(" "))?;
        writeln!(
            out,
            "peaks    {:.1} GFLOP/s f32 products, {:.1} GB/s triad, {} thread(s)",
            self.peaks.product_gflops, self.peaks.stream_gb_s, self.peaks.threads
        )?;
        if let Some(commit) = &self.commit {
            writeln!(out, "commit   {commit}")?;
        }
        for note in &self.notes {
            writeln!(out, "note     {note}")?;
        }
        for (letter, size) in &self.sizes {
            for (profile, report) in size.ran() {
                configuration(out, letter, size, profile, report)?;
            }
        }
        Ok(())
    }
}

fn configuration(
    out: &mut fmt::Formatter<'_>,
    letter: &str,
    size: &SizeReport,
    profile: Profile,
    report: &ProfileReport,
) -> fmt::Result {
    writeln!(
        out,
        "\nconfiguration {letter}, {}: {:.2} M parameters, {} tokens in {} sequences a step",
        profile.name(),
        size.parameters as f64 / 1e6,
        size.tokens_per_step,
        size.sequences
    )?;
    operations(out, report)?;
    let memory = report.peak_mb.map_or_else(|| "unknown".to_owned(), |mb| format!("{mb:.0} MiB"));
    writeln!(
        out,
        "  whole step: {:.0} tokens/s {}, {} a step, {:.1} GFLOP/s, {:.2} of the product peak, {memory} resident",
        report.tokens_per_s.median,
        range(report.tokens_per_s, 0),
        time(report.step_s),
        report.gflops,
        report.share_of_peak
    )?;
    match &report.torch {
        Some(comparison) => beside_torch(out, comparison),
        None => Ok(()),
    }
}

fn operations(out: &mut fmt::Formatter<'_>, report: &ProfileReport) -> fmt::Result {
    let (name, shape, one, rate) = ("operation", "shape", "a call", "rate");
    writeln!(out, "  {name:<32} {shape:<24} {one:>9} {rate:>15} of peak    best   calls  of step")?;
    for operation in &report.operations {
        let share = operation.seconds_per_step() / report.step_s;
        let in_step = if operation.calls_per_step > 0.0 {
            format!(" {:>7} {:>6.1} %", operation.calls_per_step.round(), 100.0 * share)
        } else {
            String::new()
        };
        writeln!(
            out,
            "  {:<32} {:<24} {:>9} {:>7.1} {:<7} {:>7.2} {:>7.2}{in_step}",
            operation.name,
            operation.shape,
            time(operation.seconds),
            operation.rate,
            operation.work.unit(),
            operation.share_of_peak,
            operation.share_of_peak_best
        )?;
    }
    let all: f64 = report.operations.iter().map(OperationReport::seconds_per_step).sum();
    writeln!(out, "  operations of a step by themselves: {}", time(all))
}

fn beside_torch(out: &mut fmt::Formatter<'_>, comparison: &Comparison) -> fmt::Result {
    writeln!(out, "  beside PyTorch {}: ours / theirs, median of neighbours", comparison.torch)?;
    for mode in &comparison.modes {
        let memory = mode.peak_mb.map_or_else(String::new, |mb| format!(", {mb:.0} MiB"));
        writeln!(
            out,
            "    {:<13} {:>6.2} x {} of {}, {:.0} tokens/s {}{memory}",
            mode.mode,
            mode.ratio.median,
            range(mode.ratio, 2),
            mode.ratio.count,
            mode.tokens_per_s.median,
            range(mode.tokens_per_s, 0)
        )?;
    }
    for mode in &comparison.left_out {
        writeln!(out, "    {:<13} left out: {}", mode.mode, mode.reason)?;
    }
    for (name, mode) in
        [("ratio_to_best_torch", comparison.best()), ("ratio_to_torch_f32", comparison.best_f32())]
    {
        if let Some(mode) = mode {
            writeln!(out, "    {name}: {:.2} ({})", mode.ratio.median, mode.mode)?;
        }
    }
    Ok(())
}

fn range(spread: Spread, digits: usize) -> String {
    format!("({:.digits$} to {:.digits$})", spread.low, spread.high)
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", 1e6 * s),
        s if s < 1.0 => format!("{:.2} ms", 1e3 * s),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::time;
    use crate::bench::kernels::tests::trial;

    #[test]
    fn the_table_has_operations_the_step_and_pytorch() {
        let table = trial().to_string();
        for part in [
            "GFLOP/s f32 products",
            "fast runs where the CPU has AVX512-BF16",
            "configuration t, repro: 0.22 M parameters, 512 tokens in 16 sequences",
            "attention_backward",
            "whole step:",
            "compile f32   left out: no compiler",
            "ratio_to_best_torch: 0.50 (eager bf16)",
            "ratio_to_torch_f32: 1.00 (eager f32)",
        ] {
            assert!(table.contains(part), "no {part:?} in\n{table}");
        }
    }

    #[test]
    fn times_have_a_readable_unit() {
        assert_eq!([time(2e-6), time(0.0123), time(2.5)], ["2.0 us", "12.30 ms", "2.50 s"]);
    }
}
