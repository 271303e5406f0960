use std::path::Path;

use super::{Entry, Stream};
use crate::config::Run;

/// Four layers of width 16 in three stages.
fn run(kind: &str) -> Run {
    let text = format!(
        "[model]\nhidden_size = 16\n[pipeline]\nlayers_per_stage = [2, 1, 1]\n\
         [boundary]\nkind = \"{kind}\"\nrank = 4\n[data]\npaths = [\"text\"]\n"
    );
    Run::parse(&text, "run.toml", Path::new("")).unwrap()
}

#[test]
fn the_last_stage_alone_is_unconstrained() {
    let run = run("subspace");
    assert_eq!(run.constrained_layers(), 3);
    assert_eq!([0, 1, 2, 3].map(|layer| run.stream(layer) == Stream::Coordinates), [true, true, true, false]);
    assert_eq!([0, 1, 2, 3].map(|layer| run.entry(layer) == Entry::Lift), [false, false, false, true]);
    assert_eq!([0, 1, 2, 3, 4].map(|layer| run.code_width(layer)), [0, 4, 4, 4, 0]);
}

#[test]
fn none_restarts_behind_every_cut() {
    let run = run("none");
    assert_eq!([0, 1, 2, 3].map(|layer| run.entry(layer) == Entry::Restart), [false, false, true, true]);
    assert_eq!([0, 1, 2, 3, 4].map(|layer| run.code_width(layer)), [0, 16, 0, 0, 0]);
}

#[test]
fn identity_sends_the_stream() {
    let run = run("identity");
    assert_eq!([0, 1, 2, 3].map(|layer| run.entry(layer)), [Entry::Continue; 4]);
    assert_eq!([0, 1, 2, 3, 4].map(|layer| run.code_width(layer)), [0, 16, 16, 16, 0]);
}
