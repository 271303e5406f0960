//! Text to batches of token ids.
//!
//! [`Corpus`] reads the files once and splits them, [`Batches`] draws microbatches from it. A microbatch is a pure
//! function of the run seed and its number: whoever draws it, draws the same.

mod batches;
mod bigram;
mod corpus;
mod error;
mod files;
pub mod sources;
mod split;
#[cfg(test)]
mod tests;
mod tokenizer;
mod tokens;

pub use batches::Batches;
pub use bigram::bigram_loss;
pub use corpus::Corpus;
pub use error::DataError;
pub use tokenizer::TextTokenizer;
pub use tokens::Tokens;
