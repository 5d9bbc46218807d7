"""How a model in a repository opens its bundle and schedules: "parameters" in its config.pbtxt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from serving.bundle import Bundle, Target
from serving.encoders.batching import BATCH_TOKENS
from serving.errors import UserError
from serving.generation_config import generation_defaults
from serving.loading import DEFAULT_CAPACITY
from serving.source_limits import choose_source_capacity

_SCHEDULING = {"target_latency", "queue_limit"}


class Parameters(BaseModel):
    """Settings that config.pbtxt spells as texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """Read the parameters of a config.pbtxt; raises UserError for unknown or bad ones."""
        known = ", ".join(cls.model_fields)
        remedy = f"mend it; there are {known}."
        return cls._checked(parameters, "The parameter {!r} in config.pbtxt", remedy)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Take a command's options, None for those left out; raises UserError for bad ones."""
        given = {name: value for name, value in options.items() if value is not None}
        return cls._checked(given, "The option {!r}", "change it.")

    @classmethod
    def _checked(cls, values: Mapping[str, Any], what: str, remedy: str) -> Self:
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{what.format(name)} can't be used ({first['msg']}): {remedy}"
            ) from error

    @property
    def parameters(self) -> dict[str, str]:
        """Those that differ from what holds anyway, as config.pbtxt spells them."""
        given = self.model_dump(exclude_defaults=True)
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in given.items()
        }


class Settings(Parameters):
    """Parameters of serving.load, and ``target_latency`` (seconds) and ``queue_limit``.

    For these two see Model.scheduler.
    """

    slots: PositiveInt = 8
    prefix_rows: int = 8
    capacity: PositiveInt | None = None
    source_capacity: PositiveInt | None = None
    threads: PositiveInt | None = None
    prefill_chunk: PositiveInt = 512
    target: Target | None = None
    provider: Literal["cpu", "cuda"] | None = None
    runtime: Literal["python", "native"] = "python"
    prepack: bool = False
    verify: bool = True
    key_file: Path | None = None
    target_latency: PositiveFloat | None = None
    queue_limit: PositiveInt = 128

    def for_bundle(self, bundle: Bundle) -> Self:
        """Those that a bundle is opened with.

        Of an encoder-decoder's sources nothing is reused, so it has no prefix rows; unless it is
        told otherwise it has the slots that its checkpoint's search needs. Raises UserError if the
        bundle has no such source capacity.
        """
        source = bundle.manifest.graph.source
        choose_source_capacity(source, self.source_capacity, DEFAULT_CAPACITY)
        if source is None:
            return self
        changed: dict[str, int] = {"prefix_rows": 0}
        if "slots" not in self.model_fields_set:
            changed["slots"] = max(self.slots, generation_defaults(bundle).get("num_beams", 1))
        return self.model_copy(update=changed)

    @property
    def loading(self) -> dict[str, Any]:
        """Parameters of serving.load."""
        return self.model_dump(exclude=_SCHEDULING)

    @property
    def scheduling(self) -> dict[str, Any]:
        """Parameters of Model.scheduler."""
        return self.model_dump(include=_SCHEDULING)


class EncoderSettings(Parameters):
    """Parameters of serving.load_encoder.

    ``mask_token`` is for clients to read: what stands for a word to be filled in.
    """

    target: Target | None = None
    threads: PositiveInt | None = None
    batch_tokens: PositiveInt = BATCH_TOKENS
    verify: bool = True
    key_file: Path | None = None
    mask_token: str | None = None

    @property
    def loading(self) -> dict[str, Any]:
        """Parameters of serving.load_encoder."""
        return self.model_dump(exclude={"mask_token"})
