"""The bundle that an export makes: whole with its manifest, or not at all."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.packing import checksums, commit, reserved
from exporter.encoders.plan import EncoderPlan
from exporter.plan import Plan, megabytes
from exporter.versions import version_of
from serving.bundle import Manifest, ModelInfo
from serving.errors import UserError

_TOOLS = ("export-llm", "torch", "transformers", "onnx", "onnxruntime", "tokenizers")


@contextmanager
def new_bundle(bundle: Path, plan: Plan | EncoderPlan, *, force: bool) -> Iterator[Path]:
    """A directory for its files, see ``reserved``; raises UserError where the disk is full."""
    try:
        with reserved(bundle, force=force) as partial:
            yield partial
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"The disk of {bundle} is full: make room for {megabytes(plan.disk)}."
        ) from error


def commit_bundle(
    partial: Path, bundle: Path, plan: Plan | EncoderPlan, *, force: bool, **contents: Any
) -> None:
    """Write the manifest and let the bundle come into being.

    ``contents`` are those fields of the Manifest that the plan and the files don't say.
    """
    manifest = Manifest(
        format_version=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        built_with={tool: version_of(tool) for tool in _TOOLS},
        model=ModelInfo(
            name=plan.model,
            architecture=plan.architecture,
            parameters=plan.parameters,
            weight_bytes=plan.weight_bytes,
            precision=plan.precision,
        ),
        files=checksums(partial),
        **contents,
    )
    commit(partial, bundle, manifest, force=force)
