"""Texts that would be markup, or code, in a page that takes them for more than texts."""

from typing import Final

HOSTILE_TEXTS: Final = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>",
    '"><svg onload="window.hacked=1">',
    "'};window.hacked=1;//",
    "<!--<script>",
    "]]><script>window.hacked=1</script>",
    "</title></style></noscript><script>window.hacked=1</script>",
    "&lt;script&gt;&amp;&#60;",
    "{script}{data}{title}",
    "${window.hacked=1}`",
    "\u2028\u2029\u202e\x1b[31m\x07",
    "javascript:window.hacked=1",
    "__proto__",
)
