//! The weights of a shard and their gradients, by global name.

use swarmline_kernels::Backend;

use crate::config::{ParameterSpec, Run};
use crate::hashing::digest;
use crate::model::ParameterLog;
use crate::model::init::initial_value;

/// One parameter on the device.
#[derive(Debug)]
pub struct Parameter<B: Backend> {
    /// Global name, e.g. `layers.7.attention.wq`.
    pub name: String,
    /// `[out, in]` of a matrix, `[width]` of a gain.
    pub shape: Vec<usize>,
    /// The weights.
    pub weight: B::Tensor,
    /// The sum of the gradients of all microbatches since [`Params::zero_gradients`], each averaged over its
    /// tokens.
    pub gradient: B::Tensor,
    /// Whether weight decay applies: to matrices, not to gains.
    pub decays: bool,
}

impl<B: Backend> Parameter<B> {
    /// Number of f32 of the weight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the parameter has no numbers; false for each parameter of a valid run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All parameters of a shard, in the order of [`Run::parameter_specs`].
#[derive(Debug)]
pub struct Params<B: Backend> {
    list: Vec<Parameter<B>>,
}

impl<B: Backend> Params<B> {
    /// Initial values, each recorded in `log`; gradients zero.
    pub(super) fn new(
        backend: &mut B,
        run: &Run,
        specs: &[ParameterSpec],
        log: &mut ParameterLog,
    ) -> swarmline_kernels::Result<Self> {
        let mut list = Vec::with_capacity(specs.len());
        for spec in specs {
            let mut parameter = Parameter {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                weight: backend.zeros(spec.len())?,
                gradient: backend.zeros(spec.len())?,
                decays: spec.decays(),
            };
            let value = initial_value(spec, run.seed);
            log.record(&spec.name, digest(&value));
            backend.upload(&mut parameter.weight, &value)?;
            list.push(parameter);
        }
        Ok(Self { list })
    }

    /// All parameters.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Parameter<B>> {
        self.list.iter()
    }

    /// All parameters, mutable. Values from outside the process go through
    /// [`Shard::upload`](crate::model::Shard::upload) or
    /// [`Shard::restore`](crate::model::Shard::restore) instead, which record them.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = &mut Parameter<B>> {
        self.list.iter_mut()
    }

    /// The parameter called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Parameter<B>> {
        self.list.iter().find(|parameter| parameter.name == name)
    }

    /// The parameter called `name`, mutable.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Parameter<B>> {
        self.list.iter_mut().find(|parameter| parameter.name == name)
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// If the device fails; likewise below.
    pub fn zero_gradients(&mut self, backend: &mut B) -> swarmline_kernels::Result<()> {
        self.list.iter_mut().try_for_each(|parameter| {
            let len = parameter.len();
            backend.fill(&mut parameter.gradient, 0.0, len)
        })
    }

    /// The value of `name`, row-major; `None` if the shard does not have it.
    pub fn download(&self, backend: &mut B, name: &str) -> swarmline_kernels::Result<Option<Vec<f32>>> {
        self.get(name).map(|parameter| value(backend, parameter)).transpose()
    }

    /// Digest (BLAKE3 of the little-endian f32) of each parameter, in order.
    pub fn digests(&self, backend: &mut B) -> swarmline_kernels::Result<Vec<(String, blake3::Hash)>> {
        let digest =
            |parameter: &Parameter<B>| Ok((parameter.name.clone(), digest(&value(backend, parameter)?)));
        self.list.iter().map(digest).collect()
    }
}

impl<B: Backend> std::ops::Index<usize> for Params<B> {
    type Output = Parameter<B>;

    fn index(&self, index: usize) -> &Parameter<B> {
        &self.list[index]
    }
}

impl<B: Backend> std::ops::IndexMut<usize> for Params<B> {
    fn index_mut(&mut self, index: usize) -> &mut Parameter<B> {
        &mut self.list[index]
    }
}

/// The value of a parameter, row-major.
pub(super) fn value<B: Backend>(
    backend: &mut B,
    parameter: &Parameter<B>,
) -> swarmline_kernels::Result<Vec<f32>> {
    let mut value = vec![0.0; parameter.len()];
    backend.download(&mut value, &parameter.weight)?;
    Ok(value)
}
