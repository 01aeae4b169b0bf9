"""Who may do what in a shared bucket, as the policies of ``infra/access/`` say it: for the words of a refusal."""

from typing import Literal

Action = Literal["read", "list", "write", "delete"]

ANYWHERE = "*"

# action: roles, by the first part of the keys; the test of access holds it against the policies
ROLES: dict[Action, dict[str, tuple[str, ...]]] = {
    "read": {ANYWHERE: ("reader", "writer", "publisher", "curator")},
    "list": {ANYWHERE: ("reader", "writer", "publisher", "curator")},
    "write": {
        **dict.fromkeys(
            ("zarr.json", "texts", "columns", "commits", "claims", "failures", "plans", "jobs"),
            ("writer", "curator"),
        ),
        **dict.fromkeys(("snapshots", "results", "page"), ("publisher", "curator")),
        "probes": ("writer", "publisher", "curator"),
    },
    "delete": {
        **dict.fromkeys(("claims", "failures"), ("writer", "curator")),
        "probes": ("writer", "publisher", "curator"),
        ANYWHERE: ("curator",),
    },
}


def roles_for(action: Action, key: str) -> tuple[str, ...]:
    """Roles that may do ``action`` with the object or prefix ``key``; none for what is in no store."""
    below = ROLES[action]
    return below.get(key.split("/")[0], below.get(ANYWHERE, ()))


def who_may(action: Action, key: str) -> str:
    """``roles_for`` in words, to follow "see that the bucket's policy allows this"; "" where no role may.

    >>> who_may("delete", "failures/a.json")
    ': to delete this takes the role writer or curator (infra/README.md)'
    """
    roles = roles_for(action, key)
    named = " or ".join([", ".join(roles[:-1]), roles[-1]] if len(roles) > 1 else roles)
    return f": to {action} this takes the role {named} (infra/README.md)" if roles else ""
