"""The native runtime: libllm_runtime, bundles over ONNX Runtime's C interface (docs/native.md).

The library is plain C: ``include/llm_runtime.h`` is its interface, ``src`` its source and ``tools``
its command, which CMake builds. It is compiled when this package is installed, too; then
``serving.load(bundle, runtime="native")`` runs engines with it.
"""
