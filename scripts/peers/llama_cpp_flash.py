"""llama.cpp with flash attention: the same models and the same API."""

import llama_cpp

from scripts.peers import llama_cpp as plain

convert = plain.convert


class Runner(plain.Runner):
    """As without, but attention in blocks, in float16 inside."""

    flash_attention = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
