"""What a request says of a beam search; see beam_search.BeamParameters."""

from typing import Annotated, Literal

from pydantic import Field

from serving.beam_search import MOST_LENGTH_PENALTY
from serving.http.schemas.common import MOST_CHOICES

NumBeams = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
LengthPenalty = Annotated[float, Field(ge=-MOST_LENGTH_PENALTY, le=MOST_LENGTH_PENALTY)]
EarlyStopping = bool | Literal["never"]
