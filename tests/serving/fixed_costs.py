"""Step costs for tests of speculation."""

from serving.draft_length import StepCosts


class FixedCosts(StepCosts):
    """Costs that don't depend on how busy the machine is: a token more adds a part of a step."""

    def __init__(self, a_token: float = 0.01) -> None:
        self.a_token = a_token

    def record(self, tokens: int, seconds: float) -> None: ...

    def known(self, tokens: int) -> bool:
        return tokens > 0

    def seconds(self, tokens: int) -> float:
        return tokens and 1 + self.a_token * tokens
