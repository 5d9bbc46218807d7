"""The texts of single tokens, which may be parts of characters."""

from itertools import count

from tokenizers import Tokenizer


class TokenTexts:
    """What each token of a tokenizer stands for; without one all texts are empty."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder() if tokenizer else {}
        self._is_byte_level = tokenizer is not None and "ByteLevel" in str(tokenizer.decoder)
        self._has_byte_tokens = tokenizer is not None and "ByteFallback" in str(tokenizer.decoder)

    def bytes(self, token_id: int) -> bytes:
        """A token's part of the text in UTF-8."""
        spelling = self._tokenizer.id_to_token(token_id) if self._tokenizer else None
        if spelling is None:
            return b""
        if token_id in self._added:
            return spelling.encode()
        if self._is_byte_level:
            return bytes(_BYTES[character] for character in spelling)
        if self._has_byte_tokens and spelling.startswith("<0x") and len(spelling) == 6:
            return bytes([int(spelling[3:5], 16)])
        return spelling.replace("▁", " ").encode()

    def text(self, token_id: int) -> str:
        """A token's text; OpenAI writes a part of a character as bytes:\\\\xe2\\\\x80."""
        encoded = self.bytes(token_id)
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in encoded)


def _byte_spellings() -> dict[str, int]:
    """The characters that GPT-2's tokenizer and its successors write for bytes.

    Printable ones of Latin-1 stand for themselves, others are moved behind it.
    """
    others = count(256)
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


_BYTES = _byte_spellings()
