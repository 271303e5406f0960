//! The identity of a peer: an ed25519 key pair.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ed25519_dalek::pkcs8::{self, EncodePrivateKey, SecretDocument};
use ed25519_dalek::{Signer, SigningKey};
use swarmline_scheduler::PeerId;

use crate::config::SECRET_MARK;

/// Limit of a key file, bytes; a valid file has 82, or 65 if an early release wrote it.
const FILE_BYTES_MAX: u64 = 256;

/// A key pair. Its public half is the [`PeerId`]; `Debug` prints that half only.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
    is_new: bool,
}

/// Errors of creating or loading a key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The operating system gave no entropy.
    #[error("cannot create a key: the operating system gives no random bytes ({0})")]
    Entropy(getrandom::Error),
    /// The file could not be read.
    #[error("cannot read the key file {path}: {source}; check its owner and permissions")]
    Read {
        /// Path of the key file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write the key file {path}: {source}; choose a place this user may write to")]
    Write {
        /// Path of the key file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The file does not hold a key.
    #[error(
        "{path} does not hold a key (`swarmline-secret-` and 64 hexadecimal digits); restore it from a backup, or remove it to get \
         a new identity"
    )]
    Content {
        /// Path of the key file.
        path: PathBuf,
    },
    /// Other users can read the file.
    #[error("the key file {path} can be read by other users (mode {mode:o}); run: chmod 600 {path}")]
    Permissions {
        /// Path of the key file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
}

impl Identity {
    /// A new key, in memory only.
    ///
    /// # Errors
    /// [`IdentityError::Entropy`].
    pub fn ephemeral() -> Result<Self, IdentityError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(IdentityError::Entropy)?;
        Ok(Self { is_new: true, ..Self::from_seed(seed) })
    }

    /// The key with this secret seed.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&seed), is_new: false }
    }

    /// The key in the file at `path`. If there is no such file, creates it with a new key and mode 0600.
    ///
    /// # Errors
    /// If the file cannot be read or written, does not hold a key, or can be read by other users.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match std::fs::File::open(path) {
            Ok(file) => load(file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
            Err(source) => Err(IdentityError::Read { path: path.to_owned(), source }),
        }
    }

    /// [`Identity::load_or_create`] with a path, [`Identity::ephemeral`] without.
    ///
    /// # Errors
    /// As [`Identity::load_or_create`] and [`Identity::ephemeral`].
    pub fn load_or_ephemeral(path: Option<&Path>) -> Result<Self, IdentityError> {
        path.map_or_else(Self::ephemeral, Self::load_or_create)
    }

    /// The public half.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        PeerId(self.key.verifying_key().to_bytes())
    }

    /// Whether this process has made the key: no peer knows it from an earlier start.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Ed25519 signature over `message`. The caller separates domains.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// A secret for one purpose, the same after every start with this key.
    #[must_use]
    pub fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, self.key.as_bytes())
    }

    /// The key pair as PKCS #8, which TLS reads.
    pub(super) fn to_pkcs8(&self) -> pkcs8::Result<SecretDocument> {
        self.key.to_pkcs8_der()
    }

    /// The secret half.
    fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.peer()).finish()
    }
}

fn load(file: std::fs::File, path: &Path) -> Result<Identity, IdentityError> {
    check_permissions(&file, path)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => IdentityError::Content { path: path.to_owned() },
        _ => IdentityError::Read { path: path.to_owned(), source },
    })?;
    let digits = text.trim();
    let digits = digits.strip_prefix(SECRET_MARK).unwrap_or(digits);
    let seed = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    seed.map(Identity::from_seed).ok_or_else(|| IdentityError::Content { path: path.to_owned() })
}

fn create(path: &Path) -> Result<Identity, IdentityError> {
    let identity = Identity::ephemeral()?;
    write_secret(path, &format!("{SECRET_MARK}{}\n", HEXLOWER.encode(&identity.seed())))
        .map_err(|source| IdentityError::Write { path: path.to_owned(), source })?;
    Ok(identity)
}

/// The file is created with its mode, so that other users can never read the key.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(unix)]
fn check_permissions(file: &std::fs::File, path: &Path) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|source| IdentityError::Read { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Permissions { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_permissions(_: &std::fs::File, _: &Path) -> Result<(), IdentityError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_created_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let created = Identity::load_or_create(&path).unwrap();
        let loaded = Identity::load_or_create(&path).unwrap();
        assert_eq!(created.peer(), loaded.peer());
        assert!(!format!("{created:?}").contains(&HEXLOWER.encode(&created.seed())));
    }

    #[test]
    fn a_key_file_says_that_it_is_a_secret_and_one_that_does_not_is_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let (marked, unmarked) = (dir.path().join("marked"), dir.path().join("unmarked"));
        let created = Identity::load_or_create(&marked).unwrap();
        let text = std::fs::read_to_string(&marked).unwrap();
        let digits = text.strip_prefix("swarmline-secret-").unwrap();
        write_secret(&unmarked, digits).unwrap();
        assert_eq!(Identity::load_or_create(&unmarked).unwrap().peer(), created.peer());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        Identity::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let message = Identity::load_or_create(&path).unwrap_err().to_string();
        assert!(message.contains("chmod 600"), "{message}");
    }

    #[test]
    fn a_broken_key_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_secret(&path, "not a key").unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::Content { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a key");
        let nowhere = dir.path().join("missing/key");
        assert!(matches!(Identity::load_or_create(&nowhere), Err(IdentityError::Write { .. })));
    }
}
