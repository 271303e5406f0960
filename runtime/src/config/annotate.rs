//! A resolved run as TOML a person can read.

use std::fmt::Write as _;

use super::Run;
use super::fields::{Field, SECTIONS};

impl Run {
    /// The run as a TOML file: every field, each with a comment line.
    ///
    /// Reading the file back from the same folder gives the same run.
    #[must_use]
    pub fn to_annotated_toml(&self) -> String {
        write_sections(self, |_| true, Style::Annotated)
    }
}

/// Whether comments stand beside the values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Annotated,
    Bare,
}

/// The fields that `wanted` picks, section by section, without empty sections.
pub(super) fn write_sections(run: &Run, wanted: impl Fn(&Field) -> bool, style: Style) -> String {
    let mut out = String::new();
    for section in SECTIONS {
        let fields: Vec<_> = section.fields.iter().filter(|field| wanted(field)).collect();
        if fields.is_empty() {
            continue;
        }
        if !section.name.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "\n[{}]", section.name);
        }
        for field in fields {
            if style == Style::Annotated {
                let _ = writeln!(out, "# {}", comment(field));
            }
            let _ = writeln!(out, "{} = {}", field.name, (field.value)(run));
        }
    }
    out
}

fn comment(field: &Field) -> String {
    match (field.words)().as_slice() {
        [] => field.says.to_owned(),
        words => format!("{} One of: {}.", field.says, words.join(", ")),
    }
}
