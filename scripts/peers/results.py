"""What a run found: rates, ratios to the best peer, and the JSON and the lines that say so."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from scripts.peers.measuring import Contestant, summary


def report(
    contestants: Sequence[Contestant], ours: Sequence[str], contexts: Sequence[int]
) -> dict[str, Any]:
    """Return every model's figures, and the ratios of ours to the best peer."""
    finished = [c for c in contestants if c.failure is None]
    peers = [c for c in finished if c.name not in ours]
    return {
        "models": [figures(contestant) for contestant in finished],
        "ratios": [
            ratio
            for contestant in finished
            if contestant.name in ours and peers
            for ratio in ratios(contestant, peers, contexts)
        ],
        "failed": {c.name: c.failure for c in contestants if c.failure is not None},
    }


def figures(contestant: Contestant) -> dict[str, Any]:
    """Return one model's figures: seconds, tokens a second, bytes; median, least and most."""
    return {
        "name": contestant.name,
        "version": contestant.ready["version"],
        "kv_precision": contestant.ready["kv_precision"],
        "agreement": contestant.agreement,
        "load_seconds": summary(contestant.load_seconds),
        "first_token_seconds": summary(contestant.first_token_seconds),
        "load_peak_memory": summary(contestant.load_peak_memory),
        "peak_memory": contestant.peak_memory,
        "contexts": [
            {
                "context": context,
                "time_to_first_token": summary(seconds),
                "prefill_tokens_per_second": summary([context / value for value in seconds]),
                "decode_tokens_per_second": summary(
                    [1 / value for value in contestant.decode_seconds[context]]
                ),
                "all_prefill_seconds": seconds,
                "all_decode_seconds_per_token": contestant.decode_seconds[context],
            }
            for context, seconds in contestant.prefill_seconds.items()
        ],
    }


def ratios(
    ours: Contestant, peers: Sequence[Contestant], contexts: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Compare one of our models with the best peer: above 1 is faster.

    Each is the median of the rounds' ratios, because rounds differ more than models within one.
    """
    for context in contexts:
        for phase in ("prefill", "decode"):
            own = ours.seconds(phase, context)
            best = min(peers, key=lambda peer: statistics.median(peer.seconds(phase, context)))
            rounds = [
                theirs / mine
                for theirs, mine in zip(best.seconds(phase, context), own, strict=True)
            ]
            yield {
                "model": ours.name,
                "phase": phase,
                "context": context,
                "best_peer": best.name,
                "ratio": summary(rounds),
            }


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Yield what a person wants to read of a report."""
    yield f"{document['checkpoint']} {document['precision']}: medians of {document['repeats']}"
    for model in document["models"]:
        yield (
            f"{model['name']:20} load {model['load_seconds']['median']:6.2f} s, "
            f"peak {model['load_peak_memory']['median'] / 1e6:6,.0f} MB; "
            + "; ".join(
                f"{speed['context']}: prefill {speed['prefill_tokens_per_second']['median']:,.1f}"
                f", decode {speed['decode_tokens_per_second']['median']:,.1f}"
                for speed in model["contexts"]
            )
        )
    for ratio in document["ratios"]:
        yield (
            f"{ratio['model']} {ratio['phase']} at {ratio['context']}: "
            f"{ratio['ratio']['median']:.2f} times {ratio['best_peer']}"
        )
    for name, reason in (document["failed"] | document["absent"]).items():
        yield f"{name}: {reason}"
