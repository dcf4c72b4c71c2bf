import contextlib
import errno
import functools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.run import runs
from lit_guide.engine.run.runs import (
    LAST,
    RUN_DIR_VARIABLE,
    claim_run_dir,
    enter_run_dir,
    find_run,
    how_to_go_on,
    leave_run_dir,
    release_run_dir,
    update_results,
)


@pytest.fixture(autouse=True)
def single_process(monkeypatch, tmp_path):
    """No launcher's variables, and an empty current directory."""
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    for name in (RUN_DIR_VARIABLE, *launchers):
        monkeypatch.setenv(name, "")  # delenv alone would not undo what claim_run_dir sets
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run_at(path, age, checkpoint=runs.BEST):
    """A run directory whose checkpoint was written `age` seconds ago."""
    (path / checkpoint).parent.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text("name: x\n")
    (path / checkpoint).write_bytes(b"weights")
    written = time.time() - age
    os.utime(path / checkpoint, (written, written))
    return path


# Claiming


def test_default_is_runs_name_timestamp_below_the_current_directory():
    before = time.strftime("%Y-%m-%d_%H-%M-%S")
    path = claim_run_dir(None, "digits")
    after = time.strftime("%Y-%m-%d_%H-%M-%S")
    assert path.is_absolute()
    assert path.parent == Path.cwd() / "runs" / "digits"
    assert before <= path.name <= after
    assert [child.name for child in path.iterdir()] == ["checkpoints"]
    assert not any((path / "checkpoints").iterdir())


def test_f25_claims_within_a_second_give_each_its_own_directory():
    if time.time() % 1 > 0.5:
        time.sleep(0.51)
    paths = [claim_run_dir(None, "digits") for _ in range(4)]
    assert len(set(paths)) == 4
    stamp = paths[0].name
    assert [path.name for path in paths] == [stamp, f"{stamp}-1", f"{stamp}-2", f"{stamp}-3"]
    assert all((path / "checkpoints").is_dir() for path in paths)


def test_a_given_directory_is_made_with_its_parents():
    path = claim_run_dir("some/where", "digits")
    assert path == Path.cwd() / "some" / "where"
    assert list(files_below(path)) == ["checkpoints"]


def test_a_given_directory_that_is_empty_is_taken():
    Path("mine").mkdir()
    assert claim_run_dir("mine", "digits") == Path.cwd() / "mine"
    assert list(files_below(Path("mine"))) == ["checkpoints"]


@pytest.mark.parametrize("content", ["config.yaml", "checkpoints/last.ckpt", ".hidden"])
def test_f25_a_given_directory_that_holds_something_is_refused_and_unchanged(content):
    file = Path("mine") / content
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    before = files_below(Path("mine"))
    with pytest.raises(ConfigError, match=r"--run_dir mine .*fit --run mine") as caught:
        claim_run_dir("mine", "digits")
    assert caught.value.exit_code == 2
    assert files_below(Path("mine")) == before


def test_f25_a_directory_that_another_run_just_took_is_refused():
    claim_run_dir("mine", "digits")
    before = files_below(Path("mine"))
    with pytest.raises(ConfigError, match="already holds a run"):
        claim_run_dir("mine", "digits")
    assert files_below(Path("mine")) == before


def test_f25_a_file_in_the_place_of_the_directory_is_refused_and_kept():
    Path("mine").write_text("precious")
    with pytest.raises(ConfigError, match="mine"):
        claim_run_dir("mine", "digits")
    assert Path("mine").read_text() == "precious"


RACER = """
import sys, time
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.run.runs import claim_run_dir

def claim(run_dir):
    try:
        print(claim_run_dir(run_dir, "race"), flush=True)
    except ConfigError:
        print("refused", flush=True)

def ready():
    print("ready", flush=True)
    return input()

"""
HELD = """
def hold(event, args):
    if event == "os.mkdir" and str(args[0]).endswith("checkpoints"):
        ready()

sys.addaudithook(hold)
claim("race")
"""
AT_ONCE = """
start = float(ready())
for index in range(40):
    while time.time() < start + index * 0.002:
        pass
    claim(None)
"""


def race(script):
    """What each of two processes prints that go on together, once both are ready."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", RACER + script]
        open_process = functools.partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        racers = [stack.enter_context(open_process(command)) for _ in range(2)]
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
        start = f"{time.time() + 0.1}\n"
        for racer in racers:
            racer.stdin.write(start)
            racer.stdin.close()
        printed = [racer.stdout.read().splitlines() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    return printed


@pytest.mark.parametrize("exists", [False, True])
def test_f25_of_two_processes_that_found_the_directory_empty_exactly_one_gets_it(exists):
    if exists:
        Path("race").mkdir()
    mine, theirs = race(HELD)  # both are held where they are about to make checkpoints/ in it
    assert sorted(mine + theirs) == [str(Path.cwd() / "race"), "refused"]


def test_f25_two_processes_that_race_for_the_default_never_share_one():
    mine, theirs = race(AT_ONCE)
    assert len({*mine, *theirs}) == len(mine) + len(theirs) == 80
    assert "refused" not in mine + theirs


@pytest.mark.parametrize("name", ["../x", "..", "a/../../x", "/x", "", ".", "a/b"])
def test_a_name_that_would_leave_its_place_below_runs_is_refused(name, tmp_path, monkeypatch):
    # "." and "a/b" would put the run where `--run latest` does not look.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="--name"):
        claim_run_dir(None, name)
    assert list(files_below(tmp_path)) == ["here"]


@pytest.mark.parametrize("name", ["digits", "résumé 2", "-x", "a..b"])
def test_a_plain_name_is_used_as_it_is(name):
    path = claim_run_dir(None, name)
    assert path.parent == Path.cwd() / "runs" / name
    assert path.is_dir()


# Several processes


def test_a_process_that_lightning_starts_shares_the_first_ones_directory(monkeypatch):
    path = claim_run_dir(None, "digits")
    assert os.environ[RUN_DIR_VARIABLE] == str(path)
    before = files_below(Path.cwd())
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert claim_run_dir(None, "digits") == path
    assert files_below(Path.cwd()) == before


def test_f25_a_second_run_of_the_same_process_does_not_share_the_firsts_directory():
    assert claim_run_dir("first", "digits") != claim_run_dir("second", "digits")
    assert os.environ[RUN_DIR_VARIABLE] == str(Path.cwd() / "second")


def test_under_torchrun_a_directory_must_be_given(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="--run_dir"):
        claim_run_dir(None, "digits")
    assert not any(Path.cwd().iterdir())


def test_under_torchrun_rank_0_makes_the_directory_and_the_others_get_the_same(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert claim_run_dir("shared", "digits") == Path.cwd() / "shared"
    assert not Path("shared").exists()  # rank 1 came first and left it to rank 0
    monkeypatch.setenv("RANK", "0")
    assert claim_run_dir("shared", "digits") == Path.cwd() / "shared"
    monkeypatch.setenv("RANK", "1")
    assert claim_run_dir("shared", "digits") == Path.cwd() / "shared"
    assert list(files_below(Path("shared"))) == ["checkpoints"]


def test_under_slurm_the_other_tasks_get_the_first_ones_directory(monkeypatch):
    claim_run_dir("shared", "digits")
    monkeypatch.delenv(RUN_DIR_VARIABLE)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert claim_run_dir("shared", "digits") == Path.cwd() / "shared"


def test_on_the_second_machine_of_two_the_first_process_takes_the_given_directory_and_tells_its_others(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("NODE_RANK", "1")
    with pytest.raises(ConfigError, match="--run_dir"):
        claim_run_dir(None, "digits")
    Path("shared/checkpoints").mkdir(parents=True)  # the first machine was here
    assert claim_run_dir("shared", "digits") == Path.cwd() / "shared"
    monkeypatch.setenv("LOCAL_RANK", "0")  # as it may be started too
    assert claim_run_dir("shared", "digits") == Path.cwd() / "shared"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runs.started_by_lightning()


# Two at once

GOES_ON = """
import sys
from pathlib import Path
from lit_guide.engine.errors import ConfigError
from lit_guide.engine.run.runs import enter_run_dir
try:
    enter_run_dir(Path("run"))
    print("in", flush=True)
    sys.stdin.read()
except ConfigError as error:
    print(error, flush=True)
"""


@contextlib.contextmanager
def another_run_in_it(**variables):
    """A process that goes on with the run in run/ and says whether it may."""
    command = [sys.executable, "-c", GOES_ON]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | variables
    ) as process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="no lock on directories")
def test_f25_a_run_that_another_process_goes_on_with_is_refused_until_that_one_is_killed():
    Path("run/checkpoints").mkdir(parents=True)
    with another_run_in_it() as (process, said):
        assert said == "in\n"
        with pytest.raises(ConfigError, match=r"run is in use: .*stop it first"):
            enter_run_dir(Path("run"))
        assert RUN_DIR_VARIABLE not in os.environ
        with pytest.raises(ConfigError, match="in use"):
            claim_run_dir("run", "digits", resume=True)
        process.kill()
        process.wait()
        enter_run_dir(Path("run"))
    assert os.environ[RUN_DIR_VARIABLE] == "run"
    assert list(files_below(Path("run"))) == ["checkpoints"]


@pytest.mark.skipif(sys.platform == "win32", reason="no lock on directories")
def test_f25_a_run_is_held_from_its_start_to_its_end_and_by_its_first_process_alone():
    claim_run_dir("run", "digits")
    for variables, may in [({}, False), ({"RANK": "1"}, True), ({"LOCAL_RANK": "1"}, True), ({"NODE_RANK": "1"}, True)]:
        with another_run_in_it(**variables) as (_, said):
            assert (said == "in\n") is may, variables
    enter_run_dir(Path("run"))  # the same process may go on
    leave_run_dir()
    with another_run_in_it() as (_, said):
        assert said == "in\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_that_outlives_the_run_does_not_hold_it():
    Path("run").mkdir()
    enter_run_dir(Path("run"))
    wait, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(wait, 1)
        os._exit(0)
    leave_run_dir()
    with another_run_in_it() as (_, said):
        assert said == "in\n"
    os.write(end, b"x")
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no lock on directories")
def test_a_file_system_without_locks_takes_a_run(monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert claim_run_dir("run", "digits").is_dir()


def test_f25_resume_does_not_start_anew_where_there_is_a_checkpoint():
    (claim_run_dir("run", "digits") / runs.LAST).write_bytes(b"precious")
    with pytest.raises(ConfigError, match="already holds a run"):
        claim_run_dir("run", "digits", resume=True)
    assert Path("run", runs.LAST).read_bytes() == b"precious"


# Giving back


def test_release_removes_an_unused_directory_and_its_claim():
    path = claim_run_dir(None, "digits")
    release_run_dir(path)
    assert not path.exists()
    assert RUN_DIR_VARIABLE not in os.environ
    assert claim_run_dir(None, "digits").is_dir()


def test_release_keeps_a_directory_with_any_file():
    path = claim_run_dir("mine", "digits")
    (path / "config.yaml").write_text("precious")
    release_run_dir(path)
    assert (path / "config.yaml").read_text() == "precious"


def test_release_keeps_a_checkpoint():
    path = claim_run_dir("mine", "digits")
    (path / runs.LAST).write_bytes(b"precious")
    release_run_dir(path)
    assert (path / runs.LAST).read_bytes() == b"precious"


# Space


def test_f26_a_run_directory_below_a_file_is_refused():
    Path("file").write_text("precious")
    with pytest.raises(UserError, match=r"file/run.* can't be made: .*--run_dir") as caught:
        claim_run_dir("file/run", "digits")
    assert caught.value.exit_code == 1
    assert Path("file").read_text() == "precious"
    assert RUN_DIR_VARIABLE not in os.environ


def test_f26_a_file_called_runs_ends_the_default():
    Path("runs").write_text("precious")
    with pytest.raises(UserError, match=r"can't be made: .*--run_dir") as caught:
        claim_run_dir(None, "digits")
    assert caught.value.exit_code == 1
    assert Path("runs").read_text() == "precious"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can make a directory")
def test_f26_a_file_system_that_takes_no_directory_is_refused():
    with pytest.raises(UserError, match=r"/proc/lit-guide can't be made: .*--run_dir"):
        claim_run_dir("/proc/lit-guide", "digits")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to a read-only directory")
def test_f26_a_read_only_directory_is_refused():
    Path("read-only").mkdir(mode=0o555)
    with pytest.raises(UserError, match="read-only can't be written to") as caught:
        runs.check_space(Path("read-only"))
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match="can't be made"):
        claim_run_dir("read-only/run", "digits")


def test_f26_a_directory_that_is_not_there_can_not_be_written_to():
    with pytest.raises(UserError, match=r"gone can't be written to: .*--run_dir"):
        runs.check_space(Path("gone"))


def test_f26_too_little_space_is_told_in_megabytes(tmp_path):
    with pytest.raises(UserError, match=r"has \d+ MB free and this run writes about 4611686018427 MB") as caught:
        runs.check_space(tmp_path, needed=1 << 62)
    assert caught.value.exit_code == 1
    assert files_below(tmp_path) == {}


def test_f26_enough_space_passes_and_leaves_nothing(tmp_path):
    before = files_below(tmp_path)
    runs.check_space(tmp_path, needed=1)
    assert files_below(tmp_path) == before


# Finding


def test_f07_latest_without_any_run_is_an_error():
    with pytest.raises(ConfigError, match=r"--run latest: .*fit --config") as caught:
        find_run("latest")
    assert caught.value.exit_code == 2


def test_f07_latest_takes_no_run_without_checkpoint_or_config():
    claim_run_dir(None, "digits")
    half = run_at(Path("runs/digits/half"), 0)
    (half / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="no run below runs/ has a checkpoint"):
        find_run("latest")


def test_latest_is_the_run_with_the_newest_checkpoint_under_any_name():
    run_at(Path("runs/a/2026-03-03_00-00-00"), age=300)  # newest by its name
    newest = run_at(Path("runs/b/2026-01-01_00-00-00"), age=100)
    run_at(Path("runs/a/2026-02-02_00-00-00"), age=200)
    assert find_run("latest") == newest.absolute()


def test_latest_looks_at_the_checkpoint_that_is_asked_for():
    best = run_at(Path("runs/a/1"), age=0)
    last = run_at(Path("runs/a/2"), age=100, checkpoint=runs.LAST)
    assert find_run("latest") == best.absolute()
    assert find_run("latest", runs.LAST) == last.absolute()


def test_f49_latest_looks_on_other_disks_by_way_of_links(tmp_path):
    run_at(Path("runs/here/1"), age=300)
    disk = tmp_path / "disk"
    newest = run_at(disk / "deep/2", age=100)
    Path("runs/linked").symlink_to(disk / "deep")
    assert find_run("latest") == Path("runs/linked/2").absolute()
    assert find_run("latest").samefile(newest)
    # A link in what a link leads to, to one run alone; and the folder of all runs may be one.
    alone = run_at(tmp_path / "another/3", age=50)
    (disk / "deep/3").symlink_to(alone)
    assert find_run("latest").samefile(alone)
    Path("runs").rename(tmp_path / "moved")
    Path("runs").symlink_to(tmp_path / "moved")
    assert find_run("latest").samefile(alone)


def test_f49_links_that_go_round_or_nowhere_end(tmp_path):
    newest = run_at(Path("runs/a/1"), age=100)
    for at in range(4):  # each way through them would be another path
        Path(f"runs/a/up{at}").symlink_to(Path("runs").absolute())
    Path("runs/gone").symlink_to(tmp_path / "nowhere")
    assert find_run("latest").samefile(newest)


def test_f49_a_run_may_be_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = run_at(tmp_path / "models/run", age=0)
    assert find_run("~/models/run") == path
    odd = run_at(Path("~nobody.has this name"), age=0)  # a directory like any other
    assert find_run(str(odd)) == odd.absolute()


def test_a_run_is_found_by_its_directory():
    path = run_at(Path("elsewhere/run"), age=0)
    assert find_run("elsewhere/run") == path.absolute()
    assert find_run(str(path.absolute())) == path.absolute()


def test_f07_a_missing_run_is_an_error():
    with pytest.raises(ConfigError, match="--run gone: there is no such directory") as caught:
        find_run("gone")
    assert caught.value.exit_code == 2


def test_f07_a_directory_that_is_no_run_is_an_error():
    Path("photos").mkdir()
    with pytest.raises(ConfigError, match=r"--run photos: it holds no config\.yaml"):
        find_run("photos")


def test_f07_a_run_without_the_checkpoint_is_an_error_that_names_it():
    run_at(Path("run"), age=0)
    with pytest.raises(ConfigError, match=r"--run run: there is no checkpoints/last\.ckpt"):
        find_run("run", runs.LAST)


def test_run_of_checkpoint_is_two_folders_up_where_a_config_lies(monkeypatch):
    path = run_at(Path("runs/a/1"), age=0).absolute()
    assert runs.run_of_checkpoint(path / runs.BEST) == path
    monkeypatch.chdir(path / "checkpoints")
    assert runs.run_of_checkpoint(Path("best.ckpt")) == path


def test_run_of_checkpoint_is_none_elsewhere():
    Path("downloads/models").mkdir(parents=True)
    Path("downloads/models/best.ckpt").write_bytes(b"weights")
    assert runs.run_of_checkpoint(Path("downloads/models/best.ckpt")) is None


# results.json


def test_update_results_sets_its_sections_and_keeps_the_others(tmp_path):
    update_results(tmp_path, {"val": {"loss": 0.5}, "test": {"loss": 0.75}, "name": "größe"})
    update_results(tmp_path, {"test": {"accuracy": 1.0}, "epochs": 3})
    expected = {"val": {"loss": 0.5}, "test": {"accuracy": 1.0}, "name": "größe", "epochs": 3}
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == expected
    assert runs.read_results(tmp_path) == expected
    assert list(files_below(tmp_path)) == ["results.json"]


def test_read_results_is_empty_before_any(tmp_path):
    assert runs.read_results(tmp_path) == {}


def test_update_results_that_fails_keeps_the_old_file(tmp_path):
    update_results(tmp_path, {"val": {"loss": 0.5}})
    before = files_below(tmp_path)
    with pytest.raises(TypeError):
        update_results(tmp_path, {"test": {"loss": object()}})
    assert files_below(tmp_path) == before


def test_a_reader_never_sees_half_of_results_json(tmp_path):
    update_results(tmp_path, {"round": 0, "fill": "x" * 100_000})

    def write():
        for number in range(1, 101):
            update_results(tmp_path, {"round": number, "fill": "x" * 100_000})

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["round"])
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 3  # it did read while the other wrote
    assert list(files_below(tmp_path)) == ["results.json"]


def test_how_to_go_on_is_what_the_one_who_started_the_run_can_type(tmp_path, monkeypatch):
    assert how_to_go_on(tmp_path) == ""
    (tmp_path / LAST).parent.mkdir()
    (tmp_path / LAST).touch()
    assert how_to_go_on(tmp_path) == f"Go on with: lit-guide fit --run {tmp_path}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert how_to_go_on(tmp_path) == "It goes on where it is started again, or by the same command with --resume true."


@pytest.mark.parametrize(
    ("text", "reason"), [("", "holds no settings"), ("- 1\n", "holds no settings"), ("a: [\n", "is no valid YAML")]
)
def test_a_config_that_is_none_says_so(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=reason):
        runs.read_config(tmp_path)


def test_a_config_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"config\.yaml is no valid YAML"):
        runs.read_config(tmp_path)


# F33: links in a run directory from elsewhere


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's, outside of any run."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/notes.txt").write_text("precious")
    return tmp_path / "home/notes.txt"


def test_f33_a_file_is_written_beside_links_of_any_name_and_never_through_one(tmp_path: Path, victim: Path) -> None:
    victim.write_text("{}")
    names = ["results.json", "results.json.partial", ".write-test", f"partial-{os.getpid()}-results.json", ".partial-"]
    for name in names:
        (tmp_path / name).symlink_to(victim)
    runs.update_results(tmp_path, {"test": {"accuracy": 1.0}})
    runs.check_space(tmp_path)
    assert victim.read_text() == "{}"
    assert not (tmp_path / "results.json").is_symlink()
    assert json.loads((tmp_path / "results.json").read_text()) == {"test": {"accuracy": 1.0}}


def test_f33_the_name_that_is_written_to_is_another_one_each_time_and_new(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with runs.whole_file(tmp_path / "a.txt") as partial:
            assert partial.is_file()
            assert partial.stat().st_size == 0
            names.add(partial.name)
    assert len(names) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_has_the_permissions_that_the_user_chose(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        runs.write_atomic(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    if os.name != "nt":
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("folder", ["checkpoints", "export"])
def test_f33_a_folder_of_a_run_that_is_a_link_is_refused(tmp_path: Path, victim: Path, folder: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder).symlink_to(victim.parent)
    for enter in (runs.enter_run_dir, runs.make_results_dir):
        with pytest.raises(UserError, match=f"{folder} is a link"):
            enter(tmp_path / "run")
    runs.leave_run_dir()
    assert [path.name for path in victim.parent.iterdir()] == ["notes.txt"]


def test_f33_what_a_killed_run_left_is_removed_and_what_it_links_to_is_not(tmp_path: Path, victim: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/.partial-0-last.ckpt").write_bytes(b"half")
    (run / ".partial-1").symlink_to(victim)
    (run / ".partial-2").symlink_to(victim.parent)
    (run / ".partial-3").mkdir()
    runs.enter_run_dir(run)
    runs.leave_run_dir()
    assert sorted(path.name for path in run.rglob("*")) == [".partial-3", "checkpoints"]
    assert victim.read_text() == "precious"


def test_a_directory_without_room_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same command works once there is room."""

    def too_small(*_: object, **__: object) -> None:
        raise UserError("too small")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "check_space", too_small)
        with pytest.raises(UserError, match="too small"):
            runs.claim_run_dir(str(tmp_path / "run"), "name")
    assert runs.claim_run_dir(str(tmp_path / "run"), "name") == tmp_path / "run"
    runs.leave_run_dir()
