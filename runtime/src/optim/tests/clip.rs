use crate::optim::{MicrobatchClip, stage_clip_scale};

/// A clip at twice the median that has seen `norms`.
fn after(norms: impl IntoIterator<Item = f64>) -> MicrobatchClip {
    let mut clip = MicrobatchClip::new(2.0, 0.0);
    for norm in norms {
        clip.scale(norm);
    }
    clip
}

#[test]
fn the_first_eight_pass() {
    let mut clip = MicrobatchClip::new(2.0, 0.0);
    assert!([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1000.0].iter().all(|&norm| clip.scale(norm) == 1.0));
    assert_eq!(clip.scale(4.0), 0.5);
}

#[test]
fn an_outlier_is_scaled_down_to_the_limit() {
    let norms = [3.0, 1.0, 2.0, 4.0, 5.0, 3.0, 3.0, 3.0];
    assert_eq!(after(norms).scale(6.0), 1.0);
    assert_eq!(after(norms).scale(12.0), 0.5);
}

#[test]
fn one_outlier_does_not_move_the_limit() {
    let mut clip = after([1.0; 8]);
    clip.scale(1e9);
    assert_eq!(clip.scale(4.0), 0.5);
}

#[test]
fn the_limit_follows_gradients_that_grow_for_good() {
    let mut clip = after([1.0; 64]);
    let passed = (0..64).position(|_| clip.scale(100.0) == 1.0);
    assert_eq!(passed, Some(33), "once more than half of the 64 norms kept are large");
}

#[test]
fn a_gradient_beyond_all_measure_is_left_out_with_and_without_clipping() {
    for clip in [0.0, 2.0] {
        let mut clip = MicrobatchClip::new(clip, 100.0);
        assert!([1.0; 8].iter().all(|&norm| clip.scale(norm) == 1.0));
        assert_eq!(clip.scale(101.0), 0.0);
        assert!(clip.scale(100.0) > 0.0, "the limit itself is within");
        let left_out = (0..64).take_while(|_| clip.scale(1e6) == 0.0).count();
        assert!(left_out < 32, "gradients that grow for good count again: {left_out}");
    }
}

#[test]
fn zeros_give_no_limit() {
    assert_eq!(after([0.0; 20]).scale(5.0), 1.0);
}

#[test]
fn zero_turns_either_clip_off() {
    let mut clip = MicrobatchClip::new(0.0, 0.0);
    assert!([1e-9, 1.0, 1e9].repeat(10).iter().all(|&norm| clip.scale(norm) == 1.0));
    assert_eq!(stage_clip_scale(1e9, 0.0), 1.0);
}

#[test]
fn a_stage_is_clipped_at_a_fixed_norm() {
    assert_eq!(stage_clip_scale(0.5, 1.0), 1.0);
    assert_eq!(stage_clip_scale(1.0, 1.0), 1.0);
    assert_eq!(stage_clip_scale(4.0, 1.0), 0.25);
}
