//! The result file of a benchmark.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::NamedTempFile;

use super::super::Failure;

/// A file that could be written when the benchmark started.
#[derive(Debug)]
pub(super) struct ResultFile {
    path: PathBuf,
}

impl ResultFile {
    /// Checks that `path` can be written, without touching it, so that minutes of measurement do not end in an error.
    pub(super) fn prepare(path: &Path) -> Result<Self, Failure> {
        let file = Self { path: path.to_owned() };
        if path.is_dir() {
            return Err(Failure::usage(format!("--json {}: is a folder; name a file", path.display())));
        }
        drop(file.temporary().map_err(|error| Failure::usage(file.unwritable(&error)))?);
        Ok(file)
    }

    /// Writes `result` atomically: a reader sees the former file or all of the new one.
    pub(super) fn write(&self, result: &impl Serialize) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::failed(self.unwritable(&error));
        let mut bytes = serde_json::to_vec_pretty(result).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        let mut file = self.temporary().map_err(failed)?;
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// A file in the same folder, to be renamed to the path; dropped, it is deleted.
    fn temporary(&self) -> std::io::Result<NamedTempFile> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        // The permissions of any new file, less the umask.
        let permissions = std::fs::Permissions::from_mode(0o666);
        tempfile::Builder::new().permissions(permissions).tempfile_in(folder.unwrap_or(Path::new(".")))
    }

    fn unwritable(&self, error: &std::io::Error) -> String {
        format!(
            "--json {}: cannot be written ({error}); name a file in a folder you may write to",
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preparing_leaves_nothing_and_writing_leaves_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        let file = ResultFile::prepare(&path).unwrap();
        let entries = || std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(entries(), 0);
        file.write(&[1, 2]).unwrap();
        file.write(&[3]).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<u8>>(&std::fs::read(&path).unwrap()).unwrap(), [3]);
        assert_eq!(entries(), 1);
    }

    #[test]
    fn a_path_that_cannot_be_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| format!("{:?}", ResultFile::prepare(path).unwrap_err());
        assert!(refused(folder.path()).contains("folder"));
        assert!(refused(&folder.path().join("no/such/result.json")).contains("cannot be written"));
    }
}
