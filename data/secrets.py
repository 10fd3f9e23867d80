"""Keeping tokens, keys and passwords out of everything that is written.

A value is a secret if it looks like a token of a well-known service, stands under a key that is named like one, at any
depth, or stands in `env:` of a recipe. What is found in a recipe or on a command line is remembered, so that it is
also left out where it appears again, as in a comment or the name of a run.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

HIDDEN = "***"
SHORTEST = 6
"""Characters of a secret that is looked for everywhere; a shorter one is hidden only where it stands under its key."""

_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{10,} | api_org_[A-Za-z0-9]{10,} | (?:sk|rk|pk)[-_][A-Za-z0-9_-]{16,} | gsk_[A-Za-z0-9]{16,}
      | gh[opusr]_[A-Za-z0-9]{16,} | github_pat_\w{16,} | glpat-[\w-]{10,} | xox[abeoprs]-[\w-]{10,}
      | (?:AKIA|ASIA)[A-Z0-9]{12,} | AIza[\w-]{20,} | ya29\.[\w-]{16,} | nvapi-[\w-]{16,} | r8_[A-Za-z0-9]{16,}
      | npm_[A-Za-z0-9]{16,} | pypi-[\w-]{16,} | wandb_v1_\w{10,} | dckr_pat_[\w-]{10,} | dop_v1_[0-9a-f]{16,}
      | eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)? | [Bb]earer\s+[\w.~+/=-]{8,}
    )""",
    re.VERBOSE,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_LOGIN = re.compile(r"(?<=://)[^\s/@\"']+(?=@)")
_VALUE = r"""(?P<value>\\?"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,}\]"']+)"""
_PAIR = re.compile(r"""(?P<key>[A-Za-z][\w.-]*)(?P<between>\\?["']?\s*[:=]\s*)""" + _VALUE)
"""`key: value`, `"key": "value"` and `key=value`, in comments, JSON and on command lines."""
_OPTION = re.compile(r"(?<!\S)--(?P<key>[A-Za-z][\w.-]*)(?P<between>\s+)(?!--)" + _VALUE)

_STRONG = {"secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "auth", "authorization"}
_STRONG |= {"credential", "credentials", "apikey", "apikeys", "apitoken"}
_WEAK = {"token", "key"}
_BEFORE_WEAK = {"api", "access", "private", "auth", "hub", "secret", "bearer", "refresh", "session", "client"}
_OF_TEXT = {"eos", "bos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "vision", "start", "end"}
_OF_TEXT |= {"special", "stop", "prompt", "boi", "eoi", "primary", "foreign", "sort", "public"}
"""What stands before `token` or `key` in names of what is no secret."""

_PLACES = ("output_dir", "logging_dir", "hub_model_id", "resume_from_checkpoint", "deepspeed")
"""Training arguments that say where things are, which a run still needs as they are."""
_NO_SECRETS = ("null", "~", "true", "false", "None", "True", "False")
_remembered: set[str] = set()


def is_secret_key(name: str) -> bool:
    """Whether a key is named like that of a secret: `hub_token`, `api-key`, `dbPassword`, but not `max_tokens`.

    >>> [is_secret_key(name) for name in ("api_key", "hubToken", "eos_token", "num_key_value_heads", "tokenizer")]
    [True, True, False, False, False]
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]
    if not words or _STRONG & set(words):
        return bool(words)
    pairs = zip(words, words[1:], strict=False)
    if any(first in _BEFORE_WEAK and second.removesuffix("s") in _WEAK for first, second in pairs):
        return True
    return words[-1] in _WEAK and not (len(words) > 1 and words[-2] in _OF_TEXT)


def remember_secrets(values: Mapping[str, Any]) -> None:
    """Notes the secrets of a recipe or of command-line options, to be left out of everything that is written."""
    for text in _secrets_of(values, False):
        _remembered.update(line.strip() for line in text.splitlines() if len(line.strip()) >= SHORTEST)


def _secrets_of(value: Any, secret: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets_of(item, secret or is_secret_key(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _secrets_of(item, secret)
    elif secret and value is not None and not isinstance(value, bool):
        yield str(value)


def without_secrets(value: Any) -> Any:
    """A text, or mappings and lists of plain values, with `***` in the place of every secret.

    >>> without_secrets({"api_key": "abc", "note": "as hf_abcdefghijklmnop", "max_tokens": 5})
    {'api_key': '***', 'note': 'as ***', 'max_tokens': 5}
    """
    if isinstance(value, str):
        return _without_secrets(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item) if _hides(key) else without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(item) for item in value)
    return value


def _hides(key: Any) -> bool:
    return key == "env" or is_secret_key(str(key))


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return value if value is None or isinstance(value, bool) else HIDDEN


def _without_secrets(text: str) -> str:
    for pattern in (_PRIVATE_KEY, _TOKENS, _LOGIN):
        text = pattern.sub(HIDDEN, text)
    for pattern in (_PAIR, _OPTION):
        text = pattern.sub(_without_value, text)
    named = (value for name, value in os.environ.items() if is_secret_key(name) and name != "PWD")
    known = {value for value in (*_remembered, *named) if len(value) >= SHORTEST}
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _without_value(pair: re.Match) -> str:
    if not is_secret_key(pair["key"]) or pair["value"] in _NO_SECRETS or pair["value"][0] in "[{|>":
        return pair[0]
    quote = re.match(r"\\?[\"']?", pair["value"])[0]
    return pair[0][: pair.start("value") - pair.start()] + quote + HIDDEN + quote


def recipe_without_secrets(text: str) -> str:
    """The text of a recipe, comments included, with `***` in the place of every secret and of every value of `env`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    for start, end in sorted(_spans(node, False), reverse=True):
        text = text[:start] + f'"{HIDDEN}"' + text[end:]
    return without_secrets(text)


def _spans(node: Any, secret: bool) -> Iterator[tuple[int, int]]:
    """(start, end) in the text of every scalar under a key that hides it."""
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            yield from _spans(item, secret or _hides(key.value))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _spans(item, secret)
    elif isinstance(node, yaml.ScalarNode) and secret and node.value and node.tag != "tag:yaml.org,2002:null":
        yield _without_line_break(node)


def _without_line_break(node: yaml.ScalarNode) -> tuple[int, int]:
    """Where a scalar stands; a block (`|`) is given without the line break that ends it."""
    start, end = node.start_mark.index, node.end_mark.index
    content = node.start_mark.buffer[start:end] if node.start_mark.buffer else ""
    return start, end - (len(content) - len(content.rstrip()))


def hide_in_arguments(arguments: Any) -> None:
    """Takes the secrets out of training arguments, which are stored beside the model and with each checkpoint.

    Called when model and trainer have been made, and no longer need them. `hub_token` moves to the environment, where
    the Hub's client finds it.
    """
    if getattr(arguments, "hub_token", None):
        os.environ["HF_TOKEN"], arguments.hub_token = arguments.hub_token, None
    for name, value in vars(arguments).items():
        if isinstance(value, str | Mapping | list) and name not in _PLACES:
            hidden = _hidden(value) if isinstance(value, str) and is_secret_key(name) else without_secrets(value)
            if hidden != value:
                setattr(arguments, name, hidden)
