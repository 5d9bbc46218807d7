"""What happened: numbers of everything, and what must not have happened."""

from collections import Counter
from dataclasses import dataclass, field

# More of one kind say nothing new.
_MOST_BREACHES = 50


@dataclass
class Tally:
    """``requests`` that were begun and ``outcomes`` of all kinds; ``breaches`` in words."""

    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)

    def breach(self, text: str) -> None:
        """Record what must not happen."""
        self.outcomes["breaches"] += 1
        if len(self.breaches) < _MOST_BREACHES:
            self.breaches.append(text)
