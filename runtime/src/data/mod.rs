//! From text to batches of token ids.
//!
//! [`Corpus`] reads the files once and splits them; [`Batches`] draws microbatches from it. A microbatch is a pure
//! function of the run seed, its number and the text, so every process draws the same microbatch.

mod batches;
mod bigram;
mod corpus;
mod error;
mod files;
pub mod sources;
mod split;
#[cfg(test)]
mod tests;
mod token_stream;
mod tokenizer;

pub use batches::Batches;
pub use bigram::bigram_loss;
pub use corpus::Corpus;
pub use error::DataError;
pub use token_stream::TokenStream;
pub use tokenizer::TextTokenizer;
