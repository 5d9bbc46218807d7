"""Rate limits of API keys: token buckets for requests and for tokens, and how many run at a time.

A bucket holds what may be asked for in a minute and fills up evenly
(https://en.wikipedia.org/wiki/Token_bucket). A request takes its prompt and all tokens that it may
generate when it is admitted; what it didn't generate is put back at its end. So a key can't ask for
more than its limit by asking for much at once.
"""

import math
import time
from collections.abc import Callable

from serving.closing import Closing
from serving.http.keys import Key, KeyLimits

_MINUTE = 60.0
_ROUNDING = 1e-6  # of sums: who waits as long as was said has waited enough
_RETRY_BUSY = 1  # seconds until one of the key's requests may have ended
_MANY = 1024  # keys, from which on those that lie idle are forgotten

Clock = Callable[[], float]


class RateLimitError(Exception):
    """A key's limit is reached; ``retry_after`` is when to try again, in whole seconds.

    ``headers`` are those of the answer, which has the status 429.
    """

    def __init__(self, message: str, retry_after: int, headers: dict[str, str]) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers | {"retry-after": str(retry_after)}


class TooManyTokensError(Exception):
    """A request has more tokens than its key may ever ask for at once: waiting doesn't help."""


class TokenBucket:
    """So much ``per_minute``; full at first."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """What is in it."""
        self._level = min(self.per_minute, self._level + self._rate * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._level

    def seconds_until(self, amount: float, now: float) -> int:
        """When so much is in it, in whole seconds from now."""
        missing = amount - self.level(now)
        return math.ceil(missing / self._rate) if missing > _ROUNDING else 0

    def take(self, amount: float, now: float) -> None:
        """Take out so much, or with a negative amount put back."""
        self._level = self.level(now) - amount

    @property
    def _rate(self) -> float:
        return self.per_minute / _MINUTE


class Reservation(Closing):
    """A request that was admitted; leaving its with block ends it.

    Without ``settle`` all that was reserved counts as used.
    """

    def __init__(self, account: "_Account", tokens: int, clock: Clock) -> None:
        self._account = account
        self._tokens = tokens
        self._clock = clock
        self._used = tokens

    @property
    def headers(self) -> dict[str, str]:
        """The x-ratelimit headers as OpenAI's API names them, for the limits that the key has."""
        return self._account.headers(self._clock())

    def settle(self, tokens: int) -> None:
        """Say how many tokens the prompt and the answer had."""
        self._used = min(tokens, self._tokens)

    def close(self) -> None:
        """Give back what wasn't used, and the place."""
        self._account.end(self._tokens - self._used, self._clock())


class RateLimiter:
    """The buckets of all keys, each made when its key is first used.

    To be used from one thread, the event loop's. ``clock`` gives seconds that never go back.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def admit(self, key: Key, tokens: int) -> Reservation:
        """Take a request with so many tokens, prompt and most new ones, from the key's limits.

        Raises RateLimitError if the key has to wait, TooManyTokensError if that doesn't help.
        """
        limits, now = key.limits, self._clock()
        for limit, what in (
            (limits.tokens_per_request, "a request"),
            (limits.tokens_per_minute, "a minute"),
        ):
            if limit is not None and tokens > limit:
                raise TooManyTokensError(
                    f"The prompt and the new tokens asked for are {tokens} tokens, but this key "
                    f"has {limit} {what}: shorten the prompt or ask for fewer tokens."
                )
        account = self._account(key, now)
        account.admit(tokens, now)
        return Reservation(account, tokens, self._clock)

    def _account(self, key: Key, now: float) -> "_Account":
        account = self._accounts.get(key.name)
        if account is None:
            if len(self._accounts) >= _MANY:
                self._forget_idle(now)
            account = self._accounts[key.name] = _Account(key.limits, now)
        elif account.limits != key.limits:  # the key file was changed
            account.change(key.limits, now)
        return account

    def _forget_idle(self, now: float) -> None:
        """A key without requests, whose buckets are full, is as if it had never been used."""
        self._accounts = {
            name: account for name, account in self._accounts.items() if not account.is_idle(now)
        }


class _Account:
    """One key's buckets, and its requests that run."""

    def __init__(self, limits: KeyLimits, now: float) -> None:
        self.running = 0
        self.change(limits, now)

    def change(self, limits: KeyLimits, now: float) -> None:
        """Begin with full buckets of other sizes."""
        self.limits = limits
        amounts = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._buckets = {
            name: TokenBucket(amount, now) for name, amount in amounts.items() if amount is not None
        }

    def admit(self, tokens: int, now: float) -> None:
        """Take one request from both buckets, or raise and take nothing."""
        most = self.limits.concurrent_requests
        if most is not None and self.running >= most:
            raise RateLimitError(
                f"This key may have {most} requests at a time: wait until one has ended.",
                _RETRY_BUSY,
                self.headers(now),
            )
        asked = {"requests": 1, "tokens": tokens}
        for name, bucket in self._buckets.items():
            wait = bucket.seconds_until(asked[name], now)
            if wait:
                raise RateLimitError(
                    f"This key has {bucket.per_minute} {name} a minute: try again in {wait} s.",
                    wait,
                    self.headers(now),
                )
        for name, bucket in self._buckets.items():
            bucket.take(asked[name], now)
        self.running += 1

    def end(self, unused: int, now: float) -> None:
        """End a request and put back the tokens that it didn't use."""
        self.running -= 1
        if "tokens" in self._buckets:
            self._buckets["tokens"].take(-unused, now)

    def is_idle(self, now: float) -> bool:
        """Whether nothing runs and the buckets are full."""
        is_full = all(b.level(now) >= b.per_minute for b in self._buckets.values())
        return not self.running and is_full

    def headers(self, now: float) -> dict[str, str]:
        """Limit, what remains, and seconds until all of it is there again, of each bucket."""
        headers = {}
        for name, bucket in self._buckets.items():
            reset = bucket.seconds_until(bucket.per_minute, now)
            headers[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
            headers[f"x-ratelimit-remaining-{name}"] = str(int(bucket.level(now)))
            headers[f"x-ratelimit-reset-{name}"] = f"{reset}s"
        return headers
