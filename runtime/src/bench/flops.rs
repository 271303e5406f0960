//! Floating-point operations that the mathematics needs. A kernel may compute more.
//!
//! A step of `N = B T` tokens is counted as
//!
//! ```text
//! 6 P N  +  6 L N T d
//! ```
//!
//! `P` are the weights that multiply: all matrices but the embedding, which is only looked up. Each multiplies every
//! token in one multiply-add (2 operations) forward and two backward. Attention of a layer is two products of
//! `T x T x d` a sequence, half of which the mask saves: `2 N T d` forward and twice that backward. The scores that
//! backward computes again, norms, activations and the optimizer are not counted.

use swarmline_kernels::{AttentionShape, LinearShape};

use super::size::Size;
use crate::config::ParameterSpec;

/// Operations of one product.
#[must_use]
pub fn linear(shape: LinearShape) -> f64 {
    2.0 * shape.rows as f64 * shape.inputs as f64 * shape.outputs as f64
}

/// Operations of causal attention, forward: two products, half of each masked.
#[must_use]
pub fn attention(shape: AttentionShape) -> f64 {
    let tokens = shape.tokens as f64;
    2.0 * (shape.batch * shape.heads * shape.head_width) as f64 * tokens * tokens
}

/// Operations of causal attention, backward: five products, half of each masked, as the scores are computed again.
#[must_use]
pub fn attention_backward(shape: AttentionShape) -> f64 {
    attention(shape) * 2.5
}

/// Operations of a step: the formula above.
#[must_use]
pub fn step(size: Size) -> f64 {
    let layers = size.model().num_hidden_layers as f64;
    let rows = size.rows() as f64;
    6.0 * weights_that_multiply(size) as f64 * rows + 3.0 * layers * attention(size.sizes().attention())
}

fn weights_that_multiply(size: Size) -> usize {
    let multiplies = |spec: &ParameterSpec| spec.shape.len() == 2 && spec.name != "embed";
    let specs = size.run().parameter_specs(0..size.model().num_hidden_layers);
    specs.iter().filter(|spec| multiplies(spec)).map(ParameterSpec::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_the_small_model_by_hand() {
        let (d, f, layers, vocab, rows, tokens) = (256.0, 688.0, 6.0, 256.0, 2048.0, 128.0);
        let weights = layers * (4.0 * d * d + 3.0 * d * f) + vocab * d;
        let expected = 6.0 * weights * rows + 6.0 * layers * rows * tokens * d;
        assert_eq!(step(Size::S), expected);
    }

    #[test]
    fn fewer_key_value_heads_have_fewer_weights_and_the_same_attention() {
        let (d, f, e) = (512, 1376, 64);
        let a_layer = 2 * d * d + 2 * d * 4 * e + 3 * d * f;
        assert_eq!(weights_that_multiply(Size::M), 8 * a_layer + 4096 * d);
        assert_eq!(Size::M.parameters(), 8 * (a_layer + 2 * d) + 2 * 4096 * d + d);
        assert_eq!(attention(Size::M.sizes().attention()), 2.0 * 4096.0 * 256.0 * 512.0);
    }

    #[test]
    fn a_product_counts_multiply_and_add() {
        assert_eq!(linear(LinearShape { rows: 3, inputs: 5, outputs: 7 }), 210.0);
    }
}
