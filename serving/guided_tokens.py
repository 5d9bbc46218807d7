"""A tokenizer as llguidance reads it: the bytes that each token stands for."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders

from serving.errors import UserError


class GuidedTokens:
    """llguidance's form of a ``tokenizer``, in which ``eos`` ids end a text.

    ``size`` is the tokenizer's vocabulary, and ``eos`` those of the ids that it has. Building takes
    about a second for 150,000 tokens. Raises UserError if llguidance isn't installed, or takes
    tokens for other texts than the tokenizer does.
    """

    def __init__(self, tokenizer: Tokenizer, eos: Sequence[int]) -> None:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise UserError(
                "Constrained output needs llguidance, which is not installed: pip install "
                "'.[http]', or pip install llguidance."
            ) from error
        self.size = tokenizer.get_vocab_size()
        self.eos = [i for i in eos if i < self.size]
        readable = _readable(tokenizer)
        ends = self.eos
        if not ends:
            # llguidance wants an end. This one is beyond the vocabulary, so nobody can choose it.
            readable.add_special_tokens(["<|end of constrained text|>"])
            ends = [self.size]
        try:
            self.tokenizer = LLTokenizer(readable.to_str(), eos_token=ends)
        except ValueError as error:
            raise _unreadable(str(error)) from error
        self._check_texts(tokenizer)

    def _check_texts(self, tokenizer: Tokenizer) -> None:
        """Compare the text of every token that isn't special with the tokenizer's own.

        A decoder may strip the space that a text begins with, so spaces there don't count.
        """
        silent = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        ids = [i for i in range(self.size) if i not in silent and i not in self.eos]
        texts = tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=True)
        for token_id, text in zip(ids, texts, strict=True):
            # Special tokens are never part of a text.
            if self.tokenizer.is_special_token(token_id):
                continue
            read = self.tokenizer.decode_bytes([token_id]).decode("utf-8", "replace")
            if read.lstrip(" ") != text.lstrip(" "):
                raise _unreadable(f"token {token_id} is {text!r} and would be read as {read!r}")


def _readable(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy whose decoder llguidance knows: it reads Metaspace only as steps."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    if "Metaspace" in str(copy.decoder):
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        copy.decoder = decoders.Sequence(steps)
    return copy


def _unreadable(reason: str) -> UserError:
    return UserError(
        f"Constrained output isn't possible with this model's tokenizer ({reason}): generate "
        "without a constraint."
    )
