//! The feeder's journal as a file: JSON, one record a line, each written before the actions that follow from it.
//!
//! A killed process keeps all records it wrote; a machine that loses power may lose the latest.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use swarmline_scheduler::feeder::{Continued, Outcome, Record, TakenOver};
use swarmline_scheduler::{
    Hop, Incarnation, Instance, Lease, Loss, MicrobatchId, PeerId, Refusal, StageIndex,
};

use crate::error::Error;
use crate::net::digest::ManifestDigest;

/// The file for the records; without one they are dropped.
#[derive(Debug)]
pub(super) struct Journal {
    file: Option<(File, PathBuf)>,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The first line: the digest of the run manifest.
    Run(String),
    Leased {
        first: u64,
        count: u64,
        epoch: u64,
    },
    Sent {
        id: u64,
        to: Station,
    },
    Granted {
        id: u64,
        to: Station,
    },
    Withdrawn {
        id: u64,
        from: Station,
    },
    Finished {
        id: u64,
        sum: f64,
        tokens: u32,
    },
    Refused {
        id: u64,
        by: Station,
        reason: String,
    },
    TakenOver {
        first: u64,
        count: u64,
        epoch: u64,
        ended: u64,
        end: u64,
        continued: Vec<Open>,
        abandoned: Vec<u64>,
    },
    RoundCalled,
}

/// A microbatch of a former feeder that goes on.
#[derive(Debug, Serialize, Deserialize)]
struct Open {
    id: u64,
    to: Station,
    grants: Vec<Station>,
}

/// A hop of a route.
#[derive(Debug, Serialize, Deserialize)]
struct Station {
    stage: Option<u16>,
    peer: String,
    incarnation: u64,
}

impl Journal {
    /// Opens the journal and reads the records of an earlier start. If the earlier start died within a line, that line
    /// is cut off.
    pub(super) fn open(path: Option<&Path>, digest: &ManifestDigest) -> Result<(Self, Vec<Record>), Error> {
        let Some(path) = path else { return Ok((Self { file: None }, Vec::new())) };
        let failed = |action| move |error| Error::File { action, path: path.to_owned(), error };
        let mut file =
            File::options().read(true).append(true).create(true).open(path).map_err(failed("open"))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed("read"))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).map_err(failed("repair"))?;
        let records = read(&text[..whole], path, digest)?;
        let mut journal = Self { file: Some((file, path.to_owned())) };
        if whole == 0 {
            journal.append(&Line::Run(digest.to_string()))?;
        }
        Ok((journal, records))
    }

    pub(super) fn write(&mut self, record: &Record) -> Result<(), Error> {
        if self.file.is_none() {
            return Ok(());
        }
        self.append(&Line::of(record))
    }

    fn append(&mut self, line: &Line) -> Result<(), Error> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let json = serde_json::to_string(line).map_err(Error::JournalRecord)?;
        writeln!(file, "{json}").map_err(|error| Error::File { action: "write", path: path.clone(), error })
    }
}

fn read(text: &str, path: &Path, digest: &ManifestDigest) -> Result<Vec<Record>, Error> {
    let unusable =
        |line: usize, fault: String| Error::Journal { path: path.to_owned(), line: line + 1, fault };
    let mut records = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line: Line = serde_json::from_str(line).map_err(|error| unusable(number, error.to_string()))?;
        match line {
            Line::Run(run) if number == 0 && run == digest.to_string() => {}
            Line::Run(run) => {
                return Err(unusable(number, format!("it belongs to the run {run}, not {digest}")));
            }
            _ if number == 0 => {
                return Err(unusable(number, "it does not name its run".to_owned()));
            }
            line => records
                .push(line.record().ok_or_else(|| unusable(number, "a key is not 64 digits".to_owned()))?),
        }
    }
    Ok(records)
}

impl Line {
    fn of(record: &Record) -> Self {
        match record {
            Record::Leased(Lease { first, count, epoch }) => {
                Self::Leased { first: first.0, count: *count, epoch: *epoch }
            }
            Record::Sent { microbatch, to } => Self::Sent { id: microbatch.0, to: Station::of(to) },
            Record::Granted { microbatch, to } => Self::Granted { id: microbatch.0, to: Station::of(to) },
            Record::Withdrawn { microbatch, from } => {
                Self::Withdrawn { id: microbatch.0, from: Station::of(from) }
            }
            Record::Ended { microbatch, outcome: Outcome::Refused { by, reason } } => {
                Self::Refused { id: microbatch.0, by: Station::of(by), reason: reason.to_string() }
            }
            Record::TakenOver(taken) => Self::TakenOver {
                first: taken.lease.first.0,
                count: taken.lease.count,
                epoch: taken.lease.epoch,
                ended: taken.ended,
                end: taken.end.0,
                continued: taken.continued.iter().map(Open::of).collect(),
                abandoned: taken.abandoned.iter().map(|id| id.0).collect(),
            },
            Record::RoundCalled => Self::RoundCalled,
            Record::Ended { microbatch, outcome } => {
                let loss = if let Outcome::Finished { loss } = outcome { *loss } else { Loss::default() };
                Self::Finished { id: microbatch.0, sum: loss.sum, tokens: loss.tokens }
            }
        }
    }

    fn record(self) -> Option<Record> {
        Some(match self {
            Self::Run(_) => return None,
            Self::RoundCalled => Record::RoundCalled,
            Self::Leased { first, count, epoch } => {
                Record::Leased(Lease { first: MicrobatchId(first), count, epoch })
            }
            Self::Sent { id, to } => Record::Sent { microbatch: MicrobatchId(id), to: to.hop()? },
            Self::Granted { id, to } => Record::Granted { microbatch: MicrobatchId(id), to: to.hop()? },
            Self::Withdrawn { id, from } => {
                Record::Withdrawn { microbatch: MicrobatchId(id), from: from.hop()? }
            }
            Self::Finished { id, sum, tokens } => {
                let outcome = Outcome::Finished { loss: Loss { sum, tokens } };
                Record::Ended { microbatch: MicrobatchId(id), outcome }
            }
            // Only the count matters: the reason was reported at the time.
            Self::Refused { id, by, reason } => {
                let outcome = Outcome::Refused { by: by.hop()?, reason: Refusal::Malformed(reason) };
                Record::Ended { microbatch: MicrobatchId(id), outcome }
            }
            Self::TakenOver { first, count, epoch, ended, end, continued, abandoned } => {
                Record::TakenOver(TakenOver {
                    lease: Lease { first: MicrobatchId(first), count, epoch },
                    ended,
                    end: MicrobatchId(end),
                    continued: continued.iter().map(Open::continued).collect::<Option<_>>()?,
                    abandoned: abandoned.into_iter().map(MicrobatchId).collect(),
                })
            }
        })
    }
}

impl Open {
    fn of(continued: &Continued) -> Self {
        let grants = continued.grants.iter().map(Station::of).collect();
        Self { id: continued.microbatch.0, to: Station::of(&continued.to), grants }
    }

    fn continued(&self) -> Option<Continued> {
        let grants = self.grants.iter().map(Station::hop).collect::<Option<_>>()?;
        Some(Continued { microbatch: MicrobatchId(self.id), to: self.to.hop()?, grants })
    }
}

impl Station {
    fn of(hop: &Hop) -> Self {
        let Instance { peer, incarnation } = hop.instance;
        let stage = hop.stage.map(|stage| stage.0);
        Self { stage, peer: HEXLOWER.encode(&peer.0), incarnation: incarnation.0 }
    }

    fn hop(&self) -> Option<Hop> {
        let peer = HEXLOWER.decode(self.peer.as_bytes()).ok()?;
        let instance = Instance::new(PeerId(peer.try_into().ok()?), Incarnation(self.incarnation));
        Some(Hop { stage: self.stage.map(StageIndex), instance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: ManifestDigest = ManifestDigest([3; 32]);

    fn records() -> Vec<Record> {
        let instance = Instance::new(PeerId([7; 32]), Incarnation(9));
        let hop = |stage| Hop::replica(StageIndex(stage), instance);
        let microbatch = MicrobatchId(4);
        vec![
            Record::Leased(Lease { first: MicrobatchId(0), count: 8, epoch: 0 }),
            Record::Sent { microbatch, to: hop(0) },
            Record::Granted { microbatch, to: hop(1) },
            Record::Withdrawn { microbatch, from: hop(1) },
            Record::RoundCalled,
            Record::TakenOver(TakenOver {
                lease: Lease { first: MicrobatchId(64), count: 32, epoch: 1 },
                ended: 5,
                end: MicrobatchId(80),
                continued: vec![Continued { microbatch: MicrobatchId(70), to: hop(0), grants: vec![hop(1)] }],
                abandoned: vec![MicrobatchId(71)],
            }),
            Record::Ended { microbatch, outcome: Outcome::Finished { loss: Loss { sum: 0.1, tokens: 3 } } },
        ]
    }

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("journal");
        let (mut journal, before) = Journal::open(Some(&path), &RUN).unwrap();
        assert_eq!(before, []);
        records().iter().for_each(|record| journal.write(record).unwrap());
        path
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let (_, read) = Journal::open(Some(&path), &RUN).unwrap();
        assert_eq!(read, records());
    }

    #[test]
    fn a_line_in_which_the_writer_died_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let (whole, records) = (std::fs::read(&path).unwrap(), records());
        let (last, rest) = records.split_last().unwrap();
        for torn in 1..20 {
            std::fs::write(&path, &whole[..whole.len() - torn]).unwrap();
            let (mut journal, read) = Journal::open(Some(&path), &RUN).unwrap();
            assert_eq!(read, rest);
            journal.write(last).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_journal_of_another_run_or_of_garbage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let error = Journal::open(Some(&path), &ManifestDigest([4; 32])).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains(&RUN.to_string()), "{error}");
        std::fs::write(&path, "hello\n").unwrap();
        let error = Journal::open(Some(&path), &RUN).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
