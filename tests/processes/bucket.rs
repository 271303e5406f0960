//! A bucket of a real S3 server, on loopback and in a folder, which may be read-only or slow.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Result, s3_error};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The only key that the server admits.
const KEY: &str = "key";
pub(crate) const SECRET: &str = "a-secret-of-the-keeper";

/// The server. Dropping it ends it.
pub(crate) struct Bucket {
    address: String,
    folder: TempDir,
    temper: Arc<Mutex<Temper>>,
    _runtime: Runtime,
}

/// What the server does with requests.
#[derive(Clone, Copy)]
pub(crate) enum Temper {
    Willing,
    /// It refuses all but reads.
    ReadOnly,
    /// It takes this long before it begins with a request.
    Slow(Duration),
}

impl Bucket {
    /// Starts the server with an empty bucket named `bucket`.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let temper = Arc::new(Mutex::new(Temper::Willing));
        let mut service = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        service.set_access(Moody(Arc::clone(&temper)));
        let service = service.build();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let server = Builder::new(TokioExecutor::new());
                    // A client that is killed leaves a connection in pieces.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { address, folder, temper, _runtime: runtime }
    }

    pub(crate) fn becomes(&self, temper: Temper) {
        *self.temper.lock().unwrap() = temper;
    }

    /// The folder of what is at `path` in the bucket.
    pub(crate) fn folder(&self, path: &str) -> PathBuf {
        self.folder.path().join("bucket").join(path)
    }

    /// The variables that a keeper finds the server and its credentials in.
    pub(crate) fn environment(&self, secret: &str) -> Vec<(&'static str, OsString)> {
        let variables = [
            ("AWS_ENDPOINT", self.address.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_REGION", "us-east-1"),
        ];
        variables.into_iter().map(|(name, value)| (name, value.into())).collect()
    }
}

/// Names of the folders in `folder`, ascending.
pub(crate) fn folders(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap().flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

struct Moody(Arc<Mutex<Temper>>);

#[async_trait::async_trait]
impl S3Access for Moody {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        if request.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "no request without credentials"));
        }
        let temper = *self.0.lock().unwrap();
        match temper {
            Temper::ReadOnly if !is_read(request.s3_op().name()) => {
                Err(s3_error!(AccessDenied, "the bucket is read-only"))
            }
            Temper::Willing | Temper::ReadOnly => Ok(()),
            Temper::Slow(pause) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
        }
    }
}

fn is_read(operation: &str) -> bool {
    ["Get", "Head", "List"].iter().any(|verb| operation.starts_with(verb))
}
