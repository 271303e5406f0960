//! Our arithmetic against PyTorch's: the fixtures under `tests/fixtures` and their README tell what is compared.

mod fixture;
mod model;
mod optimizer;
