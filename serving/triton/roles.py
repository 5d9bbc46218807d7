"""What a model of a repository does: all alone, or a step of an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.triton.config import Step
from serving.triton.tensors import (
    EXCLUDE_INPUT,
    HANDOVER,
    INPUT_IDS,
    INPUTS,
    OUTPUTS,
    PARAMETERS,
    TEXT_INPUT,
    TOKEN_OUTPUTS,
    TensorSpec,
)

_MODEL_PY = '''\
"""Written by serve-llm triton: runs the bundle beside it with the runtime beside it."""

import sys
from pathlib import Path

# Before the others: this version's own runtime, whatever else is installed.
sys.path.insert(0, str(Path(__file__).parent))

from {module} import TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True, slots=True)
class Role:
    """A model of the Python backend: the ``module`` that has it, and its tensors.

    ``suffix`` follows on the ensemble's name, ``instances`` says what an instance is. Without
    ``has_engine`` it runs the tokenizer only. ``decoupled`` models send none, one or several
    responses to a request. Where it ``batches``, a request may be about several texts.
    """

    suffix: str
    module: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    instances: str
    has_engine: bool = False
    decoupled: bool = True
    batches: bool = False

    @property
    def model_py(self) -> str:
        """The file by which Triton finds the model."""
        return model_py(self.module)


def model_py(module: str) -> str:
    """The file by which Triton finds the model of a module."""
    return _MODEL_PY.format(module=module)


_PROMPT = (INPUT_IDS, HANDOVER)
_RESULT = (*TOKEN_OUTPUTS, HANDOVER)

_ENGINES = (
    "An instance is a process with an engine of its own; each runs several requests at a time."
)

SINGLE = Role("", "serving.triton.model", INPUTS, OUTPUTS, _ENGINES, has_engine=True)
PREPROCESSING = Role(
    "-preprocessing",
    "serving.triton.ensemble.preprocessing",
    (TEXT_INPUT, INPUT_IDS, EXCLUDE_INPUT),
    _PROMPT,
    "An instance is a process.",
    decoupled=False,
)
ENGINE = Role(
    "-engine",
    "serving.triton.ensemble.engine",
    (*_PROMPT, *PARAMETERS),
    _RESULT,
    _ENGINES,
    has_engine=True,
)
POSTPROCESSING = Role(
    "-postprocessing",
    "serving.triton.ensemble.postprocessing",
    _RESULT,
    OUTPUTS,
    "An instance is a process. Leave it at one: with more, parts of a stream may change places.",
)

STEPS = (PREPROCESSING, ENGINE, POSTPROCESSING)
ROLES = (SINGLE, *STEPS)


def ensemble_steps(name: str) -> list[Step]:
    """How the steps of the ensemble ``name`` are connected.

    All outputs come through postprocessing: a response of an ensemble could otherwise have the
    outputs of different responses of its steps.
    """
    prompt = _between(PREPROCESSING)
    result = _between(ENGINE)
    return [
        Step(name + PREPROCESSING.suffix, _as_named(PREPROCESSING.inputs), prompt),
        Step(name + ENGINE.suffix, prompt | _as_named(PARAMETERS), result),
        Step(name + POSTPROCESSING.suffix, result, _as_named(OUTPUTS)),
    ]


def _as_named(tensors: Sequence[TensorSpec]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors}


def _between(role: Role) -> dict[str, str]:
    """The outputs of a step that go to the next one."""
    return {tensor.name: f"{role.suffix[1:]}.{tensor.name}" for tensor in role.outputs}
