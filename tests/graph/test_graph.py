"""Graph edits: each does what it says, and readers stay right after any sequence of them."""

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

from kquant.core.records import Edit, Skip
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref
from tests import models


def diamond():
  """a -> b, a -> c, add(b, c), and a second output on b."""
  image = keras.Input((4,), name="image")
  a = layers.Dense(4, name="a")(image)
  b, c = layers.ReLU(name="b")(a), layers.Dense(4, name="c")(a)
  return models.randomized(keras.Model(image, [layers.Add(name="sum")([b, c]), b], name="diamond"))


def graph_of(model):
  return Graph.from_model(model)


def node(graph, name):
  (found,) = [n for n in graph.nodes if n.name == name]
  return found


def ref(graph, name):
  return Ref(node(graph, name))


def relu(graph, name="new"):
  return graph.new_layer(layers.ReLU, name)


def scaled(graph, factor, name="new"):
  """A layer that multiplies by a factor: an edit that it moved is seen in the outputs."""
  return graph.new_layer(layers.BatchNormalization, name, {"epsilon": 0.0}, {
      "gamma": np.full(4, factor, np.float32), "beta": np.zeros(4, np.float32),
      "moving_mean": np.zeros(4, np.float32), "moving_variance": np.ones(4, np.float32)})


def outputs_of(graph):
  x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  return [y.numpy() for y in graph.to_model()(x, training=False)]


def names(nodes):
  return [n.name for n in nodes]


def assert_readers_are_right(graph):
  """Recounts every use of every tensor."""
  for producer in graph.nodes:
    for index in range(len(producer.shapes)):
      tensor = Ref(producer, index)
      uses = [reader for reader in graph.nodes for used in reader.inputs if used == tensor]
      assert sorted(names(graph.readers(tensor))) == sorted(names(uses)), tensor
      assert graph.is_private(tensor) == (len(uses) == 1 and tensor not in graph.output_refs)


# --- reading ---------------------------------------------------------------------------------------


def test_nodes_come_in_topological_order_and_readers_are_those_of_the_calls():
  graph = graph_of(diamond())
  assert names(graph.nodes) == ["image", "a", "b", "c", "sum"]
  assert names(graph.readers(ref(graph, "a"))) == ["b", "c"]
  assert names(graph.readers(ref(graph, "sum"))) == []
  assert [r.key for r in graph.output_refs] == ["sum", "b"] and [r.key for r in graph.input_refs] == ["image"]
  assert ref(graph, "a").shape == (None, 4)


def test_a_tensor_is_private_if_one_call_reads_it_and_it_is_no_output():
  graph = graph_of(diamond())
  private = {n.name: graph.is_private(Ref(n)) for n in graph.nodes}
  assert private == {"image": True, "a": False, "b": False, "c": True, "sum": False}


def test_a_call_that_reads_a_tensor_twice_is_two_uses():
  image = keras.Input((4,))
  x = layers.Dense(4, name="a")(image)
  graph = graph_of(keras.Model(image, layers.Add(name="sum")([x, x])))
  assert names(graph.readers(ref(graph, "a"))) == ["sum", "sum"]
  assert not graph.is_private(ref(graph, "a"))


def test_find_returns_a_list_of_its_own_in_order():
  graph = graph_of(diamond())
  found = graph.find("Dense", "ReLU")
  assert names(found) == ["a", "b", "c"] and graph.find("Conv2D") == []
  for n in found:
    graph.insert_after(Ref(n), relu(graph, f"behind_{n.name}"))
  assert names(found) == ["a", "b", "c"] and len(graph.find("ReLU")) == 4


def test_further_outputs_have_a_key_with_their_index():
  image = keras.Input((5, 3))
  graph = graph_of(keras.Model(image, layers.LSTM(2, return_state=True, name="lstm")(image)))
  assert [r.key for r in graph.output_refs] == ["lstm", "lstm:1", "lstm:2"]


# --- insert_after ----------------------------------------------------------------------------------


def test_insert_after_comes_between_a_tensor_and_all_its_readers():
  graph = graph_of(diamond())
  new = graph.insert_after(ref(graph, "a"), relu(graph))
  assert names(graph.readers(ref(graph, "a"))) == ["new"] and names(graph.readers(new)) == ["b", "c"]
  assert new.shape == (None, 4)
  assert_readers_are_right(graph)


def test_insert_after_an_output_becomes_the_output():
  graph = graph_of(diamond())
  first, second = outputs_of(graph)
  graph.insert_after(ref(graph, "b"), scaled(graph, 3.0))
  graph.normalize()
  assert [r.key for r in graph.output_refs] == ["sum", "new"]
  assert graph.is_private(ref(graph, "b")) and names(graph.readers(ref(graph, "new"))) == ["sum"]
  np.testing.assert_allclose(outputs_of(graph)[1], 3 * second, rtol=1e-6)
  np.testing.assert_allclose(outputs_of(graph)[0], first + 2 * second, rtol=1e-5, atol=1e-5)


def test_insert_after_the_input():
  graph = graph_of(diamond())
  graph.insert_after(graph.input_refs[0], scaled(graph, 1.0))
  graph.normalize()
  assert names(graph.nodes) == ["image", "new", "a", "b", "c", "sum"]
  assert [r.key for r in graph.input_refs] == ["image"]


# --- redirect --------------------------------------------------------------------------------------


def test_redirect_moves_every_reader_and_the_outputs():
  graph = graph_of(diamond())
  graph.redirect(ref(graph, "b"), ref(graph, "c"))
  assert [r.key for r in graph.output_refs] == ["sum", "c"]
  assert names(graph.readers(ref(graph, "c"))) == ["sum", "sum"] and not graph.readers(ref(graph, "b"))
  assert_readers_are_right(graph)
  graph.normalize()
  assert names(graph.nodes) == ["image", "a", "c", "sum"]  # b is read by none


def test_redirect_with_only_moves_those_and_leaves_the_outputs():
  graph = graph_of(diamond())
  new = graph.add_node(scaled(graph, 2.0), (ref(graph, "b"),), (None, 4))
  first, second = outputs_of(graph)  # normalizes: the new call is read by none and goes
  new = graph.add_node(scaled(graph, 2.0), (ref(graph, "b"),), (None, 4))
  graph.redirect(ref(graph, "b"), new, only=lambda reader: reader.kind == "Add")
  assert [r.key for r in graph.output_refs] == ["sum", "b"]
  assert names(graph.readers(ref(graph, "b"))) == ["new"] and names(graph.readers(new)) == ["sum"]
  assert_readers_are_right(graph)
  np.testing.assert_array_equal(outputs_of(graph)[1], second)
  np.testing.assert_allclose(outputs_of(graph)[0], first + second, rtol=1e-5, atol=1e-5)


def test_redirect_with_only_that_accepts_none_changes_nothing():
  graph = graph_of(diamond())
  graph.redirect(ref(graph, "a"), graph.input_refs[0], only=lambda reader: False)
  assert names(graph.readers(ref(graph, "a"))) == ["b", "c"]
  assert_readers_are_right(graph)


def test_redirect_reaches_keyword_arguments_and_nests():
  query, value = keras.Input((3, 4), name="query"), keras.Input((3, 4), name="value")
  x = layers.Dense(4, name="a")(value)
  y = layers.MultiHeadAttention(2, 2, name="mha")(query, value=x)
  graph = graph_of(keras.Model([query, value], layers.Concatenate(name="cat")([y, x])))
  graph.redirect(ref(graph, "a"), ref(graph, "value"))
  assert node(graph, "mha").kwargs["value"] == ref(graph, "value")
  assert node(graph, "cat").args[0][1] == ref(graph, "value")
  assert_readers_are_right(graph)
  graph.to_model()


def test_constants_beside_tensors_survive_a_redirect():
  image = keras.Input((4,), name="image")
  constant = np.arange(4, dtype=np.float32)
  graph = graph_of(keras.Model(image, layers.ReLU(name="r")(image) * constant))
  graph.redirect(ref(graph, "r"), ref(graph, "image"))
  np.testing.assert_array_equal(graph.nodes[-1].args[1], constant)


# --- remove, drop, recall --------------------------------------------------------------------------


def test_remove_lets_readers_and_outputs_read_the_input():
  graph = graph_of(diamond())
  graph.remove(node(graph, "b"))
  assert [r.key for r in graph.output_refs] == ["sum", "a"]
  assert names(graph.readers(ref(graph, "a"))) == ["c", "sum"] and names(graph.nodes) == [
      "image", "a", "c", "sum"]
  assert_readers_are_right(graph)


def test_remove_of_everything_leaves_the_input_as_output():
  image = keras.Input((4,), name="image")
  graph = graph_of(keras.Model(image, layers.Dropout(0.5)(layers.ReLU()(image))))
  for n in list(graph.nodes)[1:]:
    graph.remove(n)
  x = np.ones((2, 4), np.float32)
  np.testing.assert_array_equal(graph.to_model()(x), x)


def test_remove_of_a_call_with_two_inputs_is_refused():
  graph = graph_of(diamond())
  with pytest.raises(ValueError):
    graph.remove(node(graph, "sum"))
  assert_readers_are_right(graph)


def test_one_call_of_a_shared_layer_is_removed_and_the_names_close_up():
  image = keras.Input((4,), name="image")
  shared = layers.ReLU(name="r")
  x = shared(layers.Dense(4, name="a")(shared(image)))
  graph = graph_of(keras.Model(image, shared(x)))
  assert names(graph.find("ReLU")) == ["r", "r@1", "r@2"]
  graph.remove(node(graph, "r"))
  graph.normalize()
  assert names(graph.find("ReLU")) == ["r", "r@1"] and names(graph.nodes)[1] == "a"
  assert len(graph.calls(node(graph, "r").layer)) == 2


def test_drop_takes_the_call_from_the_readers_of_its_inputs():
  graph = graph_of(diamond())
  graph.redirect(ref(graph, "c"), ref(graph, "a"))
  graph.drop(node(graph, "c"))
  assert names(graph.readers(ref(graph, "a"))) == ["b", "sum"]
  assert_readers_are_right(graph)


def test_recall_changes_layer_and_arguments_and_keeps_name_and_readers():
  graph = graph_of(diamond())
  call = node(graph, "sum")
  call.kwargs = {"ignored": 1}
  graph.recall(call, graph.new_layer(layers.Subtract, "sum"), ([ref(graph, "a"), ref(graph, "b")],))
  assert call.kind == "Subtract" and call.kwargs == {} and call.shapes == [(None, 4)]
  assert names(graph.readers(ref(graph, "c"))) == []
  assert_readers_are_right(graph)
  graph.normalize()
  assert names(graph.nodes) == ["image", "a", "b", "sum"]


def test_add_node_may_come_before_its_place():
  graph = graph_of(diamond())
  before = outputs_of(graph)
  inner = graph.add_node(scaled(graph, 2.0, "x"), (ref(graph, "a"),), (None, 4))
  outer = graph.add_node(scaled(graph, 0.5, "y"), (inner,), (None, 4))
  graph.redirect(ref(graph, "a"), outer, only=lambda reader: reader.name == "c")
  for mine, theirs in zip(outputs_of(graph), before):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)
  assert names(graph.nodes) == ["image", "a", "b", "x", "y", "c", "sum"]


def test_new_layer_completes_the_config_and_holds_its_own_weights():
  graph = graph_of(diamond())
  layer = scaled(graph, 2.0, "x/y")
  assert layer.config["momentum"] == 0.99 and layer.config["epsilon"] == 0.0
  assert layer.config["name"] == layer.name == "x/y" and layer.kind == "BatchNormalization"


# --- normalize, records ----------------------------------------------------------------------------


def test_normalize_is_idempotent_and_keeps_unread_inputs():
  image, unused = keras.Input((4,), name="image"), keras.Input((2,), name="unused")
  graph = graph_of(keras.Model([unused, image], layers.ReLU(name="r")(image)))
  for _ in range(2):
    graph.normalize()
    assert names(graph.nodes) == ["unused", "image", "r"]
    assert_readers_are_right(graph)


@pytest.mark.parametrize("name", models.ZOO)
def test_order_follows_from_the_structure_alone(name):
  graph = graph_of(models.build(name))
  before = names(graph.nodes)
  rng = np.random.default_rng(0)
  graph.nodes = [graph.nodes[i] for i in rng.permutation(len(graph.nodes))]
  graph.normalize()
  assert names(graph.nodes) == before


def test_records_bear_the_name_of_the_pass():
  graph = graph_of(diamond())
  graph.pass_name = "fold"
  graph.edit(node(graph, "a"), "folded")
  graph.pass_name = "equalize"
  graph.skip(node(graph, "b"), "is shared")
  assert graph.edits == [Edit("a", "fold", "folded")] and graph.skips == [Skip("b", "equalize", "is shared")]


# --- random edits ----------------------------------------------------------------------------------


def random_model(rng, size=12):
  """Dense, ReLU and Add on random earlier tensors, some layers shared, two outputs."""
  image = keras.Input((4,), name="image")
  tensors, shared = [image], layers.Dense(4, name="shared")
  for index in range(size):
    pick = lambda: tensors[rng.integers(max(0, len(tensors) - 4), len(tensors))]
    kind = rng.integers(4)
    if kind == 0:
      x = layers.Dense(4, name=f"dense{index}")(pick())
    elif kind == 1:
      x = shared(pick())
    elif kind == 2:
      x = layers.ReLU(name=f"relu{index}")(pick())
    else:
      x = layers.Add(name=f"add{index}")([pick() for _ in range(rng.integers(2, 4))])
    tensors.append(x)
  return keras.Model(image, [tensors[-1], tensors[len(tensors) // 2]])


def computed(graph, x):
  """Computes the outputs of a graph of Dense, ReLU, Add and BatchNormalization in NumPy."""
  values = {graph.input_refs[0]: x}

  def value(tensor):
    if tensor not in values:
      args, params = [value(i) for i in tensor.node.inputs], tensor.node.layer.params
      values[tensor] = {
          "Dense": lambda: args[0] @ params["kernel"] + params["bias"],
          "ReLU": lambda: np.maximum(args[0], 0), "Add": lambda: sum(args),
          "BatchNormalization": lambda: args[0] * params["gamma"]}[tensor.node.kind]()
    return values[tensor]

  return [value(tensor) for tensor in graph.output_refs]


def random_edit(graph, rng, count):
  calls = [n for n in graph.nodes if n.kind != "InputLayer"]
  call, name = calls[rng.integers(len(calls))], f"new{count}"
  kind = rng.integers(6)
  if kind == 0:
    graph.insert_after(Ref(call), scaled(graph, 2.0, name))
  elif kind == 1:
    new = graph.add_node(scaled(graph, -1.0, name), (Ref(call),), (None, 4))
    graph.redirect(Ref(call), new, only=lambda reader: reader.kind in ("Add", "ReLU"))
  elif kind == 2 and len(call.inputs) == 1 and len(calls) > 3:
    graph.remove(call)
  elif kind == 3:
    graph.recall(call, graph.new_layer(layers.Add, name), ([*call.inputs, graph.input_refs[0]],))
  elif kind == 4 and len(calls) > 3:
    graph.redirect(Ref(call), call.inputs[-1])
    graph.drop(call)
  else:
    graph.normalize()


@pytest.mark.parametrize("seed", range(8))
def test_readers_are_right_after_random_edits_and_the_model_computes_the_graph(seed):
  rng = np.random.default_rng(seed)
  graph = graph_of(models.randomized(random_model(rng), seed))
  for count in range(25):
    random_edit(graph, rng, count)
    assert_readers_are_right(graph)
  x = rng.normal(size=(3, 4)).astype(np.float32)
  expected = computed(graph, x)
  for mine, theirs in zip(graph.to_model()(x, training=False), expected):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_one_input_of_a_call_is_set_by_its_place():
  x = keras.Input((4,))
  first, second = layers.Dense(4, name="first")(x), layers.Dense(4, name="second")(x)
  graph = graph_of(keras.Model(x, layers.Add(name="add")([first, second])))
  (add,) = graph.find("Add")
  one, two = add.inputs
  add.args, add.kwargs = (), {"value": one, "key": two}  # keywords that are not in alphabetical order
  graph.set_input(add, 1, one)
  assert add.kwargs == {"value": one, "key": one} and add.inputs == [one, one]
  assert graph.readers(one) == [add, add] and graph.readers(two) == []
