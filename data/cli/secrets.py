"""Keeping tokens, keys and passwords out of everything that is written.

A value is a secret if it looks like a token of a well-known service, stands under a key that is named like one, at any
depth, or stands in `env:` of a recipe. What is found in a recipe or on a command line is remembered, so that it is
also left out where it appears again, as in a comment or the name of a run.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from data.cli.secret_names import hides, is_count, is_secret_key

HIDDEN = "***"
SHORTEST = 6
"""Characters of a secret that is looked for everywhere; a shorter one is hidden only where it stands under its key."""

_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{10,} | api_org_[A-Za-z0-9]{10,} | (?:sk|rk|pk)[-_][A-Za-z0-9_-]{16,} | gsk_[A-Za-z0-9]{16,}
      | gh[opusr]_[A-Za-z0-9]{16,} | github_pat_\w{16,} | xox[abeoprs]-[\w-]{10,} | xapp-[\w-]{10,}
      | gl(?:pat|rt|rtr|dt|cbt|ptt|ft|soat|imt|agent|oas|ffct)-[\w.-]{10,}
      | (?:AKIA|ASIA)[A-Z0-9]{12,} | AIza[\w-]{20,} | ya29\.[\w-]{16,} | GOCSPX-[\w-]{10,} | nvapi-[\w-]{16,}
      | r8_[A-Za-z0-9]{16,} | xai-[A-Za-z0-9]{12,} | pplx-[A-Za-z0-9]{12,} | jina_[A-Za-z0-9]{16,}
      | tvly-[\w-]{16,} | lsv2_(?:pt|sk)_\w{16,} | pcsk_\w{16,} | dapi[0-9a-f]{32} | whsec_\w{16,} | ATATT\w{16,}
      | npm_[A-Za-z0-9]{16,} | pypi-[\w-]{16,} | wandb_v1_\w{10,} | dckr_pat_[\w-]{10,} | do[por]_v1_[0-9a-f]{16,}
      | SG\.[\w-]{6,}\.[\w-]{6,} | hv[sbr]\.[\w-]{12,} | shp(?:at|ca|pa|ss)_[A-Za-z0-9]{12,} | tskey-[a-z]+-[\w-]{8,}
      | eyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)? | [Bb]earer[ \t]+[\w.~+/=-]{8,}
    )
    | (?<=hooks\.slack\.com/)[\w/-]{8,} | (?<=/api/webhooks/)[\w/-]{8,}""",
    re.VERBOSE,
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_LOGIN = re.compile(r"(?<=://)[^\s/@\"']+(?=@)")
_SCHEME = r"(?:(?i:basic|bearer|digest|negotiate|token|apikey)[ \t]+)?"
_VALUE = rf"""(?P<value>
    \\"(?:(?!\\").)*\\" | "(?:[^"\\]|\\.)*" | '[^']*'
  | \{{[^{{}}\n\r]*\}} | \[[^\[\]\n\r]*\] | {_SCHEME}[^\s,}}\]"']+)"""
_START = r"(?:(?<![A-Za-z0-9_\\])|(?<=\\n)|(?<=\\t))"  # a line break in JSON is written as two letters
_PAIR = re.compile(_START + r"""(?P<key>[A-Za-z][\w.-]*)(?P<between>\\?["']?[ \t]*[:=][ \t]*)""" + _VALUE, re.VERBOSE)
"""`key: value`, `"key": "value"` and `key=value`, in comments, JSON, addresses and on command lines; on one line."""
_WORD = r"""(?P<value>(?:'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\])+)"""
_OPTION = re.compile(r"(?<!\S)--(?P<key>[A-Za-z][\w.-]*)(?P<between>=|[ \t]+(?!--))" + _WORD)
_COMMENTED = re.compile(
    r"""^[ \t]*\#+[ \t]*(?:-[ \t]+)?["']?(?P<key>[A-Za-z][\w.-]*)
        (?P<between>["']?[ \t]*:[ \t]+)(?P<value>\S.*?)[ \t]*$""",
    re.MULTILINE | re.VERBOSE,
)
"""A key of a recipe that is commented out: its value is all of the line."""

_PLACES = ("output_dir", "logging_dir", "hub_model_id", "resume_from_checkpoint", "deepspeed")
"""Training arguments that say where things are, which a run still needs as they are."""
_NO_SECRETS = ("null", "~", "true", "false", "None", "True", "False")
_remembered: set[str] = set()


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
    elif isinstance(value, str):
        yield from _secrets_of(_read_json(value), secret)


def _read_json(text: str) -> Any:
    """The mapping or list that a text holds as JSON, as command lines do; `None` if it holds none."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def without_secrets(value: Any) -> Any:
    """A text, or mappings and lists of plain values, with `***` in the place of every secret.

    >>> without_secrets({"api_key": "abc", "note": "as hf_abcdefghijklmnop", "max_tokens": 5})
    {'api_key': '***', 'note': 'as ***', 'max_tokens': 5}
    """
    if isinstance(value, str):
        found = _read_json(value)
        cleaned = without_secrets(found)
        return _without_secrets(value) if cleaned == found else json.dumps(cleaned, ensure_ascii=False)
    if isinstance(value, Mapping):
        return {key: _without_secret_of(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(item) for item in value)
    return value


def command_without_secrets(words: Sequence[str]) -> str:
    """A command line as one would type it, with `***` in the place of every secret.

    >>> command_without_secrets(["train.py", "--env", '{"A": "b"}', "--hub_token=c", "--note", "d e"])
    "train.py --env '***' '--hub_token=***' --note 'd e'"
    """
    cleaned, hiding = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            hiding = hides(name.removeprefix("--"))
            word = f"{name}={_hidden_word(value) if hiding else without_secrets(value)}" if equals else name
        else:
            word = _hidden_word(word) if hiding else without_secrets(word)
        cleaned.append(word)
    return _without_secrets(shlex.join(cleaned))


def _hidden_word(word: str) -> str:
    return word if word in _NO_SECRETS else HIDDEN


def _without_secret_of(key: Any, value: Any) -> Any:
    return _hidden(value) if hides(key) and not is_count(key, value) else without_secrets(value)


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return value if value is None or isinstance(value, bool) or value == "" else HIDDEN


def _without_secrets(text: str) -> str:
    text = _without_patterns(text)
    named = (value.strip() for name, value in os.environ.items() if is_secret_key(name) and name != "PWD")
    known = {value for value in (*_remembered, *named) if len(value) >= SHORTEST}
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def _without_patterns(text: str) -> str:
    for pattern in (_PRIVATE_KEY, _TOKENS, _LOGIN):
        text = pattern.sub(HIDDEN, text)
    return _without_values(_PAIR, _without_values(_OPTION, text))


def _without_values(pattern: re.Pattern, text: str) -> str:
    """The text without the values of secret keys.

    The value of any other key is searched in its turn: it may be an address with a token, or a mapping as JSON.
    """
    parts, done, at = [], 0, 0
    while pair := pattern.search(text, at):
        start, end = pair.span("value")
        at = start
        if hides(pair["key"]) and pair["value"] not in _NO_SECRETS and not is_count(pair["key"], pair["value"]):
            quote = re.match(r"\\?[\"']?", pair["value"])[0] or re.match(r"\\?[\"']?", pair["between"])[0]
            parts += [text[done:start], quote, HIDDEN, quote]
            done = at = end
    return "".join(parts) + text[done:]


# -- recipes ----------------------------------------------------------------------------------------------------------


def recipe_without_secrets(text: str) -> str:
    """The text of a recipe, comments included, with `***` in the place of every secret and of every value of `env`.

    It is still YAML with the same keys, and all other values are as they were. Where the text cannot be changed in
    place (a value with a type of its own), the cleaned values are written anew, after the comments.
    """
    try:
        values, tokens = yaml.safe_load(text), list(yaml.scan(text, Loader=yaml.SafeLoader))
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return without_secrets(text)
    remember_secrets(values if isinstance(values, Mapping) else {})
    cleaned = _edited(text, node, tokens)
    if _is_same_but_for_secrets(values, cleaned):
        return cleaned
    gaps = "\n".join(_comments_without_secrets(text[start:end]) for start, end in _between(tokens, len(text)))
    comments = [line.strip() for line in gaps.splitlines() if line.strip().startswith("#")]
    return "\n".join([*comments, yaml.safe_dump(without_secrets(values), sort_keys=False, allow_unicode=True)])


def _edited(text: str, node: Any, tokens: Sequence[yaml.Token]) -> str:
    """The text with comments cleaned and scalars replaced, each where it stands."""
    replaced = dict(_replaced(node, False))
    edits = {span: _comments_without_secrets(text[slice(*span)]) for span in _between(tokens, len(text))}
    for token in (token for token in tokens if isinstance(token, yaml.ScalarToken)):
        start, end = token.start_mark.index, token.end_mark.index
        if end in replaced:
            line_break = len(text[start:end]) - len(text[start:end].rstrip())  # ends a block
            edits[start, end - line_break] = _quoted(replaced[end])
        elif token.style in ("|", ">"):
            header = text[start:end].splitlines()[0]  # a comment may follow the sign
            edits[start, start + len(header)] = _comments_without_secrets(header)
    for (start, end), new in sorted(edits.items(), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', width=math.inf, allow_unicode=True).strip()


def _between(tokens: Sequence[yaml.Token], length: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what stands between the tokens of YAML: comments and white space."""
    done = 0
    for token in tokens:
        if token.start_mark.index > done:
            yield done, token.start_mark.index
        done = max(done, token.end_mark.index)
    if done < length:
        yield done, length


def _comments_without_secrets(text: str) -> str:
    return _without_secrets(_without_values(_COMMENTED, text)) if "#" in text else text


def _replaced(node: Any, secret: bool) -> Iterator[tuple[int, str]]:
    """Where a scalar ends in the text, and what stands there instead, of each that has a secret."""
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            count = isinstance(item, yaml.ScalarNode) and is_count(key.value, item.value)
            yield from _replaced_key(key)
            yield from _replaced(item, secret or (hides(key.value) and not count))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _replaced(item, secret)
    elif isinstance(node, yaml.ScalarNode) and node.value and node.tag.rpartition(":")[2] not in ("null", "bool"):
        is_text = node.tag.endswith(":str")
        cleaned = HIDDEN if secret else without_secrets(node.value) if is_text else node.value
        if cleaned != node.value:
            yield node.end_mark.index, cleaned


def _replaced_key(node: Any) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.ScalarNode) and _TOKENS.search(node.value):
        yield node.end_mark.index, _TOKENS.sub(HIDDEN, node.value)


def _is_same_but_for_secrets(values: Any, text: str) -> bool:
    """Whether a cleaned recipe has the same values as before, but for those that hold `***`."""
    try:
        cleaned = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return False
    return _are_same(values, cleaned)


def _are_same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(
            _are_same(key, new_key) and _are_same(item, new) for (key, item), (new_key, new) in pairs
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_are_same, one, other))
    if isinstance(other, str) and HIDDEN in other:
        return not isinstance(one, Mapping | list)
    return type(one) is type(other) and (one == other or (isinstance(one, float) and math.isnan(one)))


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
