"""Finding a checkpoint, checking its files and loading it with every weight accounted for."""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from exporter.packed_weights import PackedWeight, Packing, packing_of
from serving.errors import UserError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files are complete."""

    name: str
    directory: Path
    config: PreTrainedConfig
    tensors: dict[str, tuple[int, ...]]
    """Shape of every stored tensor, by name."""
    files: dict[str, str]
    """The file that each is in."""
    trust_remote_code: bool
    packing: Packing | None = None
    """How it stores weights of few bits, if it does."""

    @property
    def parameters(self) -> int:
        """Number of stored weights."""
        return sum(_product(shape) for shape in self.tensors.values())

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it generates from a source that an encoder reads."""
        return _is_encoder_decoder(self.config)

    @property
    def auto_class(self) -> Any:
        """The class of transformers that loads it for generation."""
        return AutoModelForSeq2SeqLM if self.is_encoder_decoder else AutoModelForCausalLM


@dataclass(frozen=True)
class LoadedModel:
    """A model with all weights from the checkpoint, and the stored tensors it has no use for."""

    model: PreTrainedModel
    unused: tuple[str, ...]


def find_checkpoint(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    is_decoder: bool = True,
) -> Checkpoint:
    """Find ``name``, a directory or a hub id, and check that it is whole.

    Raises UserError if it isn't a checkpoint, a file is missing or truncated, or the architecture
    is unknown, needs remote code or, where it should be one, is no decoder.
    """
    directory = locate(name, revision)
    config = _read_config(
        directory, name, trust_remote_code=trust_remote_code, is_decoder=is_decoder
    )
    packing = None
    if settings := getattr(config, "quantization_config", None):
        packing = packing_of(settings if isinstance(settings, dict) else settings.to_dict(), name)
        del config.quantization_config  # it is read here, not by transformers
    tensors, files = _stored_tensors(directory, name)
    return Checkpoint(
        name=Path(name).resolve().name if Path(name).is_dir() else name,
        directory=directory,
        config=config,
        tensors=tensors,
        files=files,
        trust_remote_code=trust_remote_code,
        packing=packing,
    )


def locate(name: str, revision: str | None = None) -> Path:
    """The directory of a checkpoint, which is downloaded if ``name`` is a hub id."""
    return Path(name) if Path(name).is_dir() else _download(name, revision)


def load(checkpoint: Checkpoint, dtype: torch.dtype) -> LoadedModel:
    """Load all weights in ``dtype``; raises UserError if any is missing, misshapen or left over.

    Weights that the checkpoint stores in few bits become the numbers that these stand for.
    """
    try:
        model, info = _from_pretrained(checkpoint, dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{checkpoint.name} can't be loaded: {first_line(error)}.") from error
    refuse_mismatched(checkpoint, info)
    _refuse_unaccounted(checkpoint, info)
    return LoadedModel(model.eval(), _unused(model, checkpoint))


def refuse_non_finite(checkpoint: Checkpoint, unused: Collection[str]) -> None:
    """Raise UserError, with its name, for a stored weight that has NaN or infinite values.

    ``unused`` are stored tensors that don't matter. Every file is mapped anew and let go of again,
    for the pages of the loaded model count as memory once they were read.
    """
    for file in sorted(set(checkpoint.files.values())):
        with safe_open(checkpoint.directory / file, framework="pt") as opened:
            for name in sorted(n for n, place in checkpoint.files.items() if place == file):
                if name not in unused and not _is_finite(opened.get_tensor(name)):
                    raise UserError(
                        f"{name} has values that are NaN or infinite: get {file} of "
                        f"{checkpoint.name} again, or repair the checkpoint."
                    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are; integers aren't looked at."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype == torch.float8_e4m3fn:  # one NaN of each sign, and no infinity
        return not bool((tensor.view(torch.uint8) & 0x7F == 0x7F).any())
    if tensor.dtype.itemsize == 1:
        return True
    # NaN wins over all other numbers. One pass, and no copy of the tensor.
    return all(bool(end.isfinite()) for end in tensor.aminmax())


def release_weights(model: PreTrainedModel) -> None:
    """Empty the parameters: graphs that tools remember would keep the whole file mapped."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_empty(0)


def packed_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, PackedWeight]]:
    """The weights that a checkpoint stores in few bits, one at a time, with their names."""
    if checkpoint.packing is None:
        return
    modules, _ = checkpoint.packing.split(checkpoint.tensors)
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(safe_open(checkpoint.directory / file, framework="pt"))
            for file in set(checkpoint.files.values())
        }
        for module, names in modules.items():
            tensors = {
                name.removeprefix(f"{module}."): files[checkpoint.files[name]].get_tensor(name)
                for name in names
            }
            yield f"{module}.weight", checkpoint.packing.unpack(tensors)


def _from_pretrained(
    checkpoint: Checkpoint, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    options: dict[str, Any] = {
        "config": checkpoint.config,
        "dtype": dtype,
        "ignore_mismatched_sizes": True,  # reported by name
        "output_loading_info": True,
    }
    if checkpoint.packing is None:
        return cast(
            tuple[PreTrainedModel, dict[str, Any]],
            checkpoint.auto_class.from_pretrained(
                checkpoint.directory,
                trust_remote_code=checkpoint.trust_remote_code,
                local_files_only=True,
                use_safetensors=True,
                **options,
            ),
        )
    _, plain = checkpoint.packing.split(checkpoint.tensors)
    state = {
        name: torch.from_numpy(w.dequantized()).to(dtype) for name, w in packed_weights(checkpoint)
    }
    for file in set(checkpoint.files.values()):
        with safe_open(checkpoint.directory / file, framework="pt") as opened:
            state |= {n: opened.get_tensor(n) for n in plain if checkpoint.files[n] == file}
    architecture = checkpoint.auto_class._model_mapping[type(checkpoint.config)]
    return cast(
        tuple[PreTrainedModel, dict[str, Any]],
        architecture.from_pretrained(None, state_dict=state, **options),
    )


def refuse_mismatched(checkpoint: Checkpoint, info: dict[str, Any]) -> None:
    """Raise UserError where a stored tensor has another shape than the config asks for."""
    if mismatched := sorted(info["mismatched_keys"]):
        tensor, stored, wanted = mismatched[0]
        raise UserError(
            f"The config and the weights of {checkpoint.name} disagree: {tensor} is stored as "
            f"{list(stored)} and config.json asks for {list(wanted)}"
            f"{and_others(len(mismatched))}; fix config.json or get the right weights."
        )


def _refuse_unaccounted(checkpoint: Checkpoint, info: dict[str, Any]) -> None:
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{checkpoint.name} has no weights for {missing[0]}{and_others(len(missing))}, which "
            f"{type(checkpoint.config).__name__} needs: get the complete checkpoint."
        )
    if unexpected := sorted(info["unexpected_keys"]):
        raise UserError(
            f"{checkpoint.name} has weights that {type(checkpoint.config).__name__} doesn't use: "
            f"{unexpected[0]}{and_others(len(unexpected))}; config.json is for another model."
        )


def _unused(model: PreTrainedModel, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Stored tensors that the architecture is declared to leave aside, such as fixed tables."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    return tuple(
        sorted(t for t in checkpoint.tensors if any(re.search(pattern, t) for pattern in patterns))
    )


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if Path(name).exists():
        raise UserError(f"{name} is a file: give the directory of a checkpoint, or a hub id.")
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.py", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise UserError(
            f"There is no directory {name}, and it is no hub id either: check the path."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no directory {name}, and the hub has no such model or keeps it closed: "
            "check the spelling, or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision}: check --revision.") from error
    except OSError as error:
        raise UserError(
            f"There is no directory {name}, and the hub can't be reached to ask for a model of "
            f"that name ({first_line(error)}): check the spelling and the connection."
        ) from error


def _read_config(
    directory: Path, name: str, *, trust_remote_code: bool, is_decoder: bool
) -> PreTrainedConfig:
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(f"{name} is no checkpoint, it has no config.json: check the path.")
    raw = read_json(file)
    model_type = raw.get("model_type")
    if "auto_map" in raw and not trust_remote_code:
        raise UserError(
            f"{name} brings code of its own: read it, then pass --trust-remote-code to run it."
        )
    if model_type is None and "auto_map" not in raw:
        raise UserError(f"{file} names no model_type, so it is no transformers checkpoint.")
    if model_type not in CONFIG_MAPPING and "auto_map" not in raw:
        raise UserError(
            f"{name} has the architecture {model_type!r}, which transformers "
            f"{transformers.__version__} doesn't know: install a version that does."
        )
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    if is_decoder and model_type not in known and "auto_map" not in raw:
        raise UserError(
            f"{name} has the architecture {model_type!r}, which is no decoder: only models for "
            "text generation and, with --task, encoders can be exported."
        )
    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # configs validate themselves, each in its own way
        raise UserError(
            f"{file} can't be used ({first_line(error.__cause__ or error)}): get it again."
        ) from error
    if is_decoder and not (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        or _is_encoder_decoder(config)
        or "auto_map" in raw
    ):
        raise UserError(
            f"{name} has the architecture {model_type!r}, which reads more than text: only models "
            "that generate text from text can be exported."
        )
    return config


def _is_encoder_decoder(config: PreTrainedConfig) -> bool:
    """Whether a config is of an encoder with a decoder; some types have decoders alone too."""
    is_decoder_alone = any(name.endswith("ForCausalLM") for name in config.architectures or ())
    is_known = config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return is_known and bool(config.is_encoder_decoder) and not is_decoder_alone


def _stored_tensors(
    directory: Path, name: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of every stored tensor and the file that it is in, by its name."""
    if (directory / _INDEX).is_file():
        index = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise UserError(f"{directory / _INDEX} has no weight_map: get it again.")
        files = sorted(set(index.values()))
    elif (directory / _SINGLE).is_file():
        files = [_SINGLE]
    else:
        raise UserError(
            f"{name} has no weights in the safetensors format ({_SINGLE}): convert it, or get it "
            "again."
        )
    tensors: dict[str, tuple[int, ...]] = {}
    file_of: dict[str, str] = {}
    for file in files:
        if not (directory / file).is_file():
            raise UserError(f"{name} lacks {file}, which {_INDEX} lists: get that file.")
        try:
            with safe_open(directory / file, framework="pt") as opened:
                for tensor in opened.keys():  # noqa: SIM118 - not a mapping
                    tensors[tensor] = tuple(opened.get_slice(tensor).get_shape())
                    file_of[tensor] = file
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{directory / file} is truncated or damaged ({first_line(error)}): get it again."
            ) from error
    return tensors, file_of


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises UserError where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} isn't valid JSON ({error}): get it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} isn't a JSON object: get it again.")
    return content


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def and_others(count: int) -> str:
    """What a sentence says of the others where it names the first of ``count``."""
    return f" and {count - 1} more" if count > 1 else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
