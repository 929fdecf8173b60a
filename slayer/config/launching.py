"""Where a run runs, and where its numbers go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.section import Section


class TrackerConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    name: Literal["jsonl", "wandb", "tensorboard", "trackio"] = Field("jsonl", description="jsonl is always written")
    project: str = Field("slayer", description="project name at the tracker")


class LauncherConfig(Section):
    """Where a run runs. What only one of the launchers reads is refused with the other."""

    name: Literal["local", "slurm"] = Field("local", description="this machine, or jobs of SLURM")
    processes: int = Field(1, ge=1, description="ranks on this machine, or on each node")
    port: int = Field(0, ge=0, le=65535, description="local: rendezvous port of the ranks; 0: any free one")
    restarts: int = Field(
        0, ge=0, description="times a run that was killed, hung or (slurm) stopped is started again without having made a step in between"
    )
    nodes: int = Field(1, ge=1, description="slurm: nodes of a job")
    partition: str | None = Field(None, description="slurm: partition; null: the cluster's own choice, as for all that follows")
    account: str | None = Field(None, description="slurm: account that pays")
    qos: str | None = Field(None, description="slurm: quality of service")
    time: str | None = Field(None, description="slurm: limit of one start, HH:MM:SS, D-HH:MM:SS or minutes; the run goes on in the next start")
    gres: str | None = Field(None, description="slurm: generic resources of a node, gpu:8 or gpu:h100:8")
    cpus_per_task: int | None = Field(None, ge=1, description="slurm: cores of each rank")
    memory: str | None = Field(None, description="slurm: memory of a node, 480G; 0: all of it")
    constraint: str | None = Field(None, description="slurm: features that nodes must have")
    exclusive: bool = Field(False, description="slurm: whole nodes, shared with nobody")
    signal_seconds: int = Field(120, ge=1, le=65535, description="slurm: seconds before the time limit at which all ranks are told to save")
    requeue: bool = Field(True, description="slurm: queue a job again that has stopped and saved, or has lost a rank or a node")
    modules: list[str] = Field(default_factory=list, description="slurm: environment modules that the job loads")
    setup: list[str] = Field(default_factory=list, description="slurm: lines of shell that the job runs as they stand, before its ranks")
    container: str | None = Field(
        None, description="slurm: what stands between srun and python, as it stands: apptainer exec --nv IMAGE, or --container-image=IMAGE (pyxis)"
    )
    environment: list[str] = Field(default_factory=list, description="slurm: variables of this shell that the job gets; empty: all of them")
    options: list[str] = Field(default_factory=list, description="slurm: further options of sbatch, each --key=value or --key")
    wait: bool = Field(False, description="slurm: wait for the end of the job (--wait), as sweepers need it that learn from scores")

    @property
    def world(self) -> int:
        """Ranks of a run."""
        return self.nodes * self.processes
