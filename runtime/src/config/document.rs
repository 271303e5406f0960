//! TOML that keeps the line of each value, read field by field.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Violation};
use super::limits;
use super::suggest::{self, Known, join};
use super::words::Word;

/// A parsed run file with the position of each value.
pub(super) struct Document<'t> {
    file: &'t str,
    text: &'t str,
    root: DeTable<'t>,
}

/// A value and its position in the text.
struct Found<'d, 't> {
    value: &'d DeValue<'t>,
    /// Byte of the text. It becomes a line only for a message: counting lines for each item of a long list is too slow.
    start: usize,
    field: String,
}

impl<'t> Document<'t> {
    pub(super) fn parse(text: &'t str, file: &'t str) -> Result<Self, ConfigError> {
        if text.len() > limits::CONFIG_BYTES_MAX {
            let (bytes, limit) = (text.len(), limits::CONFIG_BYTES_MAX);
            return Err(ConfigError::TooLong { file: file.to_owned(), bytes, limit });
        }
        match DeTable::parse(text) {
            Ok(root) => Ok(Self { file, text, root: root.into_inner() }),
            Err(error) => {
                let start = error.span().map_or(text.len(), |span| span.start);
                let (line, column) = position(text, start);
                let problem = error.message().trim().replace('\n', ", ");
                Err(ConfigError::Syntax { file: file.to_owned(), line, column, problem })
            }
        }
    }

    pub(super) fn file(&self) -> &str {
        self.file
    }

    /// Refuses every key that is not `known`.
    pub(super) fn refuse_unknown(&self, known: &Known<'_>) -> Result<(), ConfigError> {
        self.refuse_unknown_in("", &self.root, &suggest::top_level(known), known)?;
        for (section, fields) in known.iter().filter(|(section, _)| !section.is_empty()) {
            if let Some(table) = self.table(section)? {
                self.refuse_unknown_in(section, table, fields, known)?;
            }
        }
        Ok(())
    }

    fn refuse_unknown_in(
        &self,
        section: &str,
        table: &DeTable<'t>,
        names: &[&str],
        known: &Known<'_>,
    ) -> Result<(), ConfigError> {
        let unknown = table
            .iter()
            .filter(|(key, _)| !names.contains(&key.get_ref().as_ref()))
            .min_by_key(|(key, _)| key.span().start);
        let Some((key, value)) = unknown else { return Ok(()) };
        let suggestion = suggest::for_field(known, section, key.get_ref(), value.get_ref().as_str());
        Err(ConfigError::UnknownField {
            file: self.file.to_owned(),
            line: self.line(key.span().start),
            field: join(section, &shorten(key.get_ref())),
            suggestion: suggestion.map(|sentence| sentence + " ").unwrap_or_default(),
            known: names.join(", "),
        })
    }

    /// A whole number that is not negative.
    pub(super) fn count(&self, section: &str, name: &str) -> Result<Option<usize>, ConfigError> {
        let Some(found) = self.find(section, name)? else { return Ok(None) };
        self.to_count(&found).map(Some)
    }

    /// A whole number of up to 64 bits.
    pub(super) fn number(&self, section: &str, name: &str) -> Result<Option<u64>, ConfigError> {
        let Some(found) = self.find(section, name)? else { return Ok(None) };
        self.to_number(&found).map(Some)
    }

    /// A number with or without a point. NaN and infinity pass: the rules refuse them by name.
    pub(super) fn real(&self, section: &str, name: &str) -> Result<Option<f32>, ConfigError> {
        let Some(found) = self.find(section, name)? else { return Ok(None) };
        let value = match found.value {
            // Parsed from the text, as f64 on the way would round twice.
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().parse().ok(),
            DeValue::Integer(_)
            | DeValue::String(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        // -0.0 becomes 0.0: they are equal but would be written, and so digested, differently.
        value
            .map(|value: f32| Some(value + 0.0))
            .ok_or_else(|| self.wrong_type(&found, "a number, e.g. 0.001"))
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, section: &str, name: &str) -> Result<Option<bool>, ConfigError> {
        let Some(found) = self.find(section, name)? else { return Ok(None) };
        found.value.as_bool().map(Some).ok_or_else(|| self.wrong_type(&found, "true or false"))
    }

    /// A quoted text.
    pub(super) fn text(&self, section: &str, name: &str) -> Result<Option<String>, ConfigError> {
        let Some(found) = self.find(section, name)? else { return Ok(None) };
        self.to_text(&found, "a text in quotes").map(Some)
    }

    /// One of the words of `T`, as its variant.
    pub(super) fn choice<T: Word>(&self, section: &str, name: &str) -> Result<Option<T>, ConfigError> {
        Ok(self.word(section, name, &T::words())?.and_then(T::of_word))
    }

    /// One of a few words.
    pub(super) fn word<'w>(
        &self,
        section: &str,
        name: &str,
        words: &[&'w str],
    ) -> Result<Option<&'w str>, ConfigError> {
        let Some(found) = self.find(section, name)? else { return Ok(None) };
        let allowed = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text = self.to_text(&found, &format!("one of {allowed}"))?;
        if let Some(word) = words.iter().find(|word| **word == text) {
            return Ok(Some(word));
        }
        let remedy = match suggest::for_word(&found.field, &text, words) {
            Some(meant) => format!("Did you mean {meant}?"),
            None => "Write one of these".to_owned(),
        };
        let problem = format!("is \"{}\"", shorten(&text));
        let violation = Box::new(Violation { field: found.field, problem, allowed, remedy });
        Err(ConfigError::Impossible { file: self.file.to_owned(), line: self.line(found.start), violation })
    }

    /// A list of whole numbers.
    pub(super) fn counts(&self, section: &str, name: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        self.list(section, name, "a list of whole numbers, e.g. [2, 2]", |item| self.to_count(item))
    }

    /// A list of texts.
    pub(super) fn texts(&self, section: &str, name: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let expected = "a list of texts, e.g. [\"one\", \"two\"]";
        self.list(section, name, expected, |item| self.to_text(item, "a text in quotes"))
    }

    /// Whether the field is there and is a list.
    pub(super) fn is_list(&self, section: &str, name: &str) -> Result<bool, ConfigError> {
        Ok(self.find(section, name)?.is_some_and(|found| found.value.is_array()))
    }

    /// Line of a field; else of its section; else the first.
    pub(super) fn line_of(&self, field: &str) -> usize {
        let (section, name) = field.split_once('.').unwrap_or(("", field));
        let table = if section.is_empty() { Ok(Some(&self.root)) } else { self.table(section) };
        let key_line =
            |table: &DeTable<'t>, name: &str| entry(table, name).map(|(key, _)| self.line(key.span().start));
        table
            .ok()
            .flatten()
            .and_then(|table| key_line(table, name))
            .or_else(|| key_line(&self.root, section))
            .unwrap_or(1)
    }

    fn list<T>(
        &self,
        section: &str,
        name: &str,
        expected: &str,
        one: impl Fn(&Found<'_, 't>) -> Result<T, ConfigError>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(found) = self.find(section, name)? else { return Ok(None) };
        let Some(items) = found.value.as_array() else { return Err(self.wrong_type(&found, expected)) };
        let of_item = |(index, item): (usize, &Spanned<DeValue<'t>>)| {
            let field = format!("{}[{index}]", found.field);
            one(&Found { value: item.get_ref(), start: item.span().start, field })
        };
        items.iter().enumerate().map(of_item).collect::<Result<_, _>>().map(Some)
    }

    fn find<'d>(&'d self, section: &str, name: &str) -> Result<Option<Found<'d, 't>>, ConfigError> {
        let table = if section.is_empty() { Some(&self.root) } else { self.table(section)? };
        Ok(table.and_then(|table| entry(table, name)).map(|(_, value)| Found {
            value: value.get_ref(),
            start: value.span().start,
            field: join(section, name),
        }))
    }

    fn table(&self, section: &str) -> Result<Option<&DeTable<'t>>, ConfigError> {
        let Some((key, value)) = entry(&self.root, section) else { return Ok(None) };
        let not_a_table = || {
            let found = Found { value: value.get_ref(), start: key.span().start, field: section.to_owned() };
            self.wrong_type(&found, &format!("a section: a line [{section}] with fields below it"))
        };
        value.get_ref().as_table().map(Some).ok_or_else(not_a_table)
    }

    fn to_count(&self, found: &Found<'_, 't>) -> Result<usize, ConfigError> {
        let number = self.to_number(found)?;
        usize::try_from(number).map_err(|_| self.wrong_type(found, "a whole number, 0 or more"))
    }

    fn to_number(&self, found: &Found<'_, 't>) -> Result<u64, ConfigError> {
        let integer = match found.value {
            DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
            DeValue::String(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        integer.ok_or_else(|| self.wrong_type(found, "a whole number, 0 or more and below 2^64"))
    }

    fn to_text(&self, found: &Found<'_, 't>, expected: &str) -> Result<String, ConfigError> {
        let text = found.value.as_str().ok_or_else(|| self.wrong_type(found, expected))?;
        Ok(text.to_owned())
    }

    fn wrong_type(&self, found: &Found<'_, 't>, expected: &str) -> ConfigError {
        ConfigError::WrongType {
            file: self.file.to_owned(),
            line: self.line(found.start),
            field: found.field.clone(),
            found: describe(found.value),
            expected: expected.to_owned(),
        }
    }

    fn line(&self, start: usize) -> usize {
        position(self.text, start).0
    }
}

/// Line and column of a byte, both from 1; past the end counts as the end.
pub(super) fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..byte.min(text.len())];
    let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
    (line, column)
}

fn entry<'d, 't>(
    table: &'d DeTable<'t>,
    name: &str,
) -> Option<(&'d Spanned<std::borrow::Cow<'t, str>>, &'d Spanned<DeValue<'t>>)> {
    table.iter().find(|(key, _)| key.get_ref() == name)
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{}\"", shorten(text)),
        DeValue::Integer(integer) => format!("the number {}", shorten(integer.as_str())),
        DeValue::Float(float) => format!("the number {}", shorten(float.as_str())),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}

/// Text from the file, safe to put into a one-line message.
fn shorten(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 60;
    let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let ellipsis = if shown.len() < text.len() { "..." } else { "" };
    format!("{}{ellipsis}", shown.escape_debug())
}
