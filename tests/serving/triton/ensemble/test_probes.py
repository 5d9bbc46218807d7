"""Clients that have gone away, as postprocessing tells an engine."""

import socket

from serving.triton.ensemble.probes import Probes, say_gone


def test_only_the_client_that_went_away_is_gone() -> None:
    with Probes() as probes, Probes() as others:
        keys = [probes.open() for _ in range(3)]
        other = others.open()
        say_gone(keys[1])
        assert [probes.is_gone(key) for key in keys] == [False, True, False]
        assert not others.is_gone(other)
        probes.close_key(keys[1])
        assert not probes.is_gone(keys[1])


def test_an_answer_that_comes_too_late_or_from_elsewhere() -> None:
    probes = Probes()
    key = probes.open()
    address = key.split()[0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for said in (b"", b"\xff", address.encode(), key[:-1].encode(), key.encode() + b"0"):
            stranger.sendto(said, b"\0" + address.encode())
    assert not probes.is_gone(key)
    probes.close()
    say_gone(key)
