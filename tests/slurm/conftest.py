"""One cluster for all tests of SLURM, where one can be started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_cluster import local_cluster, why_not
from slurm_workspace import Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A login node of a cluster of two nodes."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch, local_cluster() as cluster:
        for name in ("PATH", "SLURM_CONF"):  # squeue is asked from this process, too
            patch.setenv(name, cluster.environment[name])
        yield Workspace(cluster, tmp_path_factory.mktemp("login"))
