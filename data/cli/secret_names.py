"""Which keys are named like those of secrets: `hub_token`, `api-key`, `dbPassword`, but not `max_tokens`."""

import re

_ALWAYS = {"secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "passcode", "passcodes"}
_ALWAYS |= {"auth", "oauth", "authorization", "authentication", "credential", "credentials", "cred", "creds"}
_ALWAYS |= {"jwt", "bearer", "cookie", "cookies", "apikey", "apikeys", "apitoken"}
"""Words that make a key one of a secret, wherever they stand in it."""
_LAST = {"signature", "signatures", "sig", "pass", "pw"}
"""Words that do so at the end: `db_pass`, but not `pass_rate`."""
_WEAK = {"token", "tokens", "key"}
"""Words that do so at the end, unless a word of `_OF_DATA` stands before them."""
_BEFORE_WEAK = {"api", "access", "private", "auth", "hub", "hf", "secret", "bearer", "refresh", "session", "client"}
_BEFORE_WEAK |= {"ssh", "account", "service", "encryption", "signing", "license", "wandb", "openai", "github", "aws"}
"""Words that do so together with a weak word that follows, also written as one word (`hubtoken`)."""
_OF_DATA = {"eos", "bos", "pad", "padding", "unk", "sep", "cls", "mask", "image", "video", "audio", "vision", "start"}
_OF_DATA |= {"end", "special", "stop", "prompt", "boi", "eoi", "primary", "foreign", "sort", "sorting", "public"}
_OF_DATA |= {"data", "dataset", "column", "field", "text", "label", "labels", "answer", "answers", "question", "query"}
_OF_DATA |= {"row", "group", "cache", "dict", "map", "config", "metric", "state", "index", "join", "reward", "score"}
_OF_DATA |= {
    "sample",
    "split",
    "model",
    "module",
    "parameter",
    "prompts",
    "response",
    "chosen",
    "rejected",
    "messages",
}
_OF_DATA |= {"max", "min", "num", "number", "total", "new", "completion", "generated", "input", "output", "suppress"}
_OF_DATA |= {"content", "of", "in", "per", "across", "by", "first", "last", "next", "visual", "added", "extra", "pass"}
_OF_DATA |= {"batch", "and", "forward", "begin", "bad", "thinking", "loss", "seen", "forced", "decoder", "sequence"}
"""What stands before `token`, `tokens` or `key` in names of what is no secret."""
_OF_CODE = {"forward", "backward", "first", "second", "last", "single", "dry", "one", "two"}
"""What stands before `pass` in names of what is no secret."""
_AFTER_TOKEN = {"value", "values", "string", "str", "header"}
_LONG = tuple(word for word in sorted(_ALWAYS) if len(word) >= 6)
_ONE_WORD = re.compile(rf"({'|'.join(sorted(_BEFORE_WEAK, key=len, reverse=True))})(tokens?|keys?)")


def is_secret_key(name: str) -> bool:
    """Whether a key is named like that of a secret.

    >>> [is_secret_key(name) for name in ("api_key", "hubToken", "TOKEN2", "eos_token", "num_key_value_heads")]
    [True, True, True, False, False]
    """
    words = _words(name)
    if not words:
        return False
    if any(word in _ALWAYS or word.endswith(_LONG) for word in words):
        return True
    for before, word, after in zip(("", *words), words, (*words[1:], ""), strict=False):
        if word.removesuffix("s") in ("token", "key") and before in _BEFORE_WEAK:
            return True
        if word == "token" and before not in _OF_DATA and after in _AFTER_TOKEN:
            return True
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in _LAST:
        return before not in _OF_CODE
    return last in _WEAK and before not in _OF_DATA


def hides(name: object) -> bool:
    """Whether what stands under a key is left out: secrets, and all of `env`."""
    return name == "env" or is_secret_key(str(name))


def is_count(name: object, value: object) -> bool:
    """Whether a value under a key such as `tokens` says how many there are."""
    text = str(value)
    return _words(str(name))[-1:] == ["tokens"] and re.fullmatch(r"[\d.,_]+", text, re.ASCII) is not None


def _words(name: str) -> list[str]:
    """The words of a name in small letters, without their numbers: of `aws_secretKey2`, aws, secret and key."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = (word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", spaced.lower()))
    found = []
    for word in filter(None, words):
        pair = _ONE_WORD.fullmatch(word)
        found += pair.groups() if pair else [word]
    return found
