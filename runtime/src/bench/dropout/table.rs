//! A report as tables.

use std::fmt;

use super::{Cell, Figures, Report};

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        writeln!(
            out,
            "dropout  {} peers in virtual time, {:.0} minutes, the first fifth not measured; medians of seeds {}",
            self.shape,
            self.length_s / 60.0,
            seeds.join(", ")
        )?;
        if let Some(commit) = &self.commit {
            writeln!(out, "commit   {commit}")?;
        }
        writeln!(
            out,
            "\n{:<18} {:>6} {:>6} {:>6} {:>6} {:>8} {:>7} {:>10} {:>5} {:>6} {:>9} {:>13}",
            "router",
            "churn",
            "E1",
            "E2",
            "E3",
            "of bound",
            "mb/s",
            "recovery s",
            "lost",
            "twice",
            "ungranted",
            "contributions"
        )?;
        for (router, churn, median) in self.medians() {
            row(out, router, churn, median)?;
        }
        self.losses(out)?;
        writeln!(out)?;
        for broken in self.broken() {
            writeln!(out, "broken   {broken}")?;
        }
        out.write_str(LEGEND)
    }
}

const LEGEND: &str = "\
E1         throughput as a share of what the narrowest stage could at each moment
E2         throughput as a share of that of the same router without churn
E3         throughput as a share of what all running peers could on any stage
recovery   95 of 100 deaths: until the last microbatch of the dead peer is in other hands
twice      microbatches that a stage applied twice
contributions  applied by a peer that died before an averaging round carried them on
";

impl Report {
    /// By router and churn.
    fn medians(&self) -> Vec<(&str, &str, &Figures)> {
        let mut medians = Vec::new();
        for (router, cells) in self.in_order() {
            let mut cells: Vec<(&String, &Cell)> = cells.iter().collect();
            // C5 before C10.
            cells.sort_by_key(|(churn, _)| (churn.len(), churn.as_str()));
            medians.extend(
                cells
                    .into_iter()
                    .filter_map(|(churn, cell)| Some((router, churn.as_str(), cell.median.as_ref()?))),
            );
        }
        medians
    }

    /// The loss account, in percent.
    fn losses(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((.., first)) = self.medians().into_iter().next() else { return Ok(()) };
        let names: Vec<&str> = first.losses.keys().copied().collect();
        writeln!(out, "\nwhere the capacity of all running peers went, in percent")?;
        write!(out, "{:<18} {:>6} {:>9}", "router", "churn", "finished")?;
        names.iter().try_for_each(|name| write!(out, "  {name}"))?;
        writeln!(out)?;
        for (router, churn, median) in self.medians() {
            write!(out, "{router:<18} {churn:>6} {:>9.1}", 100.0 * median.e3)?;
            for name in &names {
                let share = 100.0 * median.losses.get(name).copied().unwrap_or(0.0);
                write!(out, "  {share:>width$.1}", width = name.len())?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

fn row(out: &mut fmt::Formatter<'_>, router: &str, churn: &str, figures: &Figures) -> fmt::Result {
    let or_dash = |figure: Option<f64>, digits: usize| {
        figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
    };
    writeln!(
        out,
        "{router:<18} {churn:>6} {:>6.3} {:>6} {:>6.3} {:>8.3} {:>7.2} {:>10} {:>5} {:>6} {:>9} {:>13}",
        figures.e1,
        or_dash(figures.e2, 3),
        figures.e3,
        figures.share_of_bound,
        figures.throughput_per_s,
        or_dash(figures.recovery_p95_s, 1),
        figures.lost,
        figures.duplicates,
        figures.ungranted,
        figures.contributions_lost
    )
}
