"""Print the bucket policy that gives users their roles in one store.

    python infra/access/bucket_policy.py s3://BUCKET/PREFIX writer=ann writer=ben publisher=cas reader='*' > policy.json

A user is an ARN, or a name, which stands for Ceph's ``arn:aws:iam:::user/NAME``; ``*`` is anybody, also without keys.
The policy also has every commit created, never replaced (conditional_create.json), where the server knows how.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROLES = ("reader", "writer", "publisher", "curator")


def filled(name: str, bucket: str, prefix: str) -> dict[str, Any]:
    """The policy in ``name``.json for the store at s3://bucket/prefix."""
    text = (HERE / f"{name}.json").read_text().replace("BUCKET", bucket).replace("PREFIX", prefix)
    policy: dict[str, Any] = json.loads(text)
    return policy


def bucket_policy(bucket: str, prefix: str, users: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A bucket policy; ``users`` holds the users of each role."""
    statements = []
    for role, names in users.items():
        arns = [name if name.startswith("arn:") else f"arn:aws:iam:::user/{name}" for name in names]
        principal = "*" if "*" in names else {"AWS": arns}
        for statement in filled(role, bucket, prefix)["Statement"]:
            sid = f"{role.capitalize()}{statement['Sid']}"
            statements.append({**statement, "Sid": sid, "Principal": principal})
    statements += filled("conditional_create", bucket, prefix)["Statement"]
    return {"Version": "2012-10-17", "Statement": statements}


def main(arguments: Sequence[str]) -> int:
    """Print the policy; 2 and a reason if the arguments name no store, no role or no user."""
    url, *given = arguments or [""]
    bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
    if not url.startswith("s3://") or not bucket or not prefix or set(url) & set('*?$"\\'):
        return _refuse(f"{url or 'no store'}: name the store as s3://BUCKET/PREFIX, without wildcards")
    users: dict[str, list[str]] = {}
    for each in given:
        role, _, user = each.partition("=")
        if role not in ROLES or not user:
            return _refuse(f"{each}: name users as ROLE=USER, with a role of {', '.join(ROLES)}")
        if user == "*" and role != "reader":
            return _refuse(f"{each}: anybody may be a reader at most")
        users.setdefault(role, []).append(user)
    if not users:
        return _refuse("no users: name them as ROLE=USER, for example writer=ann")
    print(json.dumps(bucket_policy(bucket, prefix, users), indent=2))
    return 0


def _refuse(reason: str) -> int:
    print(f"bucket_policy.py: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
