//! A plan: the file that describes one simulated run.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use strum::VariantArray as _;
use swarmline_scheduler::router;
use swarmline_scheduler::sim::dropout::{Churn, Shape, Workload};

use super::document::Document;
use super::error::{ConfigError, Violation};
use super::resolve::{impossible, read_text};

const FIELDS: &[&str] = &["shape", "churn", "seed", "minutes", "router"];
/// Virtual minutes at most: a day.
const MINUTES_MAX: u64 = 1_440;

/// One simulated run: a swarm, what befalls it, and how it routes. Every field has a default, that of
/// `swarmline bench dropout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The swarm, and what befalls it.
    pub workload: Workload,
    /// The router of all senders.
    pub router: router::Policy,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// The file cannot be read, is too long, or is not TOML; a field is unknown, of the wrong type, or breaks a rule.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        Self::parse(&read_text(path, &file)?, &file)
    }

    /// Reads the text of a plan; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`Plan::load`].
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let document = Document::parse(text, file)?;
        document.refuse_unknown(&[("", FIELDS.to_vec())])?;
        let shape = parsed(&document, "shape", "stages x replicas, 1 to 64 of each", "Write e.g. \"8x8\"")?;
        let churns = "C0, C1 to C99 (peers that crash in an epoch, percent), CS, CL, CB";
        let churn = parsed(&document, "churn", churns, "Write e.g. \"C10\"")?;
        let seed = document.number("", "seed")?.unwrap_or(Workload::SEEDS[0]);
        let mut workload =
            Workload::new(shape.unwrap_or(Shape::MAIN), churn.unwrap_or(Churn::Crashes(10)), seed);
        if let Some(minutes) = document.number("", "minutes")? {
            workload.length = Duration::from_secs(60 * check_minutes(&document, minutes)?);
        }
        let words: Vec<&str> = router::Policy::VARIANTS.iter().map(|&policy| policy.into()).collect();
        let word = document.word("", "router", &words)?;
        let named = |policy: &&router::Policy| Some(<&str>::from(**policy)) == word;
        let router = router::Policy::VARIANTS.iter().find(named).copied().unwrap_or_default();
        Ok(Self { workload, router })
    }
}

fn parsed<T: FromStr>(
    document: &Document<'_>,
    field: &str,
    allowed: &str,
    remedy: &str,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = document.text("", field)? else { return Ok(None) };
    let refused = |_| {
        let problem = format!("is \"{}\"", text.escape_debug());
        refuse(document, field, problem, allowed, remedy)
    };
    text.parse().map(Some).map_err(refused)
}

fn check_minutes(document: &Document<'_>, minutes: u64) -> Result<u64, ConfigError> {
    if (1..=MINUTES_MAX).contains(&minutes) {
        return Ok(minutes);
    }
    let (problem, allowed) = (format!("is {minutes}"), format!("1 to {MINUTES_MAX} virtual minutes"));
    Err(refuse(document, "minutes", problem, &allowed, "Write e.g. 40"))
}

fn refuse(document: &Document<'_>, field: &str, problem: String, allowed: &str, remedy: &str) -> ConfigError {
    let (field, allowed, remedy) = (field.to_owned(), allowed.to_owned(), remedy.to_owned());
    impossible(document, Violation { field, problem, allowed, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Plan::parse(text, "plan.toml").unwrap_err().to_string()
    }

    #[test]
    fn a_plan_has_defaults_and_says_otherwise() {
        let plan = Plan::parse("", "plan.toml").unwrap();
        assert_eq!(plan.workload, Workload::new(Shape::MAIN, Churn::Crashes(10), 11));
        assert_eq!(plan.router, router::Policy::LeastOutstanding);
        let text = "shape = \"6x3\"\nchurn = \"CS\"\nseed = 7\nminutes = 3\nrouter = \"iwrr\"\n";
        let plan = Plan::parse(text, "plan.toml").unwrap();
        assert_eq!((plan.workload.shape, plan.workload.churn), (Shape::SMALL, Churn::Slowdowns));
        assert_eq!((plan.workload.seed, plan.workload.length), (7, Duration::from_secs(180)));
        assert_eq!(plan.router, router::Policy::Iwrr);
    }

    #[test]
    fn a_mistake_is_named_with_its_line_its_field_and_the_remedy() {
        for (text, parts) in [
            ("seed = 1\nshape = \"8by8\"\n", ["plan.toml:2: `shape` is \"8by8\"", "Write e.g. \"8x8\""]),
            ("churn = \"C100\"\n", ["plan.toml:1: `churn` is \"C100\"", "C1 to C99"]),
            ("minutes = 0\n", ["plan.toml:1: `minutes` is 0", "1 to 1440 virtual minutes"]),
            ("router = \"irr\"\n", ["plan.toml:1: `router` is \"irr\"", "Did you mean \"iwrr\"?"]),
            ("churns = \"C1\"\n", ["plan.toml:1: unknown field `churns`", "Did you mean `churn`?"]),
            ("seed = \"x\"\n", ["plan.toml:1: `seed` is the text \"x\"", "a whole number"]),
            ("seed 1\n", ["plan.toml:1:", "not valid TOML"]),
        ] {
            let message = refused(text);
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }
}
