//! The parameters of a model in one piece, under our names and those of `transformers`.

use crate::config::Model;

/// One parameter of a model in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenseParameter {
    /// Our name, e.g. `layers.7.attention.wq`.
    pub name: String,
    /// The name in `transformers`, e.g. `model.layers.7.self_attn.q_proj.weight`.
    pub hugging_face: String,
    /// `[out, in]` of a matrix, `[width]` of a gain.
    pub shape: Vec<usize>,
}

impl DenseParameter {
    fn new(name: impl Into<String>, hugging_face: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), hugging_face: hugging_face.into(), shape: shape.to_vec() }
    }

    /// Number of f32.
    #[must_use]
    pub fn numbers(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All parameters of `model`: embedding, layers, head.
#[must_use]
pub fn dense_parameters(model: &Model) -> Vec<DenseParameter> {
    let (d, vocab) = (model.hidden_size, model.vocab_size);
    let mut all = vec![DenseParameter::new("embed", "model.embed_tokens.weight", &[vocab, d])];
    all.extend((0..model.num_hidden_layers).flat_map(|layer| layer_parameters(model, layer)));
    all.push(DenseParameter::new("norm", "model.norm.weight", &[d]));
    all.push(DenseParameter::new("head", "lm_head.weight", &[vocab, d]));
    all
}

fn layer_parameters(model: &Model, layer: usize) -> [DenseParameter; 9] {
    let (d, f, kv_width) = (model.hidden_size, model.intermediate_size, model.kv_width());
    let parameter = |ours: &str, theirs: &str, shape: &[usize]| {
        DenseParameter::new(
            format!("layers.{layer}.{ours}"),
            format!("model.layers.{layer}.{theirs}.weight"),
            shape,
        )
    };
    [
        parameter("attention_norm", "input_layernorm", &[d]),
        parameter("attention.wq", "self_attn.q_proj", &[d, d]),
        parameter("attention.wk", "self_attn.k_proj", &[kv_width, d]),
        parameter("attention.wv", "self_attn.v_proj", &[kv_width, d]),
        parameter("attention.wo", "self_attn.o_proj", &[d, d]),
        parameter("ffn_norm", "post_attention_layernorm", &[d]),
        parameter("ffn.gate", "mlp.gate_proj", &[f, d]),
        parameter("ffn.up", "mlp.up_proj", &[f, d]),
        parameter("ffn.down", "mlp.down_proj", &[d, f]),
    ]
}
