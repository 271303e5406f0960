//! Memory that jobs borrow and give back, so that no step after the first allocates.

use super::aligned::Line;
use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

/// Free buffers: at most as many as jobs have run at a time, each as long as its longest loan.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    free: Mutex<Vec<Vec<Line>>>,
}

impl Scratch {
    /// `len` zeros that begin with a cache line, until the loan is dropped.
    pub(super) fn take(&self, len: usize) -> Loan<'_> {
        let mut lines = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        lines.clear();
        lines.resize(len.div_ceil(Line::LEN), Line::ZERO);
        Loan { lines, len, owner: self }
    }
}

/// A buffer that returns to its scratch when it is dropped.
#[derive(Debug)]
pub(super) struct Loan<'a> {
    lines: Vec<Line>,
    len: usize,
    owner: &'a Scratch,
}

impl Loan<'_> {
    /// Cuts the buffer into consecutive parts of the given lengths.
    pub(super) fn parts<const N: usize>(&mut self, lens: [usize; N]) -> [&mut [f32]; N] {
        let mut rest = &mut self[..];
        lens.map(|len| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
            rest = behind;
            part
        })
    }
}

impl Deref for Loan<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &Line::numbers(&self.lines)[..self.len]
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut Line::numbers_mut(&mut self.lines)[..self.len]
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.owner.free.lock().unwrap_or_else(PoisonError::into_inner).push(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;

    #[test]
    fn a_buffer_comes_back_as_zeros() {
        let scratch = Scratch::default();
        let mut loan = scratch.take(6);
        let [a, b] = loan.parts([2, 4]);
        a.fill(1.0);
        b.fill(2.0);
        assert_eq!(&loan[..], [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
        let (address, other) = (loan.as_ptr(), scratch.take(1).as_ptr());
        assert_ne!(address, other);
        drop(loan);
        let again = scratch.take(5);
        assert_eq!((again.as_ptr(), &again[..]), (address, &[0.0; 5][..]));
    }
}
