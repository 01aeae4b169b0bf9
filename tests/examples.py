"""How many examples a test of a law looks at."""

from __future__ import annotations

from hypothesis import settings


def examples(full: int) -> settings:
    """``full`` of them in ``make test``, and in ``make quick`` as many fewer as its profile has."""
    profile = settings.get_profile("full").max_examples
    return settings(max_examples=max(1, full * settings().max_examples // profile))
