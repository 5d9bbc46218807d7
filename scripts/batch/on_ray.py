"""The same over Ray Data: each of several actors opens the bundle once."""

import logging
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

import scripts.batch
from scripts.batch.encoder import EncoderOptions, EncoderRunner
from scripts.batch.generator import Generator
from scripts.batch.lines import Line
from serving.errors import UserError
from serving.generation import GenerateOptions


def generate(
    runner: type[Generator | EncoderRunner],
    lines: list[Line],
    bundle: Path,
    opening: dict[str, Any],
    options: GenerateOptions | EncoderOptions,
    *,
    address: str | None,
    concurrency: int,
    batch_size: int,
    gpus: float,
) -> Iterator[str]:
    """Yield the results of lines as batches of them end, in any order.

    ``concurrency`` actors take batches in turn, each with its share of the CPUs and so many
    ``gpus``. Raises UserError if they can't be started or one of them fails.
    """
    # The nodes have serving installed, but not these scripts.
    ray.cloudpickle.register_pickle_by_value(scripts.batch)
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        threads = opening["threads"] or _threads(concurrency)
        dataset = ray.data.from_items(
            [{"number": line.number, "text": line.text} for line in lines],
            override_num_blocks=ceil(len(lines) / batch_size),
        )
        results = dataset.map_batches(
            runner,
            fn_constructor_args=(bundle, {**opening, "threads": threads}, options),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=concurrency),
            num_cpus=threads,
            num_gpus=gpus,
        )
        for batch in results.iter_batches(batch_size=None):
            yield from batch["result"].tolist()
    except (RayError, ConnectionError) as error:
        raise _explained(error) from error
    finally:
        ray.shutdown()


def _threads(actors: int) -> int:
    """CPUs of one actor, so that all have room: no actor spans nodes."""
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(max(cpus), sum(cpus) // actors))


def _explained(error: Exception) -> UserError:
    """Ray tells as text what an actor raised; the last line is the exception."""
    last = str(error).strip().splitlines()[-1]
    kind, _, message = last.partition(": ")
    if kind.startswith("serving.errors."):
        return UserError(message)
    return UserError(
        f"Ray can't go on ({last}): see its logs, and run the command again, which goes on where "
        "it was."
    )
