"""Masking: what is shown of a URL has none of the credentials that it may carry."""

import re
from typing import Final

_USER: Final = re.compile(r"(?<=://)[^/@\s'\"]+(?=@)")

_SECRETS: Final = re.compile(
    r"(?i)([?&;](?:[\w.%-]*(?:signature|credential|token|secret|password|passwd|apikey|api[_-]key"
    r"|access[_-]?key(?:id)?|policy|upload_id)|sig|auth|authorization|key|code|jwt|hmac)=)[^&;#\s'\")]*"
)
"""Parameters of signed URLs: those of S3, Google, Azure, CloudFront, and tokens of any kind.

Whoever has the URL of one of Google's uploads can send its parts."""

HIDDEN: Final = "…"


def masked(text: str) -> str:
    """The text with `…` for users and passwords, signatures, keys and tokens in URLs."""
    return _SECRETS.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, text))
