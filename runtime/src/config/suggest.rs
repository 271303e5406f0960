//! "Did you mean": suggestions for names and words that a run file does not have.

use super::synonyms::{FIELDS, VALUES, WITHOUT_FIELD};

/// Limit of the names that are compared, characters: a longer name is no slip of the finger.
const NAME_CHARS_MAX: usize = 64;

/// The sections and fields that may stand in a file; the section without a name holds the fields at the top.
pub(super) type Known<'k> = [(&'k str, Vec<&'k str>)];

/// A sentence that names the field meant by the unknown field `name` of `section`; `text` is its value if that is a
/// text. `None` if no name is close.
pub(super) fn for_field(known: &Known<'_>, section: &str, name: &str, text: Option<&str>) -> Option<String> {
    if let Some((_, advice)) = WITHOUT_FIELD.iter().find(|(names, _)| names.contains(&name)) {
        return Some((*advice).to_owned());
    }
    let path = close_by(known, section, name).or_else(|| elsewhere(known, name))?;
    Some(match text.and_then(|text| translated(&path, text)) {
        Some(value) => format!("Did you mean `{path} = {value}`?"),
        None => format!("Did you mean `{path}`?"),
    })
}

/// The value, in TOML, that the word `text` of the field at `path` stands for; `None` if no word is close.
pub(super) fn for_word(path: &str, text: &str, words: &[&str]) -> Option<String> {
    let known = words.iter().map(|word| (*word, format!("\"{word}\"")));
    let others =
        meanings(path).flat_map(|(value, texts)| texts.iter().map(move |text| (*text, value.into())));
    nearest(text, known.chain(others))
}

/// Path of a field or section.
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Names at the top of a file: those of its fields, then those of its sections.
pub(super) fn top_level<'k>(known: &Known<'k>) -> Vec<&'k str> {
    let fields = fields_of(known, "");
    fields.chain(known.iter().map(|(section, _)| *section).filter(|section| !section.is_empty())).collect()
}

/// The path in `section` with the nearest name or synonym.
fn close_by(known: &Known<'_>, section: &str, name: &str) -> Option<String> {
    let names = if section.is_empty() { top_level(known) } else { fields_of(known, section).collect() };
    let own = names.iter().map(|name| (*name, join(section, name)));
    let synonyms = FIELDS
        .iter()
        .filter(|(path, _)| split(path).0 == section && names.contains(&split(path).1))
        .flat_map(|(path, synonyms)| synonyms.iter().map(|synonym| (*synonym, (*path).to_owned())));
    nearest(name, own.chain(synonyms))
}

/// The path of the file with exactly this name or synonym; `None` if there are several.
fn elsewhere(known: &Known<'_>, name: &str) -> Option<String> {
    let own =
        known.iter().filter(|(_, fields)| fields.contains(&name)).map(|(section, _)| join(section, name));
    let is_known = |path: &str| fields_of(known, split(path).0).any(|field| field == split(path).1);
    let synonyms = FIELDS
        .iter()
        .filter(|(path, synonyms)| synonyms.contains(&name) && is_known(path))
        .map(|(path, _)| (*path).to_owned());
    let mut paths = own.chain(synonyms);
    paths.next().filter(|_| paths.next().is_none())
}

/// The value, in TOML, that `text` stands for at `path`.
fn translated(path: &str, text: &str) -> Option<&'static str> {
    meanings(path).find(|(_, texts)| texts.contains(&text)).map(|(value, _)| value)
}

fn meanings(path: &str) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    VALUES.iter().filter(move |(of, _)| *of == path).flat_map(|(_, meanings)| meanings.iter().copied())
}

fn fields_of<'k>(known: &Known<'k>, section: &str) -> impl Iterator<Item = &'k str> {
    known.iter().filter(move |(name, _)| *name == section).flat_map(|(_, fields)| fields.iter().copied())
}

fn split(path: &str) -> (&str, &str) {
    path.split_once('.').unwrap_or(("", path))
}

/// The meaning of the spelling that differs least from `name`, by at most a third of its letters.
fn nearest<'s>(name: &str, candidates: impl Iterator<Item = (&'s str, String)>) -> Option<String> {
    if name.chars().count() > NAME_CHARS_MAX {
        return None;
    }
    candidates
        .map(|(spelling, meant)| (strsim::osa_distance(name, spelling), spelling, meant))
        .filter(|(distance, spelling, _)| *distance <= spelling.len() / 3)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(_, _, meant)| meant)
}

#[cfg(test)]
mod tests;
