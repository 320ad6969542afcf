"""Tokens that a request shows in `authorization: Bearer <token>`. Nothing of one is ever logged."""

from __future__ import annotations

import hmac


def held(token: str | None) -> bytes | None:
    """A token of the settings, as it is compared."""
    return None if token is None else token.encode()


def shown(authorization: str | None) -> bytes | None:
    """The token of a request's header, None where it shows none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" and token.strip() else None


def is_one_of(token: bytes | None, *known: bytes | None) -> bool:
    """Whether a known token was shown; every one is compared, in time that tells nothing."""
    there = [each for each in known if each is not None]
    return token is not None and sum(hmac.compare_digest(token, each) for each in there) > 0
