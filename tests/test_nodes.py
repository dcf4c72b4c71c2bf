"""More than one machine: network namespaces as nodes, one cut off and one killed; SLURM's script; the Kubernetes manifest."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser

from tests.conftest import Run

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FIT = ["--config", "configs/digits.yaml", "--config", "configs/device/multinode.yaml", "--accelerator", "cpu"]
# 10 steps an epoch, so that most of these checkpoints lie in the middle of one.
SHORT = ["--trainer.max_epochs", "24", "--checkpoint.every_n_steps", "7"]
SHORT += [f"--export.{name}.enabled=false" for name in ("onnx", "torchscript", "pt2")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
GONE = "lit-guide: Another process of this run ended or can't be reached"


class Nodes:
    """Two network namespaces joined by a cable: 10.77.0.1 and 10.77.0.2."""

    def __init__(self) -> None:
        self.names = [f"node{rank}-{os.getpid()}" for rank in (0, 1)]
        self.agents: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Nodes":
        try:
            for name in self.names:
                self.ip("netns", "add", name)
            one, other = self.names
            self.ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other)
            for rank, name in enumerate(self.names):
                self.ip("-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", "eth0")
                self.ip("-n", name, "link", "set", "lo", "up")
                self.ip("-n", name, "link", "set", "eth0", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            pytest.skip(f"no network namespace can be made here: {getattr(error, 'stderr', None) or error}")
        return self

    def __exit__(self, *_: object) -> None:
        for rank in (0, 1):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                for pid in self.pids(rank):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        for agent in self.agents:
            agent.wait()
        for name in self.names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                self.ip("netns", "del", name)

    @staticmethod
    def ip(*args: str) -> str:
        return subprocess.run(["ip", *args], check=True, capture_output=True, text=True, timeout=30).stdout

    def pids(self, rank: int) -> list[int]:
        return [int(pid) for pid in self.ip("netns", "pids", self.names[rank]).split()]

    def workers(self, rank: int) -> list[int]:
        """The processes of `fit` on a node that are alive."""
        agent = self.agents[rank].pid
        parents = {pid: _status(pid) for pid in self.pids(rank)}
        return [pid for pid, (state, parent) in parents.items() if parent == agent and state not in "ZX"]

    def cable(self, state: str) -> None:
        self.ip("-n", self.names[1], "link", "set", "eth0", state)

    def start(self, rank: int, log: Path, fit: list[str]) -> None:
        command = ["ip", "netns", "exec", self.names[rank], sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-conf", f"read_timeout=300,is_host={1 - rank}"]
        command += ["--local-addr", f"10.77.0.{rank + 1}", "-m", "lit_guide", "fit", *fit]
        more = {"GLOO_SOCKET_IFNAME": "eth0", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with log.open("wb") as file:
            agent = subprocess.Popen(command, cwd=log.parent, stdout=file, stderr=file, env=ENVIRONMENT | more)
        self.agents.append(agent)


def _status(pid: int) -> tuple[str, int]:
    """State (Z: ended, and nobody has asked how) and parent of a process; X where there is none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)


def wait(until: Callable[[], Any], seconds: float) -> float:
    """Seconds until a condition holds; the test fails where it does not in time."""
    began = time.monotonic()
    while not until():
        assert time.monotonic() - began < seconds, f"still waiting after {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - began


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return {"step": torch.tensor(checkpoint["global_step"]), **checkpoint["state_dict"]}


def assert_same_run(run_dir: Path, other: Path) -> None:
    """The same weights and, once for each epoch, the same training loss, to the last bit."""
    ours, theirs = weights(run_dir), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert losses(run_dir) == losses(other)


def losses(run_dir: Path) -> list[tuple[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [(row["epoch"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fit = [*FIT, *SHORT, "--trainer.num_nodes", "1", "--devices", "2", "--run_dir", "run"]
    command = [sys.executable, "-m", "lit_guide", "fit", *fit]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are a part of Linux")
def test_f19_a_node_cut_off_and_a_rank_killed_leave_the_weights_of_an_undisturbed_run(undisturbed: Path, tmp_path: Path) -> None:
    fit, logs = [*FIT, *SHORT, "--devices", "1", "--run_dir", "run", "--resume", "true"], [tmp_path / "0.log", tmp_path / "1.log"]

    def told(epoch: int) -> bool:  # rank 0 may be on either node
        return any(f"epoch {epoch}/" in log.read_text() for log in logs)

    with Nodes() as nodes:
        for rank in (0, 1):
            nodes.start(rank, logs[rank], fit)
        wait(lambda: told(4), 60)
        before = [nodes.workers(rank) for rank in (0, 1)]
        assert [len(pids) for pids in before] == [1, 1]
        nodes.cable("down")
        cut = wait(lambda: not any(_status(pid)[0] not in "ZX" for pids in before for pid in pids), 60)
        assert all(GONE in log.read_text() for log in logs)
        nodes.cable("up")

        wait(lambda: told(14), 90)
        sizes = [len(log.read_text()) for log in logs]
        (alive,), (victim,) = nodes.workers(0), nodes.workers(1)
        os.kill(victim, signal.SIGKILL)
        killed = wait(lambda: _status(alive)[0] in "ZX", 60)
        assert GONE in logs[0].read_text()[sizes[0] :]

        wait(lambda: all(agent.poll() is not None for agent in nodes.agents), 60)
    print(f"ended {cut:.1f} s after the cut, {killed:.1f} s after the kill")
    assert [agent.returncode for agent in nodes.agents] == [0, 0], logs[0].read_text() + logs[1].read_text()
    assert_same_run(tmp_path / "run", undisturbed)


SRUN = """#!/bin/bash
# Two tasks on two nodes, as SLURM starts them; in the first start of the job its time is soon up.
while [[ $1 == -* ]]; do shift; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
  pids+=($!)
done
if [ "$SLURM_RESTART_COUNT" = 0 ]; then
  until [ -f "runs/$SLURM_JOB_ID/checkpoints/last.ckpt" ]; do sleep 0.1; done
  kill -USR1 "${pids[@]}"
fi
highest=0
for pid in "${pids[@]}"; do
  wait "$pid"
  code=$?
  ((code > highest)) && highest=$code
done
exit $highest
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_f04_slurms_warning_saves_and_queues_the_job_again(undisturbed: Path, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >> requeued\n'}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = str(os.getpid())
    slurm = {"JOB_ID": job, "JOB_NAME": "train", "NNODES": "2", "NTASKS": "2", "NTASKS_PER_NODE": "1", "CPUS_PER_TASK": "1"}
    slurm |= {"NODELIST": "127.0.0.1"}
    environment = ENVIRONMENT | {f"SLURM_{key}": value for key, value in slurm.items()} | {"PYTHON": sys.executable}
    environment["PATH"] = f"{commands}{os.pathsep}{os.environ['PATH']}"
    submitted = ["bash", str(DEPLOY / "slurm.sbatch"), "--config", "configs/digits.yaml", "--accelerator", "cpu", *SHORT]

    def start(count: int) -> subprocess.CompletedProcess[str]:
        more = {"SLURM_RESTART_COUNT": str(count)}
        return subprocess.run(
            submitted, cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=120, check=False
        )

    first = start(0)
    assert first.returncode == 143, first.stdout + first.stderr
    assert (tmp_path / "requeued").read_text() == f"requeue {job}\n"
    run_dir = tmp_path / "runs" / job
    assert 0 < int(weights(run_dir)["step"]) < int(weights(undisturbed)["step"])
    again = start(1)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "requeued").read_text() == f"requeue {job}\n"  # not once more
    assert_same_run(run_dir, undisturbed)


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_what_slurm_is_asked_for_is_what_the_script_counts_on() -> None:
    script = (DEPLOY / "slurm.sbatch").read_text()
    asked = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert {"--nodes=2", "--ntasks-per-node=1", "--signal=USR1@120", "--requeue", "--open-mode=append"} <= set(asked)
    assert subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sbatch")], check=False).returncode == 0


def test_the_kubernetes_manifest_starts_fit_with_settings_that_parse(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = yaml.safe_load((DEPLOY / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    policy, worker = job["spec"]["elasticPolicy"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    # As the operator does it.
    conf = ",".join(f"{pair['key']}={pair['value']}" for pair in policy["rdzvConf"])
    nodes, devices = f"{policy['minReplicas']}:{policy['maxReplicas']}", job["spec"]["nprocPerNode"]
    given = {"NNODES": nodes, "NPROC_PER_NODE": devices, "MAX_RESTARTS": str(policy["maxRestarts"]), "RDZV_CONF": conf}
    for key, value in given.items():
        monkeypatch.setenv(f"PET_{key}", value)
    assert container["command"] == ["python", "-m", "torch.distributed.run"]
    torchrun = get_args_parser().parse_args(container["args"])
    assert torchrun.training_script == "lit_guide"
    assert (torchrun.module, torchrun.rdzv_conf) == (True, conf)
    assert (torchrun.nnodes, torchrun.nproc_per_node) == (nodes, devices)

    command, *flags = torchrun.training_script_args
    assert flags[-2:] == ["--resume", "true"]
    outcome = run(command, *flags, "--print_config")
    assert outcome.code == 0, outcome.err
    trainer = yaml.safe_load(outcome.out)["trainer"]
    assert policy["minReplicas"] == policy["maxReplicas"] == worker["replicas"] == trainer["num_nodes"]
    limits = container["resources"]["limits"]
    assert int(devices) == limits["nvidia.com/gpu"] == int(trainer["devices"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert flags[flags.index("--run_dir") + 1].startswith(mounts["runs"] + "/")


@pytest.mark.parametrize("overlay", ["multinode", "slurm"])
def test_the_wait_for_other_processes_is_well_below_a_minute_and_a_flag_changes_it(run: Run, overlay: str) -> None:
    args = ["fit", "--config", "configs/digits.yaml", "--config", f"configs/device/{overlay}.yaml", "--print_config"]
    settings = yaml.safe_load(run(*args).out)
    assert settings["trainer"]["strategy"]["init_args"]["timeout"] == "0:00:40"
    assert settings["checkpoint"]["every_n_steps"] == 100
    slower = yaml.safe_load(run(*args[:-1], "--trainer.strategy.timeout", "0:30:00", args[-1]).out)
    assert slower["trainer"]["strategy"]["init_args"]["timeout"] == "0:30:00"


def test_resume_starts_anew_what_broke_off_before_its_first_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("name: digits\n")
    (tmp_path / "run" / "metrics.csv").write_text("epoch,step,train/loss\n0,9,123.0\n")
    fit = ["fit", "--config", "configs/digits.yaml", "--accelerator", "cpu", "--run_dir", "run", "--trainer.max_epochs", "1"]
    fit += SHORT[2:]
    assert run(*fit).code == 2  # without --resume nothing of it is touched
    assert run(*fit, "--resume", "true").code == 0
    assert [epoch for epoch, _ in losses(tmp_path / "run")] == ["0"]  # and the row of the broken one is gone
    assert losses(tmp_path / "run")[0][1] != "123.0"
