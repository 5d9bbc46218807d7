"""Decoding where the engine chooses tokens: each step is enqueued before the last one is read."""

from serving.decoding import Event, Sequence
from serving.engine import ChoiceRow, Engine, TokenChooser
from serving.sampling import choice_seed, no_number


class RunAhead:
    """Decodes with one step more on the device than the host has seen.

    That step is for nothing where a sequence ends, another joins or others' steps come between:
    the next one begins anew, and noise depends on a sequence's seed and place alone, so tokens are
    the same.
    """

    def __init__(self, chooser: TokenChooser) -> None:
        self._chooser = chooser
        self._ahead: list[Sequence] = []
        self._seeds: dict[Sequence, int] = {}

    def takes(self, sequence: Sequence) -> bool:
        """Whether the engine can choose this sequence's tokens."""
        return self._chooser.takes(
            sequence.sampling, sequence.limits.min_new_tokens, sequence.matcher is not None
        )

    def drop(self) -> None:
        """Begin anew next time: other steps than these follow."""
        self._ahead = []

    def advance(self, engine: Engine, active: list[Sequence]) -> list[Event]:  # noqa: ARG002
        """Add a token to each active sequence; they hold the first slots. See decoding.Decoder."""
        if active != self._ahead or self._chooser.is_interrupted:
            self._start(active)
            self._chooser.enqueue()
        # The step ahead writes one position more, and nobody wants what comes after a last token.
        self._ahead = list(active) if all(sequence.room > 1 for sequence in active) else []
        if self._ahead:
            self._chooser.enqueue()
        tokens = self._chooser.read().tolist()
        return [
            sequence.append(token) if token >= 0 else sequence.fail(no_number())
            for sequence, token in zip(active, tokens, strict=True)
        ]

    def _start(self, active: list[Sequence]) -> None:
        known = self._seeds
        self._seeds = {
            sequence: known[sequence] if sequence in known else choice_seed(sequence.sampling.seed)
            for sequence in active
        }
        self._chooser.start(
            [
                ChoiceRow(
                    last_id=sequence.last_id,
                    past_length=sequence.cached,
                    sampling=sequence.sampling,
                    seed=seed,
                    chosen=len(sequence.generated_ids),
                )
                for sequence, seed in self._seeds.items()
            ]
        )
