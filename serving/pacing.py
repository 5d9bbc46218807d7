"""How much the next step does: as much as keeps the time between tokens near a target."""

# A shorter chunk costs as much as one of this many tokens: weights are read once a step.
SHORTEST_CHUNK = 16

# Estimates follow what happens: the last so many measurements weigh most.
MEMORY = 4

# So many steps within the target allow one stream more.
PATIENCE = 8


class Pacing:
    """Sizes of prompt chunks and of decode batches, from what steps take.

    Between two tokens of a stream lie a decode step of all streams and one chunk of a prompt. With
    ``target`` seconds between tokens the chunk gets what the decode step leaves of them, and
    streams are added one by one while their step meets the target, and one fewer is allowed when it
    doesn't (additive increase and decrease). Without a target both are as large as may be:
    ``chunk`` tokens, ``slots`` streams.
    """

    def __init__(self, chunk: int, slots: int, target: float | None = None) -> None:
        self._chunk = chunk
        self.slots = slots
        self._target = target
        self._allowed = float(slots)
        self._decode_seconds = 0.0
        self._seconds_per_token = 0.0

    @property
    def streams(self) -> int:
        """How many streams may be decoded together."""
        return int(self._allowed)

    def chunk(self, streams: int) -> int:
        """How many tokens of a prompt to run while ``streams`` others wait for their next token."""
        if self._target is None or not streams or not self._seconds_per_token:
            return self._chunk
        tokens = int((self._target - self._decode_seconds) / self._seconds_per_token)
        whole = max(tokens // SHORTEST_CHUNK, 1) * SHORTEST_CHUNK
        return min(whole, self._chunk)

    def record_prefill(self, tokens: int, seconds: float) -> None:
        """Learn from a chunk of a prompt."""
        measured = seconds / max(tokens, SHORTEST_CHUNK)
        self._seconds_per_token = _follow(self._seconds_per_token, measured)

    def record_decode(self, streams: int, seconds: float) -> None:
        """Learn from a decode step of so many streams."""
        self._decode_seconds = _follow(self._decode_seconds, seconds)
        if self._target is None:
            return
        if seconds > self._target:
            self._allowed = max(1.0, min(self._allowed, streams) - 1)
        elif streams >= self.streams:
            self._allowed = min(float(self.slots), self._allowed + 1 / PATIENCE)


def _follow(known: float, measured: float) -> float:
    """Move an estimate towards a measurement, which counts at most double."""
    if not known:
        return measured
    return known + (min(measured, 2 * known) - known) / MEMORY
