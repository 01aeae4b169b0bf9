"""The order of a sweep's work, and what becomes of checkpoints that hold the same files."""

from __future__ import annotations

from klray.checkpoints import Checkpoint, Facts, RemoteFile
from klray.store import Identity
from klray.sweep.queue import Queue, Work


def checkpoint(name: str, content: str, size: int = 1, **files: str) -> Checkpoint:
    """``name`` is repository@revision; ``content`` the weights' hash, "" for one that the hub does not announce."""
    repository, revision = name.split("@")
    hashes = {"config.json": "c", "tokenizer.json": "t", **files}
    small = tuple(RemoteFile(path, 1, None, hashed) for path, hashed in hashes.items())
    return Checkpoint(
        repository, revision, name, (RemoteFile("model.safetensors", size, content or None, None), *small), Facts()
    )


def queue(*checkpoints: Checkpoint, present: dict[str, str] | None = None) -> Queue:
    return Queue([Work(each, Identity(each.repository, each.commit, "texts")) for each in checkpoints], present or {})


def taken(waiting: Queue) -> dict[str, Work]:
    """All that waits now, by name."""
    works = {}
    while (work := waiting.take("", set())) is not None:
        works[work.checkpoint.commit] = work
    return works


def test_content_is_that_of_weights_config_and_tokenizer() -> None:
    same = checkpoint("a/a@1", "w").content
    assert same and same == checkpoint("b/b@2", "w").content
    assert same == checkpoint("a/a@2", "w", **{"generation_config.json": "x", "chat_template.jinja": "y"}).content
    others = [
        checkpoint("a/a@2", "v"),
        checkpoint("a/a@2", "w", **{"config.json": "d"}),
        checkpoint("a/a@2", "w", **{"tokenizer.json": "u"}),
        checkpoint("a/a@2", "w", **{"added_tokens.json": "x"}),
    ]
    assert len({each.content for each in others} | {same}) == 5
    assert checkpoint("a/a@1", "").content == ""


def test_one_of_those_with_the_same_files_waits_and_the_others_follow_its_column() -> None:
    waiting = queue(
        checkpoint("a/a@1", "w"), checkpoint("a/a@2", "w"), checkpoint("a/a@3", "v"), checkpoint("a/a@4", "w")
    )
    first = taken(waiting)
    assert set(first) == {"a/a@1", "a/a@3"}
    waiting.settle(first["a/a@3"], committed=True)
    assert len(waiting) == 0
    waiting.settle(first["a/a@1"], committed=True)
    followers = taken(waiting)
    assert set(followers) == {"a/a@2", "a/a@4"}
    assert {work.source for work in followers.values()} == {first["a/a@1"].identity.key}


def test_when_it_fails_the_next_one_is_scored() -> None:
    waiting = queue(checkpoint("a/a@1", "w"), checkpoint("a/a@2", "w"), checkpoint("a/a@3", "w"))
    waiting.settle(taken(waiting)["a/a@1"], committed=False)
    second = taken(waiting)
    assert [(name, work.source) for name, work in second.items()] == [("a/a@2", "")]
    waiting.settle(second["a/a@2"], committed=True)
    assert [(name, work.source) for name, work in taken(waiting).items()] == [("a/a@3", second["a/a@2"].identity.key)]


def test_what_is_in_the_store_is_taken_over_at_once() -> None:
    other = checkpoint("a/a@1", "w")
    works = taken(queue(checkpoint("a/a@2", "w"), checkpoint("a/a@3", "w"), present={other.content: "key"}))
    assert {name: work.source for name, work in works.items()} == {"a/a@2": "key", "a/a@3": "key"}


def test_files_that_are_not_announced_are_not_the_same() -> None:
    assert set(taken(queue(checkpoint("a/a@1", ""), checkpoint("a/a@2", "")))) == {"a/a@1", "a/a@2"}


def test_a_worker_stays_with_its_repository_and_then_takes_one_that_nobody_works_on() -> None:
    waiting = queue(*(checkpoint(f"{name}@1", name) for name in ("a/a", "b/b", "c/c")))
    for repository, busy, expected in (
        ("b/b", {"a/a", "b/b"}, "b/b"),
        ("b/b", {"a/a", "b/b"}, "c/c"),
        ("", {"a/a"}, "a/a"),
    ):
        work = waiting.take(repository, busy)
        assert work is not None and work.checkpoint.repository == expected


def test_what_was_not_begun_is_next_and_what_was_begun_is_last() -> None:
    waiting = queue(*(checkpoint(f"a/a@{number}", str(number)) for number in range(5)))
    works = [waiting.take("", set()) for _ in range(3)]
    first, second, third = (work for work in works if work is not None)
    waiting.try_again(first)
    waiting.put_back([second, third])
    order = list(taken(waiting).values())
    assert (order[:2], order[-1]) == ([second, third], first)


def test_the_largest_are_first_and_what_is_only_taken_over_is_last() -> None:
    sizes = {"a/a@1": 10, "b/b@1": 1000, "a/a@2": 990, "c/c@1": 100, "c/c@2": 5000}
    works = [checkpoint(name, name, size) for name, size in sizes.items()]
    waiting = queue(*works, present={works[-1].content: "key"})
    assert waiting.bytes == sum(each.bytes for each in works[:-1])
    order = list(taken(waiting))
    assert {*order[:2]} == {"a/a@2", "b/b@1"} and order[2:] == ["c/c@1", "a/a@1", "c/c@2"]
    assert (waiting.bytes, len(waiting)) == (0, 0)
