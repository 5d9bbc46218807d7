"""The text of config.pbtxt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from serving.triton.tensors import TensorSpec

TEMPLATE = Path(__file__).with_name("config.pbtxt.jinja")


@dataclass(frozen=True, slots=True)
class Step:
    """A model in an ensemble, and which of the ensemble's tensors its inputs and outputs are."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How Triton gathers requests: of at most ``most_texts`` together.

    It waits ``delay`` seconds for more of them. ``queue_limit`` requests may wait, each for
    ``timeout`` seconds (None: as long as it takes).
    """

    most_texts: int = 64
    delay: float = 0.0
    queue_limit: int = 1024
    timeout: float | None = None

    @property
    def delay_microseconds(self) -> int:
        """``delay`` as Triton takes it."""
        return round(self.delay * 1e6)

    @property
    def timeout_microseconds(self) -> int:
        """``timeout`` as Triton takes it, where 0 is none."""
        return max(1, round(self.timeout * 1e6)) if self.timeout else 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model of the Python backend, or an ensemble, which has ``steps`` in place of instances.

    ``instances_remark`` says what an instance is. ``decoupled`` models send none, one or several
    responses to a request, others with ``batching`` get several requests at a time. Of its versions
    the newest so many are served.
    """

    name: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    instances: int = 1
    instances_remark: str = ""
    kind: Literal["KIND_CPU", "KIND_MODEL"] = "KIND_CPU"
    versions: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    decoupled: bool = True
    batching: DynamicBatching | None = None
    steps: Sequence[Step] = ()

    @property
    def max_batch_size(self) -> int:
        """Most texts of a call; a decoder's requests are one each, and batched by its engine."""
        return self.batching.most_texts if self.batching else 1

    def render(self) -> str:
        """The model's configuration in protobuf's text format."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
        template = environment.from_string(TEMPLATE.read_text("utf-8"))
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return template.render(text=_text, max_batch_size=self.max_batch_size, **fields)


def _text(value: str) -> str:
    """A string as protobuf's text format writes it."""
    return json.dumps(value, ensure_ascii=False)
