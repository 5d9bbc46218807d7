"""Requests to translate or summarize, as Hugging Face's inference API has them."""

from typing import Annotated, Literal

from pydantic import Field

from serving.http.schemas.beams import EarlyStopping, LengthPenalty, NumBeams
from serving.http.schemas.common import MOST_CHOICES, MOST_TOKENS, Positive, Schema

Language = Annotated[str, Field(min_length=1, max_length=64)]
Least = Annotated[int, Field(ge=0, le=MOST_TOKENS)]


class GenerateParameters(Schema):
    """How an output is generated, in the words of transformers.

    ``max_length`` and ``min_length`` count the token that an output goes on from.
    """

    max_new_tokens: Positive | None = None
    min_new_tokens: Least | None = None
    max_length: Annotated[int, Field(ge=2, le=MOST_TOKENS)] | None = None
    min_length: Least | None = None
    num_beams: NumBeams | None = None
    length_penalty: LengthPenalty | None = None
    early_stopping: EarlyStopping | None = None
    no_repeat_ngram_size: Least | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Least | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None


class TextToTextParameters(GenerateParameters):
    """What ``InferenceClient`` sends; ``generate_parameters`` go before the same ones beside it."""

    src_lang: Language | None = None
    tgt_lang: Language | None = None
    source_language: Language | None = None
    target_language: Language | None = None
    truncation: Literal["do_not_truncate", "longest_first", "only_first", "only_second"] | None = (
        None
    )
    clean_up_tokenization_spaces: Literal[False] | None = None
    generate_parameters: GenerateParameters | None = None


class TextToTextRequest(Schema):
    """A text or several, and what to do with them."""

    inputs: str | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
    parameters: TextToTextParameters | None = None

    @property
    def texts(self) -> list[str]:
        """The inputs."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs
