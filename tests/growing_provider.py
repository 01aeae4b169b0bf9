"""A provider for Ray's autoscaler that runs ``ray start --block`` on this machine for every node that is wanted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

KIND = "small"
ID = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
# Of a head: nodes are known by the ids that they are given, and looked after every second.
HEAD = {"RAY_FAKE_CLUSTER": "1", ID: FAKE_HEAD_NODE_ID, "AUTOSCALER_UPDATE_INTERVAL_S": "1"}


class Provider(FakeMultiNodeProvider):
    """Nodes are processes."""

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: dict[str, float], labels: object
    ) -> None:
        """Start so many nodes."""
        for _ in range(count):
            node = self._next_hex_node_id()
            environment = {**os.environ, ID: node}
            environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
            words = f"--address={self._gcs_address} --num-cpus={int(resources['CPU'])} --node-ip-address=127.0.0.1"
            ray = str(Path(sys.executable).with_name("ray"))
            process = subprocess.Popen(
                [ray, "start", "--block", "--disable-usage-stats", *words.split()],
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            own = {"ray-node-kind": "worker", "ray-user-node-type": KIND, "ray-node-name": node}
            self._nodes[node] = {"tags": {**tags, **own, "ray-node-status": "up-to-date"}, "process": process}

    def terminate_node(self, node_id: str) -> None:
        """End one."""
        if (node := self._nodes.pop(node_id, None)) is not None:
            os.killpg(node["process"].pid, signal.SIGTERM)


def config(address: str, most: int) -> str:
    """The autoscaler's, in YAML: a head without CPUs at an address, and at most so many nodes with one CPU each."""
    no_lists = ("cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
                "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude",
                "rsync_filter")  # fmt: skip
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
        KIND: {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": most, "node_config": {}},
    }
    provider = {
        "type": "external", "module": f"tests.growing_provider.{Provider.__name__}", "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": address, "disable_node_updaters": True, "disable_launch_config_check": True,
        "worker_liveness_check": False,
    }  # fmt: skip
    return yaml.safe_dump(
        {
            "cluster_name": "growing", "max_workers": most, "upscaling_speed": 100.0, "idle_timeout_minutes": 0.1,
            "docker": {}, "auth": {}, "file_mounts": {}, "file_mounts_sync_continuously": False, "provider": provider,
            "available_node_types": kinds, "head_node_type": "ray.head.default", **{name: [] for name in no_lists},
        }
    )  # fmt: skip
