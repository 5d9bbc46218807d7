"""From the last hidden states of a text to one vector."""

import torch

from serving.encoders.contract import Pooling


def pool(states: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool ``states`` [batch, sequence, hidden] over what isn't padding; float32 [batch, hidden].

    Padding may be anywhere: the CLS token is the first that isn't. Sums are in float32 whatever
    the states are.
    """
    states = states.float()
    mask = attention_mask.to(states.dtype)[:, :, None]
    if pooling == "mean":
        return (states * mask).sum(dim=1) / mask.sum(dim=1)
    if pooling == "max":
        lowest = torch.finfo(states.dtype).min
        return torch.where(mask > 0, states, lowest).amax(dim=1)
    places = torch.arange(1, attention_mask.shape[1] + 1)
    if pooling == "cls":
        places = places.flip(0)
    # The largest is there once, so that it doesn't matter which of several an engine takes.
    chosen = (attention_mask * places).argmax(dim=1)
    index = chosen[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, index)[:, 0]


def normalize(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [batch, hidden] of length 1."""
    return torch.nn.functional.normalize(vectors, dim=1)
