//! Draws a running demo: one line that is redrawn on a terminal, a line every few seconds elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::report::ProgressReport;

/// Interval between lines on a screen that is not redrawn.
const PLAIN_LINE_EVERY: Duration = Duration::from_secs(5);
/// Points of the loss curve.
const CURVE_WIDTH: usize = 40;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Standard error of the demo; standard output is for the result.
#[derive(Debug)]
pub(super) struct Screen {
    redraws: bool,
    losses: Vec<f64>,
    last_plain: Option<Instant>,
    dirty: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { redraws: io::stderr().is_terminal(), losses: Vec::new(), last_plain: None, dirty: false }
    }

    /// Prints a sentence that is not redrawn.
    pub(super) fn say(&mut self, sentence: &str) {
        self.clear();
        let _ = writeln!(io::stderr(), "{sentence}");
    }

    /// Draws the latest progress.
    pub(super) fn progress(&mut self, report: &ProgressReport, serving: usize) {
        self.losses.push(report.loss);
        let line = format!(
            "{:>5}/{} microbatches  {:>6.0} tokens/s  {} in flight  {serving} replicas  loss {:.3}  {}",
            report.done,
            report.total,
            report.tokens_per_s,
            report.in_flight,
            report.loss,
            curve(&self.losses)
        );
        if self.redraws {
            self.clear();
            let _ = write!(io::stderr(), "{line}");
            let _ = io::stderr().flush();
            self.dirty = true;
        } else if self.last_plain.is_none_or(|last| last.elapsed() >= PLAIN_LINE_EVERY) {
            self.last_plain = Some(Instant::now());
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.dirty) {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

/// The losses so far as a row of bars, scaled between their extremes.
fn curve(losses: &[f64]) -> String {
    let points = CURVE_WIDTH.min(losses.len());
    let (low, high) =
        losses.iter().fold((f64::MAX, f64::MIN), |(low, high), &loss| (low.min(loss), high.max(loss)));
    let span = (high - low).max(1e-9);
    (0..points)
        .map(|point| {
            let loss = losses[point * losses.len() / points];
            let level = ((loss - low) / span * (LEVELS.len() - 1) as f64).round();
            LEVELS[(level as usize).min(LEVELS.len() - 1)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::curve;

    #[test]
    fn a_falling_loss_draws_a_falling_curve() {
        assert_eq!(curve(&[8.0, 4.5, 1.0]), "█▅▁");
        assert_eq!(curve(&[]), "");
        assert_eq!(curve(&[2.0]), "▁");
    }
}
