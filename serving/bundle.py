"""The bundle's manifest, ``bundle.json``, and the checks made before any engine is opened."""

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from serving.encoders.contract import Pooling, Task
from serving.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
ENCRYPTION = "encryption.json"

DType = Literal["float32", "float16", "bfloat16"]
CacheDType = Literal["float32", "float16", "bfloat16", "int8"]
_CACHE_BYTES: dict[CacheDType, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
Target = Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]
HardwareCompatibility = Literal["ampere-plus", "same-compute-capability", "none"]


def _inside_bundle(name: str) -> str:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise ValueError(f"{name!r} is not the name of a file inside the bundle")
    return name


FileName = Annotated[str, AfterValidator(_inside_bundle)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelInfo(_Part):
    """The checkpoint that the bundle was made from; ``architecture`` is its transformers type.

    ``precision`` says how its weights were made smaller, or names their type.
    """

    name: str
    architecture: str
    parameters: NonNegativeInt
    weight_bytes: NonNegativeInt
    precision: str | None = None


class LayerInfo(_Part):
    """One layer's KV cache; ``window`` is how many positions its attention sees (None: all)."""

    kv_heads: PositiveInt
    key_dim: PositiveInt
    value_dim: PositiveInt
    window: PositiveInt | None = None


class SourceInfo(_Part):
    """An encoder-decoder's source: what each decoder layer keeps of its at most ``max_length``."""

    layers: Annotated[tuple[LayerInfo, ...], Field(min_length=1)]
    max_length: PositiveInt


class LoraModule(_Part):
    """A module of the checkpoint whose ``outputs`` begin at ``first_output`` in its table's."""

    name: str
    first_output: NonNegativeInt
    outputs: PositiveInt


class LoraTable(_Part):
    """Graph inputs for the LoRA factors of one linear layer, and the modules that it stands for."""

    name: str
    inputs: PositiveInt
    outputs: PositiveInt
    modules: Annotated[tuple[LoraModule, ...], Field(min_length=1)]


class GraphInfo(_Part):
    """The decoder graph; ``dtype`` is the type of its logits, and of its KV cache if unquantised.

    Scales of a quantised cache are constants of the graph. ``integer_activations`` are those of
    linear layers. With ``lora`` tables it takes adapters. ``hidden_size`` is the width of its
    embeddings; None where it gives none. Of an encoder-decoder it is the decoder's graph, which
    reads a ``source``.
    """

    contract_version: PositiveInt
    vocab_size: PositiveInt
    dtype: DType
    quantized_cache: Literal["int8"] | None = None
    integer_weights: bool = False
    integer_activations: bool = False
    layers: Annotated[tuple[LayerInfo, ...], Field(min_length=1)]
    lora: tuple[LoraTable, ...] = ()
    max_length: PositiveInt
    hidden_size: PositiveInt | None = None
    source: SourceInfo | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether weights or the KV cache are integers."""
        return self.integer_weights or self.quantized_cache is not None

    @property
    def cache_dtype(self) -> CacheDType:
        """The type that the KV cache is stored in."""
        return self.quantized_cache or self.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the KV cache, over all layers."""
        return _width(self.layers) * _CACHE_BYTES[self.cache_dtype]

    @property
    def source_bytes_per_token(self) -> int:
        """Bytes that is kept of one token of a source, over all layers."""
        return _width(self.source.layers) * _CACHE_BYTES[self.dtype] if self.source else 0


def _width(layers: tuple[LayerInfo, ...]) -> int:
    """Elements that all layers together keep of a token."""
    return sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)


class EncoderInfo(_Part):
    """The graph of an encoder: see serving/encoders/contract.py for its inputs and outputs.

    ``max_length`` counts the special tokens in. ``hidden_size`` is the width of embeddings, and
    ``pooling`` and ``normalize`` say how they came about; those are None and False for other tasks.
    ``labels`` are those of a classifier, several of which may hold where it ``is_multi_label``.
    ``mask_token`` is the id that fill-mask looks for.
    """

    contract_version: PositiveInt
    task: Task
    vocab_size: PositiveInt
    dtype: DType
    integer_weights: bool = False
    integer_activations: bool = False
    token_types: bool
    max_length: PositiveInt
    hidden_size: PositiveInt | None = None
    pooling: Pooling | None = None
    normalize: bool = False
    labels: tuple[str, ...] = ()
    is_multi_label: bool = False
    mask_token: NonNegativeInt | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether weights are integers."""
        return self.integer_weights


class FileInfo(_Part):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StageInfo(_Part):
    """One stage of a pipeline: an engine of ``layers`` layers from number ``first_layer`` on."""

    file: FileName
    first_layer: NonNegativeInt
    layers: PositiveInt
    weight_bytes: NonNegativeInt

    @property
    def layer_range(self) -> str:
        """Its layers' numbers in words."""
        last = self.first_layer + self.layers - 1
        return f"layers {self.first_layer} to {last}" if self.layers > 1 else f"layer {last}"


class EngineInfo(_Part):
    """One engine of the bundle; a limit of None means that the engine takes any size.

    ``prefill_chunk`` is the most tokens of a step of one row; of more rows it takes one each. A
    ``version_compatible`` engine brings the code that runs it. ``hardware_compatibility`` says on
    which GPUs one without ``compute_capabilities`` runs, relative to that of its build.
    ``stripped_from`` is the whole engine, if ``file`` lacks the weights that the checkpoint has.
    Of a tensor-parallel engine each of ``ranks`` processes runs a part, which is listed by itself
    and has its share of the graph's KV heads.
    Where it is split into ``stages``, ``file`` is the first one's. Of an encoder-decoder
    ``encoder`` is the file of the other part, with weights of its own.
    """

    target: Target
    file: FileName
    weight_bytes: NonNegativeInt
    max_batch: PositiveInt | None = None
    max_sequence: PositiveInt | None = None
    prefill_chunk: PositiveInt | None = None
    runtime_version: str
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatibility: HardwareCompatibility | None = None
    version_compatible: bool = False
    stripped_from: FileInfo | None = None
    rank: NonNegativeInt = 0
    ranks: PositiveInt = 1
    stages: tuple[StageInfo, ...] = ()
    encoder: FileName | None = None
    encoder_weight_bytes: NonNegativeInt = 0

    @property
    def files(self) -> tuple[FileName, ...]:
        """All files of it."""
        parts = tuple(file for file, _ in self.parts)
        return parts if self.encoder is None else (*parts, self.encoder)

    @property
    def parts(self) -> tuple[tuple[FileName, int], ...]:
        """File and bytes of the weights of each stage, or of the whole."""
        stages = tuple((stage.file, stage.weight_bytes) for stage in self.stages)
        return stages or ((self.file, self.weight_bytes),)


class SpecialTokens(_Part):
    """Token ids that start, end and pad a sequence; any of ``eos`` ends it.

    An encoder-decoder's output begins behind ``decoder_start``, with ``forced_bos`` if there is
    one. ``forced_eos`` is the last token where the limit ends it. ``bad_words`` never come.
    """

    bos: NonNegativeInt | None = None
    eos: tuple[NonNegativeInt, ...] = ()
    pad: NonNegativeInt | None = None
    decoder_start: NonNegativeInt | None = None
    forced_bos: NonNegativeInt | None = None
    forced_eos: NonNegativeInt | None = None
    bad_words: tuple[tuple[NonNegativeInt, ...], ...] = ()


class Manifest(_Part):
    """All of ``bundle.json``; ``created`` is an ISO 8601 time, ``parity`` has at least a status.

    It has a decoder's ``graph`` or an ``encoder``.
    """

    format_version: Literal[1]
    created: str
    built_with: dict[str, str]
    model: ModelInfo
    decoder: GraphInfo | None = Field(default=None, alias="graph")
    encoder: EncoderInfo | None = None
    engines: tuple[EngineInfo, ...]
    tokens: SpecialTokens
    parity: dict[str, Any]
    quality: dict[str, Any] | None = None
    files: dict[FileName, FileInfo]

    @property
    def graph(self) -> GraphInfo:
        """The decoder graph; raises UserError where the bundle has an encoder."""
        if self.decoder is None:
            raise UserError(
                f"The bundle of {self.model.name} holds an encoder, which doesn't generate: use "
                f"it for {self.require_encoder().task}, or export a model for text generation."
            )
        return self.decoder

    def require_encoder(self) -> EncoderInfo:
        """The encoder; raises UserError where the bundle has a decoder."""
        if self.encoder is None:
            raise UserError(
                f"The bundle of {self.model.name} holds a decoder: export an encoder, or use "
                "generate."
            )
        return self.encoder

    @model_serializer(mode="wrap")
    def _without_other_graph(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what isn't there: readers that know no encoders refuse even null."""
        data: dict[str, Any] = serialize(self)
        names = {"decoder": "graph"}
        absent = "decoder" if self.decoder is None else "encoder"
        return {names.get(n, n): value for n, value in data.items() if n != absent}

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.decoder is None) == (self.encoder is None):
            raise ValueError("it has no graph, or two")
        if "status" not in self.parity:
            raise ValueError("parity has no status")
        for engine in self.engines:
            self._check_engine(engine)
        return self

    def _check_engine(self, engine: EngineInfo) -> None:
        for file in engine.files:
            if file not in self.files:
                raise ValueError(f"engine file {file!r} is not listed under files")
        source = self.decoder.source if self.decoder is not None else None
        if (engine.encoder is None) != (source is None):
            raise ValueError("an encoder-decoder's engines have an encoder, and no others")
        if engine.ranks > 1 and self._ranks(engine) != list(range(engine.ranks)):
            raise ValueError(f"the ranks of the engine for {engine.target} are not complete")
        layer = 0
        for stage in engine.stages:
            if stage.first_layer != layer:
                raise ValueError(f"stage {stage.file!r} doesn't begin with layer {layer}")
            layer += stage.layers
        count = len(self.decoder.layers) if self.decoder is not None else 0
        if engine.stages and layer != count:
            raise ValueError(f"its stages have {layer} layers, not {count}")

    def _ranks(self, engine: EngineInfo) -> list[int]:
        """The ranks that are listed of an engine."""
        return sorted(
            e.rank for e in self.engines if (e.target, e.ranks) == (engine.target, engine.ranks)
        )


class Bundle:
    """An opened bundle: its directory and its manifest."""

    bytes_in_memory = 0
    """Bytes of its files that memory holds before an engine is opened."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def engine(self, target: Target) -> EngineInfo | None:
        """Return the (first rank's) engine for ``target``, or None if the bundle has none."""
        return next((e for e in self.manifest.engines if e.target == target), None)

    def file(self, name: str) -> Path | None:
        """Return the path of a file that the manifest lists, or None if it doesn't list it."""
        return self.location(name) if name in self.manifest.files else None

    def location(self, name: str) -> Path:
        """Where the content of one of its files is read: in ``path`` unless it is encrypted."""
        return self.path / name


def file_info(path: Path) -> FileInfo:
    """Measure one file, reading it in chunks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(size=path.stat().st_size, sha256=digest)


def open_bundle(
    path: str | Path, verify: bool = True, key_file: str | Path | None = None
) -> Bundle:
    """Read a bundle's manifest and check its files; ``verify`` compares checksums, not only sizes.

    An encrypted bundle is opened with the key in ``key_file`` or the environment. Raises UserError
    if ``path`` is not a bundle, was made by a newer export-llm or is damaged, or the key is wrong.
    """
    directory = Path(path)
    if is_encrypted(directory):
        from serving.encryption import open_encrypted

        return open_encrypted(directory, verify, Path(key_file) if key_file else None)
    manifest = _read_manifest(directory)
    for name, expected in manifest.files.items():
        try:
            _check_file(directory, name, expected, verify)
        except OSError as error:
            raise UserError(
                f"{name!r} in the bundle {str(directory)!r} can't be read ({error.strerror}): "
                "check its permissions and its disk."
            ) from error
    return Bundle(directory, manifest)


def is_encrypted(directory: Path) -> bool:
    """Whether a directory is a bundle that ``serve-llm encrypt`` made."""
    return (directory / ENCRYPTION).is_file()


def _read_manifest(directory: Path) -> Manifest:
    if not directory.is_dir():
        raise UserError(f"There is no bundle directory {str(directory)!r}: check the path.")
    file = directory / MANIFEST
    if not file.is_file():
        raise UserError(
            f"{str(directory)!r} is not a bundle, it has no {MANIFEST}: "
            "make a bundle from a checkpoint with export-llm."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error
    return parse_manifest(directory, content)


def parse_manifest(directory: Path, content: bytes) -> Manifest:
    """Make a manifest of the ``content`` of ``bundle.json``, which is in ``directory``.

    Raises UserError if it isn't one, or was made by a newer export-llm.
    """
    file = directory / MANIFEST
    try:
        document = json.loads(content)
    except ValueError as error:
        raise _unreadable(file, error) from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"The bundle {str(directory)!r} has format version {version} and was made by a newer "
            f"export-llm (this one reads version {FORMAT_VERSION}): upgrade or export again."
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"]) or "the document"
        raise UserError(
            f"{str(file)!r} is not a valid manifest ({where}: {first['msg']}): "
            "export the model again."
        ) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{str(file)!r} can't be read ({error}): copy the bundle or export the model again."
    )


def _check_file(directory: Path, name: str, expected: FileInfo, verify: bool) -> None:
    file = directory / name
    remedy = "copy the bundle or export the model again."
    if not file.is_file():
        raise UserError(f"The bundle {str(directory)!r} lacks its file {name!r}: {remedy}")
    size = file.stat().st_size
    if size != expected.size:
        raise UserError(
            f"{name!r} in the bundle {str(directory)!r} has {size:,} bytes instead of "
            f"{expected.size:,}: {remedy}"
        )
    if verify and file_info(file).sha256 != expected.sha256:
        raise UserError(
            f"{name!r} in the bundle {str(directory)!r} has changed since it was made "
            f"(its checksum differs): {remedy}"
        )
