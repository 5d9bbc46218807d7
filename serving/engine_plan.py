"""An engine that is about to be opened: which one, how large, and by which runtime."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from serving.bundle import Bundle, EngineInfo
from serving.engine import Engine
from serving.errors import UserError

if TYPE_CHECKING:
    from serving.lora import AdapterTables
    from serving.onnxruntime import Provider

Runtime = Literal["python", "native"]


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """An engine that is about to be opened."""

    bundle: Bundle
    engine: EngineInfo
    slots: int
    capacity: int
    prepack: bool
    prefix_rows: int = 0
    adapters: "AdapterTables | None" = None
    runtime: Runtime = "python"
    source_capacity: int | None = None

    @property
    def rows(self) -> int:
        """Rows of its KV cache."""
        return self.slots + self.prefix_rows

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, unless they are in memory already, and KV buffers."""
        kv_bytes = self.bundle.manifest.graph.kv_bytes_per_token
        weights = self.engine.weight_bytes + self.engine.encoder_weight_bytes
        weights = max(0, weights - self.bundle.bytes_in_memory)
        per_source = (self.source_capacity or 0) * self.bundle.manifest.graph.source_bytes_per_token
        return weights + self.rows * (self.capacity * kv_bytes + per_source)

    @property
    def is_tensorrt(self) -> bool:
        """Whether it is an engine of TensorRT or TensorRT-RTX."""
        return self.engine.target != "onnxruntime"

    def open(self, provider: "Provider", threads: int | None) -> Engine:
        """Open the engine, or those of its stages, and allocate the KV buffers."""
        if self.is_tensorrt:
            return self._open_tensorrt()
        if self.runtime == "native":
            return self._open_native(threads)
        return self._open_on_cuda() if provider == "cuda" else self._open_on_cpu(threads)

    def _open_tensorrt(self) -> Engine:
        from serving.tensorrt.engine import TensorrtEngine
        from serving.tensorrt.opening import kept_kernels

        return TensorrtEngine(
            self.bundle.location(self.engine.file),
            self.bundle.manifest.graph,
            self.engine,
            slots=self.rows,
            capacity=self.capacity,
            runtime_cache=kept_kernels(self.bundle, self.engine),
        )

    def _open_native(self, threads: int | None) -> Engine:
        from serving.native.engine import NativeEngine

        return NativeEngine(
            self.bundle.path,
            self.bundle.manifest.graph,
            slots=self.rows,
            capacity=self.capacity,
            weight_bytes=self.engine.weight_bytes,
            threads=threads,
            prepack=self.prepack,
        )

    def _open_on_cuda(self) -> Engine:
        from serving.onnxruntime_cuda import OnnxRuntimeCudaEngine

        if self.engine.stages:
            raise UserError(
                "The bundle's engine is in stages, which run on the CPU only: leave provider out, "
                "or export the model without --stages."
            )
        engine = OnnxRuntimeCudaEngine(
            self.bundle.location(self.engine.file),
            self.bundle.manifest.graph,
            slots=self.rows,
            capacity=self.capacity,
            weight_bytes=self.engine.weight_bytes,
        )
        for remark in engine.remarks:
            warnings.warn(remark, stacklevel=4)
        return engine

    def _open_on_cpu(self, threads: int | None) -> Engine:
        from serving.onnxruntime import OnnxRuntimeEngine
        from serving.pipeline import PipelineEngine

        encoder = self.engine.encoder
        engines = [
            OnnxRuntimeEngine(
                self.bundle.location(file),
                self.bundle.manifest.graph,
                slots=self.rows,
                capacity=self.capacity,
                weight_bytes=weight_bytes,
                threads=threads,
                prepack=self.prepack,
                takes_turns=bool(self.engine.stages),
                adapters=self.adapters,
                encoder=self.bundle.location(encoder) if encoder is not None else None,
                source_capacity=self.source_capacity,
            )
            for file, weight_bytes in self.engine.parts
        ]
        return PipelineEngine(engines) if self.engine.stages else engines[0]
