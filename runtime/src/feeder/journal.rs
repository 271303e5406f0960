//! The feeder's journal as a file: the records of the machine, on disk before the messages that follow from them leave.
//!
//! Records are gathered ([`Journal::write`]) and reach the disk together ([`Journal::commit`]): the loop drains all that
//! has arrived, commits once, and sends. A commit survives a power cut. Every [`OUTCOMES_PER_FILE`] outcomes the file is
//! replaced by one that begins with a snapshot, so its length and the time of a restart do not depend on the length of
//! the run.

mod codec;
mod layout;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use swarmline_scheduler::feeder::{AveragingSchedule, Record, Snapshot};

use crate::atomic_file::sync_folder;
use crate::error::Error;
use crate::net::digest::ManifestDigest;

use codec::{Decoder, Encoder};

/// Outcomes after which the file is replaced by a shorter one.
const OUTCOMES_PER_FILE: u64 = 16_384;
/// The file for the records; without one they are dropped.
#[derive(Debug)]
pub(super) struct Journal {
    writer: Option<Writer>,
}

/// The launch that a journal belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    /// The manifest of the run.
    pub(super) manifest: ManifestDigest,
    /// The number that the coordinator drew when the run began: the same run file may be launched again.
    pub(super) number: u64,
    /// The launch before, if the run goes on from a checkpoint of it.
    pub(super) before: Option<u64>,
    /// Digest of the text: microbatches in flight are drawn again under their ids.
    pub(super) corpus: [u8; 32],
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: File,
    launch: Launch,
    averaging: Option<AveragingSchedule>,
    gathered: Encoder,
    /// A frame that the disk has not taken yet.
    unwritten: Vec<u8>,
    /// Length of the file up to which the disk has it, bytes.
    durable: u64,
    /// All records, those gathered included.
    snapshot: Snapshot,
    /// Outcomes in the file behind its snapshot.
    outcomes: u64,
}

impl Journal {
    /// Opens the journal and reads the records of an earlier start, folded. If the earlier start died within a write, that
    /// write is cut off. `averaging` is the schedule of the run.
    pub(super) fn open(
        path: Option<&Path>,
        launch: Launch,
        averaging: Option<AveragingSchedule>,
    ) -> Result<(Self, Snapshot), Error> {
        let Some(path) = path else { return Ok((Self { writer: None }, Snapshot::default())) };
        let failed = |action| move |error| Error::File { action, path: path.to_owned(), error };
        let mut file = options().create(true).open(path).map_err(failed("open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("read"))?;
        let Contents { records, decoder, whole } = Contents::read(&bytes, launch)
            .map_err(|layout::Damage { at, fault }| Error::Journal { path: path.to_owned(), at, fault })?;
        if whole < bytes.len() {
            let lost = bytes.len() - whole;
            tracing::warn!(journal = %path.display(), lost, "the last write was not finished; its bytes are cut off");
            file.set_len(whole as u64).and_then(|()| file.sync_data()).map_err(failed("repair"))?;
        }
        remove_unfinished(path, launch)?;
        let snapshot = Snapshot::of(&records, averaging);
        let outcomes = records.iter().filter(|record| matches!(record, Record::Ended { .. })).count() as u64;
        let (path, gathered) = (path.to_owned(), Encoder::after(decoder));
        let mut writer = Writer {
            path,
            file,
            launch,
            averaging,
            gathered,
            unwritten: Vec::new(),
            durable: whole as u64,
            snapshot: snapshot.clone(),
            outcomes,
        };
        if whole == 0 {
            writer.replace()?;
        }
        Ok((Self { writer: Some(writer) }, snapshot))
    }

    /// Gives a journal of the launch before another name, which is returned: the checkpoint counts its microbatches. Any other
    /// journal stays.
    pub(super) fn put_aside(path: &Path, launch: Launch) -> Result<Option<PathBuf>, Error> {
        let Some(before) = launch.before else { return Ok(None) };
        let failed = |action| move |error| Error::File { action, path: path.to_owned(), error };
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed("read"))?,
        };
        let opening =
            layout::read(&bytes).ok().and_then(|frames| frames.payloads.first().map(|frame| frame.1));
        if !opening.is_some_and(|opening| is_of_launch(opening, before)) {
            return Ok(None);
        }
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".before-{}", launch.number));
        let aside = PathBuf::from(name);
        std::fs::rename(path, &aside).and_then(|()| sync_folder(path)).map_err(failed("put aside"))?;
        Ok(Some(aside))
    }

    /// Whether the file can be written: a feeder finds out before it joins. An empty file is created.
    pub(super) fn try_place(path: &Path) -> Result<(), Error> {
        let opened = options().create(true).open(path);
        opened.map(drop).map_err(|error| Error::File { action: "open", path: path.to_owned(), error })
    }

    /// Gathers a record for the next commit.
    pub(super) fn write(&mut self, record: &Record) {
        let Some(writer) = &mut self.writer else { return };
        writer.gathered.record(record);
        writer.snapshot.fold(record, writer.averaging);
        writer.outcomes += u64::from(matches!(record, Record::Ended { .. }));
    }

    /// Returns when all records written are on disk. A commit that failed, for the disk is full, may be repeated: nothing is
    /// lost or written twice.
    ///
    /// # Errors
    /// If the disk does not take the records.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if writer.gathered.is_empty() && writer.unwritten.is_empty() {
            return Ok(());
        }
        // A file that cannot be replaced grows on: the records come first.
        if writer.outcomes >= OUTCOMES_PER_FILE && writer.replace().is_ok() {
            return Ok(());
        }
        writer.commit()
    }
}

impl Writer {
    fn commit(&mut self) -> Result<(), Error> {
        if !self.gathered.is_empty() {
            layout::push_frame(&mut self.unwritten, &self.gathered.take());
        }
        self.append().map_err(|error| Error::File { action: "write", path: self.path.clone(), error })?;
        self.durable += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }

    /// Appends what the disk has not taken yet, in place of what an attempt before has left.
    fn append(&mut self) -> std::io::Result<()> {
        if self.file.metadata()?.len() != self.durable {
            self.file.set_len(self.durable)?;
        }
        self.file.write_all(&self.unwritten)?;
        self.file.sync_data()
    }

    /// Writes a file that begins with a snapshot of all records, in place of the old one. A crash leaves one of the two,
    /// and perhaps the beginning of the other.
    fn replace(&mut self) -> Result<(), Error> {
        let mut gathered = Encoder::default();
        let mut bytes = layout::preamble().to_vec();
        layout::push_frame(&mut bytes, &opening(&self.launch));
        if !self.snapshot.is_empty() {
            gathered.snapshot(&self.snapshot);
            layout::push_frame(&mut bytes, &gathered.take());
        }
        let next = successor(&self.path);
        let length = bytes.len() as u64;
        let written = options().create_new(true).open(&next).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&next, &self.path)?;
            sync_folder(&self.path)?;
            Ok(file)
        });
        let written = written.inspect_err(|_| drop(std::fs::remove_file(&next)));
        self.file =
            written.map_err(|error| Error::File { action: "replace", path: self.path.clone(), error })?;
        (self.gathered, self.outcomes) = (gathered, 0);
        (self.unwritten, self.durable) = (Vec::new(), length);
        Ok(())
    }
}

/// The contents of a file.
struct Contents {
    records: Vec<Record>,
    decoder: Decoder,
    /// Length of the whole frames, bytes.
    whole: usize,
}

impl Contents {
    fn read(bytes: &[u8], launch: Launch) -> Result<Self, layout::Damage> {
        let layout::Frames { payloads, whole } = layout::read(bytes)?;
        let (mut records, mut decoder) = (Vec::new(), Decoder::default());
        let Some((&(at, first), rest)) = payloads.split_first() else {
            // The first start died before it had named its launch.
            return Ok(Self { records, decoder, whole: 0 });
        };
        check_opening(first, &launch).map_err(|fault| layout::Damage { at, fault })?;
        for &(at, payload) in rest {
            let fault = |fault| layout::Damage { at, fault: format!("{fault}; {}", layout::REMEDY) };
            records.extend(decoder.records(payload).map_err(fault)?);
        }
        Ok(Self { records, decoder, whole })
    }
}

/// The first frame: the launch and its text.
fn opening(launch: &Launch) -> Vec<u8> {
    let Launch { manifest, number, corpus, before: _ } = launch;
    manifest.0.into_iter().chain(number.to_le_bytes()).chain(*corpus).collect()
}

/// Whether a journal with this first frame is of the launch, whatever its text is, and however its layers were cut.
fn is_of_launch(opening: &[u8], launch: u64) -> bool {
    opening.get(size_of::<ManifestDigest>()..).is_some_and(|rest| rest.starts_with(&launch.to_le_bytes()))
}

fn check_opening(opening: &[u8], launch: &Launch) -> Result<(), String> {
    let another = "name another file with --journal";
    let (manifest, rest) = opening.split_at(opening.len().min(launch.manifest.0.len()));
    let (number, corpus) = rest.split_at(rest.len().min(size_of::<u64>()));
    if manifest != launch.manifest.0 {
        let theirs = manifest.try_into().map(ManifestDigest).unwrap_or(ManifestDigest([0; 32]));
        return Err(format!("it belongs to the run {theirs}, not {}; {another}", launch.manifest));
    }
    if number != launch.number.to_le_bytes() {
        return Err(format!("it belongs to an earlier launch of this run; {another}"));
    }
    if corpus != launch.corpus {
        let (theirs, ours) = (HEXLOWER.encode(corpus), HEXLOWER.encode(&launch.corpus));
        return Err(format!(
            "its microbatches were drawn from a text with digest {theirs}, and this text has {ours}: restore the text, or \
             {another}"
        ));
    }
    Ok(())
}

/// The file that will take the journal's place.
fn successor(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

/// Removes what a crash within [`Writer::replace`] has left. A file that is no beginning of this journal is another's.
fn remove_unfinished(path: &Path, launch: Launch) -> Result<(), Error> {
    let next = successor(path);
    let removed = match std::fs::read(&next) {
        Ok(bytes) if Contents::read(&bytes, launch).is_ok() => std::fs::remove_file(&next),
        Ok(_) => {
            let fault = "the journal beside it needs this name for a while; move the file away, or name another file \
                         with --journal";
            return Err(Error::Journal { path: next, at: 0, fault: fault.to_owned() });
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| Error::File { action: "remove", path: next, error })
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).append(true);
    options
}

#[cfg(test)]
mod tests;
