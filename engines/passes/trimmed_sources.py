"""Make what reads an encoder-decoder's source stop at the longest row's end.

The buffers of cross-attention are as long as the longest source may be. Attention reads the part
that is in use. Masks are built for its length, for they are as long as the keys.
"""

import onnx_ir as ir

from engines.passes.insertion import Inserter
from serving.contract import SOURCE_LENGTHS, is_cross


def trim_sources(model: ir.Model) -> None:
    """Slice the keys and values of the source where they are read, in place."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    if SOURCE_LENGTHS not in inputs:
        return
    insert = Inserter(graph, next(iter(graph)), "source")
    longest = insert.value("ReduceMax", [inputs[SOURCE_LENGTHS]], keepdims=1)
    for source in (value for value in graph.inputs if is_cross(value.name)):
        readers = list(source.uses())
        used = insert.value("Slice", [source, insert.integers([0]), longest, insert.integers([2])])
        used.type = source.type
        if source.shape is not None:
            used.shape = ir.Shape([*tuple(source.shape)[:2], None, source.shape[3]])
        for use in readers:
            use.node.replace_input_with(use.idx, used)
    graph.sort()
