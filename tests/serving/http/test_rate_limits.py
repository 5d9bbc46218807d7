"""Rate limits on a clock that the tests turn."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http import rate_limits
from serving.http.keys import Key, KeyLimits
from serving.http.rate_limits import RateLimiter, RateLimitError, TooManyTokensError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key(name: str = "ci", **limits: int) -> Key:
    return Key(
        name=name,
        sha256="0" * 64,
        scopes=("generate",),
        limits=KeyLimits(**limits),
        created=datetime.now(UTC),
    )


def test_requests_a_minute(clock: Clock) -> None:
    limiter, ci = RateLimiter(clock), key(requests_per_minute=6)
    for _ in range(6):
        with limiter.admit(ci, 5):
            pass
    with pytest.raises(RateLimitError, match="6 requests a minute: try again in 10 s") as caught:
        limiter.admit(ci, 5)
    assert caught.value.retry_after == 10
    assert caught.value.headers == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60s",
        "retry-after": "10",
    }
    clock.now += 9.9
    with pytest.raises(RateLimitError):
        limiter.admit(ci, 5)
    clock.now += 0.1
    limiter.admit(ci, 5)
    with pytest.raises(RateLimitError):
        limiter.admit(ci, 5)


def test_tokens_are_reserved_and_what_was_not_used_is_put_back(clock: Clock) -> None:
    limiter, ci = RateLimiter(clock), key(tokens_per_minute=600)
    with limiter.admit(ci, 500) as reservation:
        assert reservation.headers["x-ratelimit-remaining-tokens"] == "100"
        with pytest.raises(RateLimitError) as caught:
            limiter.admit(ci, 200)
        assert caught.value.retry_after == 10
        reservation.settle(50)
    with limiter.admit(ci, 550) as reservation:
        assert reservation.headers["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(RateLimitError):
        limiter.admit(ci, 1)


def test_a_request_that_fails_without_settling_has_used_what_it_reserved(clock: Clock) -> None:
    limiter, ci = RateLimiter(clock), key(tokens_per_minute=600)
    with pytest.raises(RuntimeError), limiter.admit(ci, 600):
        raise RuntimeError
    with pytest.raises(RateLimitError):
        limiter.admit(ci, 1)


def test_putting_back_never_overfills(clock: Clock) -> None:
    limiter, ci = RateLimiter(clock), key(tokens_per_minute=600)
    with limiter.admit(ci, 600) as reservation:
        clock.now += 60
        reservation.settle(0)
    with limiter.admit(ci, 600), pytest.raises(RateLimitError):
        limiter.admit(ci, 1)


def test_refused_requests_take_nothing(clock: Clock) -> None:
    limiter, ci = RateLimiter(clock), key(requests_per_minute=10, tokens_per_minute=100)
    with limiter.admit(ci, 100):
        for _ in range(20):
            with pytest.raises(RateLimitError, match="tokens a minute"):
                limiter.admit(ci, 50)
    clock.now += 30
    with limiter.admit(ci, 50) as reservation:
        assert reservation.headers["x-ratelimit-remaining-requests"] == "9"


def test_requests_at_a_time(clock: Clock) -> None:
    limiter, ci = RateLimiter(clock), key(concurrent_requests=2)
    with limiter.admit(ci, 1):
        with limiter.admit(ci, 1), pytest.raises(RateLimitError, match="2 requests at a time"):
            limiter.admit(ci, 1)
        with limiter.admit(ci, 1):
            pass


@pytest.mark.parametrize("limit", ["tokens_per_request", "tokens_per_minute"])
def test_what_waiting_never_makes_possible_is_another_error(clock: Clock, limit: str) -> None:
    limiter, ci = RateLimiter(clock), key(**{limit: 100})
    with pytest.raises(TooManyTokensError, match="are 101 tokens, but this key has 100 a"):
        limiter.admit(ci, 101)
    limiter.admit(ci, 100)


def test_keys_have_their_own_limits(clock: Clock) -> None:
    limiter = RateLimiter(clock)
    limiter.admit(key("first", requests_per_minute=1), 1)
    limiter.admit(key("second", requests_per_minute=1), 1)
    for _ in range(100):
        limiter.admit(key("third"), 10**9)
    with pytest.raises(RateLimitError):
        limiter.admit(key("first", requests_per_minute=1), 1)


def test_changed_limits_hold_at_once(clock: Clock) -> None:
    limiter = RateLimiter(clock)
    limiter.admit(key(concurrent_requests=2), 1)
    with pytest.raises(RateLimitError):
        limiter.admit(key(concurrent_requests=1), 1)
    limiter.admit(key(requests_per_minute=5), 1)


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "_MANY", 10)
    limiter = RateLimiter(clock)
    running = limiter.admit(key("running", requests_per_minute=60, concurrent_requests=1), 1)
    for number in range(200):
        with limiter.admit(key(f"key{number}", requests_per_minute=60), 1):
            clock.now += 1
    assert len(limiter) <= 10
    with running, pytest.raises(RateLimitError, match="at a time"):
        limiter.admit(key("running", requests_per_minute=60, concurrent_requests=1), 1)


@given(
    st.lists(
        st.tuples(st.floats(0, 90), st.integers(1, 300), st.floats(0, 1)), min_size=1, max_size=40
    )
)
def test_never_more_than_the_limit_and_never_later_than_promised(
    requests: list[tuple[float, int, float]],
) -> None:
    """In any span there is at most a bucket and what came in meanwhile; waiting is enough."""
    clock = Clock()
    limiter, ci = RateLimiter(clock), key(tokens_per_minute=300)
    used: list[tuple[float, float]] = []
    for gap, tokens, share in requests:
        clock.now += gap
        try:
            reservation = limiter.admit(ci, tokens)
        except RateLimitError as error:
            clock.now += error.retry_after
            reservation = limiter.admit(ci, tokens)
        with reservation:
            reservation.settle(int(tokens * share))
        used.append((clock.now, int(tokens * share)))
    for index, (begin, _) in enumerate(used):
        for end in range(index, len(used)):
            span = used[end][0] - begin
            assert sum(n for _, n in used[index : end + 1]) <= 300 + 5 * span + 1e-3
