"""Experts in a list, each a module of its own, to which a router sends tokens by a mask.

Transformers runs each expert on the tokens that it was chosen for, whose number no graph knows.
Here every expert runs on every token and the mask weights the results, which is exact.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from exporter.attention import UntraceableError

_TOKENS = 64
_SEED = 20240229


@contextmanager
def listed_experts_for_all(model: nn.Module) -> Iterator[None]:
    """Have all listed experts of ``model`` compute every token."""
    with ExitStack() as restore:
        for module in _sparse_layers(model):
            _replace(restore, module.experts, "forward", _weighted_by_mask(module.experts))
            # Routers convert their weights in every call, which can't be traced; once is enough.
            classifier = module.router.classifier
            if classifier.weight.dtype != module.router.dtype:
                classifier.to(module.router.dtype)
            _replace(restore, classifier, "to", _as_it_is(classifier))
        yield


def check_listed_experts(model: nn.Module) -> None:
    """Raise UntraceableError where other experts run than those that the router chooses.

    Each layer is run on random hidden states, and its experts say when they are called.
    """
    for module in _sparse_layers(model):
        width = module.router.classifier.in_features
        generator = torch.Generator().manual_seed(_SEED)
        chosen, called = _chosen_and_called(
            module,
            torch.randn(1, _TOKENS, width, generator=generator).to(next(module.parameters()).dtype),
        )
        if not chosen <= called:
            raise UntraceableError(
                "the code of this version of transformers sends tokens to other experts than those "
                "that its router chooses"
            )


def _chosen_and_called(module: Any, states: torch.Tensor) -> tuple[set[str], set[str]]:
    """The experts that have the largest logit of a token of ``states``, and those that ran."""
    called: set[str] = set()
    routed: list[torch.Tensor] = []
    with ExitStack() as hooks, torch.no_grad():
        for name, expert in _experts(module.experts).items():
            hook = expert.register_forward_hook(lambda *_, name=name: called.add(name))
            hooks.callback(hook.remove)
        hook = module.router.register_forward_hook(lambda *given: routed.append(given[-1][-1]))
        hooks.callback(hook.remove)
        module(states)
    names = list(_experts(module.experts))
    best = routed[0].reshape(-1, len(names)).argmax(dim=-1)
    return {names[index] for index in best.tolist()}, called


def _sparse_layers(model: nn.Module) -> list[Any]:
    """The layers that are a router with a ``classifier`` and a dictionary of experts."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "experts", None), nn.ModuleDict)
        and hasattr(getattr(module, "router", None), "classifier")
    ]


def _experts(experts: nn.ModuleDict) -> dict[str, nn.Module]:
    """The experts by name: such a dictionary may have dropout in it too."""
    return {name: expert for name, expert in experts.items() if name.startswith("expert_")}


def _weighted_by_mask(experts: nn.ModuleDict) -> Callable[..., torch.Tensor]:
    each = _experts(experts).values()

    def forward(
        hidden_states: torch.Tensor, selected_experts: torch.Tensor, routing_weights: torch.Tensor
    ) -> torch.Tensor:
        """Combine [tokens, hidden] by a mask [tokens, ..., experts] and weights [tokens, 1].

        A token that no expert has room for gets zeros.
        """
        selected = selected_experts.reshape(-1, len(each))
        shares = selected.to(routing_weights.dtype) * routing_weights
        results = [
            expert(hidden_states) * shares[:, index, None] for index, expert in enumerate(each)
        ]
        return torch.stack(results).sum(dim=0).to(hidden_states.dtype)

    return forward


def _as_it_is(module: nn.Module) -> Callable[..., nn.Module]:
    return lambda *_: module


def _replace(restore: ExitStack, module: nn.Module, name: str, method: Callable[..., Any]) -> None:
    """Give one module another method, until ``restore`` is closed."""
    setattr(module, name, method)
    restore.callback(delattr, module, name)
