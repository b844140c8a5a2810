"""All operators of float files that become Keras layers, one entry each."""

from kquant.graph.readers.tflite import layers, moving, operators, shapes
from kquant.graph.readers.tflite.call import Convert
from kquant.graph.readers.tflite.views import through_views

OPERATORS: dict[str, Convert] = {
    **layers.LINEAR, **operators.REDUCTIONS, **shapes.SHAPES,
    **moving.MOVING,
    **{kind: lambda call, convert=convert: through_views(call, convert)
       for kind, convert in {**layers.ACTIVATIONS, **operators.ELEMENTS}.items()},
}
"""{operator: the function that makes its result of a Call}."""
