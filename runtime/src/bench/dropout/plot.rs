//! A report as a picture: throughput against churn, one line a router.

use std::fmt::Write as _;

use super::Report;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
/// Distance of two lines of the legend.
const LINE: f64 = 22.0;
/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

/// A router, and its median throughput by churn in percent.
type Line<'r> = (&'r str, Vec<(f64, f64)>);

impl Report {
    /// Throughput against churn as SVG.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let lines = self.lines();
        let points = || lines.iter().flat_map(|(_, points)| points);
        let most_churn = points().map(|point| point.0).fold(1.0, f64::max);
        let highest = points().map(|point| point.1).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let step = nice_step(highest);
        let top = (highest / step).ceil() * step;
        let x = |churn: f64| LEFT + (WIDTH - LEFT - RIGHT) * churn / most_churn;
        let y = |rate: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / top;
        let mut svg = String::new();
        self.frame(&mut svg);
        for tick in (0_u32..).map(|tick| f64::from(tick) * step).take_while(|tick| *tick <= top * 1.0001) {
            let (right, at) = (WIDTH - RIGHT, y(tick));
            let _ = writeln!(svg, r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#ddd"/>"##);
            text(&mut svg, (LEFT - 8.0, at + 4.0), "end", &format!("{tick}"));
        }
        for &percent in self.e1.keys() {
            let at = x(percent.into());
            text(&mut svg, (at, HEIGHT - BOTTOM + 20.0), "middle", &percent.to_string());
        }
        for ((router, points), (place, colour)) in lines.iter().zip((0_u32..).zip(COLOURS.iter().cycle())) {
            let path: Vec<String> =
                points.iter().map(|&(churn, rate)| format!("{:.1},{:.1}", x(churn), y(rate))).collect();
            let _ = writeln!(
                svg,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
                path.join(" ")
            );
            for &(churn, rate) in points {
                let _ = writeln!(
                    svg,
                    r#"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{colour}"/>"#,
                    x(churn),
                    y(rate)
                );
            }
            let at = TOP + LINE * f64::from(place);
            let left = WIDTH - RIGHT + 20.0;
            let _ = writeln!(svg, r#"<path d="M{left} {at}h24" stroke="{colour}" stroke-width="3"/>"#);
            text(&mut svg, (left + 32.0, at + 4.0), "start", router);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The router of the figures at the top first.
    fn lines(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<Line<'_>> = Vec::new();
        for (router, cells) in &self.routers {
            let point = |&percent: &u8| {
                let median = cells.get(&format!("C{percent}"))?.median.as_ref()?;
                Some((f64::from(percent), median.throughput_per_s))
            };
            let line = (*router, self.e1.keys().filter_map(point).collect());
            if *router == self.router { lines.insert(0, line) } else { lines.push(line) }
        }
        lines
    }

    fn frame(&self, svg: &mut String) {
        let _ = writeln!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>"#
        );
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let title = format!("Throughput under dropout, {} in virtual time", self.shape);
        text(svg, (middle, 24.0), "middle", &title);
        text(svg, (middle, HEIGHT - 14.0), "middle", "peers that crash in an epoch, percent");
        let (at, up) = (18.0, (TOP + HEIGHT - BOTTOM) / 2.0);
        let _ = writeln!(
            svg,
            r#"<text transform="translate({at} {up}) rotate(-90)" text-anchor="middle">microbatches a second</text>"#
        );
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
}

/// 1, 2 or 5 times a power of ten: three to eight steps to the highest value.
fn nice_step(highest: f64) -> f64 {
    let power = 10.0_f64.powf((highest / 4.0).log10().floor());
    let mut steps = [1.0, 2.0, 5.0].into_iter().map(|digit| digit * power);
    steps.rfind(|step| highest / step >= 3.0).unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use swarmline_scheduler::sim::dropout::{Churn, Shape};

    use super::super::{Options, measure};
    use super::nice_step;

    #[test]
    fn a_picture_has_a_line_for_each_router_and_a_point_for_each_churn() {
        let mut options = Options::quick();
        options.shape = Shape { stages: 2, replicas: 2 };
        options.length = Duration::from_secs(60);
        options.seeds = vec![11];
        options.churns = vec![Churn::Calm, Churn::Crashes(5)];
        let svg = measure(&options, |_, _| {}).to_svg();
        let count = |part: &str| svg.matches(part).count();
        assert_eq!(count("<polyline"), options.routers.len());
        assert_eq!(count("<circle"), 2 * options.routers.len());
        assert!(svg.contains(">least-outstanding<") && svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn steps_are_round() {
        let steps = [0.7, 1.0, 14.0, 23.0, 60.0].map(nice_step);
        assert_eq!(steps, [0.2, 0.2, 2.0, 5.0, 20.0]);
    }
}
