"""Operators of this project: functions of the graph that our kernels for the CPU take the place of.

ONNX Runtime runs the functions' bodies, of standard operators, where the kernels aren't registered.
"""

import onnx.parser
import onnx_ir as ir

DOMAIN = "export_llm"

# Of a library of their own; ONNX Runtime takes a domain from one library only.
ENCODER_DOMAIN = "export_llm.encoders"


def define(model: ir.Model, domain: str, signature: str, body: str) -> None:
    """Add a function to the model, with the body in ONNX's text form."""
    opset = model.graph.opset_imports[""]
    opsets = f'"": {opset}, "com.microsoft": 1'
    function = onnx.parser.parse_function(
        f'<domain: "{domain}", opset_import: [{opsets}]> {signature} {{ {body} }}'
    )
    made = ir.serde.deserialize_function(function)
    model.functions[made.identifier()] = made
    model.graph.opset_imports[domain] = 1
