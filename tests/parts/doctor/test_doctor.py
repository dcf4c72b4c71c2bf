import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from lit_guide import __version__
from lit_guide.cli import main
from lit_guide.parts.doctor import attempts as functions
from lit_guide.parts.doctor.attempts import about_torch
from lit_guide.parts.doctor.command import judge, no_gpu, plan, print_report
from lit_guide.parts.doctor.machine import (
    Driver,
    compared,
    cpu,
    dependencies,
    install_torch,
    limits,
    nvidia_driver,
    release,
)
from lit_guide.parts.doctor.trials import Attempt, Verdict, run_groups

posix = pytest.mark.skipif(os.name != "posix", reason="a shell script")
OLD = "| NVIDIA-SMI 470.57.02    Driver Version: 470.57.02    CUDA Version: 11.4     |"
NEW = "| NVIDIA-SMI 610.43.02   KMD Version: 610.43.02     CUDA UMD Version: 13.3     |"
MUTE = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
REINSTALL = "pip install --upgrade --force-reinstall torch torchvision"
BROKEN = """
import os, pathlib, subprocess, sys, time
def works(value):
    print("this is no answer")
    os.system("echo nor is this")
    return {"value": value}
def raises():
    raise ValueError("of course\\nand more")
def dies():
    os._exit(3) if os.name == "nt" else os.kill(os.getpid(), 11)
def leaves():
    sys.stderr.write("something first\\nterminate called\\n")
    sys.stderr.flush()
    os._exit(3)
def hangs(path):
    child = "import pathlib, time\\nwhile True: open(%r, 'a').write('.'); time.sleep(0.02)" % path
    subprocess.Popen([sys.executable, "-c", child])
    time.sleep(600)
def absent():
    from lit_guide.parts.doctor.trials import NotHereError
    raise NotHereError("there is no such thing here")
"""


def results_of(*attempts: Attempt) -> list[Verdict]:
    return asyncio.run(run_groups(attempts))


@pytest.fixture
def beside_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a module where Python finds it before the installed one of that name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)

    def write(name: str, text: str) -> None:
        (folder / f"{name}.py").write_text(text)

    return write


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A real program of that name, the first on PATH, that prints a text."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(text: str) -> None:
        script = folder / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        script.chmod(0o755)

    return write


def test_doctor_help_imports_no_torch() -> None:
    code = "import sys; from lit_guide.cli import main\ntry: main(['doctor', '--help'])\n"
    code += "finally: print('torch' in sys.modules, 'lightning' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: lit-guide doctor [--json]")
    assert done.stdout.splitlines()[-1] == "False False False"


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--jsn"]) == 2
    assert "--json" in capsys.readouterr().err


@pytest.mark.slow
def test_an_attempt_that_raises_dies_or_hangs_costs_its_own_verdict_alone(
    beside_torch: Callable[[str, str], None], tmp_path: Path
) -> None:
    beside_torch("broken", BROKEN)
    beats = tmp_path / "beats"
    attempts = [
        Attempt("one", "broken:works", (1,)),
        Attempt("raises", "broken:raises"),
        Attempt("dies", "broken:dies"),
        Attempt("two", "broken:works", (2,)),
        Attempt("leaves", "broken:leaves"),
        Attempt("hangs", "broken:hangs", (str(beats),), 2),
        Attempt("absent", "broken:absent"),
        Attempt("nowhere", "broken:nowhere"),
        Attempt("three", "broken:works", (3,)),
    ]
    before = time.perf_counter()
    results = results_of(*attempts)
    assert time.perf_counter() - before < 60  # and not the 600 s of the one that hangs
    assert [result.name for result in results] == [a.name for a in attempts]
    assert [result.value for result in results if result.value] == [{"value": 1}, {"value": 2}, {"value": 3}]
    errors = {result.name: result.reason for result in results if result.state == "no"}
    assert set(errors) == {"raises", "dies", "leaves", "hangs", "nowhere"}
    assert errors["raises"] == "ValueError: of course\nand more"
    assert errors["dies"] == ("its process ended with exit code 3" if os.name == "nt" else "its process was ended by SIGSEGV")
    assert errors["leaves"] == "its process ended with exit code 3: terminate called"
    assert errors["hangs"] == "did not finish in 2 s"
    assert "nowhere" in str(errors["nowhere"])
    assert results[6].reason == "there is no such thing here"
    verdicts = {result.name: judge(result, None) for result in results}
    assert (verdicts["raises"].state, verdicts["raises"].reason) == ("no", "ValueError: of course")
    assert (verdicts["hangs"].state, verdicts["hangs"].seconds) == ("no", 2)
    assert (verdicts["absent"].state, verdicts["one"].state) == ("not here", "ok")
    size = beats.stat().st_size  # what the hanging attempt had started is ended too
    assert size > 0
    time.sleep(0.3)
    assert beats.stat().st_size == size


def test_a_torchvision_that_does_not_fit_torch_is_named_with_the_command(beside_torch: Callable[[str, str], None]) -> None:
    beside_torch("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    results = results_of(Attempt("torchvision", "torchvision_operator"), Attempt("decode a JPEG", "decode_jpeg"))
    for verdict in [judge(result, None) for result in results]:
        assert (verdict.state, verdict.needed, verdict.mend) == ("no", True, REINSTALL)
        assert verdict.reason == "RuntimeError: operator torchvision::nms does not exist"


@posix
def test_doctor_runs_where_torch_can_not_be_imported(
    beside_torch: Callable[[str, str], None], nvidia_smi: Callable[[str], None], tmp_path: Path
) -> None:
    beside_torch("torch", "raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    nvidia_smi("| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: 12.4     |")
    command = [sys.executable, "-m", "lit_guide", "doctor"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "lit-guide: This machine should do these, and does not: torch.\n"
    report = json.loads(done.stdout)
    (torch_,) = report["features"]
    assert (torch_["state"], torch_["needed"]) == ("no", True)
    assert torch_["reason"] == "ImportError: libcudart.so.13: cannot open shared object file"
    assert torch_["mend"] == f"{REINSTALL} --index-url https://download.pytorch.org/whl/cu126"
    assert report["driver"] == {"version": "550.54.14", "cuda": "12.4", "error": None}
    assert report["torch"] is None
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "torch: no: ImportError: libcudart.so.13" in done.stdout
    assert f"\n  try: {torch_['mend']}\n" in done.stdout
    assert "550.54.14, for CUDA up to 12.4" in done.stdout


@posix
@pytest.mark.parametrize(
    ("said", "version", "cuda"), [(OLD, "470.57.02", "11.4"), (NEW, "610.43.02", "13.3"), (MUTE, None, None)]
)
def test_the_driver_is_what_nvidia_smi_says(
    said: str, version: str | None, cuda: str | None, nvidia_smi: Callable[[str], None]
) -> None:
    nvidia_smi(said)
    driver = nvidia_driver()
    assert driver is not None
    assert driver.cuda == cuda
    assert driver.version == version or version is None  # then /proc may still know it
    assert driver.error == (MUTE if said == MUTE else None)


@posix
def test_a_driver_too_old_for_the_build_names_both_and_what_fits(
    nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi(OLD)
    about = {"cuda_build": "13.2", "cuda_error": "The NVIDIA driver on your system is too old", "devices": []}
    verdict = no_gpu(about, nvidia_driver())
    assert (verdict.state, verdict.needed) == ("no", True)
    assert verdict.reason == "this torch is built for CUDA 13.2; driver 470.57.02 knows CUDA up to 11.4"
    assert verdict.mend == f"a driver of version 580 or later, then: {REINSTALL}"


@pytest.mark.parametrize(
    ("build", "driver", "state", "mend"),
    [
        ("13.2", None, "not here", None),
        ("13.2", Driver(error=MUTE), "not here", None),
        ("CPU only", Driver("535.1", "12.2"), "no", f"{REINSTALL} --index-url https://download.pytorch.org/whl/cu126"),
        ("13.2", Driver("570.1", "12.8"), "no", f"{REINSTALL} --index-url https://download.pytorch.org/whl/cu128"),
        ("12.6", Driver("535.1", "12.2"), "no", "nvidia-smi; in Docker: docker run --gpus all"),  # 12.x runs 12.y
    ],
)
def test_why_there_is_no_gpu(
    build: str, driver: Driver | None, state: str, mend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    verdict = no_gpu({"cuda_build": build, "cuda_error": "No CUDA GPUs are available"}, driver)
    assert (verdict.state, verdict.mend, verdict.needed) == (state, mend, state == "no")


def test_a_gpu_that_the_user_hides_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    verdict = no_gpu({"cuda_build": "13.2", "cuda_error": "No CUDA GPUs are available"}, Driver("580.1", "13.0"))
    assert (verdict.state, verdict.needed, verdict.reason) == ("not here", False, "CUDA_VISIBLE_DEVICES is '-1'")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the plain command installs a build without CUDA")
def test_a_new_driver_takes_the_plain_command() -> None:
    assert install_torch(Driver("580.65.06", "13.0")) == install_torch(None) == REINSTALL


def test_a_precision_that_takes_much_longer_is_slow() -> None:
    verdict = judge(Verdict("bf16-mixed on cpu", "ok", 2.0, value=0.5), None, plain_s=0.05)
    assert (verdict.state, verdict.reason) == ("slow", "a step takes 10 times as long as in 32-true")
    assert judge(Verdict("bf16-mixed on cpu", "ok", 2.0, value=0.1), None, plain_s=0.05).state == "ok"
    assert judge(Verdict("train on cpu", "ok", 2.0, value=0.5), None, plain_s=0.05).state == "ok"  # plain_s is of another device


def test_every_device_is_tried() -> None:
    names = [attempt.name for group in plan(["cuda:0", "cuda:1"]) for attempt in group]
    assert {"train on cpu", "train on cuda:0", "train on cuda:1", "16-true on cuda:0", "ddp on 2 x cuda"} <= set(names)
    attempts = [attempt for group in plan(["mps"]) for attempt in group]
    assert {"train on cpu", "train on mps", "bf16-mixed on mps", "ddp on 2 x cpu"} <= {attempt.name for attempt in attempts}
    assert all(callable(getattr(functions, attempt.call)) for attempt in attempts)


def test_dependencies_are_those_installed_against_those_tested() -> None:
    found = {entry["name"]: entry for entry in dependencies()}
    assert {"torch", "lightning", "torchvision", "onnxruntime", "jsonargparse"} <= set(found)
    assert "pytest" not in found
    assert all(entry["version"] == metadata.version(str(name)) for name, entry in found.items())
    pinned = (Path(__file__).parents[3] / "constraints.txt").read_text()
    assert found["torch"]["tested"] == re.findall(r"^torch==(.+)$", pinned, re.MULTILINE)[0]
    assert found["pyyaml"]["tested"] == re.findall(r"^PyYAML==(.+)$", pinned, re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("version", "tested", "state"),
    [
        ("2.6.6", "2.6.6", "tested"),
        ("2.10.0+cu130", "2.10", "tested"),
        ("2.10.0", "2.9.1", "newer"),
        ("2.6.6", "2.7", "older"),
        ("2.6.6", None, "in the range"),
        ("2.6.5", "2.6.6", "too old: it takes 2.6.6 or later"),
        ("3.0", "2.6.6", "too new: it takes one before 3"),
        (None, "2.6.6", "missing"),
    ],
)
def test_a_version_is_compared_with_the_requirement_and_the_tested_one(
    version: str | None, tested: str | None, state: str
) -> None:
    assert compared(version, Requirement("lightning>=2.6.6,<3"), tested) == state


def test_numbers_of_a_version() -> None:
    assert release("2.10.0+cu130") == release("2.10.0a0+git") == release("2.10")
    assert release("20.0") == release("20")
    assert release("2.9") < release("2.10")
    assert release("CPU only") == release("0")


def test_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    processor, limit = cpu(), limits()
    assert processor["model"]
    if hasattr(os, "sched_getaffinity"):
        assert processor["cores"] == len(os.sched_getaffinity(0))
    if processor["avx2"] is not None and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert processor["avx2"] is True
    assert limit["free_disk_gb"] > 0
    if sys.platform == "linux":
        size = os.statvfs("/dev/shm")
        assert limit["shm_gb"] == round(size.f_blocks * size.f_frsize / 1e9, 2)
        shell = subprocess.run(["sh", "-c", "ulimit -n"], capture_output=True, text=True, check=True).stdout.strip()
        assert str(limit["open_files"]) == shell or shell == "unlimited"


def test_what_torch_says_of_itself() -> None:
    about = about_torch()
    assert about["torch"] == torch.__version__
    assert about["cuda_build"] == (torch.version.cuda or "CPU only")
    assert len([d for d in about["devices"] if d["device"] != "mps"]) == torch.cuda.device_count()
    assert about["threads"] == torch.get_num_threads()
    json.dumps(about)


def test_the_tables_fit_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    gpu = {"device": "cuda:0", "name": "NVIDIA H100 80GB HBM3", "memory_gb": 85.0, "capability": "9.0"}
    verdict = {"name": "torch.compile", "state": "no", "seconds": 1.0, "reason": "[no] compiler", "mend": "x" * 90}
    report = {"version": __version__, "python": "3.11.7", "system": "Linux-" + "6" * 90, "torch": "2.15.0", "cuda_build": "13.2"}
    report |= {"driver": {"version": "580.1", "cuda": "13.0", "error": None}, "cudnn": "9.2.0", "nccl": None, "devices": [gpu]}
    report |= {"cpu": {**cpu(), "threads": 2, "torch": "AVX512"}, "limits": limits(), "dependencies": dependencies()}
    print_report({**report, "features": [verdict]})
    assert "affinity" not in capsys.readouterr().out  # without the part that knows of it
    cores = {"usable": 16, "quota": 1.5, "load": 0.4, "most_threads": 1}
    print_report({**report, "cores": cores, "features": [verdict]})
    out = capsys.readouterr().out
    assert "16 by affinity, quota 1.5, load 0.4: trains with 1 threads" in out
    tables, _, reasons = out.partition("torch.compile: no")
    assert max(len(line) for line in tables.splitlines()) <= 80
    assert reasons == ": [no] compiler\n  try: " + "x" * 90 + "\n"  # a command is never broken
    assert "NVIDIA H100 80GB HBM3, 85.0 GB, capability 9.0" in out


@pytest.mark.slow
@posix
def test_compile_without_a_compiler_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (result,) = results_of(Attempt("torch.compile", "compile_network", ("cpu",), limit_s=90))
    verdict = judge(result, None)
    assert (verdict.state, verdict.needed) == ("no", False)
    assert "No working C++ compiler found" in str(verdict.reason)
    assert verdict.mend == {"darwin": "xcode-select --install"}.get(sys.platform, "sudo apt install g++")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_a_shared_memory_of_64_mb_is_too_small() -> None:
    small = "mount -t tmpfs -o size=64m tmpfs /dev/shm"  # Docker's default
    if subprocess.run(["unshare", "-rm", "sh", "-c", small], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system of their own")
    code = "import asyncio, json; from lit_guide.parts.doctor.trials import Attempt, run_groups\n"
    code += "(result,) = asyncio.run(run_groups([Attempt('loader', 'load_with_workers')])); print(json.dumps(result))"
    command = ["unshare", "-rm", "sh", "-c", f'{small} && exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    verdict = judge(Verdict(*json.loads(done.stdout)), None)
    assert verdict.state == "no"
    assert verdict.mend == "--data.num_workers 0; in Docker: docker run --shm-size=8g"


@pytest.mark.slow
def test_the_whole_doctor_from_another_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lit_guide", "doctor", "--json"]
    before = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert time.perf_counter() - before < 180  # under 40 s on two idle cores
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.iterdir())
    report = json.loads(done.stdout)
    assert (report["version"], report["torch"]) == (__version__, torch.__version__)
    states = {feature["name"]: Verdict(**feature) for feature in report["features"]}
    working = ["torch", "torchvision", "decode a JPEG", "train on cpu", "ddp on 2 x cpu", "loader processes"]
    working += [f"export {format}" for format in ("torchscript", "onnx", "pt2")]
    assert {name: states[name].state for name in working if states[name].state not in ("ok", "slow")} == {}
    assert {name for name, verdict in states.items() if verdict.needed} >= {"decode a JPEG", "train on cpu", "export onnx"}
    if not report["devices"]:
        assert states["16-mixed on cpu"].state == "not here"
        assert states["train on a GPU"].state == "not here"
