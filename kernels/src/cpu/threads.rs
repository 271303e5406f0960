//! Threads: work runs on the caller, or in blocks on a pool.

use pulp::Arch;
use rayon::prelude::*;

use super::isa::Isa;
use crate::{Error, Result};

/// The threads of a [`Cpu`](super::Cpu) and the instruction set its loops are compiled for at run time.
///
/// Blocks are cut by shape, never by thread count, and each block writes its own part of the output, so results do not
/// depend on the number of threads.
#[derive(Debug)]
pub(super) struct Threads {
    pool: Option<rayon::ThreadPool>,
    arch: Arch,
}

impl Threads {
    /// With one thread everything runs on the caller and no pool exists.
    pub(super) fn new(count: usize, isa: Isa) -> Result<Self> {
        let pool = (count > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(count)
                    .thread_name(|index| format!("kernels-{index}"))
                    .build()
                    .map_err(|error| Error::Device(error.to_string()))
            })
            .transpose()?;
        Ok(Self { pool, arch: isa.arch() })
    }

    /// Threads that share the work, at least 1.
    pub(super) fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// The instruction set in use.
    pub(super) fn arch(&self) -> Arch {
        self.arch
    }

    /// Runs `work` on every job, each with the best instructions of this machine.
    ///
    /// `work` and all it calls must be `#[inline(always)]` to be compiled for those instructions. Its loops are `for`
    /// loops, since a closure given to `for_each` and the like is compiled apart from its caller.
    #[inline(always)]
    pub(super) fn each<J: Send>(&self, jobs: impl Iterator<Item = J>, work: impl Fn(J) + Send + Sync) {
        let arch = self.arch;
        match &self.pool {
            None => {
                for job in jobs {
                    arch.dispatch(
                        #[inline(always)]
                        || work(job),
                    );
                }
            }
            Some(pool) => {
                let jobs: Vec<J> = jobs.collect();
                pool.install(|| {
                    jobs.into_par_iter().for_each(|job| {
                        arch.dispatch(
                            #[inline(always)]
                            || work(job),
                        );
                    });
                });
            }
        }
    }

    /// All threads, for work that needs no loops compiled by `each`.
    pub(super) fn team(&self) -> Team<'_> {
        Team(self.pool.as_ref())
    }
}

/// Threads that share the parts of a slice, one slice after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Team<'a>(Option<&'a rayon::ThreadPool>);

impl Team<'_> {
    /// The calling thread alone, for work too small to wake others.
    pub(super) const ALONE: Self = Self(None);

    /// Runs `work` on one of the threads, which then calls the others without a wait in between.
    pub(super) fn inside(self, work: impl FnOnce() + Send) {
        match self.0 {
            None => work(),
            Some(pool) => pool.install(work),
        }
    }

    /// Runs `work` on every `len` numbers of `x` and their index; called inside.
    pub(super) fn chunks(self, x: &mut [f32], len: usize, work: impl Fn(usize, &mut [f32]) + Send + Sync) {
        match self.0 {
            None => x.chunks_mut(len).enumerate().for_each(|(index, x)| work(index, x)),
            Some(_) => x.par_chunks_mut(len).enumerate().for_each(|(index, x)| work(index, x)),
        }
    }
}
