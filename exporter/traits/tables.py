"""Tables that a model keeps as plain attributes, such as sinusoidal positions.

A trace would store them as nameless constants. As buffers they have a name, and are accounted for
like every other weight.
"""

import torch
from torch import nn


def register_tables(model: nn.Module) -> None:
    """Turn every tensor that is a plain attribute of a module into a buffer, in place."""
    for module in model.modules():
        tables = {name: t for name, t in vars(module).items() if isinstance(t, torch.Tensor)}
        for name, table in tables.items():
            delattr(module, name)
            module.register_buffer(name, table, persistent=False)
