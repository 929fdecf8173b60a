"""Secrets in text: known by their shape or because the environment holds them, and how a text is shown without them.

A configuration that holds one is refused (validation), so no file of a run repeats it; what comes from elsewhere (errors of clients, what
they print) is redacted where it is shown or written: in errors, in results.json, on both streams of every command.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import IO, Any, cast

REDACTED = "(redacted)"
LEAST_LETTERS = 8
"""Shorter values of the environment are no secrets: a word of a sentence would be taken for one."""

_START, _END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"


def _token(shape: str) -> re.Pattern[str]:
    return re.compile(f"{_START}(?P<secret>{shape}){_END}")


# Each shape is as its issuer documents it, or as secret scanners know it; lengths are lower bounds, since issuers lengthen them.
# The part named secret is what is taken out. No shape holds a repetition inside a repetition: a long hostile text costs linear time.
KINDS: dict[str, re.Pattern[str]] = {
    "private key": re.compile(r"(?P<secret>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}-----|\Z))"),
    "password in an address": re.compile(
        r"://(?P<secret>(?!\(redacted\))(?:[^\s/?#@:'\"<>]*:[^\s/?#@'\"<>]+|(?=[A-Za-z_-]{0,60}\d)[A-Za-z0-9_-]{20,}))(?=@)"
    ),
    "key in an address": re.compile(
        r"(?i)[?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|(?:access|auth|id|refresh|session|private|secret)[_-]?(?:token|key)"
        r"|api[_-]?key|client[_-]?secret|token|key|auth|sig|signature|secret|password|passwd|pwd)=(?P<secret>(?!\(redacted\))[^\s&;#'\"<>]{4,})"
    ),
    "Hugging Face token": _token(r"(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    "W&B key": _token(r"wandb_v\d_[A-Za-z0-9_]{20,}|local-[0-9a-f]{40}"),
    "Anthropic key": _token(r"sk-ant-[A-Za-z0-9_-]{16,}"),
    "OpenAI key": _token(r"sk-(?:proj|svcacct|admin|or-v1)-[A-Za-z0-9_-]{16,}|sk-(?=[A-Za-z]{0,60}\d)[A-Za-z0-9]{20,}"),
    "GitHub token": _token(r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"),
    "GitLab token": _token(r"gl(?:pat|ptt|dt|rt|oas|agent|cbt|ft|soat)-[A-Za-z0-9_-]{16,}"),
    "AWS access key": _token(r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"),
    "Google API key": _token(r"AIza[A-Za-z0-9_-]{35}"),
    "Google OAuth secret": _token(r"ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}"),
    "Azure storage key": re.compile(r"(?i)(?:AccountKey|SharedAccessKey)=(?P<secret>[A-Za-z0-9+/]{40,}={0,2})"),
    "Azure SAS signature": re.compile(rf"(?i){_START}sig=(?P<secret>[A-Za-z0-9%+/=]{{20,}})"),
    "Slack token": _token(r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}"),
    "webhook": re.compile(
        r"(?P<secret>hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{8,}|discord(?:app)?\.com/api/webhooks/[A-Za-z0-9/_-]{8,})"
    ),
    "Stripe key": _token(r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9]{16,}"),
    "SendGrid key": _token(r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    "npm token": _token(r"npm_[A-Za-z0-9]{30,}"),
    "PyPI token": _token(r"pypi-[A-Za-z0-9_-]{50,}"),
    "Docker token": _token(r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}"),
    "JSON web token": _token(r"(?<![_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}"),
    "Discord token": _token(r"[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}"),
    "Telegram token": _token(r"\d{8,10}:[A-Za-z0-9_-]{35}"),
    "Databricks token": _token(r"dapi[0-9a-f]{32}"),
    "key of a model service": _token(r"(?:gsk|r8|fw|tgp_v1|csk)_[A-Za-z0-9]{24,}|(?:nvapi|xai|pplx)-[A-Za-z0-9_-]{24,}"),
    "key of a cloud service": _token(
        r"(?:dop|doo|dor)_v1_[0-9a-f]{40,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|hv[bs]\.[A-Za-z0-9_-]{20,}|lin_api_[A-Za-z0-9]{30,}"
        r"|ATATT3[A-Za-z0-9_=-]{40,}|sntry[su]_[A-Za-z0-9+/=_-]{30,}|NRAK-[A-Z0-9]{20,}|AGE-SECRET-KEY-1[A-Z0-9]{40,}|PMAK-[a-f0-9]{24}-[a-f0-9]{34}"
    ),
    "authorisation header": re.compile(
        r"(?i)\b(?:bearer\s{1,3}|basic\s{1,3}(?=[A-Za-z0-9+/]+(?![A-Za-z0-9+/_~-]))|authorization:\s{0,3}(?:token\s)?)"
        r"(?P<secret>(?=[A-Za-z._~+/=-]{0,200}\d)[A-Za-z0-9._~+/=-]{16,})"
    ),
    "password in a netrc line": re.compile(r"(?i)\blogin\s{1,9}\S{1,99}\s{1,9}password\s{1,9}(?P<secret>(?!\(redacted\))[^\s'\"]{4,})"),
    "password": re.compile(
        r"(?i)(?:password|passwd|passphrase)[\"']{0,2}\s{0,3}[:=]\s{0,3}[\"']?(?P<secret>(?=[^\s\"',;&]{0,99}[0-9!@#$%^*])[^\s\"'(){}<>$,;&][^\s\"',;&]{5,})"
    ),
    # A W&B key of the older form is 40 hexadecimal digits, as a commit is: only the word in front tells them apart.
    "key": re.compile(
        r"(?i)(?:key|token|secret|credentials?)[\"'\]]{0,2}\s{0,3}(?:[:=]|\bis\b)\s{0,3}[\"']?"
        r"(?P<secret>(?=[A-Za-z+/=_-]{0,99}\d)(?=[0-9+/=_-]{0,99}[A-Za-z])(?![./~]{0,2}/?(?-i:[a-z_-]+)/)[A-Za-z0-9+/=_-]{20,})"
    ),
}

BELONGS = {
    "Hugging Face token": "log in with `hf auth login`, or set HF_TOKEN in the environment",
    "W&B key": "log in with `wandb login`, or set WANDB_API_KEY in the environment",
    "password in an address": "write it into ~/.netrc, which clients read by themselves",
}
_BELONGS_OTHERWISE = "keep it in an environment variable or in the file of the client that reads it"

_SECRET_NAME = re.compile(r"(?:^|_)[A-Z0-9]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(?:_|$)", re.IGNORECASE)
_NOT_THE_SECRET = re.compile(r"_(?:PATH|FILE|FILES|DIR|HOME|SOCK|URL|URI|ID|NAME|TYPE|SIZE|COUNT|EXPIRY)$", re.IGNORECASE)
_IMAGE = re.compile(r"(data:[A-Za-z0-9.+/-]{1,60};base64,[A-Za-z0-9+/=]+)")
"""What a page embeds; its letters are random enough to look like anything."""


def find_secret(text: str) -> str | None:
    """Which kind of secret a text is or holds; None where it holds none."""
    for part in _IMAGE.split(text)[::2]:
        for name, value in _environment_secrets():
            if value in part:
                return f"value of the environment variable {name}"
        for kind, shape in KINDS.items():
            if shape.search(part):
                return kind
    return None


def redacted(text: str) -> str:
    """The text with every secret replaced by `(redacted)`; embedded images are left as they are."""
    parts = _IMAGE.split(text)
    for place in range(0, len(parts), 2):
        for _, value in _environment_secrets():
            parts[place] = parts[place].replace(value, REDACTED)
        for shape in KINDS.values():
            parts[place] = shape.sub(_without_secret, parts[place])
    return "".join(parts)


def without_secrets(value: Any) -> Any:
    """A value of JSON with every text in it, names too, redacted."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {without_secrets(name): without_secrets(inner) for name, inner in value.items()}
    return type(value)(without_secrets(item) for item in value) if isinstance(value, (list, tuple)) else value


def where_it_belongs(kind: str) -> str:
    """What a person does instead of writing a secret of this kind into a configuration."""
    return BELONGS.get(kind, _BELONGS_OTHERWISE)


@lru_cache(maxsize=4096)
def is_secret_variable(name: str, value: str) -> bool:
    """True for a variable of the environment whose name says that its value is secret; a path to a secret is none."""
    named = _SECRET_NAME.search(name) is not None and _NOT_THE_SECRET.search(name) is None
    return named and len(value) >= LEAST_LETTERS and value != REDACTED and not os.path.exists(value)


def _environment_secrets() -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in os.environ.items() if is_secret_variable(name, value))


def _without_secret(match: re.Match[str]) -> str:
    start, end = match.span("secret")
    whole, first = match.string, match.start()
    return whole[first:start] + REDACTED + whole[end : match.end()]


class RedactedStream:
    """A text stream that lets no secret through."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` without its secrets."""
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each line without its secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redacted_stream(stream: IO[str]) -> IO[str]:
    """The stream, guarded once."""
    return stream if isinstance(stream, RedactedStream) else cast(IO[str], RedactedStream(stream))


def guard_streams() -> None:
    """Guard what this process prints: tracebacks, warnings, logs of other packages. Called once, where a command starts."""
    sys.stdout, sys.stderr = redacted_stream(sys.stdout), redacted_stream(sys.stderr)
