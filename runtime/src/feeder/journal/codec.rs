//! Records as bytes: a tag, then numbers of seven bits a byte. A replica takes its whole key once, and a number after
//! that.

use std::collections::BTreeMap;
use std::ops::Range;

use swarmline_scheduler::feeder::{
    Continued, InFlight, JournaledRange, Late, Outcome, Record, Snapshot, TakenOver, Totals,
};
use swarmline_scheduler::{
    Hop, IdSet, Incarnation, Instance, Lease, Loss, MicrobatchId, PeerId, Refusal, StageIndex,
};

/// Replicas that have a number in one file; further ones take their key each time.
const NUMBERED_MAX: usize = 4_096;

mod tag {
    pub(super) const LEASED: u8 = 1;
    pub(super) const SENT: u8 = 2;
    pub(super) const GRANTED: u8 = 3;
    pub(super) const FINISHED: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
    pub(super) const TAKEN_OVER: u8 = 6;
    pub(super) const ROUND_CALLED: u8 = 7;
    pub(super) const SNAPSHOT: u8 = 8;
    pub(super) const WITHDRAWN: u8 = 9;
    pub(super) const LOST: u8 = 10;
    pub(super) const TRAINED: u8 = 11;
}

/// Writes the records of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoder {
    bytes: Vec<u8>,
    hops: BTreeMap<Hop, u64>,
}

/// Reads the records of one file. Every error means that no [`Encoder`] wrote the bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    hops: Vec<Hop>,
}

/// The reason why bytes are no records.
pub(super) type Fault = &'static str;

impl Encoder {
    /// Continues the file that a decoder has read.
    pub(super) fn after(decoder: Decoder) -> Self {
        let hops = decoder.hops.into_iter().zip(1..).collect();
        Self { bytes: Vec::new(), hops }
    }

    /// The bytes of the records since the last call.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn record(&mut self, record: &Record) {
        match record {
            Record::Snapshot(snapshot) => self.snapshot(snapshot),
            Record::Leased(lease) => self.tagged(tag::LEASED).lease(lease),
            Record::Sent { microbatch, to } => self.tagged(tag::SENT).number(microbatch.0).hop(to),
            Record::Granted { microbatch, to } => self.tagged(tag::GRANTED).number(microbatch.0).hop(to),
            Record::Withdrawn { microbatch, from } => {
                self.tagged(tag::WITHDRAWN).number(microbatch.0).hop(from)
            }
            Record::Ended { microbatch, outcome: Outcome::Refused { by, reason } } => {
                self.tagged(tag::REFUSED).number(microbatch.0).hop(by).text(&reason.to_string())
            }
            Record::Ended { microbatch, outcome } => {
                let loss = if let Outcome::Finished { loss } = outcome { *loss } else { Loss::default() };
                self.tagged(tag::FINISHED).number(microbatch.0).loss(loss)
            }
            Record::TakenOver(taken) => self.tagged(tag::TAKEN_OVER).taken_over(taken),
            Record::RoundCalled { stage } => self.tagged(tag::ROUND_CALLED).number(stage.0.into()),
            Record::Lost { replica, contributions } => {
                self.tagged(tag::LOST).hop(replica).number(*contributions)
            }
            Record::Trained { milliseconds } => self.tagged(tag::TRAINED).number(*milliseconds),
        };
    }

    /// The record of a snapshot.
    pub(super) fn snapshot(&mut self, snapshot: &Snapshot) -> &mut Self {
        let Snapshot { ranges, ended, open, late, contributions, rounds, totals } = snapshot;
        self.tagged(tag::SNAPSHOT);
        self.list(ranges, |to, JournaledRange { lease, taken_over }| {
            to.lease(lease).flag(taken_over.is_some()).number(taken_over.map_or(0, |end| end.0));
        });
        let runs: Vec<Range<u64>> = ended.runs(0..u64::MAX).collect();
        self.list(&runs, |to, run| {
            to.number(run.start).number(run.end - run.start);
        });
        self.list(open, |to, (id, InFlight { to: hop, attempts, grants })| {
            to.number(id.0).hop(hop).number((*attempts).into()).hops(grants);
        });
        self.list(late, |to, (id, Late { grants, finished })| {
            to.number(id.0).flag(*finished).hops(grants);
        });
        self.list(contributions, |to, ((hop, round), count)| {
            to.hop(hop).number(*round).number(*count);
        });
        self.list(rounds, |to, (stage, rounds)| {
            to.number(stage.0.into()).number(*rounds);
        });
        self.totals(totals)
    }

    fn tagged(&mut self, tag: u8) -> &mut Self {
        self.bytes.push(tag);
        self
    }

    fn number(&mut self, mut number: u64) -> &mut Self {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
        self
    }

    fn hop(&mut self, hop: &Hop) -> &mut Self {
        if let Some(&number) = self.hops.get(hop) {
            return self.number(number);
        }
        if self.hops.len() < NUMBERED_MAX {
            self.hops.insert(*hop, self.hops.len() as u64 + 1);
        }
        let Instance { peer, incarnation } = hop.instance;
        let stage = hop.stage.map_or(0, |stage| u64::from(stage.0) + 1);
        self.number(0).number(stage).number(incarnation.0);
        self.bytes.extend(peer.0);
        self
    }

    fn flag(&mut self, flag: bool) -> &mut Self {
        self.number(flag.into())
    }

    /// The length of a list, and its items.
    fn list<I>(&mut self, items: I, item: impl Fn(&mut Self, I::Item)) -> &mut Self
    where
        I: IntoIterator<IntoIter: ExactSizeIterator>,
    {
        let items = items.into_iter();
        self.number(items.len() as u64);
        items.for_each(|one| item(self, one));
        self
    }

    fn hops(&mut self, hops: &[Hop]) -> &mut Self {
        self.list(hops, |to, hop| {
            to.hop(hop);
        })
    }

    fn lease(&mut self, lease: &Lease) -> &mut Self {
        self.number(lease.first.0).number(lease.count).number(lease.epoch)
    }

    fn loss(&mut self, loss: Loss) -> &mut Self {
        self.bytes.extend(loss.sum.to_le_bytes());
        self.number(loss.tokens.into())
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64);
        self.bytes.extend(text.as_bytes());
        self
    }

    fn taken_over(&mut self, taken: &TakenOver) -> &mut Self {
        let TakenOver { lease, ended, end, continued, abandoned } = taken;
        self.lease(lease).number(*ended).number(end.0);
        self.list(continued, |to, Continued { microbatch, to: hop, grants }| {
            to.number(microbatch.0).hop(hop).hops(grants);
        });
        self.list(abandoned, |to, id| {
            to.number(id.0);
        })
    }

    fn totals(&mut self, totals: &Totals) -> &mut Self {
        let Totals {
            admitted,
            injected,
            finished,
            refused,
            abandoned,
            inherited,
            tokens,
            contributions_lost,
            trained_ms,
        } = *totals;
        let counts = [admitted, injected, finished, refused, abandoned, inherited];
        for number in counts.into_iter().chain([tokens, contributions_lost, trained_ms]) {
            self.number(number);
        }
        self
    }
}

impl Decoder {
    /// The records of one frame.
    pub(super) fn records(&mut self, payload: &[u8]) -> Result<Vec<Record>, Fault> {
        let mut input = Input { bytes: payload, hops: &mut self.hops };
        let mut records = Vec::new();
        while !input.bytes.is_empty() {
            records.push(input.record()?);
        }
        Ok(records)
    }
}

/// Bytes that are not read yet, and the numbered replicas so far.
struct Input<'a> {
    bytes: &'a [u8],
    hops: &'a mut Vec<Hop>,
}

impl Input<'_> {
    fn record(&mut self) -> Result<Record, Fault> {
        Ok(match self.byte()? {
            tag::SNAPSHOT => Record::Snapshot(Box::new(self.snapshot()?)),
            tag::LEASED => Record::Leased(self.lease()?),
            tag::SENT => Record::Sent { microbatch: self.id()?, to: self.hop()? },
            tag::GRANTED => Record::Granted { microbatch: self.id()?, to: self.hop()? },
            tag::WITHDRAWN => Record::Withdrawn { microbatch: self.id()?, from: self.hop()? },
            tag::FINISHED => {
                Record::Ended { microbatch: self.id()?, outcome: Outcome::Finished { loss: self.loss()? } }
            }
            tag::REFUSED => {
                let (microbatch, by) = (self.id()?, self.hop()?);
                // Only the count matters: the reason was reported at the time.
                let reason = Refusal::Malformed(self.text()?);
                Record::Ended { microbatch, outcome: Outcome::Refused { by, reason } }
            }
            tag::TAKEN_OVER => Record::TakenOver(self.taken_over()?),
            tag::ROUND_CALLED => Record::RoundCalled { stage: StageIndex(self.small()?) },
            tag::TRAINED => Record::Trained { milliseconds: self.number()? },
            tag::LOST => Record::Lost { replica: self.hop()?, contributions: self.number()? },
            _ => return Err("it has a record of an unknown kind"),
        })
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or("a record ends early")?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Result<u64, Fault> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                return Err("a number is too large");
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number is too long")
    }

    fn flag(&mut self) -> Result<bool, Fault> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither set nor clear"),
        }
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Fault> {
        T::try_from(self.number()?).map_err(|_| "a number is out of range")
    }

    /// A list. Every item takes a byte or more, so the length of the rest bounds it.
    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
        let length: usize = self.small()?;
        if length > self.bytes.len() {
            return Err("a list ends early");
        }
        (0..length).map(|_| item(self)).collect()
    }

    fn id(&mut self) -> Result<MicrobatchId, Fault> {
        self.number().map(MicrobatchId)
    }

    fn hop(&mut self) -> Result<Hop, Fault> {
        let number: usize = self.small()?;
        if let Some(index) = number.checked_sub(1) {
            return self.hops.get(index).copied().ok_or("a replica has no key");
        }
        let stage = self.number()?.checked_sub(1).map(u16::try_from).transpose();
        let stage = stage.map_err(|_| "a stage is out of range")?.map(StageIndex);
        let incarnation = Incarnation(self.number()?);
        let hop = Hop { stage, instance: Instance::new(PeerId(self.bytes()?), incarnation) };
        if self.hops.len() < NUMBERED_MAX {
            self.hops.push(hop);
        }
        Ok(hop)
    }

    fn hops(&mut self) -> Result<Vec<Hop>, Fault> {
        self.list(Self::hop)
    }

    fn lease(&mut self) -> Result<Lease, Fault> {
        Ok(Lease { first: self.id()?, count: self.number()?, epoch: self.number()? })
    }

    fn loss(&mut self) -> Result<Loss, Fault> {
        Ok(Loss { sum: f64::from_le_bytes(self.bytes()?), tokens: self.small()? })
    }

    fn text(&mut self) -> Result<String, Fault> {
        String::from_utf8(self.list(Self::byte)?).map_err(|_| "a text is not UTF-8")
    }

    fn taken_over(&mut self) -> Result<TakenOver, Fault> {
        Ok(TakenOver {
            lease: self.lease()?,
            ended: self.number()?,
            end: self.id()?,
            continued: self.list(|input| {
                Ok(Continued { microbatch: input.id()?, to: input.hop()?, grants: input.hops()? })
            })?,
            abandoned: self.list(Self::id)?,
        })
    }

    fn snapshot(&mut self) -> Result<Snapshot, Fault> {
        let ranges = self.list(Self::leased_range)?;
        let mut ended = IdSet::default();
        self.list(Self::run)?.into_iter().for_each(|run| ended.insert_run(run));
        let open = self.list(|input| {
            let id = input.id()?;
            Ok((id, InFlight { to: input.hop()?, attempts: input.small()?, grants: input.hops()? }))
        })?;
        let late = self.list(|input| {
            let (id, finished) = (input.id()?, input.flag()?);
            Ok((id, Late { grants: input.hops()?, finished }))
        })?;
        let contributions = self.list(|input| Ok(((input.hop()?, input.number()?), input.number()?)))?;
        let rounds = self.list(|input| Ok((StageIndex(input.small()?), input.number()?)))?;
        let totals = self.totals()?;
        let (open, late) = (open.into_iter().collect(), late.into());
        let (contributions, rounds) = (contributions.into_iter().collect(), rounds.into_iter().collect());
        Ok(Snapshot { ranges, ended, open, late, contributions, rounds, totals })
    }

    fn totals(&mut self) -> Result<Totals, Fault> {
        Ok(Totals {
            admitted: self.number()?,
            injected: self.number()?,
            finished: self.number()?,
            refused: self.number()?,
            abandoned: self.number()?,
            inherited: self.number()?,
            tokens: self.number()?,
            contributions_lost: self.number()?,
            trained_ms: self.number()?,
        })
    }

    fn leased_range(&mut self) -> Result<JournaledRange, Fault> {
        let lease = self.lease()?;
        let (is_taken_over, end) = (self.flag()?, self.id()?);
        Ok(JournaledRange { lease, taken_over: is_taken_over.then_some(end) })
    }

    fn run(&mut self) -> Result<Range<u64>, Fault> {
        let (start, length) = (self.number()?, self.number()?);
        Ok(start..start.checked_add(length).ok_or("a run of ids is too long")?)
    }
}
