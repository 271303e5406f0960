//! A report as a picture: throughput against churn, one line a router.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Cell, Report};

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

/// Where figures lie in the picture.
struct Scales {
    most_churn: f64,
    /// Distance of two marks of throughput, and the highest mark.
    step: f64,
    top: f64,
}

impl Scales {
    fn of(lines: &[Line<'_>]) -> Self {
        let points = || lines.iter().flat_map(|(_, points)| points);
        let highest = points().map(|point| point.1).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let step = nice_step(highest);
        let most_churn = points().map(|point| point.0).fold(1.0, f64::max);
        Self { most_churn, step, top: (highest / step).ceil() * step }
    }

    fn x(&self, churn: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * churn / self.most_churn
    }

    fn y(&self, rate: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / self.top
    }
}

impl Report {
    /// Throughput against churn as SVG.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let (lines, mut svg) = (self.lines(), String::new());
        let scales = Scales::of(&lines);
        self.frame(&mut svg);
        self.marks(&mut svg, &scales);
        for (line, (place, colour)) in lines.iter().zip((0_u32..).zip(COLOURS.iter().cycle())) {
            curve(&mut svg, &scales, line, colour);
            legend(&mut svg, TOP + LINE * f64::from(place), line.0, colour);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn lines(&self) -> Vec<Line<'_>> {
        let line = |(router, cells): (&'static str, &BTreeMap<String, Cell>)| {
            let point = |&percent: &u8| {
                let median = cells.get(&format!("C{percent}"))?.median.as_ref()?;
                Some((f64::from(percent), median.throughput_per_s))
            };
            (router, self.e1.keys().filter_map(point).collect())
        };
        self.in_order().map(line).collect()
    }

    fn marks(&self, svg: &mut String, scales: &Scales) {
        let marks = (0_u32..).map(|mark| f64::from(mark) * scales.step);
        for mark in marks.take_while(|mark| *mark <= scales.top * 1.0001) {
            let (right, at) = (WIDTH - RIGHT, scales.y(mark));
            let _ = writeln!(svg, r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#ddd"/>"##);
            text(svg, (LEFT - 8.0, at + 4.0), "end", &format!("{mark}"));
        }
        for &percent in self.e1.keys() {
            let at = scales.x(percent.into());
            text(svg, (at, HEIGHT - BOTTOM + 20.0), "middle", &percent.to_string());
        }
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

fn curve(svg: &mut String, scales: &Scales, (_, points): &Line<'_>, colour: &str) {
    let at = |&(churn, rate): &(f64, f64)| (scales.x(churn), scales.y(rate));
    let path: Vec<String> = points.iter().map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let path = path.join(" ");
    let _ = writeln!(svg, r#"<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
    for (x, y) in points.iter().map(at) {
        let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"/>"#);
    }
}

fn legend(svg: &mut String, at: f64, router: &str, colour: &str) {
    let left = WIDTH - RIGHT + 20.0;
    let _ = writeln!(svg, r#"<path d="M{left} {at}h24" stroke="{colour}" stroke-width="3"/>"#);
    text(svg, (left + 32.0, at + 4.0), "start", router);
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
