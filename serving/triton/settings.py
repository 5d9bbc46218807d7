"""How a model in a repository opens its bundle and schedules: "parameters" in its config.pbtxt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from serving.bundle import Bundle, Target
from serving.errors import UserError
from serving.generation_config import generation_defaults
from serving.loading import DEFAULT_CAPACITY
from serving.source_limits import choose_source_capacity

_SCHEDULING = {"target_latency", "queue_limit"}


class Settings(BaseModel):
    """Parameters of serving.load, and ``target_latency`` (seconds) and ``queue_limit``.

    For these two see Model.scheduler.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """Read the parameters of a config.pbtxt; raises UserError for unknown or bad ones."""
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            known = ", ".join(cls.model_fields)
            raise UserError(
                f"The parameter {name!r} in config.pbtxt can't be used ({first['msg']}): mend it; "
                f"there are {known}."
            ) from error

    @property
    def parameters(self) -> dict[str, str]:
        """Those that differ from what holds anyway, as config.pbtxt spells them."""
        given = self.model_dump(exclude_defaults=True)
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in given.items()
        }

    @property
    def loading(self) -> dict[str, Any]:
        """Parameters of serving.load."""
        return self.model_dump(exclude=_SCHEDULING)

    @property
    def scheduling(self) -> dict[str, Any]:
        """Parameters of Model.scheduler."""
        return self.model_dump(include=_SCHEDULING)
