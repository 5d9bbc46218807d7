"""The sums over ranks in real networks and in a real engine, and every way they may be wrong."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from engines.passes.all_reduce import all_reduces
from engines.passes.tensor_parallel import split_into_ranks
from engines.standard import optimize
from engines.tensorrt.builder import build
from engines.tensorrt.collectives import add_collectives
from engines.tensorrt.lowering import lower
from engines.tensorrt.network import Network, mend
from engines.tensorrt.verifier import VerificationError, verify
from tests.conftest import Graphs
from tests.engines.tensorrt.test_network import CAPACITY, parsed

pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def rank(simplified: Graphs) -> ir.Model:
    """Return the graph of the second of two ranks."""
    model = simplified("llama")
    optimize(model)
    return split_into_ranks(model, 2)[1]


def mended(model: ir.Model) -> Network:
    lower(model, CAPACITY)
    network = parsed(model)
    add_collectives(network, model)
    mend(network, model)
    return network


def test_every_sum_is_in_the_network_and_in_both_profiles_of_the_engine(
    rank: ir.Model, tmp_path: Path
) -> None:
    names = [str(node.name) for node in all_reduces(rank)]
    assert len(names) == 4
    network = mended(rank)
    verify(network, rank)
    built = build(
        rank, tmp_path, target="tensorrt-rtx", max_length=CAPACITY, batch=2, rank=1, prefill_chunk=8
    )
    assert built.name == "model.tensorrt-rtx.rank1.engine"
    engine = (tmp_path / built.name).read_bytes()
    sums = re.findall(
        rb'comm_allreduce=\{ name="([^"]*)"[^}]*\}[^}]*\}[^}]*reduction_op=sum', engine
    )
    expected = {f"{name}{profile}" for name in names for profile in ("", " [profile 1]")}
    assert {name.decode() for name in sums} == expected


def test_a_network_without_sums(rank: ir.Model) -> None:
    lower(rank, CAPACITY)
    network = parsed(rank)
    mend(network, rank)
    with pytest.raises(
        VerificationError, match=r"the sum over ranks '.*/AllReduce' is not in both"
    ):
        verify(network, rank)


def collective(network: Network) -> Any:
    return next(network.layers("DIST_COLLECTIVE"))


def other_ranks(_: Network, model: ir.Model) -> None:
    next(all_reduces(model)).attributes["ranks"] = ir.AttrInt64("ranks", 3)


def unused(network: Network, _: ir.Model) -> None:
    total, part = collective(network).get_output(0), collective(network).get_input(0)
    for layer in network.layers("IDENTITY"):
        if layer.get_input(0).name == total.name:
            layer.set_input(0, part)


def other_part(network: Network, _: ir.Model) -> None:
    first, *_, last = network.layers("DIST_COLLECTIVE")
    last.set_input(0, first.get_input(0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_ranks, "is over 2 ranks, not 3"),
        (unused, "isn't what its readers get"),
        (other_part, r"is of '.*o_proj.*', not '.*down_proj.*'"),
    ],
)
def test_a_wrong_sum(
    rank: ir.Model, change: Callable[[Network, ir.Model], None], reason: str
) -> None:
    network = mended(rank)
    change(network, rank)
    with pytest.raises(VerificationError, match=f"the sum over ranks '.*_proj.*' {reason}"):
        verify(network, rank)
