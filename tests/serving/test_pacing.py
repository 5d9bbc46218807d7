"""Chunks and streams follow what steps take."""

from serving.pacing import PATIENCE, SHORTEST_CHUNK, Pacing


def test_without_a_target_both_are_as_large_as_may_be() -> None:
    pacing = Pacing(512, 8)
    pacing.record_prefill(512, 100.0)
    pacing.record_decode(8, 100.0)
    assert (pacing.chunk(7), pacing.streams) == (512, 8)


def test_a_chunk_gets_what_the_decode_step_leaves() -> None:
    pacing = Pacing(512, 8, target=0.1)
    assert pacing.chunk(4) == 512, "nothing is known yet"
    for _ in range(20):
        pacing.record_prefill(128, 0.128)
        pacing.record_decode(4, 0.036)
    assert pacing.chunk(4) == 64 // SHORTEST_CHUNK * SHORTEST_CHUNK
    assert pacing.chunk(0) == 512, "nobody waits"
    for _ in range(20):
        pacing.record_decode(4, 0.2)
    assert pacing.chunk(4) == SHORTEST_CHUNK, "prompts never starve"


def test_streams_are_fewer_while_steps_take_too_long() -> None:
    pacing = Pacing(512, 8, target=0.1)
    for _ in range(30):
        streams = pacing.streams
        pacing.record_decode(streams, 0.02 * streams)
    assert 4 <= pacing.streams <= 5
    for _ in range(PATIENCE * 8):
        pacing.record_decode(pacing.streams, 0.01)
    assert pacing.streams == 8, "and come back"


def test_one_stream_always_runs() -> None:
    pacing = Pacing(512, 8, target=0.1)
    for _ in range(30):
        pacing.record_decode(pacing.streams, 5.0)
    assert pacing.streams == 1
