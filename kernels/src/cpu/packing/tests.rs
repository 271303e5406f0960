use crate::{
    Backend, Error, PackedFormat, PackingError, RoundingKey,
    cpu::{
        CpuTensor,
        check::{cpu, numbers, same_on_any_threads, tensor},
    },
};
use PackedFormat::{Bf16, F32, Q4, Q8};
use proptest::prelude::*;

const KEY: RoundingKey = RoundingKey { run: 3, tensor: 1 << 40 };
const FORMATS: [PackedFormat; 4] = [F32, Bf16, Q8, Q4];

fn pack(x: &CpuTensor, rows: usize, width: usize, format: PackedFormat, key: RoundingKey) -> Vec<u8> {
    let mut bytes = vec![7; 3];
    cpu().pack(&mut bytes, x, rows, width, format, key).unwrap();
    assert_eq!(bytes.len(), format.packed_len(rows, width).unwrap());
    bytes
}

fn round_trip(x: &CpuTensor, rows: usize, width: usize, format: PackedFormat, key: RoundingKey) -> Vec<f32> {
    let mut back = tensor(rows * width, 99);
    let bytes = pack(x, rows, width, format, key);
    cpu().unpack(&mut back, &bytes, rows, width, format, key).unwrap();
    back.as_slice().to_vec()
}

/// Largest error, relative to the root of the mean square.
fn error(x: &[f32], y: &[f32]) -> f32 {
    let size = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
    x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / size
}

#[test]
fn a_round_trip_stays_within_its_bound() {
    // Per row: absmax after the rotation is below 5 deviations; each level errs by less than one step, and
    // the rotation back adds random errors: four deviations of a step's error, step / sqrt(3).
    for (rows, width) in [(1, 1), (4, 3), (3, 7), (5, 64), (2, 96), (3, 688)] {
        let x = tensor(rows * width, 1);
        let bounds = [(F32, 0.0), (Bf16, 2.0_f32.powi(-8) * 4.0), (Q8, 0.12), (Q4, 2.0)];
        for (format, bound) in bounds {
            let found = error(x.as_slice(), &round_trip(&x, rows, width, format, KEY));
            assert!(found <= bound, "{format:?} {rows}x{width}: {found}");
        }
    }
}

#[test]
fn outliers_are_spread() {
    // Without the rotation, one number 100 times the others would cost them all their levels.
    let mut x = numbers(256, 1);
    x[17] = 100.0;
    let back = round_trip(&x.clone().into(), 1, 256, Q8, KEY);
    let worst = x.iter().zip(&back).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(worst < 0.3, "{worst}");
}

#[test]
fn equal_keys_give_equal_bytes_and_different_keys_do_not() {
    let x = tensor(6 * 64, 1);
    for format in [Q8, Q4] {
        let bytes = pack(&x, 6, 64, format, KEY);
        assert_eq!(bytes, pack(&x, 6, 64, format, KEY));
        let others = [RoundingKey { run: 4, ..KEY }, RoundingKey { tensor: 2, ..KEY }];
        for key in others {
            assert_ne!(bytes, pack(&x, 6, 64, format, key));
        }
    }
}

#[test]
fn the_mean_over_keys_is_the_input() {
    const KEYS: u64 = 4000;
    let (rows, width) = (2, 24);
    let x = tensor(rows * width, 1);
    for format in [Q8, Q4] {
        let mut sums = vec![[0.0_f64; 2]; rows * width];
        for index in 0..KEYS {
            let back = round_trip(&x, rows, width, format, RoundingKey { run: 1, tensor: index });
            for ((sum, &y), &x) in sums.iter_mut().zip(&back).zip(x.as_slice()) {
                let off = f64::from(y) - f64::from(x);
                *sum = [sum[0] + off, sum[1] + off * off];
            }
        }
        for [off, square] in sums {
            let mean = off / KEYS as f64;
            let deviation = (square / KEYS as f64 / KEYS as f64).sqrt();
            assert!(mean.abs() < 4.5 * deviation, "{format:?}: {mean} is beyond {deviation}");
        }
    }
}

#[test]
fn a_row_of_zeros_has_scale_zero() {
    let x = CpuTensor::from(vec![0.0; 40]);
    for format in FORMATS {
        assert!(pack(&x, 2, 20, format, KEY).iter().all(|&byte| byte == 0));
        assert!(round_trip(&x, 2, 20, format, KEY).iter().all(|&x| x == 0.0));
    }
}

#[test]
fn a_number_that_is_not_finite_is_refused_with_its_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = tensor(40, 1);
        x.as_mut_slice()[29] = bad;
        for format in FORMATS {
            let refused = cpu().pack(&mut Vec::new(), &x, 4, 10, format, KEY);
            assert!(matches!(refused, Err(Error::Packing(PackingError::NonFinite { row: 2 }))));
        }
    }
}

#[test]
fn a_number_that_would_overflow_is_refused() {
    for format in [Bf16, Q8, Q4] {
        let refused = cpu().pack(&mut Vec::new(), &vec![f32::MAX; 8].into(), 1, 8, format, KEY);
        assert!(matches!(refused, Err(Error::Packing(PackingError::NonFinite { row: 0 }))));
    }
}

#[test]
fn bytes_of_a_wrong_length_or_scale_are_refused() {
    for format in FORMATS {
        let mut bytes = pack(&tensor(40, 1), 4, 10, format, KEY);
        bytes.push(0);
        let refused = cpu().unpack(&mut tensor(40, 1), &bytes, 4, 10, format, KEY);
        assert!(matches!(refused, Err(Error::Packing(PackingError::Length { .. }))));
    }
    // A scale of infinity in row 1.
    let mut bytes = pack(&tensor(40, 1), 4, 10, Q8, KEY);
    bytes[12..14].copy_from_slice(&half::bf16::INFINITY.to_le_bytes());
    let refused = cpu().unpack(&mut tensor(40, 1), &bytes, 4, 10, Q8, KEY);
    assert!(matches!(refused, Err(Error::Packing(PackingError::NonFinite { row: 1 }))));
}

#[test]
fn threads_do_not_show() {
    let x = tensor(150 * 48, 1);
    same_on_any_threads(|cpu| {
        [Q8, Q4, Bf16]
            .map(|format| {
                let mut bytes = Vec::new();
                cpu.pack(&mut bytes, &x, 150, 48, format, KEY).unwrap();
                let mut back = tensor(150 * 48, 2);
                cpu.unpack(&mut back, &bytes, 150, 48, format, KEY).unwrap();
                back
            })
            .to_vec()
    });
}

proptest! {
    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        rows in 0_usize..5,
        width in 0_usize..40,
        which in 0_usize..4,
    ) {
        let format = FORMATS[which];
        let mut x = tensor(rows * width, 1);
        let _ = cpu().unpack(&mut x, &bytes, rows, width, format, KEY);
        let mut fitting = bytes;
        fitting.resize(format.packed_len(rows, width).unwrap(), 0x7F);
        if cpu().unpack(&mut x, &fitting, rows, width, format, KEY).is_ok() {
            prop_assert!(x.as_slice().iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn finite_rows_pack_to_finite_rows(
        row in prop::collection::vec(-1e30_f32..1e30, 1..50),
        exponent in -45_i32..0,
        which in 0_usize..4,
    ) {
        let width = row.len();
        let row: Vec<f32> = row.iter().map(|x| x * 10.0_f32.powi(exponent)).collect();
        let back = round_trip(&row.into(), 1, width, FORMATS[which], KEY);
        prop_assert!(back.iter().all(|x| x.is_finite()));
    }
}
