//! A reader's process: it has the live replicas of a run continue a text, around the scheduler's
//! [`Reader`](swarmline_scheduler::Reader).
//!
//! For each token the whole text goes through the stages once more: a pass costs the swarm as much as the forward of a
//! microbatch. No replica keeps anything between two passes, so each of them may die at any time.

mod options;
mod reader_loop;

use std::path::{Path, PathBuf};

use swarmline_scheduler::prediction::Config;
use swarmline_scheduler::{Instance, Role};

use crate::config::{Manifest, Run, Tokenizer};
use crate::data::TextTokenizer;
use crate::error::Error;
use crate::generate::{Continuation, GenerateError, Sampling, encode};
use crate::net::control::{Control, ControlError, Placement};
use crate::net::quic::bind_socket;
use crate::packing::TokenCodec;
use crate::process::{Heartbeats, Network, NetworkOptions, registration};
use crate::report::{GenerateReport, Reporter};

pub use options::ReaderOptions;

use reader_loop::{Handles, ReaderLoop};

/// Frames that wait for one peer: a reader has one request on its way.
const WINDOW: usize = 4;

/// A reader that has joined a run.
///
/// ```no_run
/// use swarmline::generate::Sampling;
/// use swarmline::{Identity, Reader, ReaderOptions, report::Reporter};
///
/// # async fn read(invite: swarmline::Invite) -> Result<(), Box<dyn std::error::Error>> {
/// let mut reader = Reader::join(ReaderOptions::new(invite, Identity::ephemeral()?)).await?;
/// let written = reader.generate("Once upon", 20, Sampling::default(), &Reporter::silent(), |_| {}).await?;
/// println!("{}", written.text);
/// reader.leave().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader {
    work: ReaderLoop,
    control: Control,
    tokenizer: TextTokenizer,
    tokens: TokenCodec,
    vocab: usize,
}

impl Reader {
    /// Joins the run of the coordinator in `options`, and opens the tokenizer of the run.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or refuses, the port is taken, or the tokenizer is not that of the run.
    pub async fn join(options: ReaderOptions) -> Result<Self, Error> {
        let socket = bind_socket(options.listen)?;
        let registration = registration(Role::Reader, socket.local_addr().map_err(Error::Address)?)?;
        let (control, joined) = Control::join(&options.invite, &options.identity, registration).await?;
        let heartbeats = Heartbeats::start(control.clone());
        let manifest = Manifest::from_bytes(&joined.manifest)?;
        let tokenizer = tokenizer(&manifest, &options, &joined.placement)?;
        let run = manifest.run().clone();
        let me = Instance::new(options.identity.peer(), control.start());
        let network_options = NetworkOptions {
            run: &run,
            digest: joined.digest,
            identity: &options.identity,
            incarnation: me.incarnation,
            window: WINDOW,
        };
        let (network, arrivals) = Network::start(&network_options, socket, &joined.tables.table())?;
        let handles = Handles {
            network,
            arrivals,
            table: control.follow(joined.tables),
            contact: heartbeats.contact(options.patience),
            heartbeats,
        };
        // Readers choose differently among the replicas of a stage.
        let config = Config { stages: run.last_stage().0 + 1, seed: me.incarnation.0 };
        let machine = swarmline_scheduler::Reader::new(config);
        let (work, tokens) = (ReaderLoop::new(machine, handles), TokenCodec::new(&run));
        Ok(Self { work, control, tokenizer, tokens, vocab: run.model.vocab_size })
    }

    /// Continues `prompt` by up to `tokens` tokens. `tell` gets the text piece by piece, as soon as it is whole characters.
    /// A text that is longer than a sequence of the run is continued by its end.
    ///
    /// # Errors
    /// The prompt is longer than a sequence, or empty; a stage has no replica, or none that replies; the run is over, or
    /// has diverged; the coordinator does not take this process for a member any more.
    pub async fn generate(
        &mut self,
        prompt: &str,
        tokens: usize,
        sampling: Sampling,
        reporter: &Reporter,
        mut tell: impl FnMut(&str),
    ) -> Result<GenerateReport, Error> {
        let mut ids = encode(&self.tokenizer, prompt)?;
        let context = self.tokens.context();
        if ids.len() > context {
            return Err(GenerateError::PromptTooLong { tokens: ids.len(), context }.into());
        }
        let mut text = Continuation::behind(&self.tokenizer, &ids, &[], tokens, sampling);
        while !text.is_complete() {
            let seen = &ids[ids.len().saturating_sub(context)..];
            let packed = self.tokens.encode_text(seen).map_err(|error| Error::Prompt { error })?;
            let logits = self.work.predict(packed.into(), seen.len() - 1, reporter).await?;
            if logits.len() != self.vocab {
                return Err(GenerateError::Logits { found: logits.len(), vocab: self.vocab }.into());
            }
            ids.extend(text.push(&logits, &mut tell)?);
        }
        Ok(text.finish(tell)?)
    }

    /// Leaves the run.
    pub async fn leave(mut self) {
        self.control.leave("done").await;
        self.work.close().await;
    }
}

/// The tokenizer of the run: that of the options, or the coordinator's, which is within reach on the same machine.
fn tokenizer(
    manifest: &Manifest,
    options: &ReaderOptions,
    placement: &Placement,
) -> Result<TextTokenizer, Error> {
    let Placement::Reader { tokenizer: theirs } = placement else {
        return Err(ControlError::Reply("it does not take this process for a reader".to_owned()).into());
    };
    let path: Option<PathBuf> = options.tokenizer.clone().or_else(|| theirs.clone());
    let run: &Run = manifest.run();
    let named = match (&run.data.tokenizer, path) {
        (Tokenizer::File(_), Some(path)) => Tokenizer::File(path),
        (tokenizer, _) => tokenizer.clone(),
    };
    let loaded = TextTokenizer::load(&named, Path::new(""))?;
    if loaded.digest() != manifest.tokenizer_digest() {
        return Err(GenerateError::OtherTokenizer.into());
    }
    Ok(loaded)
}
