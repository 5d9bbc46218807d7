"""Positions: models that count them in a way of their own get them told instead.

Some decoders take no ``position_ids``: they count on from the cache's length, which differs from
row to row here. Their modules that take positions get ours. Others offset positions by their
padding id.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_NAME = "position_ids"
_PAST = "past_key_values_length"


def takes_positions(module: nn.Module) -> bool:
    """Whether a module's ``forward`` has a parameter for position ids."""
    return _NAME in inspect.signature(module.forward).parameters


def position_offset(model: nn.Module) -> int:
    """The position that ``model`` gives to the first token: 0, or past its padding id."""
    for module in model.modules():
        count = getattr(module, "create_position_ids_from_input_ids", None)
        if count is not None and takes_positions(model):
            padding = getattr(module, "padding_idx", 0)
            # No token is padding, so that the first one's position is the offset.
            tokens = torch.full((1, 1), padding + 1, device="cpu")
            return int(count(tokens, padding).item())
    return 0


@contextmanager
def told_positions(model: nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """Give ``positions``, int64 [batch, sequence], to every module that takes some.

    One that counts on from a past length gets each row's. Does nothing for a model that takes
    positions itself and hands them on.
    """
    with ExitStack() as hooks:
        if not takes_positions(model):
            for module in model.modules():
                if takes_positions(module):
                    telling = _telling(module, _NAME, positions)
                    before = module.register_forward_pre_hook(telling, with_kwargs=True)
                    after = module.register_forward_hook(_without_extra_axis)
                    hooks.callback(before.remove)
                    hooks.callback(after.remove)
                elif _PAST in inspect.signature(module.forward).parameters:
                    telling = _telling(module, _PAST, RowLengths(positions[:, :1]))
                    hook = module.register_forward_pre_hook(telling, with_kwargs=True)
                    hooks.callback(hook.remove)
        yield


def _without_extra_axis(_: nn.Module, __: Any, embedded: Any) -> Any:
    """Drop the axis that a module puts in front of one row of positions; ours has one a row."""
    if isinstance(embedded, torch.Tensor) and embedded.dim() == 4 and embedded.shape[0] == 1:
        return embedded.squeeze(0)
    return embedded


class RowLengths:
    """Past lengths int64 [batch, 1] that may be added: to positions row by row, to sizes as 0.

    Modules compare sizes with those of their tables, which are checked elsewhere.
    """

    def __init__(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths

    def __radd__(self, size: int | torch.SymInt) -> int | torch.SymInt:
        return size

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Adds them to a tensor of positions."""
        if func in (torch.Tensor.add, torch.Tensor.__add__):
            return args[0] + args[1].lengths
        return NotImplemented


def _telling(module: nn.Module, name: str, positions: "torch.Tensor | RowLengths") -> Any:
    names = list(inspect.signature(module.forward).parameters)

    def tell(
        _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(names, arguments, strict=False))
        return (), given | keywords | {name: positions}

    return tell
