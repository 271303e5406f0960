//! The product against plain loops, its own specification and itself on other instruction sets and threads.

use super::*;
use crate::cpu::check::{close, numbers, wide};
use half::bf16 as Half;
use proptest::prelude::*;

const SIZES: [[usize; 3]; 8] = [
    [1, 1, 1],
    [14, 32, 256],
    [15, 33, 257],
    [29, 17, 512],
    [3, 400, 40],
    [70, 5, 600],
    [6, 16, 1],
    [1, 64, 9],
];

/// Layout of the numbers of a factor.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows,
    Columns,
    Apart,
}

const LAYOUTS: [Layout; 3] = [Layout::Rows, Layout::Columns, Layout::Apart];

/// A factor of `rows x columns` numbers, without spare numbers.
fn factor(layout: Layout, rows: usize, columns: usize, stream: u64) -> (Vec<f32>, [usize; 2]) {
    let strides = match layout {
        Layout::Rows => [columns, 1],
        Layout::Columns => [1, rows],
        Layout::Apart => [2 * columns + 3, 2],
    };
    let len = if rows * columns == 0 { 0 } else { (rows - 1) * strides[0] + (columns - 1) * strides[1] + 1 };
    (numbers(len, stream), strides)
}

#[derive(Debug)]
struct Case {
    size: [usize; 3],
    a: (Vec<f32>, [usize; 2]),
    b: (Vec<f32>, [usize; 2]),
    c: Vec<f32>,
    write: Write,
}

impl Case {
    fn new(size: [usize; 3], layouts: [Layout; 2], write: Write) -> Self {
        let [m, n, k] = size;
        let (a, b) = (factor(layouts[0], m, k, 1), factor(layouts[1], k, n, 2));
        // Some numbers more, which must not change.
        Self { size, a, b, c: numbers(m * n + 5, 3), write }
    }

    fn all(size: [usize; 3]) -> impl Iterator<Item = Self> {
        LAYOUTS.into_iter().flat_map(move |a| {
            LAYOUTS
                .into_iter()
                .flat_map(move |b| [Write::Set, Write::Add].map(|write| Self::new(size, [a, b], write)))
        })
    }

    fn matrices(&self) -> [MatrixView<'_>; 2] {
        [&self.a, &self.b].map(|(data, [row_stride, column_stride])| MatrixView {
            data,
            row_stride: *row_stride,
            column_stride: *column_stride,
        })
    }

    fn run(&self, products: &mut Products, threads: &Threads) -> Vec<f32> {
        let ([a, b], mut c) = (self.matrices(), self.c.clone());
        products.run(threads, &mut c, a, b, self.size, self.write);
        c
    }

    fn on(&self, kernel: &'static Kernel) -> Vec<f32> {
        self.run(&mut Products::with_kernel(kernel), &threads(1))
    }

    /// `sum(c, i, j)` for every number of the result.
    fn expected<T: Copy>(&self, c: &[T], sum: impl Fn(T, usize, usize) -> T) -> Vec<T> {
        let [m, n, _] = self.size;
        let mut c = c.to_vec();
        (0..m * n).for_each(|at| c[at] = sum(c[at], at / n, at % n));
        c
    }

    /// The order of summation that the module promises, term by term.
    fn specification(&self) -> Vec<f32> {
        let [a, b] = self.matrices();
        let terms: Vec<usize> = (0..self.size[2]).collect();
        self.expected(&self.c, |kept, i, j| {
            let chain =
                |chunk: &[usize]| chunk.iter().fold(0.0, |sum, &k| a.at(i, k).mul_add(b.at(k, j), sum));
            let mut chunks = terms.chunks(DEPTH).map(chain);
            let first = match self.write {
                Write::Set => chunks.next().unwrap_or(0.0),
                Write::Add => kept,
            };
            chunks.fold(first, |sum, chunk| sum + chunk)
        })
    }

    /// The sums in f64, of factors as `round` changes them.
    fn exact(&self, round: impl Fn(f32) -> f32) -> Vec<f64> {
        let [a, b] = self.matrices();
        self.expected(&wide(&self.c), |kept, i, j| {
            let term = |k| f64::from(round(a.at(i, k))) * f64::from(round(b.at(k, j)));
            let kept = if self.write == Write::Add { kept } else { 0.0 };
            kept + (0..self.size[2]).map(term).sum::<f64>()
        })
    }
}

fn threads(count: usize) -> Threads {
    Threads::new(count, Isa::best()).unwrap()
}

/// One kernel for every instruction set of this processor.
fn kernels() -> Vec<&'static Kernel> {
    let sets = [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().filter(|&isa| isa <= Isa::best());
    sets.map(|isa| choose::kernel(isa, Profile::Repro)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn check(case: &Case) {
    let expected = case.specification();
    close(&expected, &case.exact(|x| x), 1e-4);
    for kernel in kernels() {
        assert!(bits(&case.on(kernel)) == bits(&expected), "{case:?} differs on {kernel:?}");
    }
}

#[test]
fn every_instruction_set_keeps_to_the_specification() {
    for size in SIZES {
        Case::all(size).for_each(|case| check(&case));
    }
}

#[test]
fn an_empty_sum_is_written_and_an_empty_result_is_not() {
    for size in [[3, 4, 0], [0, 4, 5], [3, 0, 5], [0, 0, 0]] {
        Case::all(size).for_each(|case| check(&case));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_shapes_keep_to_the_specification(
        m in 0_usize..40,
        n in 0_usize..80,
        k in 0_usize..530,
        layouts in (0_usize..3, 0_usize..3),
        add in any::<bool>(),
    ) {
        let write = if add { Write::Add } else { Write::Set };
        check(&Case::new([m, n, k], [LAYOUTS[layouts.0], LAYOUTS[layouts.1]], write));
    }
}

#[test]
fn several_blocks_of_columns_and_threads_do_not_show() {
    for size in [[57, BLOCK_COLUMNS + 37, 300], [200, 48, 520]] {
        let case = Case::new(size, [Layout::Rows, Layout::Columns], Write::Add);
        for kernel in kernels().into_iter().chain([&emulated::KERNEL]) {
            let expected = case.on(kernel);
            for count in [2, 3] {
                let mut products = Products::with_kernel(kernel);
                assert!(case.run(&mut products, &threads(count)) == expected, "{count} threads, {kernel:?}");
            }
        }
        assert!(bits(&case.on(kernels()[0])) == bits(&case.specification()));
    }
}

#[test]
fn a_number_that_is_not_finite_shows_in_its_row_or_column_only() {
    for kernel in kernels().into_iter().chain([&emulated::KERNEL]) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case::new([19, 37, 301], [Layout::Rows, Layout::Rows], Write::Set);
            let [_, n, k] = case.size;
            case.a.0[18 * k + 300] = bad;
            let c = case.on(kernel);
            assert!(c[..18 * n].iter().all(|c| c.is_finite()));
            assert!(c[18 * n..19 * n].iter().all(|c| !c.is_finite() && (c.is_nan() == bad.is_nan())));

            let mut case = Case::new([19, 37, 301], [Layout::Columns, Layout::Columns], Write::Add);
            case.b.0[36 * k] = bad;
            let c = case.on(kernel);
            (0..19 * n).for_each(|at| assert_eq!(c[at].is_finite(), at % n != 36, "number {at}"));
        }
    }
}

#[test]
fn memory_is_taken_for_the_largest_shape_only() {
    let mut products = Products::with_kernel(kernels()[0]);
    let run = |products: &mut Products, size| {
        Case::new(size, [Layout::Rows, Layout::Rows], Write::Set).run(products, &threads(1));
        (products.panels.as_ptr(), products.panels.len())
    };
    let largest = run(&mut products, [20, 90, 300]);
    for size in [[40, 30, 300], [20, 90, 1000], [1, 1, 1]] {
        assert_eq!(run(&mut products, size), largest);
    }
}

#[test]
fn bf16_pairs_agree_with_rounded_factors() {
    let rounded = |x| Half::from_f32(x).to_f32();
    for case in SIZES.into_iter().flat_map(Case::all) {
        close(&case.on(&emulated::KERNEL), &case.exact(rounded), 1e-4);
    }
}

#[test]
fn fast_runs_bf16_where_the_processor_can_and_says_so() {
    let [mut fast, repro] =
        [Profile::Fast, Profile::Repro].map(|profile| Products::new(Isa::best(), profile));
    assert_eq!(repro.profile(), Profile::Repro);
    assert_eq!(Products::new(Isa::Avx2, Profile::Fast).profile(), Profile::Repro);
    let case = Case::new([37, 70, 301], [Layout::Rows, Layout::Columns], Write::Set);
    let got = case.run(&mut fast, &threads(1));
    match fast.profile() {
        Profile::Fast => close(&got, &wide(&case.on(&emulated::KERNEL)), 1e-5),
        Profile::Repro => assert!(bits(&got) == bits(&case.specification())),
    }
}
