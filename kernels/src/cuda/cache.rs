//! Compiled kernels on disk, so that only the first start on a machine waits for the compiler.
//!
//! The name of an entry is the digest of its recipe. The first bytes of an entry are a digest of the rest, so a damaged
//! entry counts as absent. A failure of the cache costs time, never the run.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use super::compile::Recipe;
use crate::report::CacheReport;

/// Extension of the names of entries.
const EXTENSION: &str = "cubin";
/// Bytes of a digest.
const DIGEST_LEN: usize = 32;
/// Limit of an entry, bytes, far above any compiled file of kernels.
const ENTRY_BYTES_MAX: u64 = 64 << 20;

/// A folder of compiled kernels, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// A cache in `folder`, which the first store creates. Without a folder nothing is kept.
    pub(super) fn at(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// A cache in the user's folder for caches: `$XDG_CACHE_HOME`, else `~/.cache`.
    pub(super) fn of_user() -> Self {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        Self::at(caches.map(|caches| caches.join("swarmline").join("kernels")))
    }

    /// The code kept for `recipe`; `None` if there is none or it is damaged.
    pub(super) fn load(&self, recipe: &Recipe) -> Option<Vec<u8>> {
        let path = self.path(recipe)?;
        if fs::metadata(&path).ok()?.len() > ENTRY_BYTES_MAX {
            return None;
        }
        let mut bytes = fs::read(path).ok()?;
        let (digest, compiled) = bytes.split_at_checked(DIGEST_LEN)?;
        if compiled.is_empty() || blake3::hash(compiled).as_bytes() != digest {
            return None;
        }
        bytes.drain(..DIGEST_LEN);
        Some(bytes)
    }

    /// Keeps `compiled` if the folder can be written. A reader sees the whole entry or none.
    pub(super) fn store(&self, recipe: &Recipe, compiled: &[u8]) {
        let _ = self.try_store(recipe, compiled);
    }

    /// The folder, the number of entries, and whether the folder can be written.
    pub(super) fn report(&self) -> CacheReport {
        let Some(folder) = &self.folder else { return CacheReport::default() };
        let named = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|end| end == EXTENSION);
        let entries =
            fs::read_dir(folder).map_or(0, |entries| entries.flatten().filter(|entry| named(entry)).count());
        // A folder that does not exist yet is as writable as its nearest ancestor that exists.
        let nearest = folder.ancestors().find(|folder| folder.is_dir());
        let writable = nearest.is_some_and(|folder| TrialFile::new(folder.to_owned()).is_some());
        CacheReport { folder: self.folder.clone(), entries, writable }
    }

    fn path(&self, recipe: &Recipe) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("{}.{EXTENSION}", recipe.digest())))
    }

    fn try_store(&self, recipe: &Recipe, compiled: &[u8]) -> std::io::Result<()> {
        let Some(path) = self.path(recipe) else { return Ok(()) };
        let Some(folder) = &self.folder else { return Ok(()) };
        fs::create_dir_all(folder)?;
        // Processes that start together each write their own file; the last rename wins with equal bytes.
        let draft = path.with_extension(format!("{}.draft", std::process::id()));
        let write = || {
            let mut file = fs::File::create(&draft)?;
            file.write_all(blake3::hash(compiled).as_bytes())?;
            file.write_all(compiled)?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&draft);
        })
    }
}

/// A short-lived empty file, to test whether a folder can be written.
struct TrialFile(PathBuf);

impl TrialFile {
    fn new(folder: PathBuf) -> Option<Self> {
        let path = folder.join(format!(".swarmline-{}", std::process::id()));
        fs::OpenOptions::new().write(true).create_new(true).open(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for TrialFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Version;

    const COMPILED: &[u8] = b"\x7fELF and so on";

    fn recipe() -> Recipe {
        Recipe::new(Version { major: 8, minor: 0 }, Version { major: 12, minor: 9 })
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(Some(folder.path().join("deep/kernels")));
        (folder, cache)
    }

    #[test]
    fn a_stored_entry_is_found_again_for_its_recipe_only() {
        let (_folder, cache) = cache();
        assert_eq!(cache.load(&recipe()), None);
        cache.store(&recipe(), COMPILED);
        assert_eq!(cache.load(&recipe()).as_deref(), Some(COMPILED));
        let others = [
            Recipe::new(Version { major: 9, minor: 0 }, Version { major: 12, minor: 9 }),
            Recipe::new(Version { major: 8, minor: 0 }, Version { major: 13, minor: 0 }),
            Recipe { source: format!("{} ", recipe().source), ..recipe() },
            Recipe { options: vec!["--fmad=true".to_owned()], ..recipe() },
        ];
        for other in others {
            assert_eq!(cache.load(&other), None);
        }
        assert_eq!(cache.report().entries, 1);
    }

    #[test]
    fn a_damaged_entry_counts_as_absent_and_is_replaced() {
        let (_folder, cache) = cache();
        cache.store(&recipe(), COMPILED);
        let path = cache.path(&recipe()).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[40] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..DIGEST_LEN], &whole[..3], &[], &flipped] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.load(&recipe()), None);
            cache.store(&recipe(), COMPILED);
            assert_eq!(cache.load(&recipe()).as_deref(), Some(COMPILED));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_only_the_cache() {
        // Permissions do not stop root; a file in place of the folder does.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        for cache in [Cache::at(Some(folder.path().join("file/kernels"))), Cache::at(None)] {
            cache.store(&recipe(), COMPILED);
            assert_eq!(cache.load(&recipe()), None);
        }
    }

    #[test]
    fn a_draft_that_cannot_take_its_place_is_removed() {
        let (_folder, cache) = cache();
        let path = cache.path(&recipe()).unwrap();
        fs::create_dir_all(path.join("occupied")).unwrap();
        cache.store(&recipe(), COMPILED);
        assert_eq!(cache.load(&recipe()), None);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn reporting_leaves_nothing_behind() {
        let (folder, cache) = cache();
        let report = cache.report();
        assert!(report.writable && report.entries == 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
