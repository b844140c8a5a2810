"""Lowering of recurrent layers that are one operator."""

from kquant.graph.fused_lstm import GATES
from kquant.graph.nodes import Node, Ref
from tflite_export.kernels import lstm
from tflite_export.lowering.builder import Lower, ProgramBuilder
from tflite_export.operators.recurrent import PLAIN


def _fused_lstm(builder: ProgramBuilder, node: Node) -> None:
  """State and cell are set to 0 in every run, so that no run depends on the one before."""
  inputs = [""] * lstm.INPUTS
  (inputs[lstm.SOURCE],) = builder.inputs(node)
  places = zip(GATES, lstm.KERNELS, lstm.RECURRENT_KERNELS, lstm.BIASES)
  for gate, kernel, recurrent, bias in places:
    for place, key in ((kernel, f"kernel_{gate}"), (recurrent, f"recurrent_{gate}")):
      inputs[place] = builder.integers(f"{node.layer.name}/{key}", layout=lambda q: q.T)
    inputs[bias] = builder.bias(node, f"bias_{gate}")
  output = builder.activation(Ref(node))
  inputs[lstm.STATE] = builder.state(node, "state", builder.encodings[output])
  inputs[lstm.CELL] = builder.state(node, "cell", builder.encodings[f"{node.layer.name}/cell"])
  op = builder.add(node, "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [output], **PLAIN)
  op.intermediates = [inputs[lstm.STATE]] * 5


LOWERINGS: dict[str, Lower] = {"FusedLSTM": _fused_lstm}
