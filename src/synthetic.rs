//! Work that is made up to be timed: FFN layers and models with a given share of zeros, and training steps on random tokens.
//! For `silurian bench` and for `benches/`.

use autograd::{Gradients, Tape};
use kernels::row_format::{FloatRows, round_rows, widen_rows};
use kernels::sparse::{FfnWeights, FilterLine, GateFilter, gate_filter_lines};
use kernels::testing::{SparseInputs, normal, uniform};
use kernels::{RowFormat, Team};
use model::{Config, Init, LayerNames, Precision, PsiAt, Transformer, Weights, parameter_specs};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use tensor::pool::Block;
use tensor::{Device, Shape, Tensor};
use train::config::TrainConfig;
use train::optimizer::{Optimizer, gradient_squares};

/// FFN layers with weights of format `W`, in huge pages as the engine keeps its weights, to be taken by turns: so many that none is in a cache
/// when it comes round.
pub struct FfnLayers<W = f32> {
    d_model: usize,
    d_ff: usize,
    layers: Vec<FfnLayer>,
    inputs: SparseInputs,
    elements: PhantomData<W>,
}

struct FfnLayer {
    gate: Block,
    up: Block,
    down_t: Block,
    /// Of [`FfnLayers::make_filters`].
    filter: Option<GateFilter<FilterMemory>>,
}

/// The memory of a filter.
pub struct FilterMemory {
    block: Block,
    len: usize,
}

impl Deref for FilterMemory {
    type Target = [FilterLine];
    fn deref(&self) -> &[FilterLine] {
        &self.block.elements()[..self.len]
    }
}

impl DerefMut for FilterMemory {
    fn deref_mut(&mut self) -> &mut [FilterLine] {
        &mut self.block.elements_mut()[..self.len]
    }
}

impl<W: RowFormat> FfnLayers<W> {
    /// Random layers, the same ones in every run, and one token. The gates come with [`set_zeros`](FfnLayers::set_zeros).
    pub fn new(layers: usize, d_model: usize, d_ff: usize) -> FfnLayers<W> {
        let units = d_ff * W::row_len(d_model);
        let weights = |seed| {
            let mut block = Block::new(size_of::<W>() * units);
            let values = uniform(seed, d_ff * d_model);
            round_rows(&Team::current(), &values, d_model, &mut block.elements_mut::<W>()[..units]);
            block
        };
        let layer = |layer| {
            let [gate, up, down_t] = [0, 1, 2].map(|i| weights(3 * layer + i));
            FfnLayer { gate, up, down_t, filter: None }
        };
        let layers = (0..layers as u64).map(layer).collect();
        FfnLayers { d_model, d_ff, layers, inputs: SparseInputs::new(0, d_model, 1), elements: PhantomData }
    }

    /// Takes other tokens. The gates that are for them come with [`set_zeros`](FfnLayers::set_zeros). Panics if they have another width.
    pub fn set_tokens(&mut self, inputs: SparseInputs) {
        assert!(
            inputs.x.len().is_multiple_of(self.d_model),
            "set_tokens: tokens of another width than {}",
            self.d_model
        );
        self.inputs = inputs;
    }

    /// Bytes of `layers` such layers, without filters.
    pub fn bytes(layers: usize, d_model: usize, d_ff: usize) -> u64 {
        (layers as u64)
            .saturating_mul(3 * size_of::<W>() as u64)
            .saturating_mul(W::row_len(d_model) as u64)
            .saturating_mul(d_ff as u64)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.layers.len()
    }

    /// Neurons of each.
    pub fn d_ff(&self) -> usize {
        self.d_ff
    }

    /// Makes new gates, which are 0 in a share `zeros` of the neurons for [`input`](FfnLayers::input) but for the rounding of their
    /// format: on average over tokens, each of which has neurons of its own. The rows are [`SparseInputs::gate`]'s.
    pub fn set_zeros(&mut self, zeros: f64) {
        let units = self.units();
        let FfnLayers { d_model, d_ff, ref inputs, ref mut layers, .. } = *self;
        let team = Team::current();
        team.run_chunks_mut(layers, 1, |seed, layer| {
            let gate = inputs.gate(seed as u64, d_ff, zeros);
            let rounded = &mut layer[0].gate.elements_mut::<W>()[..units];
            round_rows(&Team::serial(team.level()), &gate, d_model, rounded);
        });
    }

    /// Units of a matrix.
    fn units(&self) -> usize {
        self.d_ff * W::row_len(self.d_model)
    }

    /// The weights of layer `turn`, modulo their number.
    pub fn weights(&self, turn: usize) -> FfnWeights<'_, W> {
        let FfnLayer { gate, up, down_t, .. } = &self.layers[turn % self.layers.len()];
        let [gate, up, down_t] = [gate, up, down_t].map(|block| &block.elements::<W>()[..self.units()]);
        FfnWeights { gate, up, down_t }
    }

    /// The x that the zeros are for, `[tokens, d_model]`; of more than eight tokens the first eight.
    pub fn input(&self) -> Vec<f32> {
        self.inputs.x.clone()
    }
}

impl<W: FloatRows> FfnLayers<W> {
    /// Makes the filters of the gates as they are.
    pub fn make_filters(&mut self) {
        let units = self.units();
        let FfnLayers { d_model, d_ff, ref mut layers, .. } = *self;
        let team = Team::current();
        let new_memory = || {
            let len = gate_filter_lines(d_ff, d_model);
            FilterMemory { block: Block::new(len * size_of::<FilterLine>()), len }
        };
        let mut wide = vec![0.0; d_ff * d_model];
        for FfnLayer { gate, filter, .. } in layers {
            let memory = filter.take().map_or_else(new_memory, GateFilter::into_memory);
            // Of the widened gate the filter is the same.
            widen_rows(&team, &gate.elements::<W>()[..units], d_model, &mut wide);
            *filter = Some(GateFilter::new(&team, &wide, d_model, memory));
        }
    }

    /// The filter of the gate of layer `turn`, modulo their number. Panics before [`make_filters`](FfnLayers::make_filters).
    pub fn filter(&self, turn: usize) -> &GateFilter<FilterMemory> {
        self.layers[turn % self.layers.len()].filter.as_ref().expect("make_filters comes first")
    }
}

/// Which of `d_ff` neurons are active, at random: all but `round(zeros d_ff)`.
fn active_neurons(seed: u64, d_ff: usize, zeros: f64) -> Vec<bool> {
    let draws = uniform(seed, d_ff);
    let mut order: Vec<usize> = (0..d_ff).collect();
    order.sort_by(|&i, &j| draws[i].total_cmp(&draws[j]).then(i.cmp(&j)));
    let mut active = vec![true; d_ff];
    for &i in &order[..(zeros * d_ff as f64).round() as usize] {
        active[i] = false;
    }
    active
}

/// Random weights with the deviations that training begins with, uniform instead of normal: 20 times as fast to make.
pub fn weights(config: &Config) -> Weights {
    let tensor = |(seed, spec): (usize, model::ParameterSpec)| match spec.init {
        Init::Ones => Tensor::full(1.0, spec.shape),
        Init::Normal(std) => {
            // The deviation of a uniform variable in -1 .. 1 is 1 / sqrt(3).
            let scale = (std * 3f64.sqrt()) as f32;
            let mut values = uniform(seed as u64, spec.shape.elements());
            values.iter_mut().for_each(|w| *w *= scale);
            Tensor::from_slice(&values, spec.shape)
        }
    };
    // Each by a thread: what a tensor holds depends on its place alone.
    let mut tensors: Vec<_> = parameter_specs(config).map(|_| None).collect();
    let specs: Vec<_> = parameter_specs(config).collect();
    Team::current().run_chunks_mut(&mut tensors, 1, |i, place| place[0] = Some(tensor((i, specs[i].clone()))));
    Weights::from_tensors(config, tensors.into_iter().flatten().collect())
}

/// Makes a share `zeros` of every layer's neurons inactive, whatever the token, at random places. For [`weights`]: the first
/// element of the residual stream becomes large, and the gate's weight for it decides.
pub fn set_zeros(weights: &mut Weights, zeros: f64) {
    let (n_layers, d_ff) = (weights.config().n_layers, weights.config().d_ff);
    // What the blocks add is of the size of 0.1 to 1.
    set_first_column(&mut weights.tensors_mut()[0], |_| 100.0);
    for layer in 0..n_layers {
        // Normalised, the large element is about sqrt(C) and the others below 0.3: its weight decides the sign of g.
        let active = active_neurons(layer as u64, d_ff, zeros);
        let gate_proj = &mut weights.tensors_mut()[LayerNames::new(layer).gate_proj];
        set_first_column(gate_proj, |neuron| if active[neuron] { 0.1 } else { -0.1 });
    }
}

/// Makes a share `zeros` of the neurons of every layer inactive for each token, other ones for other tokens, as if at random; but for the rounding
/// of a format. For [`weights`]: embeddings become so large that each token is nearly its own embedding in all layers, which a
/// gate's random rows meet with products that are normally distributed; the first element, one for all tokens, shifts them.
pub fn set_zeros_of_each_token(weights: &mut Weights, zeros: f64) {
    /// What the blocks add is of the size of 0.1 to 1.
    const SIZE: f32 = 30.0;
    let (n_layers, c) = (weights.config().n_layers, weights.config().d_model);
    let mut draws = normal(0, 1 << 16);
    draws.sort_by(f32::total_cmp);
    let quantile = draws[((zeros * draws.len() as f64) as usize).min(draws.len() - 1)];
    // Half as large as all others together: a product with weights of size s, which is of the size of `s sqrt(C)`, is shifted by
    // `quantile` times that.
    let first = 0.5 * (c as f32).sqrt();
    let embeddings = &mut weights.tensors_mut()[0];
    let scale = SIZE / rms(embeddings);
    change_rows(embeddings, |_, row| {
        row.iter_mut().for_each(|x| *x *= scale);
        row[0] = SIZE * first;
    });
    for layer in 0..n_layers {
        let gate_proj = &mut weights.tensors_mut()[LayerNames::new(layer).gate_proj];
        let shift = -2.0 * quantile * rms(gate_proj);
        change_rows(gate_proj, |_, row| row[0] = shift);
    }
}

/// The root of the mean square, of the first thousand rows and without the first column.
fn rms(matrix: &Tensor) -> f32 {
    let data = matrix.to_vec::<f32>().expect("made on the CPU");
    let rows = data.chunks(matrix.dim(1)).take(1000);
    let (mut sum, mut n) = (0.0, 0);
    for x in rows.flat_map(|row| &row[1..]) {
        sum += *x as f64 * *x as f64;
        n += 1;
    }
    (sum / n as f64).sqrt() as f32
}

fn set_first_column(matrix: &mut Tensor, value: impl Fn(usize) -> f32) {
    change_rows(matrix, |number, row| row[0] = value(number));
}

fn change_rows(matrix: &mut Tensor, change: impl Fn(usize, &mut [f32])) {
    let mut data = matrix.to_vec::<f32>().expect("made on the CPU");
    data.chunks_mut(matrix.dim(1)).enumerate().for_each(|(number, row)| change(number, row));
    *matrix = Tensor::from_slice(&data, matrix.shape());
}

/// A model in training on random tokens: forward, backward and AdamW.
pub struct TrainStep {
    model: Transformer,
    optimizer: Optimizer,
    grads: Gradients,
    inputs: Tensor,
    targets: Tensor,
}

impl TrainStep {
    /// Fresh weights, and `micro_batch` sequences of `seq_len` tokens, on a device. Fails when its memory does not suffice.
    pub fn new(config: &Config, micro_batch: usize, seq_len: usize, device: &Device) -> Result<TrainStep, cuda::Error> {
        let tokens = |seed| {
            let draws = uniform(seed, micro_batch * seq_len);
            let last = config.vocab_size - 1;
            let ids: Vec<u32> = draws.iter().map(|u| ((u + 1.0) / 2.0 * last as f32) as u32).collect();
            Tensor::from_slice(&ids, Shape::from([micro_batch, seq_len])).to_device(device)
        };
        let model = Transformer::new(weights(config).to_device(device)?);
        Ok(TrainStep {
            optimizer: Optimizer::new(model.weights(), &TrainConfig::default()),
            model,
            grads: Gradients::default(),
            inputs: tokens(1)?,
            targets: tokens(2)?,
        })
    }

    /// The same in this precision: bf16 on a GPU alone.
    pub fn with_precision(self, precision: Precision) -> TrainStep {
        TrainStep { model: self.model.with_precision(precision), ..self }
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.inputs.elements()
    }

    /// One step, always on the same tokens. Returns the mean loss before it, in nats a token.
    pub fn run(&mut self, psi: PsiAt) -> f64 {
        let tape = Tape::new();
        let leaves = self.model.leaves(&tape);
        let scale = (1.0 / self.tokens() as f64) as f32;
        let (loss, sum) = self.model.loss(&leaves, (&self.inputs, &self.targets), scale, psi, None);
        loss.backward(&mut self.grads);
        drop(leaves);
        let squares = gradient_squares(&self.grads, self.model.weights());
        self.optimizer.update(self.model.weights_mut(), &self.grads, &sum, &squares, 1e-3);
        self.grads.clear();
        sum.value() / self.tokens() as f64
    }
}
