"""Conformance: what every registered method must satisfy. A new method is picked up by its registry."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kquant.core import numerics, tensor_spec
from kquant.core.tensor_spec import ONE_BIT_QUANTIZERS
from kquant.quantizers import QUANTIZERS, base
from kquant.ranges.estimators import ESTIMATORS
from kquant.ranges.weights import WEIGHT_METHODS, weight_range

# How placement uses a quantizer: kernels, and activations of either kind of grid.
USES = {
    "kernel per channel": {"symmetric": True, "narrow": True, "axis": (1,)},
    "kernel per tensor": {"symmetric": True, "narrow": True},
    "activation": {},
    "symmetric activation": {"symmetric": True},
}
KERNEL_USES = [use for use, options in USES.items() if options.get("narrow")]

# The odd integers of DoReFa, scaled by what the kernel is; test_dorefa has their own conventions.
NOT_FOR_ODD_INTEGERS = ("has_the_encoding_of_its_options", "has_zero_on_its_grid", "is_idempotent",
                        "has_as_many_levels_as_its_bits_allow", "passes_the_gradient_inside",
                        "computes_the_same_in_training_and_in_a_trace")

NOT_FOR_NESTED = "stays_on_its_grid_far_outside"  # its last integer, 119, is not the grid's


class CheckQuantizer:
  """A quantizer of one use and width over data whose range it was given."""

  def __init__(self, cls, use, bits, seed=0):
    self.quantizer = cls(bits=bits, **USES[use])
    rng = np.random.default_rng(seed)
    self.x = (rng.normal(size=(64, 3)) * [0.01, 1.0, 30.0]).astype(np.float32)
    over = 0 if self.quantizer.axis else None
    low, high = self.x.min(axis=over), self.x.max(axis=over)
    if self.quantizer.symmetric:
      high = np.maximum(-low, high)
      low = -high
    self.limits = low, high
    self.layer = keras.layers.Layer(name="holder")
    self.variables = self.quantizer.build(self.x.shape, "tensor", self.layer)
    self.quantizer.set_range(self.variables, low, high)
    self.encoding = self.quantizer.encoding(self.variables)

  def __call__(self, x, training=False):
    return self.quantizer(tf.constant(np.asarray(x, np.float32)), training, self.variables).numpy()

  def rows(self, count):
    """Returns [count, 3], each column rising through its channel's range."""
    low, high = (np.broadcast_to(end, 3) for end in self.limits)
    return np.linspace(low, high, count)

  def has_the_encoding_of_its_options(self):
    channels = 3 if self.quantizer.axis else 1
    encoding, quantizer = self.encoding, self.quantizer
    assert encoding.scale.shape == encoding.zero_point.shape == (channels,)
    assert encoding.scale.dtype == np.float32 and encoding.zero_point.dtype == np.int64
    assert (encoding.bits, encoding.axis, encoding.narrow) == (
        quantizer.bits, quantizer.axis, quantizer.narrow)
    assert np.isfinite(encoding.scale).all() and (encoding.scale > 0).all()
    qmin, qmax = encoding.limits
    assert ((qmin <= encoding.zero_point) & (encoding.zero_point <= qmax)).all()
    if quantizer.symmetric:
      assert not encoding.zero_point.any()

  def has_zero_on_its_grid(self):
    assert not self(np.zeros((2, 3))).any()
    np.testing.assert_array_equal(self.encoding.quantize(np.zeros((1, 3))).reshape(-1),
                                  np.broadcast_to(self.encoding.zero_point, 3))

  def is_what_its_encoding_stores(self):
    values = self.quantizer.transform(self.x, self.variables)
    expected = self.encoding.dequantize(self.encoding.quantize(values))
    result = self(self.x)
    if self.quantizer.narrow:
      np.testing.assert_array_equal(result, expected)
      return
    steps = np.abs(result - expected) / self.encoding.scale
    assert (steps < 1e-3).mean() > 0.98  # but for ties
    assert steps.max() < 1.001

  def is_idempotent(self):
    once = self(self.x)
    np.testing.assert_array_equal(self(once), once)

  def stays_on_its_grid_far_outside(self):
    low, high = self.encoding.range
    first, last = self(np.full((1, 3), -1e6)), self(np.full((1, 3), 1e6))
    np.testing.assert_allclose(first.reshape(-1), np.broadcast_to(low, 3), rtol=1e-6)
    np.testing.assert_allclose(last.reshape(-1), np.broadcast_to(high, 3), rtol=1e-6)

  def has_as_many_levels_as_its_bits_allow(self):
    for column in self(1.5 * self.rows(5000)).T:
      assert 2 ** (self.quantizer.bits - 1) < len(np.unique(column)) <= 2 ** self.quantizer.bits

  def never_decreases(self):
    assert (np.diff(self(self.rows(999)), axis=0) >= 0).all()

  def computes_the_same_in_training_and_in_a_trace(self):
    expected = self(self.x)
    np.testing.assert_array_equal(self(self.x, training=True), expected)
    traced = tf.function(lambda x: self.quantizer(x, False, self.variables))
    np.testing.assert_array_equal(traced(tf.constant(self.x)), expected)

  def passes_the_gradient_inside(self):
    x = tf.constant(0.5 * self.x)
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = self.quantizer(x, True, self.variables)
    np.testing.assert_array_equal(tape.gradient(y, x), np.ones_like(self.x))

  def has_initial_values_for_each_variable(self):
    values = self.quantizer.initial_values(*self.limits)
    assert values.keys() == self.variables.keys()
    for name, value in values.items():
      np.testing.assert_array_equal(np.broadcast_to(value, self.variables[name].shape), self.variables[name])

  def has_the_layers_variables_only(self):
    names = sorted(variable.name for variable in self.variables.values())
    assert names == sorted(variable.name for variable in self.layer.weights)
    assert all(name.startswith("tensor_") for name in names)

  def survives_serialisation(self):
    fields = json.loads(json.dumps(base.serialize(self.quantizer)))
    other = base.deserialize(fields)
    assert type(other) is type(self.quantizer)
    assert other.get_config() == self.quantizer.get_config()
    assert other.encoding(self.variables) == self.encoding


class CheckEstimator:
  """An estimator's range over data; `grid` is what its range becomes."""

  def __init__(self, cls, symmetric, bits, seed=0):
    self.cls, self.symmetric, self.bits = cls, symmetric, bits
    self.rank = 2 if cls.needs_logits else 3
    rng = np.random.default_rng(seed)
    self.x = (rng.laplace(size=(12, 7, 5)) * 2.0 ** rng.uniform(-3, 3, (12, 1, 1)) + 0.3).astype(np.float32)
    self.x = self.x.reshape(*self.x.shape[:self.rank - 1], -1)

  def range_of(self, *batches):
    estimator = self.cls()
    for batch in batches:
      estimator.update(np.asarray(batch, np.float32))
    return estimator.range(bits=self.bits, symmetric=self.symmetric)

  def grid(self, low, high):
    if self.symmetric:
      scale = numerics.symmetric_grid(max(-low, high), self.bits)
      return scale, np.zeros(1, np.int64)
    return numerics.affine_grid(low, high, self.bits)

  def lies_within_the_data(self):
    low, high = self.range_of(self.x)
    largest = float(np.abs(self.x).max())
    assert isinstance(low, float) and isinstance(high, float)
    if self.symmetric:
      assert -low == high and 0 < high <= largest
    else:
      assert self.x.min() <= low < high <= self.x.max()

  def covers_constant_data(self):
    for value in (0.0, 3.7, -0.002):
      low, high = self.range_of(np.full((3, 4), value), np.full((2, 4), value))
      scale, zero_point = self.grid(low, high)
      q = numerics.quantize(value, scale, zero_point, bits=self.bits)
      assert abs(float(numerics.dequantize(q, scale, zero_point).item()) - value) <= scale[0] / 2 + 1e-12

  def ignores_order_and_batch_size(self):
    expected = self.range_of(self.x)
    order = np.random.default_rng(1).permutation(len(self.x))
    assert self.range_of(*self.x[:, None]) == expected
    assert self.range_of(self.x[order]) == expected
    assert self.range_of(self.x[order[:5]], self.x[order[5:]]) == expected

  def merges_exactly(self):
    first, second = self.cls(), self.cls()
    first.update(self.x[:4])
    second.update(self.x[4:])
    first.merge(second)
    assert first.range(bits=self.bits, symmetric=self.symmetric) == self.range_of(self.x)

  def scales_with_the_data(self):
    low, high = self.range_of(self.x)
    if not self.cls.needs_logits:  # a softmax has a scale of its own
      assert self.range_of(self.x * 0.25) == (0.25 * low, 0.25 * high)
    assert all(abs(end) <= 0.25 * np.abs(self.x).max() for end in self.range_of(self.x * 0.25))

  def takes_one_value_and_any_rank_that_it_says(self):
    for shape in ((1, 1), (1, 1, 1, 3)) if self.cls.needs_logits else ((1, 1), (2,), (1, 2, 1, 3)):
      low, high = self.range_of(np.ones(shape))
      assert low <= high and abs(high) <= 1.0

  def can_be_measured_in_a_trace(self):
    estimator = self.cls()
    step = tf.function(estimator.measure)
    estimator.absorb({name: value.numpy() for name, value in step(tf.constant(self.x)).items()})
    assert estimator.range(bits=self.bits, symmetric=self.symmetric) == self.range_of(self.x)

  def refuses_what_is_not_finite_and_no_data(self):
    for bad in (np.nan, np.inf, -np.inf):
      with pytest.raises(ValueError, match="finite"):
        self.range_of(np.array([[1.0, bad]]))
    with pytest.raises(ValueError, match="none"):
      self.range_of()

  def stays_finite_for_extreme_data(self):
    for value in (1e-38, 1e30):
      low, high = self.range_of([[-value, value]])
      scale, _ = self.grid(low, high)
      assert np.isfinite([low, high]).all() and np.isfinite(scale).all() and (scale > 0).all()


def conventions(check):
  """The conventions of a check: its public methods but for helpers."""
  return [name for name in vars(check) if name[0] != "_" and name not in ("rows", "range_of", "grid")]


@pytest.mark.parametrize("kind, name, convention", [
    *(("quantizer", name, rule) for name in QUANTIZERS for rule in conventions(CheckQuantizer)
      if not (name in ONE_BIT_QUANTIZERS and rule in NOT_FOR_ODD_INTEGERS
              or name == "nested" and rule == NOT_FOR_NESTED)),
    *(("estimator", name, rule) for name in ESTIMATORS for rule in conventions(CheckEstimator))])
def test_every_method_keeps_the_conventions(kind, name, convention):
  if kind == "quantizer":
    uses = KERNEL_USES if name in ONE_BIT_QUANTIZERS else USES
    checks = [CheckQuantizer(QUANTIZERS[name], use, bits) for use in uses for bits in (2, 8)]
  else:
    checks = [CheckEstimator(ESTIMATORS[name], symmetric, bits)
              for symmetric in (False, True) for bits in (4, 8)]
  for check in checks:
    getattr(check, convention)()


def test_the_names_that_specs_take_are_those_of_the_registry():
  assert set(tensor_spec.WEIGHT_QUANTIZERS) | set(tensor_spec.ACTIVATION_QUANTIZERS) == set(QUANTIZERS)


def test_every_quantizer_is_registered_under_kquant():
  for cls in QUANTIZERS.values():
    assert keras.saving.get_registered_name(cls) == f"kquant>{cls.__name__}"


@pytest.mark.parametrize("name", WEIGHT_METHODS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_method_for_weights_gives_a_symmetric_range_a_channel(name, bits):
  kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
  kernel[..., 1] = 0.0
  low, high = weight_range(kernel, (3,), method=name, bits=bits)
  assert low.shape == high.shape == (5,) and high.dtype == np.float64
  np.testing.assert_array_equal(low, -high)
  assert high[1] == 0.0 and (np.delete(high, 1) > 0).all()
  assert (high <= np.abs(kernel).max(axis=(0, 1, 2))).all()
  np.testing.assert_array_equal(weight_range(kernel * 4, (3,), method=name, bits=bits)[1], 4 * high)
  alone = [weight_range(kernel[..., c], None, method=name, bits=bits)[1][0] for c in range(5)]
  np.testing.assert_array_equal(high, alone)
