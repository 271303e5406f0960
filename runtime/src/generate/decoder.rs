//! The forward pass with a key-value cache: every token goes through the layers once.
//!
//! Products, norms and SwiGLU run on the device. The attention of single tokens runs on the host, since the operation
//! of the device takes whole sequences.

use swarmline_kernels::{Backend, LinearShape, Result, Write};

use super::attention::{Attention, Cache};
use crate::config::Model;
use crate::weights::{Weights, WeightsError};

/// Tokens that go through the layers together; a longer prompt takes several passes.
const ROWS_MAX: usize = 64;

/// A model in one piece, and the tokens that it has read.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    backend: B,
    model: Model,
    embed: B::Tensor,
    layers: Vec<Layer<B>>,
    norm: B::Tensor,
    head: B::Tensor,
    attention: Attention,
    buffers: Buffers<B>,
    /// Tokens read so far.
    position: usize,
}

/// Weights and cache of a layer.
#[derive(Debug)]
struct Layer<B: Backend> {
    attention_norm: B::Tensor,
    wq: B::Tensor,
    wk: B::Tensor,
    wv: B::Tensor,
    wo: B::Tensor,
    ffn_norm: B::Tensor,
    gate: B::Tensor,
    up: B::Tensor,
    down: B::Tensor,
    cache: Cache,
}

/// Room for [`ROWS_MAX`] rows of each width, on the device and for the attention on the host.
#[derive(Debug)]
struct Buffers<B: Backend> {
    stream: B::Tensor,
    normed: B::Tensor,
    rstd: B::Tensor,
    /// Queries, then what the attention makes of them.
    attended: B::Tensor,
    kv: B::Tensor,
    gate: B::Tensor,
    up: B::Tensor,
    hidden: B::Tensor,
    logits: B::Tensor,
}

/// Queries, keys and values of a pass, and the output of the attention, on the host.
struct Rows {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
}

impl<B: Backend> Decoder<B> {
    /// Puts the weights of a model on a device.
    ///
    /// # Errors
    /// A parameter cannot be read, or the device has no memory for the model.
    pub fn new(mut backend: B, weights: &mut dyn Weights) -> std::result::Result<Self, WeightsError> {
        let model = *weights.model();
        let mut take = |name: &str| load(&mut backend, weights, name);
        let (embed, norm, head) = (take("embed")?, take("norm")?, take("head")?);
        let layers = (0..model.num_hidden_layers)
            .map(|layer| Layer::new(&model, |part| take(&format!("layers.{layer}.{part}"))))
            .collect::<std::result::Result<_, _>>()?;
        let buffers = Buffers::new(&mut backend, &model)?;
        let attention = Attention::new(&model);
        Ok(Self { backend, model, embed, layers, norm, head, attention, buffers, position: 0 })
    }

    /// Reads `ids` behind those read before; returns the logits of the next id. Of a text longer than
    /// `max_position_embeddings`, each token sees that many tokens in every layer.
    ///
    /// # Errors
    /// `ids` has an id outside the vocabulary, or the device fails.
    ///
    /// # Panics
    /// If `ids` is empty.
    pub fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        assert!(!ids.is_empty(), "the logits are those behind an id");
        let mut rows = 0;
        for ids in ids.chunks(ROWS_MAX) {
            rows = ids.len();
            self.read(ids)?;
        }
        self.logits(rows)
    }

    fn read(&mut self, ids: &[u32]) -> Result<()> {
        let (rows, width) = (ids.len(), self.model.hidden_size);
        let ids = self.backend.ids(ids, self.model.vocab_size)?;
        self.backend.embedding(&mut self.buffers.stream, &ids, &self.embed, width, Write::Set)?;
        for layer in 0..self.layers.len() {
            self.attend(layer, rows)?;
            self.feed_forward(layer, rows)?;
        }
        self.position += rows;
        Ok(())
    }

    /// `stream += attention(norm(stream))`
    fn attend(&mut self, layer: usize, rows: usize) -> Result<()> {
        let Self { backend, model, layers, attention, buffers, position, .. } = self;
        let layer = &mut layers[layer];
        let (d, g) = (model.hidden_size, model.kv_width());
        let Buffers { stream, normed, rstd, attended, kv, .. } = buffers;
        backend.rmsnorm(normed, rstd, stream, &layer.attention_norm, rows, d, model.rms_norm_eps)?;
        let mut host = Rows {
            q: product(backend, attended, normed, &layer.wq, shape(rows, d, d))?,
            k: product(backend, kv, normed, &layer.wk, shape(rows, d, g))?,
            v: product(backend, kv, normed, &layer.wv, shape(rows, d, g))?,
            out: vec![0.0; rows * d],
        };
        for row in 0..rows {
            let (q, k) = (&mut host.q[row * d..][..d], &mut host.k[row * g..][..g]);
            let (out, v) = (&mut host.out[row * d..][..d], &host.v[row * g..][..g]);
            attention.attend(&mut layer.cache, *position + row, out, q, k, v);
        }
        backend.upload(attended, &host.out)?;
        backend.linear(stream, attended, &layer.wo, shape(rows, d, d), Write::Add)
    }

    /// `stream += ffn(norm(stream))`
    fn feed_forward(&mut self, layer: usize, rows: usize) -> Result<()> {
        let Self { backend, model, layers, buffers, .. } = self;
        let layer = &layers[layer];
        let (d, f) = (model.hidden_size, model.intermediate_size);
        let Buffers { stream, normed, rstd, gate, up, hidden, .. } = buffers;
        backend.rmsnorm(normed, rstd, stream, &layer.ffn_norm, rows, d, model.rms_norm_eps)?;
        backend.linear(gate, normed, &layer.gate, shape(rows, d, f), Write::Set)?;
        backend.linear(up, normed, &layer.up, shape(rows, d, f), Write::Set)?;
        backend.swiglu(hidden, gate, up, rows * f)?;
        backend.linear(stream, hidden, &layer.down, shape(rows, f, d), Write::Add)
    }

    /// Logits behind the last of `rows` rows of the stream.
    fn logits(&mut self, rows: usize) -> Result<Vec<f32>> {
        let Self { backend, model, norm, head, buffers, .. } = self;
        let (d, vocab) = (model.hidden_size, model.vocab_size);
        let Buffers { stream, normed, rstd, logits, .. } = buffers;
        let mut all = vec![0.0; rows * d];
        backend.download(&mut all, stream)?;
        backend.upload(stream, &all[(rows - 1) * d..])?;
        backend.rmsnorm(normed, rstd, stream, norm, 1, d, model.rms_norm_eps)?;
        product(backend, logits, normed, head, shape(1, d, vocab))
    }
}

impl<B: Backend> Layer<B> {
    fn new(
        model: &Model,
        mut take: impl FnMut(&str) -> std::result::Result<B::Tensor, WeightsError>,
    ) -> std::result::Result<Self, WeightsError> {
        Ok(Self {
            attention_norm: take("attention_norm")?,
            wq: take("attention.wq")?,
            wk: take("attention.wk")?,
            wv: take("attention.wv")?,
            wo: take("attention.wo")?,
            ffn_norm: take("ffn_norm")?,
            gate: take("ffn.gate")?,
            up: take("ffn.up")?,
            down: take("ffn.down")?,
            cache: Cache::new(model),
        })
    }
}

impl<B: Backend> Buffers<B> {
    fn new(backend: &mut B, model: &Model) -> Result<Self> {
        let (d, f, g) = (model.hidden_size, model.intermediate_size, model.kv_width());
        let mut rows_of = |width: usize| backend.zeros(ROWS_MAX * width);
        Ok(Self {
            stream: rows_of(d)?,
            normed: rows_of(d)?,
            rstd: rows_of(1)?,
            attended: rows_of(d)?,
            kv: rows_of(g)?,
            gate: rows_of(f)?,
            up: rows_of(f)?,
            hidden: rows_of(f)?,
            logits: backend.zeros(model.vocab_size)?,
        })
    }
}

fn load<B: Backend>(
    backend: &mut B,
    weights: &mut dyn Weights,
    name: &str,
) -> std::result::Result<B::Tensor, WeightsError> {
    let values = weights.read(name)?;
    let mut tensor = backend.zeros(values.len())?;
    backend.upload(&mut tensor, &values)?;
    Ok(tensor)
}

fn shape(rows: usize, inputs: usize, outputs: usize) -> LinearShape {
    LinearShape { rows, inputs, outputs }
}

/// `y = x w^T`, and on the host.
fn product<B: Backend>(
    backend: &mut B,
    y: &mut B::Tensor,
    x: &B::Tensor,
    w: &B::Tensor,
    shape: LinearShape,
) -> Result<Vec<f32>> {
    backend.linear(y, x, w, shape, Write::Set)?;
    let mut numbers = vec![0.0; shape.rows * shape.outputs];
    backend.download(&mut numbers, y)?;
    Ok(numbers)
}
