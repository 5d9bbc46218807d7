"""Whether an engine fits this machine, said before it is opened: pure functions of facts.

Each raises UserError with the one thing that is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.bundle import EngineInfo, GraphInfo
from serving.errors import UserError
from serving.kv_cache import STORAGE

# TensorRT wants the address of every tensor to be a multiple of this, a slot's row too.
ALIGNMENT = 256

ONNXRUNTIME = "take an engine of ONNX Runtime (--target onnxruntime)"


@dataclass(frozen=True)
class Driver:
    """CUDA's versions, as CUDA writes them: 13050 is 13.5, and a driver of 0 is none.

    ``devices`` is how many GPUs CUDA offers, ``failure`` its own words where it doesn't start.
    """

    version: int
    runtime_version: int
    devices: int
    failure: str | None = None


@dataclass(frozen=True)
class Device:
    """A GPU; ``compute_capability`` as in "8.9", memory in bytes."""

    name: str
    compute_capability: str
    free_memory: int
    total_memory: int


@dataclass(frozen=True)
class Needs:
    """Bytes of the device's memory that an engine takes; activations are those of both profiles.

    The profiles share one buffer, as large as the larger needs.
    """

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.activations


def refuse_version(engine: EngineInfo, installed: str) -> None:
    """The installed TensorRT runs engines of its own version, and newer ones if built for that."""
    built = engine.runtime_version
    if built == installed:
        return
    if engine.version_compatible:
        ours, theirs = _numbers(installed), _numbers(built)
        if ours[:1] == theirs[:1] and ours > theirs:
            return
        needed = f"{theirs[0]}.x from {built} on"
    else:
        needed = built
    raise UserError(
        f"The engine {engine.file} was built for {engine.target} {needed}, and {installed} is "
        "installed: install that version, or export the model again with this one."
    )


def refuse_driver(driver: Driver) -> None:
    """There is a driver, it is of the runtime's major version or newer, and it has a GPU."""
    if not driver.version:
        raise UserError(
            "TensorRT's engines need an NVIDIA GPU, and no NVIDIA driver was found here: install "
            f"NVIDIA's driver, or {ONNXRUNTIME}."
        )
    needed = driver.runtime_version // 1000
    if driver.version // 1000 < needed:
        raise UserError(
            f"The NVIDIA driver is for CUDA {version_text(driver.version)}, and CUDA {needed}.0 or "
            "newer is needed: update the driver."
        )
    if driver.devices and not driver.failure:
        return
    reason = f" ({driver.failure})" if driver.failure else ""
    raise UserError(
        f"The NVIDIA driver offers no GPU here{reason}: check nvidia-smi and CUDA_VISIBLE_DEVICES, "
        f"or {ONNXRUNTIME}."
    )


def refuse_device(engine: EngineInfo, device: Device) -> None:
    """The engine was compiled for this GPU.

    What is relative to the GPU of the build ("same-compute-capability", "none") is left to
    TensorRT, which refuses the engine when it is opened.
    """
    own, known = _numbers(device.compute_capability), engine.compute_capabilities
    if known and own not in map(_numbers, known):
        built = ", ".join(known)
        remedy = f"export it with --compute-capability {device.compute_capability}"
    elif not known and engine.hardware_compatibility == "ampere-plus" and own < (8, 0):
        built = "8.0 and newer"
        remedy = "export it on this GPU with --hardware-compatibility none"
    else:
        return
    raise UserError(
        f"The engine {engine.file} is for compute capability {built}, and {device.name} has "
        f"{device.compute_capability}: {remedy}, or {ONNXRUNTIME}."
    )


def refuse_alignment(engine: EngineInfo, graph: GraphInfo, slots: int, capacity: int) -> None:
    """Each slot's row of a KV buffer starts where TensorRT takes an address."""
    if slots == 1:
        return
    for layer in graph.layers:
        for dim in (layer.key_dim, layer.value_dim):
            row = layer.kv_heads * capacity * dim * STORAGE[graph.cache_dtype].itemsize
            if row % ALIGNMENT:
                raise UserError(
                    f"The engine {engine.file} has rows of {row:,} bytes in its KV buffers, no "
                    f"multiple of {ALIGNMENT}: open it with slots=1, or export it with a "
                    f"--max-length that is a multiple of {ALIGNMENT}."
                )


def refuse_memory(needs: Sequence[Needs], slots: int, device: Device) -> None:
    """The device has room for all engines that are about to be opened, ``slots`` in the first."""
    needed = sum(need.total for need in needs)
    if needed <= device.free_memory:
        return
    parts = [
        f"{sum(sizes) / 1e9:,.1f} GB of {name}"
        for name, sizes in (
            ("weights", [need.weights for need in needs]),
            ("KV buffers", [need.kv_cache for need in needs]),
            ("activations", [need.activations for need in needs]),
        )
    ]
    raise UserError(
        f"The engine needs {needed / 1e9:,.1f} GB on the GPU ({', '.join(parts)}), and "
        f"{device.free_memory / 1e9:,.1f} of {device.name}'s {device.total_memory / 1e9:,.1f} GB "
        f"are free: open it with fewer slots than {slots}, or export it with a smaller "
        "--max-length."
    )


def version_text(version: int) -> str:
    """CUDA's number of a version as people write it: 13050 is 13.5."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
