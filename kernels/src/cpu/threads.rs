//! Where work runs: inline, or in blocks on an own pool.

use gemm::Parallelism;
use pulp::Arch;
use rayon::prelude::*;

use super::isa;
use crate::{Error, Result};

/// The threads of a [`Cpu`](super::Cpu) and the instruction set its loops are compiled for at run time.
///
/// Blocks are cut by shape, never by thread count, and each block writes its own part of the output: so the
/// number of threads cannot show in the results.
#[derive(Debug)]
pub(super) struct Threads {
    pool: Option<rayon::ThreadPool>,
    arch: Arch,
}

impl Threads {
    /// With one thread everything runs on the caller and no pool exists.
    pub(super) fn new(count: usize) -> Result<Self> {
        let pool = (count > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(count)
                    .thread_name(|index| format!("kernels-{index}"))
                    .build()
                    .map_err(|error| Error::Device(error.to_string()))
            })
            .transpose()?;
        Ok(Self { pool, arch: isa::isa().arch() })
    }

    /// The same threads on another instruction set.
    #[cfg(test)]
    pub(super) fn with_isa(self, isa: isa::Isa) -> Self {
        Self { arch: isa.arch(), ..self }
    }

    /// Number of threads work is spread over.
    pub(super) fn count(&self) -> usize {
        self.pool.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// The instruction set in use.
    pub(super) fn arch(&self) -> Arch {
        self.arch
    }

    /// Runs `work` on every job, each with the best instructions of this machine.
    ///
    /// `work` and what it calls must be `#[inline(always)]` to be compiled for those instructions; so its loops
    /// are `for` loops, as the closures of `for_each` and its kin are compiled apart from their caller.
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

    /// Runs a product with the parallelism this pool offers.
    pub(super) fn product(&self, work: impl FnOnce(Parallelism) + Send) {
        match &self.pool {
            None => work(Parallelism::None),
            Some(pool) => pool.install(|| work(Parallelism::Rayon(self.count()))),
        }
    }
}
