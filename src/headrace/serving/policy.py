"""Under what rules a browser shows the page; light, because Airflow's API server imports it too."""

from __future__ import annotations

import base64
import hashlib
import re


def content_policy(page: str, framed_by: str = "'none'") -> str:
    """A policy under which the page's own script and style run, by their hashes, and nothing else.

    `framed_by`: the origins whose pages may frame it. https://www.w3.org/TR/CSP3/
    """
    script, style = (_hash(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        f"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors {framed_by}; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(page: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
