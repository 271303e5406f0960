use super::{Entry, Stream, code_width, constrained_layers, entry, stream};
use crate::config::{Kind, Packing};
use crate::model::tests::tiny;

#[test]
fn the_last_stage_alone_is_unconstrained() {
    let run = tiny(Kind::Subspace, Packing::Q8);
    assert_eq!(constrained_layers(&run), 3);
    assert_eq!(
        [0, 1, 2, 3].map(|layer| stream(&run, layer) == Stream::Coordinates),
        [true, true, true, false]
    );
    assert_eq!([0, 1, 2, 3].map(|layer| entry(&run, layer) == Entry::Lift), [false, false, false, true]);
    assert_eq!([0, 1, 2, 3, 4].map(|layer| code_width(&run, layer)), [0, 4, 4, 4, 0]);
}

#[test]
fn nothing_restarts_behind_every_cut() {
    let run = tiny(Kind::None, Packing::Q8);
    assert_eq!([0, 1, 2, 3].map(|layer| entry(&run, layer) == Entry::Restart), [false, false, true, true]);
    assert_eq!([0, 1, 2, 3, 4].map(|layer| code_width(&run, layer)), [0, 16, 0, 0, 0]);
}

#[test]
fn identity_sends_the_stream() {
    let run = tiny(Kind::Identity, Packing::Q8);
    assert_eq!([0, 1, 2, 3].map(|layer| entry(&run, layer)), [Entry::Continue; 4]);
    assert_eq!([0, 1, 2, 3, 4].map(|layer| code_width(&run, layer)), [0, 16, 16, 16, 0]);
}
