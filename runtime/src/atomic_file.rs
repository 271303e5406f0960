//! Files that are whole or not there: written beside their place, on disk before they take it. A full disk, or a crash,
//! leaves the old file as it was.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Writes a file and waits until the disk has it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(place) = place_of(path)? else { return write_through(path, bytes) };
    let mut beside = beside(&place)?;
    beside.write_all(bytes)?;
    beside.as_file().sync_all()?;
    beside.persist(&place).map_err(|error| error.error)?;
    sync_folder(&place)
}

/// Makes a file that `fill` writes, unless another process makes it meanwhile.
pub(crate) fn make_new(path: &Path, fill: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    let beside = beside(path)?;
    fill(beside.as_file().try_clone()?)?;
    match beside.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        Ok(_) | Err(_) => sync_folder(path),
    }
}

/// Whether a file can be written at `path`, and replaced there: better a refusal now than work that is lost then.
pub(crate) fn try_place(path: &Path) -> io::Result<()> {
    match place_of(path)? {
        Some(place) => beside(&place).map(drop),
        None => File::options().write(true).open(path).map(drop),
    }
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The place of a regular file, behind all links; `None` for a device or a pipe, which nothing may replace.
fn place_of(path: &Path) -> io::Result<Option<PathBuf>> {
    match path.metadata() {
        Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(there) if there.is_file() => path.canonicalize().map(Some),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(path.to_owned())),
        Err(error) => Err(error),
    }
}

fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(bytes)
}

/// A file of another name in the same folder, removed unless it takes its place. The umask decides who may read it.
fn beside(place: &Path) -> io::Result<NamedTempFile> {
    let anyone = Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".swarmline-").permissions(anyone).tempfile_in(folder_of(place))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        try_place(&path).unwrap();
        assert_eq!(names(folder.path()), [""; 0], "a trial leaves nothing");
        for text in ["yesterday", "today"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, b"tomorrow").unwrap();
        assert!(link.is_symlink(), "a link stays one");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "tomorrow");
    }

    #[test]
    fn a_new_file_is_there_when_it_is_filled_and_replaces_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        make_new(&path, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(names(folder.path()), [""; 0]);
        for text in ["first", "second"] {
            make_new(&path, |mut file| file.write_all(text.as_bytes())).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
        }
        assert_eq!(names(folder.path()), ["log"]);
    }

    #[test]
    fn a_place_that_cannot_hold_a_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(try_place(folder.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(
            try_place(&folder.path().join("none/weights")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert!(try_place(Path::new("/proc/weights")).is_err());
    }

    #[test]
    fn a_device_is_written_and_never_replaced() {
        try_place(Path::new("/dev/null")).unwrap();
        write(Path::new("/dev/null"), b"weights").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
        let full = write(Path::new("/dev/full"), b"weights").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}
