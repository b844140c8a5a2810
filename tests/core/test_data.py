"""Every form of data that users give, and every way it can be wrong."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from kquant.core.data import all_equal, batches, choose, hold_back
from kquant.core.input_spec import InputSpec

IMAGE = InputSpec("image", (4, 4, 3))
SIDE = InputSpec("side", (2,))
X = np.arange(10 * 48, dtype=np.float32).reshape(10, 4, 4, 3)
S = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10)
STEM = "^calibration data"


def collect(data, inputs=(IMAGE,), **options):
  """Returns all samples, one array an input, and checks the batches on the way."""
  found = list(batches(data, inputs, **{"batch_size": 4, **options}))
  for arrays in found:
    assert len(arrays) == len(inputs)
    assert len({len(array) for array in arrays}) == 1
    assert all(array.dtype == spec.dtype for array, spec in zip(arrays, inputs))
  return [np.concatenate(parts) for parts in zip(*found)]


class Batches(tf_keras.utils.Sequence):
  """A Keras Sequence of five batches of two; it raises nothing past its end."""

  def __len__(self):
    return 5

  def __getitem__(self, index):
    rows = [(2 * index + i) % 10 for i in range(2)]
    return X[rows], Y[rows]


ONE_INPUT = {
    "array": lambda: X,
    "tensor": lambda: tf.constant(X),
    "variable": lambda: tf.Variable(X),
    "nested lists": lambda: X.tolist(),
    "tuple x, y": lambda: (X, Y),
    "tuple x, y, weights": lambda: (X, Y, Y),
    "tuple of x": lambda: (X,),
    "list of x": lambda: [X],
    "list of examples": lambda: list(X),
    "list of batches": lambda: [X[:3], X[3:4], X[4:]],
    "list of pairs": lambda: list(zip(X, Y)),
    "dict": lambda: {"image": X},
    "dict, y": lambda: ({"image": X}, Y),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(X),
    "dataset batched": lambda: tf.data.Dataset.from_tensor_slices(X).batch(3),
    "dataset x, y": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(7),
    "dataset dict": lambda: tf.data.Dataset.from_tensor_slices({"image": X}),
    "dataset dict, y": lambda: tf.data.Dataset.from_tensor_slices(({"image": X}, Y)).batch(2),
    "generator": lambda: (x for x in X),
    "generator of batches": lambda: (x[None] for x in X),
    "generator of pairs": lambda: ((x, y) for x, y in zip(X, Y)),
    "generator of tensors": lambda: (tf.constant(x) for x in X),
    "generator function": lambda: lambda: (x for x in X),
    "function that gives an array": lambda: lambda: X,
    "representative dataset": lambda: lambda: ([x[None]] for x in X),
    "sequence": Batches,
    "float64": lambda: X.astype(np.float64),
    "float16 mixed with uint8": lambda: [X[:5].astype(np.float16), X[5:]],
}


@pytest.mark.parametrize("kind", ONE_INPUT)
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_one_input(kind, batch_size):
  (x,) = collect(ONE_INPUT[kind](), batch_size=batch_size)
  np.testing.assert_array_equal(x, X)


TWO_INPUTS = {
    "list": lambda: [X, S],
    "tuple": lambda: (X, S),
    "tuple x, y": lambda: ((X, S), Y),
    "list x, y": lambda: ([X, S], Y),
    "dict": lambda: {"side": S, "image": X},
    "dict, y": lambda: ({"side": S, "image": X}, Y),
    "list of pairs": lambda: list(zip(X, S)),
    "list of dicts": lambda: [{"side": s, "image": x} for x, s in zip(X, S)],
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, S)).batch(3),
    "dataset x, y": lambda: tf.data.Dataset.from_tensor_slices(((X, S), Y)),
    "dataset dict": lambda: tf.data.Dataset.from_tensor_slices({"side": S, "image": X}).batch(3),
    "generator of lists": lambda: ([x[None], s[None]] for x, s in zip(X, S)),
    "generator of dicts": lambda: ({"side": s, "image": x} for x, s in zip(X, S)),
}


@pytest.mark.parametrize("kind", TWO_INPUTS)
def test_two_inputs(kind):
  x, s = collect(TWO_INPUTS[kind](), (IMAGE, SIDE))
  np.testing.assert_array_equal(x, X)
  np.testing.assert_array_equal(s, S)


def test_npz_and_npy(tmp_path):
  np.savez(tmp_path / "one.npz", x=X, y=Y)
  np.savez(tmp_path / "named.npz", image=X, side=S)
  np.save(tmp_path / "x.npy", X)
  for path in ("one.npz", "named.npz", "x.npy"):
    np.testing.assert_array_equal(collect(tmp_path / path)[0], X)
  np.testing.assert_array_equal(collect(str(tmp_path / "named.npz"), (IMAGE, SIDE))[1], S)


def test_batches_are_full_but_for_the_last():
  sizes = [len(x) for (x,) in batches((x for x in np.split(X, [3, 4, 9])), [IMAGE], batch_size=4)]
  assert sizes == [4, 4, 2]
  assert [len(x) for (x,) in batches(X, [IMAGE])] == [10]


def test_bytes_become_floats():
  (x,) = collect(X.astype(np.uint8) % 251)
  assert x.dtype == np.float32
  np.testing.assert_array_equal(x, X.astype(np.uint8) % 251)
  (x,) = collect(S > 3, (SIDE,))
  np.testing.assert_array_equal(x, S > 3)


def test_whole_numbers_for_an_integer_input():
  (x,) = collect(S.astype(np.int64), (InputSpec("tokens", (2,), "int32"),))
  assert x.dtype == np.int32
  np.testing.assert_array_equal(collect(S, (InputSpec("tokens", (2,), "int32"),))[0], S)


def test_one_example_is_known_by_its_rank():
  np.testing.assert_array_equal(collect(X[0])[0], X[:1])
  np.testing.assert_array_equal(collect(Y, (InputSpec("scalar", ()),))[0], Y)
  np.testing.assert_array_equal(collect(iter(Y), (InputSpec("scalar", ()),))[0], Y)
  np.testing.assert_array_equal(collect([[5.0], [6.0]], (InputSpec("one", (1,)),))[0], [[5], [6]])


def test_free_sizes_start_a_new_batch():
  free = InputSpec("image", (None, None, 3))
  images = [np.ones((4, 4, 3)), np.ones((4, 4, 3)), np.ones((2, 6, 3)), np.ones((4, 4, 3))]
  shapes = [x.shape for (x,) in batches(images, [free])]
  assert shapes == [(2, 4, 4, 3), (1, 2, 6, 3), (1, 4, 4, 3)]


def test_an_endless_generator_can_be_cut():
  def endless():
    while True:
      yield X[0]
  stream = batches(endless, [IMAGE], batch_size=2)
  assert [len(next(stream)[0]) for _ in range(3)] == [2, 2, 2]


# Errors.

ERRORS = {
    "wrong shape": (lambda: X[:, :3], "input 'image': expected samples of shape .4, 4, 3., or "
                                      "batches of them, got .3, 4, 3. at sample 0; resize"),
    "channels first": (lambda: np.moveaxis(X, -1, 1), r"got \(3, 4, 4\) at sample 0; move the channels to "
                                                      r"the end: np.moveaxis\(x, -3, -1\)"),
    "wrong rank": (lambda: X[..., None], r"expected samples.*, got an array of shape \(10, 4, 4, 3, 1\)"),
    "too flat": (lambda: Y, r"expected samples of shape \(4, 4, 3\).*, got an array of shape \(10,\)"),
    "one array without the last axis": (lambda: X[..., 0],
                                        r"got an array of shape \(10, 4, 4\) at sample 0; add the "
                                        r"last axis, as x\[..., None\] repeated 3 times\.$"),
    "later element": (lambda: [X[:3], X[3:, 1:]], "got .3, 4, 3. at sample 3"),
    "nan": (lambda: np.where(np.arange(10)[:, None, None, None] == 7, np.nan, X),
            "input 'image': expected finite numbers, got nan in sample 7; repair"),
    "inf in a stream": (lambda: (np.full((4, 4, 3), v) for v in (0, 1, np.inf)),
                        "got inf in sample 2"),
    "too large": (lambda: X.astype(np.float64) * 1e300, "expected finite numbers, got 1e.300"),
    "no samples": (lambda: X[:0], "expected at least one sample, got none"),
    "empty list": (lambda: [], "expected at least one sample, got none"),
    "used up generator": (lambda: iter(()), "expected at least one sample.*used up"),
    "empty dataset": (lambda: tf.data.Dataset.from_tensor_slices(X).take(0), "at least one sample"),
    "other key": (lambda: {"picture": X}, r"keys \['image'\], got \['picture'\]; use the names"),
    "unknown key": (lambda: {"image": X, "label": Y},
                    r"keys \['image'\], got \['image', 'label'\]"),
    "four values": (lambda: (X, X, X, X), r"expected 1 arrays, for the inputs \['image'\], got "
                                          "tuple of length 4; give one array an input"),
    "ragged": (lambda: [[[1, 2], [3]]], "expected an array, got list of length 2 of parts of diff"),
    "list x, y": (lambda: iter([[X, Y]]), "if it holds labels, make it a tuple"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors(kind):
  make, message = ERRORS[kind]
  with pytest.raises(ValueError, match=f"{STEM}.*{message}") as caught:
    collect(make())
  assert "\n" not in str(caught.value)


TWO_INPUT_ERRORS = {
    "one array": (lambda: X, r"expected 2 arrays, for the inputs \['image', 'side'\], got ndarray "
                             r"of shape \(10, 4, 4, 3\); give one array an input, or a dict"),
    "three arrays": (lambda: [X, S, Y], "expected 2 arrays.*got list of length 3"),
    "counts": (lambda: [X, S[:9]], "as many samples for each input, got {'image': 10, 'side': 9}"),
    "missing key": (lambda: {"image": X}, r"keys \['image', 'side'\], got \['image'\]"),
    "swapped": (lambda: [S, X], "input 'image': expected samples of shape"),
}


@pytest.mark.parametrize("kind", TWO_INPUT_ERRORS)
def test_errors_with_two_inputs(kind):
  make, message = TWO_INPUT_ERRORS[kind]
  with pytest.raises(ValueError, match=f"{STEM}.*{message}"):
    collect(make(), (IMAGE, SIDE))


@pytest.mark.parametrize("data, got", [
    (X.astype(str), r"ndarray of shape \(10, 4, 4, 3\) of dtype <U"),
    (X.astype(object), "dtype object"), (X.astype(complex), "dtype complex128"),
    ([None], "NoneType of dtype object"), ([b"jpeg"], "bytes of length 4 of dtype")])
def test_not_numbers(data, got):
  with pytest.raises(TypeError, match=rf"{STEM}, input 'image': expected numbers \(float32\), got "
                                      f".*{got}.*at sample 0; convert"):
    collect(data)


@pytest.mark.parametrize("data", [None, 5, 1.5])
def test_no_known_kind(data):
  kind = type(data).__name__
  with pytest.raises(TypeError, match=f"{STEM}: expected an array, a list .*, got {kind};"):
    batches(data, [IMAGE])


@pytest.mark.parametrize("bad, dtype", [(0.5, "int32"), (np.nan, "int32"), (-1, "uint8")])
def test_integer_inputs_take_whole_numbers_in_reach(bad, dtype):
  with pytest.raises(ValueError, match=f"numbers within {dtype}, got {bad} in sample 1; check"):
    collect(np.array([[0, 1], [2, bad]]), (InputSpec("tokens", (2,), dtype),))


def test_files(tmp_path):
  with pytest.raises(FileNotFoundError, match=f"{STEM}: there is no file .*none.npz"):
    batches(tmp_path / "none.npz", [IMAGE])
  with pytest.raises(ValueError, match=f"{STEM}: expected .*got the folder .*; the commands read folders"):
    batches(tmp_path, [IMAGE])
  (tmp_path / "x.csv").write_text("1,2")
  with pytest.raises(ValueError, match="expected an .npz or .npy file, got .*x.csv"):
    batches(str(tmp_path / "x.csv"), [IMAGE])
  np.savez(tmp_path / "keys.npz", a=X, b=Y)
  with pytest.raises(ValueError, match=r"expected the arrays \['image'\] or x, got \['a', 'b'\]"):
    batches(tmp_path / "keys.npz", [IMAGE])
  with pytest.raises(ValueError, match=r"arrays \['image', 'side'\], got \['a', 'b'\]"):
    batches(tmp_path / "keys.npz", [IMAGE, SIDE])
  np.savez(tmp_path / "objects.npz", x=np.array([{}, []], object))
  (tmp_path / "garbage.npz").write_bytes(b"not numpy")
  (tmp_path / "broken.npz").write_bytes((tmp_path / "keys.npz").read_bytes()[:100])
  (tmp_path / "broken.npy").write_bytes(b"not numpy")
  (tmp_path / "empty.npy").write_bytes(b"")
  for name, reason in (("objects.npz", "holds Python objects"), ("broken.npz", "is damaged"),
                       ("garbage.npz", "is no .npz or .npy file"), ("broken.npy", "is no .npz or .npy file"),
                       ("empty.npy", "is no .npz or .npy file")):
    expected = f"{STEM}: .*{name} {reason}.*write the file with numpy.savez"
    with pytest.raises(ValueError, match=expected) as caught:
      batches(tmp_path / name, [IMAGE])
    assert "pickle" not in str(caught.value) and "\n" not in str(caught.value)


def test_errors_say_what_the_data_are_for():
  with pytest.raises(ValueError, match="^train data: expected at least one sample"):
    list(batches([], [IMAGE], where="train"))
  with pytest.raises(ValueError, match="calibration data: expected a batch_size of 1 or more"):
    batches(X, [IMAGE], batch_size=0)


# choose.


def test_choose():
  np.testing.assert_array_equal(choose(10, 3, order="first"), [0, 1, 2])
  np.testing.assert_array_equal(choose(3, 10), [0, 1, 2])
  np.testing.assert_array_equal(choose(3, 10, order="first"), [0, 1, 2])
  picked = choose(1000, 50, seed=1)
  assert len(set(picked)) == 50 and np.all(np.diff(picked) > 0)
  assert picked[0] >= 0 and 900 < picked[-1] < 1000
  np.testing.assert_array_equal(picked, choose(1000, 50, order="random", seed=1))
  assert not np.array_equal(picked, choose(1000, 50, seed=2))


@pytest.mark.parametrize("count, samples, order, message", [
    (0, 5, "random", "got 5 of 0"), (5, 0, "first", "got 0 of 5"),
    (5, 2, "last", re.escape("expected order 'random' or 'first', got 'last'"))])
def test_choose_errors(count, samples, order, message):
  with pytest.raises(ValueError, match=f"choose: .*{message}"):
    choose(count, samples, order=order)


def test_hold_back():
  images, labels = np.arange(10)[:, None] * np.ones(3), np.arange(10)
  (rest, rest_labels), (held, held_labels) = hold_back([images, labels], 0.3, seed=1)
  assert len(held_labels) == 3 and sorted([*rest_labels, *held_labels]) == list(range(10))
  for array, chosen in ((rest, rest_labels), (held, held_labels)):
    assert list(array[:, 0]) == list(chosen) == sorted(chosen)
  again, other = (hold_back([labels], 0.3, seed=seed)[1][0] for seed in (1, 2))
  assert list(again) == list(held_labels) != list(other)


def test_samples_that_are_all_the_same_by_hand():
  same, other = np.ones((3, 2)), np.float32([[1, 1], [1, 1], [1, 2]])
  assert all_equal([same]) and not all_equal([other])
  assert not all_equal([same, other])  # one input alone may be constant, as a mask
  assert not all_equal([same], [np.zeros(2)]) and all_equal([other[:2]], [np.ones(2)])
