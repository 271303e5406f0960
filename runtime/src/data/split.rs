//! The split of the text into a side to train on and a side held out.

use super::{DataError, TokenStream};

/// A tokenised file.
pub(super) struct Piece {
    /// blake3 of its normalised text.
    pub(super) digest: [u8; 32],
    pub(super) tokens: TokenStream,
}

/// The two sides.
#[derive(Debug)]
pub(super) struct Sides {
    pub(super) train: TokenStream,
    pub(super) heldout: TokenStream,
}

/// Splits by file: a file is held out if the hash of (seed, its text) falls below `heldout`. The hash covers the text
/// and not the name, so copies of a file are always on one side, and the split does not depend on paths.
///
/// With few files of different sizes the draw can miss the share by far. If either side is left without a whole
/// sequence, or the held-out side with less than a quarter of its share or more than halfway from it to all of the
/// text, the held-out side is the last part of the largest file alone.
pub(super) fn split(
    pieces: Vec<Piece>,
    seed: u64,
    heldout: f32,
    sequence: usize,
) -> Result<Sides, DataError> {
    let (held, kept): (Vec<_>, Vec<_>) =
        pieces.into_iter().enumerate().partition(|(_, piece)| is_held_out(piece, seed, heldout));
    if is_fair(total(&kept), total(&held), heldout, sequence) {
        return Ok(Sides { train: concatenated(kept), heldout: concatenated(held) });
    }
    let mut all: Vec<_> = held.into_iter().chain(kept).collect();
    all.sort_by_key(|(index, _)| *index);
    split_largest(all, heldout, sequence)
}

fn split_largest(mut pieces: Vec<(usize, Piece)>, heldout: f32, sequence: usize) -> Result<Sides, DataError> {
    let share = (total(&pieces) as f64 * f64::from(heldout)) as usize;
    // The first of several that are equally large.
    let largest = pieces.iter_mut().rev().max_by_key(|(_, piece)| piece.tokens.len());
    let held = match largest {
        None => TokenStream::Bytes(Vec::new()),
        Some((_, piece)) => {
            // Half at most, so that it does not matter which side is checked first.
            let wanted = share.max(sequence).min(piece.tokens.len() / 2);
            piece.tokens.split_off(piece.tokens.len() - wanted)
        }
    };
    let sides = Sides { train: concatenated(pieces), heldout: held };
    require(&sides.train, "left to train on", sequence)?;
    require(&sides.heldout, "held out", sequence)?;
    Ok(sides)
}

fn is_fair(kept: usize, held: usize, heldout: f32, sequence: usize) -> bool {
    let share = held as f64 / (kept + held).max(1) as f64;
    let wanted = f64::from(heldout);
    kept >= sequence && held >= sequence && share >= wanted / 4.0 && share <= wanted.midpoint(1.0)
}

fn is_held_out(piece: &Piece, seed: u64, heldout: f32) -> bool {
    let mut hasher = blake3::Hasher::new_derive_key("swarmline 2026 held-out files");
    hasher.update(&seed.to_le_bytes()).update(&piece.digest);
    let mut draw = [0; 8];
    hasher.finalize_xof().fill(&mut draw);
    // 53 bits are exact in an f64: the share of [0, 1) below `heldout`.
    let uniform = (u64::from_le_bytes(draw) >> 11) as f64 / (1u64 << 53) as f64;
    uniform < f64::from(heldout)
}

fn total(pieces: &[(usize, Piece)]) -> usize {
    pieces.iter().map(|(_, piece)| piece.tokens.len()).sum()
}

fn concatenated(pieces: Vec<(usize, Piece)>) -> TokenStream {
    let mut all = TokenStream::Bytes(Vec::new());
    for (_, piece) in pieces {
        all.append(&piece.tokens);
    }
    all
}

fn require(tokens: &TokenStream, side: &'static str, sequence: usize) -> Result<(), DataError> {
    if tokens.len() < sequence {
        return Err(DataError::TooLittleText { side, tokens: tokens.len(), needed: sequence });
    }
    Ok(())
}
