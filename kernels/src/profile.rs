//! The arithmetic of a backend.

use std::fmt;
use std::str::FromStr;

/// The arithmetic of a backend, written `repro` or `fast`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// In f32 and in one fixed order: the same bits on every processor, for every number of threads, and on a GPU. The
    /// default.
    #[default]
    Repro,
    /// Factors of products rounded to bf16 (to nearest, ties to even), sums in f32: much faster where the device
    /// multiplies bf16 (AVX512-BF16, tensor cores). A CPU without AVX512-BF16 computes as under [`Profile::Repro`].
    /// Results are the same for every number of threads, but not on every kind of device.
    Fast,
}

impl Profile {
    /// `repro` or `fast`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Repro => "repro",
            Self::Fast => "fast",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no profile; the message quotes it and lists the names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no profile; say repro or fast")]
pub struct NoSuchProfile(String);

impl FromStr for Profile {
    type Err = NoSuchProfile;

    fn from_str(text: &str) -> Result<Self, NoSuchProfile> {
        let profiles = [Self::Repro, Self::Fast];
        profiles.into_iter().find(|profile| profile.name() == text).ok_or(NoSuchProfile(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_as_they_are_written() {
        for profile in [Profile::Repro, Profile::Fast] {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
        assert!("Repro".parse::<Profile>().unwrap_err().to_string().contains("say repro or fast"));
    }
}
