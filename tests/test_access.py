"""Roles in a bucket: what each may do, through klray, as users whom Ceph's gateway holds to the policies of infra/."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from botocore.exceptions import ClientError

import klray
from klray.errors import StoreError
from klray.store import Store
from klray.store.columns import commit_column
from klray.store.objects.roles import Action, roles_for
from tests.conftest import become
from tests.s3_server import CephServer, S3Server
from tests.stores import TEXTS, add, column, put_column

ACCESS = Path(__file__).parent.parent / "infra/access"
ROLES = ("reader", "writer", "publisher", "curator")
REFUSED = r"store s3://test-.*/some/store: .*some/store/{} was refused .*credentials.*the bucket's policy allows this"

Become = Callable[[str], None]


def bucket_policy(*arguments: str) -> subprocess.CompletedProcess[str]:
    """infra/access/bucket_policy.py, as a bucket's owner runs it."""
    command = [sys.executable, str(ACCESS / "bucket_policy.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="session")
def users(ceph: CephServer) -> dict[str, S3Server]:
    """One user for each role, and one without any."""
    return {"owner": ceph, **{name: ceph.user(name) for name in (*ROLES, "stranger")}}


@pytest.fixture
def url(ceph: CephServer, users: dict[str, S3Server]) -> str:
    """A store's place in a new bucket, where every role is given to the user of its name.

    The bucket's owner needs one too: on Ceph an object is its writer's, whoever owns the bucket.
    """
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    ceph.make_bucket(bucket)
    made = bucket_policy(f"s3://{bucket}/some/store", *(f"{role}={role}" for role in ROLES), "curator=owner")
    assert made.returncode == 0, made.stderr
    ceph.client().put_bucket_policy(Bucket=bucket, Policy=made.stdout)
    return f"s3://{bucket}/some/store"


@pytest.fixture
def as_user(users: dict[str, S3Server], monkeypatch: pytest.MonkeyPatch) -> Become:
    return lambda name: become(users[name], monkeypatch)


@pytest.fixture
def published(url: str, as_user: Become) -> str:
    """The store's URL: made and written by the writer, published by the bucket's owner."""
    as_user("writer")
    add(Store.create(url, TEXTS), column("a", 1), column("a", 2))
    as_user("owner")
    Store.open(url).publish()
    return url


def objects_of(statement: dict[str, object]) -> list[str]:
    """A statement's resources that are objects; the others are the bucket."""
    resources = statement["Resource"]
    assert isinstance(resources, list)
    return [each for each in resources if each != "arn:aws:s3:::my-bucket"]


@pytest.mark.parametrize("name", [*ROLES, "conditional_create"])
def test_policy_is_json_and_reaches_no_further_than_the_prefix(name: str) -> None:
    text = (ACCESS / f"{name}.json").read_text().replace("BUCKET", "my-bucket").replace("PREFIX", "some/store")
    policy = json.loads(text)
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        assert all(action.startswith("s3:") and "*" not in action for action in statement["Action"])
        for resource in objects_of(statement):
            assert resource.startswith("arn:aws:s3:::my-bucket/some/store/")
            assert resource.count("*") <= 1 and resource.endswith(("/*", "/zarr.json"))
        if not objects_of(statement):  # the bucket itself: listing, below the prefix
            assert statement["Action"] == ["s3:ListBucket"]
            assert statement["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["some/store", "some/store/*"]}}


def test_roles_write_and_delete_what_their_work_needs_and_nothing_else() -> None:
    def below(role: str, action: str) -> set[str]:
        statements = json.loads((ACCESS / f"{role}.json").read_text())["Statement"]
        found = [each for each in statements if action in each["Action"]]
        return {path.removeprefix("arn:aws:s3:::BUCKET/PREFIX/") for each in found for path in each["Resource"]}

    writes = {
        "zarr.json",
        "texts/*",
        "columns/*",
        "commits/*",
        "claims/*",
        "failures/*",
        "plans/*",
        "jobs/*",
        "probes/*",
    }
    publishes = {"snapshots/*", "results/*", "page/*", "probes/*"}
    assert [below(role, "s3:PutObject") for role in ROLES] == [set(), writes, publishes, writes | publishes]
    deletes = [below(role, "s3:DeleteObject") for role in ROLES]
    assert deletes == [set(), {"claims/*", "failures/*", "probes/*"}, {"probes/*"}, {"*"}]
    assert all(below(role, "s3:GetObject") == {"*"} for role in ROLES)


@pytest.mark.parametrize(
    ("action", "statement"),
    [("read", "s3:GetObject"), ("list", "s3:ListBucket"), ("write", "s3:PutObject"), ("delete", "s3:DeleteObject")],
)
def test_refusals_name_the_roles_that_the_policies_give(action: Action, statement: str) -> None:
    tops = (
        "texts",
        "columns",
        "commits",
        "claims",
        "failures",
        "plans",
        "jobs",
        "snapshots",
        "results",
        "page",
        "probes",
        "zarr.json",
        "other",
    )
    for top in tops:
        key = top if top == "zarr.json" else f"{top}/key"
        may = []
        for role in ROLES:
            parts = json.loads((ACCESS / f"{role}.json").read_text())["Statement"]
            allowed = [path for part in parts if statement in part["Action"] for path in part["Resource"]]
            wanted = "arn:aws:s3:::BUCKET" if action == "list" else f"arn:aws:s3:::BUCKET/PREFIX/{key}"
            may += [role] if any(fnmatch.fnmatchcase(wanted, path) for path in allowed) else []
        assert list(roles_for(action, key)) == may


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no store: name the store as s3://BUCKET"),
        (["s3://bucket", "writer=ann"], "without wildcards"),
        (["s3://bucket/*", "writer=ann"], "without wildcards"),
        (["s3://bucket/store", "admin=ann"], "admin=ann: name users as ROLE=USER"),
        (["s3://bucket/store", "writer=*"], "anybody may be a reader at most"),
        (["s3://bucket/store"], "no users: name them as ROLE=USER"),
    ],
)
def test_bucket_policy_refuses_what_it_cannot_mean(arguments: list[str], words: str) -> None:
    made = bucket_policy(*arguments)
    assert made.returncode == 2 and words in made.stderr and made.stdout == ""


def test_bucket_policy_takes_arns_as_they_are_and_names_as_ceph_has_them() -> None:
    arn = "arn:aws:iam::111122223333:role/score"
    policy = json.loads(bucket_policy("s3://bucket/store/", f"writer={arn}", "writer=ann", "reader=*").stdout)
    principals = {each["Sid"]: each["Principal"] for each in policy["Statement"]}
    assert principals["WriterWrite"] == {"AWS": [arn, "arn:aws:iam:::user/ann"]}
    assert principals["ReaderRead"] == principals["CreateCommitsOnly"] == "*"
    assert len(principals) == len(policy["Statement"])  # names of statements must differ


def test_reader_reads_values_and_is_refused_to_write(published: str, as_user: Become) -> None:
    as_user("reader")
    values = klray.open_dataset(published)["log_likelihood"].values
    for row, step in enumerate((1, 2)):
        np.testing.assert_array_equal(values[row], column("a", step).log_likelihood[0].astype(np.float32))
    store = Store.open(published)
    assert store.objects.get("commits/none.json") is None  # not there, and not "refused"
    (commit,) = store.commits([column("a", 2).identity.key])
    np.testing.assert_array_equal(store.read_column(commit)[0], values[1])
    takes = ": to write this takes the role writer or curator "
    with pytest.raises(StoreError, match=REFUSED.format(f"commits/{'0' * 64}.json") + takes):
        commit_column(store.objects, dataclasses.replace(commit, key="0" * 64))
    with pytest.raises(StoreError, match=REFUSED.format("snapshots/LATEST.json")):
        store.objects.put("snapshots/LATEST.json", b"{}")
    with pytest.raises(StoreError, match=REFUSED.format("claims/.*")):
        store.claim("a" * 64, "0" * 32)
    with pytest.raises(StoreError, match=REFUSED.format("failures/.*")):
        store.record_failure(column("b").identity, "main", "out_of_memory", "no", "0" * 32)


@pytest.mark.parametrize("backend", ["s3fs", "obstore"])
def test_anybody_reads_where_anybody_is_a_reader(
    published: str, users: dict[str, S3Server], as_user: Become, backend: str
) -> None:
    bucket = published.split("/")[2]
    made = bucket_policy(published, "reader=*").stdout
    users["owner"].client().put_bucket_policy(Bucket=bucket, Policy=made)
    as_user("stranger")
    options = {"anon": True, "endpoint_url": users["owner"].endpoint, "backend": backend}
    assert klray.open_dataset(published, storage_options=options)["log_likelihood"].shape == (2, len(TEXTS))
    with pytest.raises(StoreError, match=REFUSED.format("snapshots/LATEST.json")):
        Store.open(published, options).objects.put("snapshots/LATEST.json", b"{}")


def test_stranger_is_refused_everything(published: str, as_user: Become) -> None:
    as_user("stranger")
    with pytest.raises(StoreError, match=REFUSED.format("zarr.json")):
        klray.open_dataset(published)


def test_writer_commits_and_cannot_publish_or_take_back(published: str, as_user: Become) -> None:
    as_user("writer")
    store = Store.open(published)
    add(store, column("b", 1))
    assert len(store.committed_keys()) == 3
    store.record_failure(column("c").identity, "main", "out_of_memory", "no", "0" * 32)
    assert len(store.failures()) == 1
    store.objects.delete_tree(f"failures/{store.objects.names('failures')[0]}")
    assert store.failures() == []
    assert store.claim("a" * 64, "0" * 32) == 0
    store.release("a" * 64, 0)
    assert store.standing_claims() == {}
    with pytest.raises(StoreError, match=REFUSED.format("snapshots/.*claim")):
        store.publish()
    with pytest.raises(StoreError, match=REFUSED.format("results/a.json")):
        store.objects.put("results/a.json", b"{}")
    (first, *_) = store.committed_keys()
    with pytest.raises(StoreError, match=REFUSED.format(f"commits/{first}.json")):
        store.objects.delete_tree(f"commits/{first}.json")
    assert len(store.committed_keys()) == 3


def test_publisher_publishes_and_cannot_commit(published: str, as_user: Become) -> None:
    as_user("writer")
    writer = Store.open(published)
    late = put_column(writer, column("c", 1), "c" * 32)
    add(writer, column("b", 1))
    as_user("publisher")
    store = Store.open(published)
    manifest, new = store.publish()
    assert new and manifest.n_models == 3
    result = xr.Dataset({"kl": (("model", "other"), np.eye(3))})
    store.write_result(manifest.id, "trajectory", result)
    xr.testing.assert_equal(store.result(manifest.id, "trajectory").load(), result)
    with pytest.raises(StoreError, match=REFUSED.format(f"commits/{late.key}.json")):
        commit_column(store.objects, late)
    assert len(store.committed_keys()) == 3
    as_user("reader")  # what another user wrote is the bucket's
    np.testing.assert_array_equal(klray.open_result(published)["kl"].values, np.eye(3))


def test_curator_repairs(published: str, as_user: Become) -> None:
    as_user("curator")
    store = Store.open(published)
    (commit,) = store.commits([column("a", 1).identity.key])
    store.objects.put(f"{commit.path}/log_likelihood/zarr.json", b"no JSON")
    removed = store.repair(store.audit(), timedelta(days=1))
    assert removed == [f"commits/{commit.key}.json"]
    assert store.committed_keys() == {column("a", 2).identity.key}
    assert commit_column(store.objects, put_column(store, column("a", 1), "f" * 32))
    assert store.publish()[0].n_models == 2


def test_commits_are_created_only_where_the_server_knows_the_condition(url: str, users: dict[str, S3Server]) -> None:
    bucket = url.split("/")[2]
    policy = (ACCESS / "conditional_create.json").read_text().replace("BUCKET", bucket).replace("PREFIX", "some/store")
    owner = users["owner"].client()
    owner.put_bucket_policy(Bucket=bucket, Policy=policy)
    key = "some/store/commits/one.json"
    owner.put_object(Bucket=bucket, Key=key, Body=b"first", IfNoneMatch="*")
    owner.put_object(Bucket=bucket, Key="some/store/columns/one", Body=b"anywhere else")
    try:
        owner.put_object(Bucket=bucket, Key=key, Body=b"second")
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied"
        assert owner.get_object(Bucket=bucket, Key=key)["Body"].read() == b"first"
    else:
        pytest.skip("this server does not know the condition s3:if-none-match: the policy does nothing, and no harm")


@pytest.mark.slow
def test_rooms_that_the_documentation_names_are_there_after_import_klray_alone() -> None:
    named = "klray.layers.compare_lenses, klray.pairs.pair_divergence, klray.relatives.unquantised"
    subprocess.run([sys.executable, "-c", f"import klray; {named}"], check=True)
