"""Tokens that would repeat what was written: as transformers' ``no_repeat_ngram_size`` says."""

import numpy as np

from serving.bad_words import IntArray


def repeating(ids: IntArray, size: int) -> IntArray:
    """Tokens that would make the last ``size`` tokens of a text ``ids`` [n] come twice in it."""
    starts = np.arange(len(ids) - size + 1)
    if size == 0 or not len(starts):
        return np.empty(0, np.int64)
    ending = ids[len(ids) - size + 1 :]
    alike = np.ones(len(starts), bool)
    for offset, token in enumerate(ending):
        alike &= ids[starts + offset] == token
    return ids[starts[alike] + size - 1]
