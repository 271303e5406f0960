//! A target as an object store: a local folder or a bucket, with its paths.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, RetryConfig, WriteMultipart};
use url::Url;

use super::error::{CheckpointError, Fault};

/// Files that are longer are sent in parts of this length, bytes: servers limit the length of one request.
const PART_BYTES: usize = 32 << 20;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// How long a request to a bucket is repeated.
const RETRY_WITHIN: Duration = Duration::from_secs(20);

/// The root of a target.
#[derive(Clone, Debug)]
pub(super) struct Place {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    /// The target as a person wrote it.
    pub(super) name: String,
    /// The folder, if it is a local one.
    local: Option<PathBuf>,
}

/// Name of the file that is written to see whether files can be.
const TRY: &str = "keeper.try";
/// Name of the file that the keeper of a local folder has locked.
const LOCK: &str = "keeper.lock";

impl Place {
    /// Opens a folder, which is made if need be, or a bucket. Credentials come from the environment.
    pub(super) fn open(target: &str) -> Result<Self, CheckpointError> {
        let name = target.trim_end_matches('/').to_owned();
        let failed = |fault| CheckpointError::new(target, fault);
        if target.is_empty() {
            return Err(failed(Fault::Target("a target without a name".to_owned())));
        }
        let (objects, root, local) = match Url::parse(target) {
            Ok(url) if target.contains("://") => {
                let (objects, root) = bucket(&url).map_err(failed)?;
                (objects, root, None)
            }
            _ => {
                let path = LocalPath::new(target);
                (folder(path).map_err(failed)?, Path::default(), Some(path.to_owned()))
            }
        };
        Ok(Self { objects, root, name, local })
    }

    /// Writes a small file and removes it, or finds it removed by another keeper that tries the target too.
    pub(super) async fn try_write(&self) -> Result<(), CheckpointError> {
        let path = self.root.clone().join(TRY);
        let failed = |error: object_store::Error| self.failed(&self.name, "write to", &error);
        self.objects.put(&path, Bytes::from_static(b"swarmline").into()).await.map_err(failed)?;
        match self.objects.delete(&path).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            deleted => deleted.map_err(failed),
        }
    }

    /// Locks a local folder as long as the file is open; `None` for a bucket.
    pub(super) fn lock(&self) -> Result<Option<File>, CheckpointError> {
        let Some(local) = &self.local else { return Ok(None) };
        let path = local.join(LOCK);
        let failed = |cause: String| {
            let fault = Fault::Access { action: "lock", cause };
            CheckpointError::new(path.display().to_string(), fault)
        };
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(|error| failed(error.to_string()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(CheckpointError::new(&*self.name, Fault::Locked)),
            Err(TryLockError::Error(error)) => Err(failed(error.to_string())),
        }
    }

    /// A folder of the target, if it is a local one.
    pub(super) fn local_folder(&self, folder: &str) -> Option<PathBuf> {
        Some(self.local.as_ref()?.join(folder))
    }

    /// The file `name` of a folder, for messages.
    pub(super) fn display(&self, folder: &str, name: &str) -> String {
        format!("{}/{folder}/{name}", self.name)
    }

    fn path(&self, folder: &str, name: &str) -> Path {
        self.root.clone().join(folder).join(name)
    }

    /// Names of the folders of the target.
    pub(super) async fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        let listed = self.objects.list_with_delimiter(Some(&self.root)).await;
        let listed = listed.map_err(|error| self.failed(&self.name, "list", &error))?;
        let last = |path: Path| path.filename().map(str::to_owned);
        Ok(listed.common_prefixes.into_iter().filter_map(last).collect())
    }

    /// Writes a file: no reader sees a part of it.
    pub(super) async fn write(&self, folder: &str, name: &str, bytes: Bytes) -> Result<(), CheckpointError> {
        let path = self.path(folder, name);
        let written = if bytes.len() <= PART_BYTES {
            self.objects.put(&path, bytes.into()).await.map(drop)
        } else {
            self.write_parts(&path, bytes).await
        };
        written.map_err(|error| self.failed(&self.display(folder, name), "write", &error))
    }

    async fn write_parts(&self, path: &Path, bytes: Bytes) -> object_store::Result<()> {
        let upload = self.objects.put_multipart(path).await?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        for start in (0..bytes.len()).step_by(PART_BYTES) {
            parts.wait_for_capacity(PARTS_AT_ONCE).await?;
            parts.put(bytes.slice(start..bytes.len().min(start + PART_BYTES)));
        }
        parts.finish().await.map(drop)
    }

    /// Reads a file of `bytes` bytes, or of at most `limit` if its length is not known.
    pub(super) async fn read(
        &self,
        folder: &str,
        name: &str,
        length: Length,
    ) -> Result<Bytes, CheckpointError> {
        let path = self.path(folder, name);
        let failed = |error: object_store::Error| self.failed(&self.display(folder, name), "read", &error);
        let file = self.objects.get(&path).await.map_err(failed)?;
        length
            .check(file.meta.size)
            .map_err(|fault| CheckpointError::new(self.display(folder, name), fault))?;
        file.bytes().await.map_err(failed)
    }

    /// Whether there is such a file.
    pub(super) async fn has(&self, folder: &str, name: &str) -> Result<bool, CheckpointError> {
        match self.objects.head(&self.path(folder, name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed(&self.display(folder, name), "read", &error)),
        }
    }

    /// Removes a folder, the file `first` before all others.
    pub(super) async fn remove(&self, folder: &str, first: &str) -> Result<(), CheckpointError> {
        let failed =
            |error: object_store::Error| self.failed(&format!("{}/{folder}", self.name), "remove", &error);
        let inside = self.root.clone().join(folder);
        if let Some(local) = &self.local {
            return remove_local(&local.join(folder), first).map_err(|error| {
                let fault = Fault::Access { action: "remove", cause: error.to_string() };
                CheckpointError::new(format!("{}/{folder}", self.name), fault)
            });
        }
        let listed = self.objects.list_with_delimiter(Some(&inside)).await.map_err(failed)?;
        let mut files: Vec<Path> = listed.objects.into_iter().map(|object| object.location).collect();
        files.sort_by_key(|file| file.filename() != Some(first));
        for file in files {
            self.objects.delete(&file).await.map_err(failed)?;
        }
        Ok(())
    }

    fn failed(&self, file: &str, action: &'static str, error: &object_store::Error) -> CheckpointError {
        let fault = match error {
            object_store::Error::NotFound { .. } if action == "read" => Fault::Missing,
            other => Fault::Access { action, cause: other.to_string() },
        };
        CheckpointError::new(file, fault)
    }
}

/// The length that a file may have, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    Exactly(u64),
    AtMost(u64),
}

impl Length {
    fn check(self, found: u64) -> Result<(), Fault> {
        let (Self::Exactly(named) | Self::AtMost(named)) = self;
        let fits = match self {
            Self::Exactly(named) => found == named,
            Self::AtMost(limit) => found <= limit,
        };
        if fits { Ok(()) } else { Err(Fault::Length { named, found }) }
    }
}

/// Removes a folder, the file `first` before all others. Files that a killed keeper was writing have names that the
/// client of the store does not list.
fn remove_local(folder: &LocalPath, first: &str) -> io::Result<()> {
    match std::fs::remove_file(folder.join(first)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::remove_dir_all(folder)
}

/// A local folder. Files are written beside their place, synced and renamed.
fn folder(path: &LocalPath) -> Result<Arc<dyn ObjectStore>, Fault> {
    let made = std::fs::create_dir_all(path);
    made.map_err(|error| Fault::Access { action: "create", cause: error.to_string() })?;
    let opened = LocalFileSystem::new_with_prefix(path).map_err(|error| Fault::Target(error.to_string()))?;
    Ok(Arc::new(opened.with_fsync(true).with_automatic_cleanup(true)))
}

fn bucket(url: &Url) -> Result<(Arc<dyn ObjectStore>, Path), Fault> {
    let refused = |error: object_store::Error| Fault::Target(error.to_string());
    let (scheme, path) = ObjectStoreScheme::parse(url).map_err(|error| Fault::Target(error.to_string()))?;
    // The client takes the provider of the process. One that is installed already is ring too.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let objects: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_retry(retries());
            Arc::new(builder.build().map_err(refused)?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).with_retry(retries());
            Arc::new(builder.build().map_err(refused)?)
        }
        _ => return Err(Fault::Target(format!("no kind of bucket begins with {}://", url.scheme()))),
    };
    Ok((objects, path))
}

/// Requests that fail are repeated a few times: the caller has pauses of its own.
fn retries() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: RETRY_WITHIN, ..RetryConfig::default() }
}
