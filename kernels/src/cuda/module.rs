//! The module of kernels that a device runs.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use super::cache::Cache;
use super::compile::{PRECOMPILED, Recipe};
use super::libraries;
use crate::report::{Unavailable, Version};

/// Loads the kernels on a device: those kept in the cache, else compiled here, else precompiled.
pub(super) fn load(
    context: &Arc<CudaContext>,
    capability: Version,
    cache: &Cache,
) -> Result<Arc<CudaModule>, Unavailable> {
    let compiled = match libraries::compiler_version() {
        Some(compiler) => compiled(context, &Recipe::new(capability, compiler), cache),
        None => Err("no NVRTC library found".to_owned()),
    };
    compiled.or_else(|compiled| {
        let precompiled = context.load_module(Ptx::from_src(PRECOMPILED));
        precompiled.map_err(|error| Unavailable::NoKernels { compiled, precompiled: error.to_string() })
    })
}

fn compiled(context: &Arc<CudaContext>, recipe: &Recipe, cache: &Cache) -> Result<Arc<CudaModule>, String> {
    let load =
        |code| context.load_module(Ptx::from_binary(code)).map_err(|error: DriverError| error.to_string());
    // A kept module that the driver refuses is compiled again, even with a correct digest.
    if let Some(Ok(module)) = cache.load(recipe).map(load) {
        return Ok(module);
    }
    let code = recipe.compile()?;
    cache.store(recipe, &code);
    load(code)
}
