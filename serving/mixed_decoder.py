"""How running sequences get their next tokens: drafted and verified, or one each in a step."""

from serving.decoding import Event, Sequence, decode
from serving.draft_length import StepCosts
from serving.draft_model import DraftModel
from serving.engine import Engine
from serving.prompt_lookup import PromptLookup
from serving.run_ahead import RunAhead
from serving.speculation import Drafter, Speculation


class MixedDecoder:
    """Advances sequences of one engine, each by the method it asks for.

    Where none speculates and the engine can choose all their tokens itself, it does. ``draft`` is
    what sequences with speculation "draft" draft with; ``costs`` are what the engine's steps cost.
    """

    def __init__(self, engine: Engine, draft: DraftModel | None, costs: StepCosts) -> None:
        self._draft = draft
        self._run_ahead = RunAhead(engine.chooser) if engine.chooser else None
        self._speculation = Speculation(self._open_drafter, costs)

    def advance(self, engine: Engine, active: list[Sequence]) -> list[Event]:
        """Add a token or more to each active sequence; they hold the first slots."""
        speculates = any(sequence.speculation for sequence in active)
        if self._run_ahead:
            if not speculates and all(map(self._run_ahead.takes, active)):
                return self._run_ahead.advance(engine, active)
            self._run_ahead.drop()
        return self._speculation.advance(engine, active) if speculates else decode(engine, active)

    def forget(self, sequence: Sequence) -> None:
        """Free what a sequence held that ends before its last token."""
        self._speculation.forget(sequence)

    def _open_drafter(self, sequence: Sequence) -> Drafter | None:
        if sequence.speculation == "prompt-lookup":
            return PromptLookup(sequence)
        if sequence.speculation == "draft" and self._draft and self._draft.free_slots:
            return self._draft.open(sequence)
        return None
