"""A model's tokenizer and chat template, with text that clients wrote kept apart from the template's.

A template turns messages into one string, and in that string a user's ``<|END|>`` looks like the template's.
Three steps keep them apart, whatever template a checkpoint brings:

1. before rendering, every control token in a client's text is *broken*: a random word goes behind its first
   character, so that the template's own operations (trim, tojson, slices) still see ordinary text;
2. after rendering, the control tokens that are still whole are the template's: each is *renamed* to a random
   word of its own, and the broken ones are mended;
3. a copy of the tokenizer, whose control tokens bear the new names, encodes the string in one pass.

So everything between two control tokens is tokenised together, as it was in training, and no text of a
client's can become a control token, as nobody can guess the names.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from trillion_model import register_configurations
from trillion_model.vaetki import chat_format
from trillion_serve.errors import ChatError, RenderError

_TAGS = frozenset(
    {
        chat_format.THINK_START,
        chat_format.THINK_END,
        chat_format.TOOL_CALL_START,
        chat_format.TOOL_CALL_END,
        chat_format.TOOL_RESPONSE_START,
        chat_format.TOOL_RESPONSE_END,
    }
)
"""Tokens that shape an answer rather than end it: they are text to whoever reads the answer."""


class ChatTokenizer:
    """Messages to token ids, and what is needed to read ids back.

    Args:
        tokenizer: a Transformers tokenizer with a Rust backend.
        extra_end_ids: tokens that end an answer besides the tokenizer's own, from the generation config.

    Attributes:
        backend: the Rust tokenizer, for decoding.
        end_ids: tokens that end an answer.
        hidden_ids: tokens that are never shown: special ones, but for think and tool tags.
        think_start_id, think_end_id: the tags' ids, or None where a tag is several tokens.
        mark_ids: all of these: the tokens that are not simply text.
        doubles_spaces: decoding leaves a space after newlines and tabs that was never encoded.
    """

    def __init__(self, tokenizer: Any, extra_end_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        if tokenizer.chat_template is None:
            tokenizer.chat_template = chat_format.chat_template()
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        added = {token.content: (id_, token) for id_, token in self.backend.get_added_tokens_decoder().items()}
        control = [name for name, (_, token) in added.items() if token.special or name in _TAGS]
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")
        nonce = secrets.token_hex(16)
        self._break = secrets.token_hex(16)
        self._renamed = {name: f"{nonce}-{added[name][0]}-" for name in control}
        self._encoder = _renamed_copy(self.backend, self._renamed)
        self._check_ids({name: added[name][0] for name in control})
        self.hidden_ids = frozenset(id_ for name, (id_, token) in added.items() if token.special and name not in _TAGS)
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.end_ids = tuple(dict.fromkeys([*eos, *extra_end_ids]))
        self.think_start_id = added[chat_format.THINK_START][0] if chat_format.THINK_START in added else None
        self.think_end_id = added[chat_format.THINK_END][0] if chat_format.THINK_END in added else None
        tags = {id_ for id_ in (self.think_start_id, self.think_end_id) if id_ is not None}
        self.mark_ids = self.hidden_ids.union(self.end_ids, tags)
        self._word = self.backend.encode("a", add_special_tokens=False).ids
        self._word_text = self.backend.decode(self._word, skip_special_tokens=False)
        self.doubles_spaces = self._round_trip("가\n나\t다") == "가\n 나\t 다"

    @classmethod
    def load(cls, model: str, extra_end_ids: Sequence[int] = ()) -> "ChatTokenizer":
        """Load the tokenizer of a model: a directory or a hub id.

        Raises:
            ChatError: there is none, or it has no Rust backend.
        """
        from transformers import AutoTokenizer

        # Transformers looks into the configuration too, and would ask on the terminal whether code that lies beside
        # it may be run.
        register_configurations()
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ChatError(f"{model} has no tokenizer that can be loaded: {error}") from error
        if not getattr(tokenizer, "is_fast", False):
            raise ChatError(
                f"the tokenizer of {model} is a {type(tokenizer).__name__} without a Rust backend; "
                "convert it to tokenizer.json first"
            )
        return cls(tokenizer, extra_end_ids)

    @property
    def model_thinks(self) -> bool:
        """Whether the vocabulary has the think tags as tokens."""
        return self.think_start_id is not None and self.think_end_id is not None

    def guard(self, value: Any) -> Any:
        """The same strings, lists and mappings, with every control token in a string broken."""
        if isinstance(value, str):
            return self._control.sub(lambda match: match[0][0] + self._break + match[0][1:], value)
        if isinstance(value, dict):
            return {self.guard(key): self.guard(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.guard(item) for item in value]
        return value

    def apply_template(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Render guarded messages, up to where the answer begins unless ``add_generation_prompt`` is false.

        Raises:
            RenderError: the template refuses them.
        """
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise RenderError(f"the model's chat template refuses these messages: {self.mend(str(error))}") from error

    def mend(self, text: str) -> str:
        """The text as it was before ``guard``."""
        return text.replace(self._break, "")

    def encode(self, rendered: str) -> list[int]:
        """Token ids of what ``apply_template`` gave; control tokens that are whole count as such."""
        named = self._control.sub(lambda match: self._renamed[match[0]], rendered)
        # Unlike ``encode`` it makes no offsets, which nobody reads.
        (encoding,) = self._encoder.encode_batch_fast([self.mend(named)], add_special_tokens=False)
        return encoding.ids

    def token_text(self, token_id: int) -> str:
        """One token as text, for log-probabilities; part of a character reads as U+FFFD."""
        # Some decoders strip the space that a text begins with.
        text = self.backend.decode([*self._word, token_id], skip_special_tokens=False)
        return text.removeprefix(self._word_text)

    def _check_ids(self, expected: dict[str, int]) -> None:
        for name, id_ in expected.items():
            if self._encoder.encode(self._renamed[name], add_special_tokens=False).ids != [id_]:
                raise ChatError(f"the tokenizer gives {name!r} another id than {id_} when it is loaded again")

    def _round_trip(self, text: str) -> str:
        return self.backend.decode(self.backend.encode(text, add_special_tokens=False).ids)


def _renamed_copy(tokenizer: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """A copy with the same ids, in which tokens bear other names, in the model's own vocabulary too."""
    spec = json.loads(tokenizer.to_str())
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
