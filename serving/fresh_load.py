"""Opens a bundle once and prints what that took, as JSON.

python -m serving.fresh_load BUNDLE OPTIONS, where OPTIONS are parameters of serving.load as JSON
"""

import json
import sys
from time import perf_counter

from serving.benchmark import peak_memory
from serving.loading import load

PROMPT_TOKENS = 32


def main() -> None:
    """Load, generate one token, and print the figures of LoadCost."""
    bundle, options = sys.argv[1], json.loads(sys.argv[2])
    before = perf_counter()
    with load(bundle, slots=1, verify=False, **options) as model:
        loaded = perf_counter()
        prompt = [index % model.engine.vocab_size for index in range(PROMPT_TOKENS)]
        model.generate(prompt[: model.engine.cache.capacity - 1], max_new_tokens=1)
        answered = perf_counter()
        figures = {
            "load_seconds": loaded - before,
            "first_token_seconds": answered - before,
            "peak_memory": peak_memory(),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
