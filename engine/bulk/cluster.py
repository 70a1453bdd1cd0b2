"""The Ray cluster of a run, on loopback where no address is given, and the workers and threads that fit on it."""

from __future__ import annotations

import importlib
import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.bulk.maker import ON_A_GPU, ON_DEVICE
from engine.bulk.run import Run
from engine.commands import install_extra
from engine.errors import ArgumentError, BulkError
from engine.threads import default_threads

LOCAL = "local"
THREADS = 4  # of a worker on a CPU, about: small layers keep no more busy; --threads says otherwise
REACH_SECONDS = 10.0
MIN_STORE = 100 * 2**20  # Ray takes no less than three quarters of it
# A local cluster is for this user alone. Without the second Ray listens on every interface, and tokens are all that keeps
# the network out; it must be set before Ray is imported.
LOCAL_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Cluster:
    """address: "local" starts a cluster on this machine for the run; "auto" or HOST:PORT joins one that runs.

    workers: at most so many; None for as many as fit.
    """

    address: str = LOCAL
    workers: int | None = None

    def __post_init__(self) -> None:
        if "://" in self.address:
            raise ArgumentError(
                f"ray: found the address {self.address!r}, expected HOST:PORT of the cluster's head, 'auto' or nothing; run "
                f"this command on a machine of the cluster (ray job submit does that from outside)"
            )
        if self.workers is not None and self.workers < 1:
            raise ArgumentError(f"workers is {self.workers}; expected at least 1")


@dataclass(frozen=True)
class Place:
    """How many workers there are, and what each of them takes."""

    count: int
    threads: int
    gpu: bool

    @property
    def resources(self) -> dict[str, int]:
        """The same in Ray's words."""
        return {"num_cpus": 1, "num_gpus": 1} if self.gpu else {"num_cpus": self.threads}


def load_ray(cluster: Cluster) -> Any:
    """The package; BulkError with the command that installs it."""
    if cluster.address == LOCAL:
        os.environ.update(LOCAL_ENVIRONMENT)
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise BulkError(
            f"ray: found that it cannot be imported ({error}), expected the package; install it with: "
            f"{install_extra('ray')}"
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


@contextmanager
def connected(ray: Any, cluster: Cluster, run: Run) -> Iterator[None]:
    """Within a cluster: the one that this program is connected to already, or another, which is left at the end."""
    if ray.is_initialized():
        yield
        return
    local = cluster.address == LOCAL
    if not local:
        check_reachable(cluster.address)
    folder = tempfile.mkdtemp(prefix="dv-") if local else None  # short: sockets lie in it, whose paths have a limit
    options = _local_options(cluster, run, str(folder)) if local else {"address": cluster.address}
    try:
        try:
            ray.init(log_to_driver=False, configure_logging=False, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
            raise _no_cluster(cluster.address, error) from error
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def check_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or host in ("localhost", "127.0.0.1", "[::1]"):
        return  # "auto", a name that Ray judges, or one that it takes for the machine's own address
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> BulkError:
    return BulkError(
        f"ray, address {address!r}: found {type(error).__name__}: {str(error)[:300]}; expected a cluster; start one with: "
        f"ray start --head, set RAY_AUTH_MODE=token where it asks for its token, or leave the address out"
    )


def _local_options(cluster: Cluster, run: Run, folder: str) -> dict[str, Any]:
    processors = default_threads()
    workers = cluster.workers or 1
    return {
        "address": LOCAL,
        "num_cpus": max(processors, workers * (run.means.threads or 1)),
        "include_dashboard": False,
        "object_store_memory": _store(run, max(workers, processors)),
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": folder,
    }


def _store(run: Run, workers: int) -> int:
    """Bytes for the bundle, the features' model and every shard that can be under way, with room to spare."""
    job, manifests = run.job, [bundle.manifest for bundle in run.bundles]
    sample = 4096 + math.prod(manifests[-1].pipeline.image_shape)  # the members' headers of a tar, and pixels
    sizes = sum(spec.size for manifest in manifests for spec in manifest.files) + len(run.means.features or b"")
    sizes += sum(np.asarray(given).nbytes for given in run.means.inputs.values())
    return max(MIN_STORE, 2 * (sizes + (2 * workers + 1) * min(job.n, job.shard_size) * sample))


def places(ray: Any, cluster: Cluster, run: Run) -> Place:
    """One worker a GPU where the backend runs there, else the nodes' processors split; BulkError where none fits."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    processors = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if _wants_gpu(run, gpus):
        place = Place(gpus, run.means.threads or 1, True)
    else:
        threads = run.means.threads or _split(min(processors, default=0), cluster)
        place = Place(sum(cpus // threads for cpus in processors), threads, False)
    if not place.count:
        raise BulkError(
            f"ray: found nodes with {processors or 'no'} processors and {gpus} GPUs, expected one with "
            f"{'a GPU' if place.gpu else f'{place.threads} processors'}; give --threads, or another --backend"
        )
    return Place(min(place.count, cluster.workers or place.count), place.threads, place.gpu)


def _wants_gpu(run: Run, gpus: int) -> bool:
    backend = run.means.backend
    if backend == "auto":
        return gpus > 0 and any(name in ON_DEVICE for name in run.bundle.manifest.backends)
    return backend in ON_A_GPU


def _split(processors: int, cluster: Cluster) -> int:
    """Threads of each worker: about THREADS, so that no processor is left over."""
    if cluster.address == LOCAL and cluster.workers is not None:
        return max(1, processors // cluster.workers)
    return max(1, processors // max(1, -(-processors // THREADS)))
