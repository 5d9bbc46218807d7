"""Removing indices of one axis of a value, and with them all that goes with them.

A head or channel isn't one tensor's affair: the rows of the weights that make it, the columns of
those that read it, biases, caches and the sizes of reshapes go together. Starting from one value,
the dependencies are followed node by node in both directions, until weights end them (the
dependency graph of Fang et al., "DepGraph: Towards Any Structural Pruning", 2023). Nothing changes
before all of them are known; what can't be followed raises ``UnmatchedError``.
"""

from collections.abc import Callable, Sequence

import onnx_ir as ir

from engines.pruning import axes
from engines.pruning.axes import Cut, UnmatchedError
from engines.pruning.parts import Parts, parts_of
from serving.contract import INPUT_IDS, LOGITS, LOGITS_POSITIONS, PAST_LENGTHS

_FIXED = frozenset({INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS, LOGITS})
_HEADS = -3  # of [batch, heads, sequence, head_dim]


class Slicing:
    """The consequences of keeping only some indices of a value's axis."""

    def __init__(self, start: ir.Value, cut: Cut) -> None:
        self.cuts: dict[ir.Value, Cut] = {}
        """Cuts of all values but the initialisers."""
        self.constants: dict[tuple[ir.Node, int], Cut] = {}
        """Cuts of initialisers, for each node's input."""
        self.readers: list[ir.Node] = []
        """The MatMul nodes whose weights read the cut axis."""
        self.writers: list[ir.Node] = []
        """The MatMul nodes whose weights make it."""
        self.attentions: list[ir.Node] = []
        self.reshapes: list[ir.Node] = []
        self.parts: list[Parts] = []
        self._queue: list[ir.Node] = []
        self._cut(start, cut)
        self._follow_all()
        for parts in list(self.parts):
            if parts.whole not in self.cuts:  # the other parts stay as they are
                self._join(parts)
                self._follow_all()

    def _follow_all(self) -> None:
        while self._queue:
            self._follow(self._queue.pop())

    def reads(self) -> list[tuple[ir.Node, Cut]]:
        """The MatMul nodes that read what is kept, with the cut of what they read."""
        return [(node, cut) for node in self.readers if (cut := self._of(node.inputs[0]))]

    def _cut(self, value: ir.Value, cut: Cut) -> None:
        if value in self.cuts:
            if self.cuts[value] != cut:
                raise UnmatchedError(f"{value.name} would be cut in two ways")
            return
        self.cuts[value] = cut
        is_outside = value.is_graph_input() or value.is_graph_output()
        if is_outside and (value.name in _FIXED or cut.axis != _HEADS):
            raise UnmatchedError(f"{value.name} would change")
        producer = value.producer()
        self._queue += [use.node for use in value.uses()]
        if producer is not None:
            self._queue.append(producer)

    def _cut_input(self, node: ir.Node, index: int, cut: Cut) -> None:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return
        if not value.is_initializer():
            self._cut(value, cut)
        elif self.constants.setdefault((node, index), cut) != cut:
            raise UnmatchedError(f"{value.name} would be cut in two ways")

    def _of(self, value: ir.Value | None) -> Cut | None:
        return self.cuts.get(value) if value is not None else None

    def _follow(self, node: ir.Node) -> None:
        rule = _RULES.get(node.op_type) if node.domain == "" else None
        if rule is None:
            raise UnmatchedError(f"{node.name} ({node.op_type}) can't be followed")
        rule(self, node)

    def _any(self, node: ir.Node, inputs: Sequence[int]) -> Cut | None:
        """The cut of a node's results or of one of these inputs."""
        values = [*node.outputs, *(node.inputs[i] for i in inputs)]
        return next((cut for value in values if (cut := self._of(value))), None)

    def _elementwise(self, node: ir.Node) -> None:
        cut = self._any(node, range(len(node.inputs)))
        assert cut is not None
        for index, value in enumerate(node.inputs):
            if value is not None and axes.has_axis(value, cut.axis):
                self._cut_input(node, index, cut)
        self._cut(node.outputs[0], cut)

    def _alongside(self, node: ir.Node, inputs: Sequence[int], barred: Sequence[int]) -> None:
        """A node that keeps all axes apart but the ``barred`` ones."""
        cut = self._any(node, inputs)
        if cut is None:
            return
        if cut.axis in [axes.from_the_end(axis, node.inputs[inputs[0]]) for axis in barred]:
            raise UnmatchedError(f"{node.name} ({node.op_type}) mixes what would be cut")
        for index in inputs:
            self._cut_input(node, index, cut)
        for output in node.outputs:
            self._cut(output, cut)

    def _scatter(self, node: ir.Node) -> None:
        self._alongside(node, [0, 1], [node.attributes.get_int("axis", -2)])

    def _normalization(self, node: ir.Node) -> None:
        first = axes.from_the_end(node.attributes.get_int("axis", -1), node.inputs[0])
        self._alongside(node, [0], range(first, 0))

    def _reduction(self, node: ir.Node) -> None:
        if node.attributes.get_int("keepdims", 1) != 1:
            raise UnmatchedError(f"{node.name} drops axes")
        self._alongside(node, [0], axes.constant(node, 1))

    def _concat(self, node: ir.Node) -> None:
        self._alongside(node, range(len(node.inputs)), [node.attributes.get_int("axis", 0)])

    def _quantized(self, node: ir.Node) -> None:
        """QuantizeLinear or DequantizeLinear: what it scales, and the scales."""
        cut = self._any(node, [0])
        assert cut is not None
        self._cut_input(node, 0, cut)
        self._cut(node.outputs[0], cut)
        scales = axes.of_scales(node, cut)
        if scales is not None:
            for index in range(1, len(node.inputs)):
                self._cut_input(node, index, scales)

    def _rotary(self, node: ir.Node) -> None:
        self._alongside(node, [0], [-1, -2])

    def _matmul(self, node: ir.Node) -> None:
        source, weight = node.inputs
        if weight is None or not axes.is_weight(weight):
            raise UnmatchedError(f"{node.name} multiplies two activations")
        read, written = self._of(source), self._of(node.outputs[0])
        for cut, axis, nodes in ((read, -2, self.readers), (written, -1, self.writers)):
            if cut is None:
                continue
            if cut.axis != -1:
                raise UnmatchedError(f"{node.name} keeps the axis that would be cut")
            self._cut_input(node, 1, Cut(axis, cut.kept))
            if node not in nodes:
                nodes.append(node)

    def _attention(self, node: ir.Node) -> None:
        cut = self._of(node.outputs[0]) or self._of(node.inputs[0])
        if cut is None:
            raise UnmatchedError(f"{node.name} shares keys and values with another layer")
        if cut.axis != _HEADS or len(node.outputs) > 1:
            raise UnmatchedError(f"{node.name} can't be followed")
        if node not in self.attentions:
            self.attentions.append(node)
        self._cut(node.outputs[0], cut)
        self._cut_input(node, 0, cut)
        kept_groups = axes.kept_groups(node, cut.kept)
        if kept_groups is not None:
            for index in (1, 2):
                self._cut_input(node, index, Cut(_HEADS, kept_groups))
        elif any(self._of(node.inputs[index]) for index in (1, 2)):
            raise UnmatchedError(f"{node.name} would keep its groups and lose keys or values")

    def _part(self, node: ir.Node) -> None:
        cut = self._any(node, [0])
        axis = axes.divided_axis(node)
        if cut is None or cut.axis != axis:
            self._alongside(node, [0], [axis])
            return
        parts = parts_of(node)
        if parts not in self.parts:
            self.parts.append(parts)
        whole = self._of(parts.whole)
        if whole is None:
            if all(output in self.cuts for output in parts.outputs):
                self._join(parts)
            return
        for output, indices in parts.ranges():
            kept = tuple(i - indices.start for i in whole.kept if i in indices)
            if len(kept) < len(indices):
                self._cut(output, Cut(parts.axis, kept))

    def _join(self, parts: Parts) -> None:
        """Cut the whole by the cuts of its parts."""
        joined: list[int] = []
        for output, indices in parts.ranges():
            cut = self._of(output)
            joined += indices if cut is None else [indices[i] for i in cut.kept]
        self._cut(parts.whole, Cut(parts.axis, tuple(joined)))

    def _moved(self, node: ir.Node) -> None:
        result, source = node.outputs[0], node.inputs[0]
        assert source is not None
        if result in self.cuts:
            self._cut_input(node, 0, axes.before(node, self.cuts[result]))
        else:
            self._cut(result, axes.behind(node, self.cuts[source]))
        if node.op_type == "Reshape" and node not in self.reshapes:
            self.reshapes.append(node)

    def _shape(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        first, last = node.attributes.get_int("start", 0), node.attributes.get_int("end", 1 << 31)
        rank = axes.rank(source)
        if rank + self.cuts[source].axis in range(rank)[first:last]:
            raise UnmatchedError(f"{node.name} reads the size that would change")


_GROUPS: dict[Callable[[Slicing, ir.Node], None], list[str]] = {
    Slicing._elementwise: [
        *("Abs", "Add", "Cast", "CastLike", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu"),
        *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish"),
        *("Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt"),
        *("Sub", "Swish", "Tanh", "ThresholdedRelu", "Where"),
    ],
    Slicing._moved: ["Gather", "Reshape", "Squeeze", "Transpose", "Unsqueeze"],
    Slicing._reduction: ["ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceSumSquare"],
    Slicing._normalization: ["LayerNormalization", "RMSNormalization"],
    Slicing._part: ["Slice", "Split"],
    Slicing._attention: ["Attention"],
    Slicing._concat: ["Concat"],
    Slicing._matmul: ["MatMul"],
    Slicing._quantized: ["DequantizeLinear", "QuantizeLinear"],
    Slicing._rotary: ["RotaryEmbedding"],
    Slicing._scatter: ["TensorScatter"],
    Slicing._shape: ["Shape"],
}
_RULES = {op_type: rule for rule, op_types in _GROUPS.items() for op_type in op_types}
