"""llama.cpp, through the C API of llama-cpp-python."""

import ctypes
from pathlib import Path
from time import perf_counter

import llama_cpp
import numpy as np

# q8_0 and q4_0: blocks of 32 with a float16 scale. "Pure" (below): the LM head too, as elsewhere.
FILE_TYPES = {"int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
FILE = "model.gguf"


def convert(checkpoint: Path, directory: Path, precision: str) -> None:
    """Write a GGUF file, and quantise it with llama.cpp's own quantiser."""
    from scripts.peers.gguf_file import write_gguf

    if precision == "float32":
        write_gguf(checkpoint, directory / FILE)
        return
    whole = directory / "float32.gguf"
    write_gguf(checkpoint, whole)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[precision]
    parameters.pure = True
    source, result = str(whole).encode(), str(directory / FILE).encode()
    if llama_cpp.llama_model_quantize(source, result, ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp could not quantise {whole}")
    whole.unlink()


class Runner:
    """A GGUF file, mapped, with a float32 KV cache.

    Without flash attention, whose decoding is slower behind long prompts (its prefill is faster).
    """

    flash_attention = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED

    version = f"llama-cpp-python {llama_cpp.__version__}"
    kv_precision = "float32"

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:  # noqa: ARG002
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(f"{model}/{FILE}".encode(), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {model}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = capacity
        context.n_batch = capacity
        context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = self.flash_attention
        context.type_k = context.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError("llama.cpp can't make a context")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        self._clear()
        before = perf_counter()
        ids, tokens, times = prompt, [], []
        while len(tokens) < new_tokens:
            self._decode(ids)
            ids = [int(self._last_logits().argmax())]
            tokens += ids
            times.append(perf_counter() - before)
        return tokens, times

    def logits(self, prompt: list[int]) -> list[float]:
        """See worker.Runner."""
        self._clear()
        self._decode(prompt)
        return self._last_logits().tolist()

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _decode(self, ids: list[int]) -> None:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(array, len(ids))
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")

    def _last_logits(self) -> "np.ndarray":
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, shape=(self._vocab_size,))
