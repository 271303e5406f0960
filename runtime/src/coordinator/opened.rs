//! What a start has before it coordinates: its port, its log, and what an earlier start has left there. A start that is
//! refused has changed nothing.

use std::net::SocketAddr;

use swarmline_scheduler::coordinator::Config;
use tokio::net::TcpListener;

use super::log::{Found, Head, Log, NotedOrigin};
use super::resume::Plan;
use super::{CoordinatorOptions, RunFolder, check_same_run};
use crate::config::Manifest;
use crate::error::Error;
use crate::report::{Event, Incident};

/// An open port and an open log.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) listener: TcpListener,
    pub(super) log: Option<Log>,
    pub(super) found: Option<Found>,
    /// How the start goes on from a checkpoint, if it does.
    pub(super) plan: Option<Plan>,
    /// What people hear of it.
    pub(super) news: Option<Event>,
}

impl Opened {
    /// Opens port and log. A launch that begins at a checkpoint has a number later than those before.
    pub(super) async fn open(
        options: &CoordinatorOptions,
        given: &Manifest,
        config: &mut Config,
    ) -> Result<Self, Error> {
        let CoordinatorOptions { identity, listen, folder, resume, .. } = options;
        let plan = match resume {
            Some(resume) => Some(Plan::of(resume, folder.as_ref(), given).await?),
            None => None,
        };
        let before = folder.as_ref().and_then(RunFolder::address);
        let opened = match &plan {
            Some(Plan::Begin(beginning)) => {
                let listener = self::listen(*listen, before).await?;
                config.launch = beginning.later_launch(config.launch);
                let begin = |folder| beginning.begin_log(folder, identity.peer(), config);
                let aside = folder.as_ref().map(begin).transpose()?.flatten();
                let (log, found) = open_log(folder.as_ref())?;
                let news = Some(beginning.report(aside.as_deref()));
                Self { listener, log, found, plan, news }
            }
            Some(Plan::AsLogged(_)) | None => {
                let (log, found) = open_log(folder.as_ref())?;
                let again =
                    |plan: &Plan| Event::ResumedAlready { checkpoint: plan.origin().location.clone() };
                let news = match &plan {
                    Some(plan) => Some(again(plan)),
                    None => folder.as_ref().filter(|_| found.is_none() && before.is_some()).map(log_gone),
                };
                Self { listener: self::listen(*listen, before).await?, log, found, plan, news }
            }
        };
        if let Some((folder, found)) = folder.as_ref().zip(opened.found.as_ref()) {
            check_same_run(folder, &found.head, given, identity.peer())?;
        }
        Ok(opened)
    }

    /// The checkpoint that the launch began at.
    pub(super) fn origin(&self) -> Option<NotedOrigin> {
        let logged = || self.found.as_ref().and_then(|found| found.head.origin.clone());
        self.plan.as_ref().map(|plan| plan.origin().clone()).or_else(logged)
    }

    /// The manifest that members go on with. What may change is not for them to know.
    pub(super) fn manifest(&self, given: Manifest) -> Result<Manifest, Error> {
        Ok(match (&self.found, &self.plan) {
            (Some(found), _) => Manifest::from_bytes(&found.head.manifest)?,
            (None, Some(Plan::Begin(beginning))) => Manifest::from_bytes(&beginning.manifest)?,
            (None, Some(Plan::AsLogged(_)) | None) => given,
        })
    }

    /// Notes address and manifest for later starts; returns the address.
    pub(super) fn note(
        &self,
        options: &CoordinatorOptions,
        manifest: &Manifest,
    ) -> Result<SocketAddr, Error> {
        let address = self.listener.local_addr().map_err(Error::Address)?;
        if let Some((folder, log)) = options.folder.as_ref().zip(self.log.as_ref()) {
            folder.note_address(address)?;
            let (peer, manifest) = (options.identity.peer().0, manifest.to_bytes());
            log.begin(&Head { peer, manifest, origin: self.origin() })?;
        }
        Ok(address)
    }
}

/// An earlier start has noted its address, and there is no log.
fn log_gone(folder: &RunFolder) -> Event {
    Event::Incident(Incident::LogGone { path: folder.log().display().to_string() })
}

/// The log of the folder, and what an earlier start has left there.
fn open_log(folder: Option<&RunFolder>) -> Result<(Option<Log>, Option<Found>), Error> {
    let Some(folder) = folder else { return Ok((None, None)) };
    let (log, found) = Log::open(folder)?;
    Ok((Some(log), found))
}

/// Listens on `address`. Port 0 takes the port of the start before, which members call, if it is free.
async fn listen(address: SocketAddr, before: Option<SocketAddr>) -> Result<TcpListener, Error> {
    if let Some(before) = before.filter(|before| address.port() == 0 && before.ip() == address.ip())
        && let Ok(listener) = TcpListener::bind(before).await
    {
        return Ok(listener);
    }
    TcpListener::bind(address).await.map_err(|error| Error::Listen { address, error })
}
