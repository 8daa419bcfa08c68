"""Conversations as the text a model was trained on, by the template that its files hold (Jinja, in a sandbox)."""

from __future__ import annotations

import datetime
import functools
import json
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..folder import Folder

__all__ = ["ChatMixin", "begins_itself", "read_template"]

# the keys under which a part of a message may hold what it is about, as transformers has them
HOLDS = {
    "image": ("image", "url", "path", "base64"),
    "video": ("video", "url", "path"),
    "audio": ("audio", "url", "path"),
}


def begins_itself(tokenizer: Any, text: str) -> bool:
    """Whether a template's text states its bos_token, so that the tokenizer must not add its special tokens."""
    begin = tokenizer.special_tokens.get("bos_token")
    return bool(begin) and text.startswith(begin)


def read_template(folder: Folder, stated: Config) -> str | dict[str, str] | None:
    """The template of a folder, or several by name: in a file of its own, or a field of `stated` or of
    tokenizer_config.json. ConfigError where it is no text."""
    if "chat_template.jinja" in folder:
        return folder.text("chat_template.jinja")
    sources = (folder.config("chat_template.json"), stated, folder.config("tokenizer_config.json"))
    template = next((source.get("chat_template") for source in sources if source.get("chat_template")), None)
    if isinstance(template, list) and all(
        isinstance(one, dict) and {"name", "template"} <= set(one) for one in template
    ):
        template = {str(one["name"]): one["template"] for one in template}
    texts = template.values() if isinstance(template, dict) else [template]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ConfigError(f"chat_template: found {type(template).__name__}, expected a text")
    return template


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> Any:
    """A template as Jinja runs it. ImportError where Jinja is not installed, ValueError for what is no template."""
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ImportError("templates of conversations need Jinja: pip install 'beyondvl[chat]'") from None

    class Generation(Extension):
        """`{% generation %}` marks what the model said; it is text like any other here."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise ValueError(f"chat_template: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    try:
        return environment.from_string(template)
    except (TemplateError, RecursionError) as error:
        raise ValueError(f"chat_template: {error}, expected Jinja's language") from error


def rendered(template: str, **variables: Any) -> str:
    """The text of a template. ValueError where it fails on what it is given, or asks for what a sandbox has not."""
    made = compiled(template)
    from jinja2 import TemplateError

    try:
        return made.render(**variables)
    except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"chat_template: {error} ({type(error).__name__})") from error


def is_one(conversation: Any) -> bool:
    """Whether it is messages, and not several conversations."""
    return isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], dict)


def conversations_of(conversation: Any) -> list[list[dict[str, Any]]]:
    """A list of conversations, of one or several. ValueError for what is none."""
    several = [conversation] if is_one(conversation) else conversation
    for messages in several if several and isinstance(several, list | tuple) else [several]:
        if not (messages and isinstance(messages, list | tuple)) or not all(
            isinstance(m, dict) and "role" in m for m in messages
        ):
            raise ValueError(f"conversation: found {messages!r:.100}, expected dictionaries with role and content")
    return [list(messages) for messages in several]


def contents(messages: list[dict[str, Any]], kind: str) -> list[Any]:
    """The pictures, clips or sounds that the parts of messages hold, in their order."""
    parts = [
        p for m in messages if isinstance(m.get("content"), list | tuple) for p in m["content"] if isinstance(p, dict)
    ]
    return [next(part[key] for key in HOLDS[kind] if part.get(key) is not None) for part in parts
            if part.get("type") == kind and any(part.get(key) is not None for key in HOLDS[kind])]  # fmt: skip


class ChatMixin:
    """`apply_chat_template`, for processors."""

    chat_template: str | dict[str, str] | None

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """The text of a conversation, a list for a list of them; with `tokenize` its ids, and with `return_dict` all
        inputs of a model, of the pictures, clips and sounds that it holds too.

        Args:
            conversation: messages, each with "role" and "content": a text, or parts {"type": "text", "text": ...},
                {"type": "image", "image": ...} (or "path"); see `load_image` for what a picture may be.
            chat_template: another template, or the name of one of several; default: what the files hold.
            add_generation_prompt: whether the text ends where the model is to go on.
            processor_kwargs: options of the processor's call.
            variables: of the template.

        Raises ValueError where there is no template, or what it says of a conversation that it does not fit;
        ImportError without Jinja (the extra `chat`).
        """
        several, single = conversations_of(conversation), is_one(conversation)
        if self.tokenizer is None:
            raise ValueError("conversation: given to a processor without a tokenizer, expected one with its files")
        variables = {"tools": None, "documents": None} | dict(self.tokenizer.special_tokens) | variables
        template = self._template(chat_template)
        texts = [
            rendered(template, messages=messages, add_generation_prompt=add_generation_prompt, **variables)
            for messages in several
        ]
        if not tokenize:
            return texts[0] if single else texts
        options = dict(processor_kwargs or {})
        if begins_itself(self.tokenizer, texts[0]):
            options["add_special_tokens"] = False
        held = {name: [contents(messages, kind) for messages in several]
                for name, kind in (("images", "image"), ("videos", "video"), ("audio", "audio"))}  # fmt: skip
        flat = {"videos": [one for each in held["videos"] for one in each]}
        given = {name: flat.get(name, each) for name, each in held.items() if any(each)}
        inputs = self(text=texts, return_tensors=return_tensors, **given, **options)
        return inputs if return_dict else inputs["input_ids"]

    def _template(self, chosen: str | None) -> str:
        """The template of that name, that text itself, or the one there is."""
        named = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        stated = named.get(chosen or "default", chosen)
        if stated is None:
            raise ValueError("chat_template: found none among the files, expected one, or a text for `chat_template`")
        return stated
