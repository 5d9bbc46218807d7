"""Experts in a list: all of them compute every token, and those that run are the router's."""

import pytest
import torch
from torch import nn
from transformers import NllbMoeConfig, SwitchTransformersConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
)

from exporter.attention import UntraceableError
from exporter.traits.listed_experts import check_listed_experts, listed_experts_for_all

CAPACITY = 3


@pytest.fixture
def switch() -> nn.Module:
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        d_model=16, d_ff=32, num_experts=4, expert_capacity=CAPACITY, dropout_rate=0.0
    )
    return SwitchTransformersSparseMLP(config).eval()


@torch.no_grad()
def test_what_is_traced_gives_the_numbers_of_transformers(switch: nn.Module) -> None:
    states = torch.randn(2, 20, 16)
    expected = switch(states)
    left_out = (expected == 0).all(dim=-1)
    assert left_out.any()  # tokens that no expert has room for
    assert not left_out.all()
    with listed_experts_for_all(switch):
        torch.testing.assert_close(switch(states), expected)
        program = torch.export.export(switch, (states,), strict=False)
    torch.testing.assert_close(program.module()(states), expected)
    torch.testing.assert_close(switch(states), expected)  # everything is put back


def test_experts_that_the_router_did_not_choose_are_an_error(switch: nn.Module) -> None:
    check_listed_experts(switch)
    config = NllbMoeConfig(d_model=16, num_experts=4, router_dtype="float32")
    with pytest.raises(UntraceableError, match="other experts"):
        check_listed_experts(NllbMoeSparseMLP(config, 32).eval())
