"""Output that follows a JSON schema, a regular expression or a grammar, token by token.

llguidance says which tokens may come next. Schemas may come from strangers: their size, the time
that compiling them takes and the work of a step are limited.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from serving.errors import UserError
from serving.guided_tokens import GuidedTokens

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits
    from tokenizers import Tokenizer

FloatArray = npt.NDArray[np.float32]

MOST_CHARACTERS = 65_536
COMPILATION_SECONDS = 10.0
COMPILED_KEPT = 16
MOST_LEXER_STATES = 20_000  # of 1 to 2 kB each

# llguidance recurses along chains of rules; so many that fit into MOST_CHARACTERS need more than a
# thread's usual stack, and overflowing that ends the process. Only pages that are used take memory.
_STACK_BYTES = 512 * 2**20
_stack_size = threading.Lock()

# With unlimited whitespace a text may never end, and indentation takes a token a space.
_WHITESPACE = r"[ \n]"

ConstraintKind = Literal["json_schema", "regex", "grammar"]
_NAMES: dict[ConstraintKind, str] = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "grammar": "grammar",
}


class ConstraintError(UserError):
    """A sequence can't go on under its constraint; other sequences are not concerned."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a generated text has to be, from its first character to its end.

    Made by one of the class methods. They raise UserError for what is empty or too long; whether
    the rest can be used turns out when it is compiled.
    """

    kind: ConstraintKind
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MOST_CHARACTERS:
            raise UserError(
                f"The {_NAMES[self.kind]} has {len(self.text)} characters, but at most "
                f"{MOST_CHARACTERS} are read: shorten it."
            )

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> "Constraint":
        """JSON that is valid under a schema (an object, or its text).

        Between two tokens of the JSON there is at most one space or line break.
        """
        if isinstance(schema, str):
            schema = _parsed(cls("json_schema", schema).text)
        try:
            return cls("json_schema", json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"The JSON schema is no JSON ({error}): mend it.") from error

    @classmethod
    def json_object(cls) -> "Constraint":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Constraint":
        """A text that the whole regular expression matches.

        It has the syntax of Rust's regex crate: no look-around and no backreferences.
        """
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, lark: str) -> "Constraint":
        """A text of a context-free grammar in llguidance's dialect of Lark; it begins at start."""
        return cls("grammar", lark)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Constraint":
        """One of several texts."""
        if isinstance(texts, str) or not texts or not all(texts):
            raise UserError("A choice needs a list of texts, none of them empty: change it.")
        return cls("grammar", "start: " + " | ".join(map(json.dumps, texts)))


class Matcher:
    """One sequence's place in its constraint."""

    def __init__(self, matcher: "LLMatcher", tokens: GuidedTokens) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._look_ahead()

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole and nothing but an EOS token may follow."""
        return self._is_complete

    def mask(self, logits: FloatArray) -> FloatArray:
        """Return a copy of ``logits`` [vocab] with tokens that may not come next at -inf.

        ``vocab`` may differ from the tokenizer's: ids that the tokenizer lacks never come. Raises
        ConstraintError if no token is left.
        """
        masked = np.full_like(logits, -np.inf)
        known = min(len(logits), len(self._allowed))
        np.copyto(masked[:known], logits[:known], where=self._allowed[:known])
        if masked.max() == -np.inf:
            raise ConstraintError(
                "No token of this model can go on with the text that the constraint asks for: "
                "change the constraint."
            )
        return masked

    def accept(self, token_id: int) -> None:
        """Go on by a token; raises ConstraintError if it isn't allowed, or the limits are hit."""
        if not self._matcher.consume_token(token_id):
            raise self._failure()
        self._look_ahead()

    def fork(self) -> "Matcher":
        """Return another matcher at the same place: what one accepts doesn't move the other."""
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def _look_ahead(self) -> None:
        """Find out which tokens may come next, bool [tokenizer's vocabulary]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._failure()
        bools = np.unpackbits(bits, count=self._tokens.size, bitorder="little")
        self._allowed = bools.view(np.bool_)
        ends = np.count_nonzero(self._allowed[self._tokens.eos])
        others = np.count_nonzero(self._allowed) - ends
        self._is_complete = self._matcher.is_accepting() and not others

    def _failure(self) -> ConstraintError:
        return ConstraintError(
            f"The text can't be held to its constraint any further "
            f"({_one_line(self._matcher.get_error())}): simplify the constraint."
        )


class ConstraintCompiler:
    """Compiles constraints for one tokenizer, and keeps those used last; threads may share it.

    ``eos`` are the model's EOS ids, which are allowed where a text may end. Nothing is imported or
    built before the first constraint.
    """

    def __init__(self, tokenizer: "Tokenizer", eos: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._eos = tuple(eos)
        self._tokens: GuidedTokens | None = None
        self._compiled: OrderedDict[Constraint, Matcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """Return a matcher at the beginning of a text.

        Raises UserError if the constraint can't be used or llguidance isn't installed.
        """
        with self._lock:
            if self._tokens is None:
                self._tokens = GuidedTokens(self._tokenizer, self._eos)
            tokens = self._tokens
            compiled = self._compiled.get(constraint)
        # Not under the lock: a constraint that takes long holds up nobody else.
        if compiled is None:
            compiled = _compile(constraint, tokens)
        with self._lock:
            self._compiled[constraint] = compiled
            self._compiled.move_to_end(constraint)
            if len(self._compiled) > COMPILED_KEPT:
                self._compiled.popitem(last=False)
        return compiled.fork()


def _parsed(schema: str) -> dict[str, Any]:
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The JSON schema is no JSON ({error}): mend it.") from error
    if not isinstance(parsed, dict):
        raise UserError('The JSON schema is no JSON object: give one, such as {"type": "object"}.')
    return parsed


def _compile(constraint: Constraint, tokens: GuidedTokens) -> Matcher:
    """Compile on a thread of its own, for the stack and the time limit."""
    results: list[Matcher | UserError] = []

    def compile_constraint() -> None:
        try:
            results.append(_first_matcher(constraint, tokens))
        except UserError as error:
            results.append(error)

    thread = threading.Thread(target=compile_constraint, daemon=True)
    with _stack_size:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join(COMPILATION_SECONDS)
    name = _NAMES[constraint.kind]
    if not results:
        raise UserError(
            f"The {name} wasn't compiled within {COMPILATION_SECONDS:g} seconds: simplify it."
        )
    if isinstance(results[0], UserError):
        raise results[0]
    return results[0]


def _first_matcher(constraint: Constraint, tokens: GuidedTokens) -> Matcher:
    from llguidance import LLMatcher

    name = _NAMES[constraint.kind]
    try:
        grammar = _llguidance_grammar(constraint)
    except ValueError as error:
        raise UserError(f"The {name} can't be used ({_one_line(str(error))}): mend it.") from error
    compiled = LLMatcher(tokens.tokenizer, grammar, log_level=0, limits=_limits())
    # Some limits show at the first step only.
    try:
        matcher = Matcher(compiled, tokens)
    except ConstraintError as error:
        reason = _one_line(compiled.get_error())
        raise UserError(f"The {name} can't be used ({reason}): change that part of it.") from error
    if matcher.is_complete:
        raise UserError(f"The {name} allows only an empty text: change it.")
    return matcher


def _llguidance_grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    if constraint.kind == "json_schema":
        # What a schema itself may set ("x-guidance") must not have keywords passed over.
        return LLMatcher.grammar_from_json_schema(
            constraint.text,
            overrides={"lenient": False, "coerce_one_of": False, "whitespace_pattern": _WHITESPACE},
        )
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    return json.dumps({"grammars": [{"lark_grammar": constraint.text}]})


def _limits() -> "LLParserLimits":
    from llguidance import LLParserLimits

    # The default limits of a step allow about 20 milliseconds. Errors must not quote the text.
    return LLParserLimits(max_lexer_states=MOST_LEXER_STATES, verbose_errors=False)


def _one_line(error: str) -> str:
    """Return an error of llguidance without the lines that draw where it is."""
    text = " ".join(error.replace("<non-verbose/>", "").split())
    return text if len(text) <= 200 else text[:200] + " ..."
