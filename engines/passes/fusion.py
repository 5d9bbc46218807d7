"""Applying onnxscript's rewrite rules, with names as the rest of the graph has them."""

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

_RULE = "pkg.onnxscript.rewriter.rule_name"  # what the rewriter leaves in the nodes it makes


def fuse(model: ir.Model, rules: Sequence[RewriteRule]) -> None:
    """Apply the rules, in place, and name what they make ``module.path/Operator``."""
    RewriteRuleSet(rules).apply_to_model(model)
    made = [node for node in model.graph if _RULE in node.metadata_props]
    taken = Counter(node.name for node in model.graph if node not in made)
    for node in made:
        del node.metadata_props[_RULE]
        result = node.outputs[0]  # named as what it replaces
        module = (result.name or "").rpartition("/")[0]
        base = name = f"{module}/{node.op_type}".lstrip("/")
        while taken[name]:
            taken[base] += 1
            name = f"{base}_{taken[base]}"
        taken[name] += 1
        node.name = name
        if not result.is_graph_output():
            result.name = name
