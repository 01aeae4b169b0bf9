"""Whole sweeps by a clock: no worker ends alone, and what a node does is not held against a checkpoint."""

from __future__ import annotations

import random

import pytest

from klray.checkpoints import Checkpoint
from klray.errors import KlrayError
from klray.sweep.queue import Work
from klray.sweep.replies import Fault, Place, Refusal, Unfit
from tests.fleet_simulated import Cluster, Node, checkpoint, hundred, mixed


def equal(count: int, size: int = 20) -> list[Checkpoint]:
    return [checkpoint(number, "org/a", size) for number in range(count)]


def nodes(count: int, **more: float) -> list[Node]:
    return [Node(f"{number:02}", **more) for number in range(count)]  # type: ignore[arg-type]


def unfit(node: str, fault: Fault = "disk", found: str = "disk full") -> Unfit:
    return Unfit(Place(f"host-{node}", node, 1), fault, found, "make room there")


@pytest.mark.parametrize(
    ("count", "repositories"),
    [(1_000, 12), (1_000, 60), (1_000, 1_000), pytest.param(10_000, 40, marks=pytest.mark.slow)],
)
def test_a_hundred_workers_end_together(count: int, repositories: int) -> None:
    """Within 5 % of the bytes divided among them, start-up and the spread of what each takes included."""
    cluster, ideal = hundred(count, repositories)
    assert cluster.run() <= 1.05 * ideal
    assert (cluster.dispatch.tally.scored, cluster.scored, cluster.failed) == (count, count, [])


def test_a_sick_node_loses_nothing() -> None:
    sick = Node("sick", unfit=lambda: unfit("sick"), start_seconds=1.0)
    cluster = Cluster(equal(36), [sick, Node("well")])
    cluster.run()
    assert (cluster.failed, {*cluster.by_node}, cluster.dispatch.tally.scored) == ([], {"well"}, 36)
    assert cluster.said == ["node host-sick put aside: disk full; make room there"]
    assert cluster.fleet.closing() == "1 of 2 workers; node host-sick put aside: disk full"


def test_a_disk_that_fills_up_midway_costs_no_checkpoint() -> None:
    cluster = Cluster(equal(60), nodes(3))
    sick = cluster.nodes[1]

    def fill() -> None:
        sick.unfit = lambda: unfit(sick.name)
        sick.refuses = lambda work: Refusal("disk_full", "no space left")

    cluster.at(100.0, fill)
    cluster.run()
    assert cluster.failed == [] and cluster.dispatch.tally.scored == 60
    assert cluster.said == [f"node host-{sick.name} put aside: disk full; make room there"]


def test_what_fails_on_two_nodes_is_recorded_and_what_fails_on_one_is_scored_elsewhere() -> None:
    def odd(work: Work) -> Refusal | None:
        return Refusal("out_of_memory", "too large") if work.checkpoint.revision in ("step3", "step4") else None

    def other(work: Work) -> Refusal | None:
        return Refusal("out_of_memory", "too large") if work.checkpoint.revision == "step3" else None

    cluster = Cluster(equal(20), [Node("a", refuses=odd), Node("b", refuses=other)])
    cluster.run()
    assert [(label, refusal.reason) for label, refusal in cluster.failed] == [("org/a@step3", "out_of_memory")]
    assert cluster.dispatch.tally.scored == 19 and "org/a@step4" in cluster.by_node["b"]


def test_a_refusal_that_is_the_checkpoint_s_is_recorded_at_once() -> None:
    cluster = Cluster(equal(6), [Node(name, refuses=lambda work: Refusal("non_finite", "nan")) for name in "ab"])
    cluster.run()
    assert len(cluster.failed) == 6 and cluster.said == []


def test_a_node_that_passes_and_fails_at_everything_is_put_aside() -> None:
    sick = Node("sick", refuses=lambda work: Refusal("unexpected", "OSError: odd"), start_seconds=1.0)
    cluster = Cluster(equal(40), [sick, Node("well")])
    cluster.run()
    assert cluster.failed == [] and cluster.dispatch.tally.scored == 40
    assert cluster.fleet.closing().startswith("1 of 2 workers; node host-sick put aside: 3 checkpoints failed there")


def test_lost_nodes_are_no_attempts_however_often() -> None:
    cluster = Cluster(equal(12, size=100), nodes(12), max_attempts=1)
    for number, node in enumerate(cluster.nodes[:4]):
        cluster.at(50.0 + 40 * number, lambda node=node: cluster.lose(node))  # type: ignore[misc]
    cluster.run()
    assert cluster.failed == [] and cluster.dispatch.tally.scored == 12
    assert sum("was lost" in words for words in cluster.said) == 4


def test_a_checkpoint_that_takes_every_node_with_it_is_told_from_bad_luck() -> None:
    cluster = Cluster(equal(1, size=100), nodes(9), max_attempts=2)
    for number in range(9):

        def lose() -> None:
            worker = next(each for each in cluster.fleet.workers if each.work)
            cluster.lose(next(each for each in cluster.nodes if each.name == worker.node))

        cluster.at(60.0 + 60 * number, lose)
    cluster.run()
    ((label, refusal),) = cluster.failed
    assert label == "org/a@step0" and refusal.reason == "worker_died" and "nodes were lost with it" in refusal.message


def test_a_drained_node_finishes_what_it_has_begun_and_hands_back_the_rest() -> None:
    cluster = Cluster(equal(40, size=50), nodes(4))
    node = cluster.nodes[0]
    cluster.at(100.0, lambda: setattr(node, "draining", True))
    cluster.run()
    assert cluster.scored == cluster.dispatch.tally.scored == 40 and cluster.failed == []
    (ended,) = (when for when, name in cluster.ended if name == node.name)
    assert ended < 165 and len(cluster.by_node[node.name]) == 2
    assert cluster.said == [f"node host-{node.name} is drained: it finishes what it has begun"]


def test_a_node_that_joins_is_used_at_once_and_idle_workers_are_let_go() -> None:
    cluster = Cluster(equal(60, size=50), nodes(2))
    cluster.at(500.0, lambda: cluster.nodes.append(Node("new")))
    wall = cluster.run()
    assert len(cluster.by_node["new"]) > 10 and wall < 30 * 51 * 0.85
    last = Cluster([*equal(8, size=10), checkpoint(99, "org/b", 1_000)], nodes(4))
    wall = last.run()
    assert len([when for when, _ in last.ended if when < 200]) == 2  # one works, one would take over from it


def test_a_cluster_grows_with_the_work_and_shrinks_with_it() -> None:
    new = [Node(f"new{number}", start_seconds=60.0) for number in range(8)]
    cluster = Cluster(equal(40, size=100), [], grows=lambda: new.pop() if new else None)
    cluster.run()
    assert len(cluster.by_node) == 8 and cluster.failed == []


def test_workers_that_are_asked_for_are_waited_for_and_who_waits_is_told() -> None:
    cluster = Cluster(equal(8), [], asked=4)
    for number in range(4):
        cluster.at(200.0, lambda number=number: cluster.nodes.append(Node(str(number))))  # type: ignore[misc]
    cluster.run()
    waited = "0 of 4 workers have started; each of the others waits for 1 CPUs: 0 of 9 CPUs are free"
    assert cluster.said[:6] == [waited] * 6 and len(cluster.by_node) == 4


def test_no_worker_left_ends_a_sweep_and_no_checkpoint_is_blamed() -> None:
    for many, grows in ((3, False), (0, True)):
        count = iter(range(100))

        def lens(count: object = count) -> Node:
            name = f"n{next(count)}"  # type: ignore[call-overload]
            return Node(name, unfit=lambda: unfit(name, "lens", "no lens there"))

        cluster = Cluster(equal(9), [lens() for _ in range(many)], grows=lens if grows else None)
        with pytest.raises(KlrayError, match=r"^no scoring worker is left: node host-n. put aside: no lens there"):
            cluster.run()
        assert cluster.failed == [] and cluster.scored == 0


def test_one_work_on_one_node_is_blamed_only_where_its_node_is_fit() -> None:
    refuse = Refusal("download_failed", "no network")
    cluster = Cluster(equal(3), [Node("only", refuses=lambda work: refuse)])
    cluster.run()
    assert [refusal for _, refusal in cluster.failed] == [refuse] * 3


@pytest.mark.parametrize("seed", range(12))
def test_whatever_nodes_do_each_checkpoint_comes_to_one_end(seed: int) -> None:
    """Nodes that are lost, drained, fall ill, fail now and then, and new ones, by chance."""
    chosen = random.Random(seed)

    def refuses(work: Work) -> Refusal | None:
        reason = chosen.choice(["disk_full", "download_failed", "non_finite", "worker_died"])
        return Refusal(reason, "by chance") if chosen.random() < 0.1 else None  # type: ignore[arg-type]

    made = iter(range(1_000))

    def node() -> Node:
        return Node(f"{next(made):03}", refuses=refuses, start_seconds=5 + 20 * chosen.random())

    cluster = Cluster(mixed(150, 9, seed), [node() for _ in range(6)], overhead=1.0, jitter=0.5)
    first = cluster.nodes[0]  # which nothing happens to, so that there is an end
    for _ in range(60):

        def befall() -> None:
            others = [each for each in cluster.nodes if each is not first and not each.lost]
            if not others or chosen.random() < 0.4:
                cluster.nodes.append(node())
                return
            victim = chosen.choice(others)
            what = chosen.random()
            if what < 0.4:
                cluster.lose(victim)
            elif what < 0.7:
                victim.draining = True
            else:
                victim.unfit = lambda: unfit(victim.name)

        cluster.at(6_000 * chosen.random(), befall)
    cluster.run()
    ended = [
        *(label for labels in cluster.by_node.values() for label in labels),
        *(label for label, _ in cluster.failed),
    ]
    assert sorted(ended) == sorted(each.label for each in cluster.works)
    tally = cluster.dispatch.tally
    assert (tally.done, tally.failed) == (150, len(cluster.failed)) and tally.failed < 60
