"""Files that are small and cost much, and checkpoints of wrong values: refused in seconds, in bounded memory."""

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.run import settings
from lit_guide.engine.run.bounded import misfit, no_larger_than
from lit_guide.engine.run.checkpoint import load_model, read_checkpoint, reading_of
from lit_guide.engine.run.settings import load_yaml, read_settings
from lit_guide.model import LitClassifier


def laughs(levels: int, each: int = 10) -> str:
    """Aliases in aliases: each ** levels values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * each)}]" for level in range(1, levels)]
    return "\n".join(lines)


YAML = {
    "aliases in aliases": laughs(12),
    "aliases in merged keys": "\n".join(
        f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 20) if n else '{k: 1}'}]\n  k{n}: 1" for n in range(12)
    ),
    "a value that holds itself": "a: &a [*a]",
    "a mapping that holds itself": "a: &a\n  b: {c: *a}",
    "a long text many times": f"a: &a '{'x' * 500_000}'\nb: [{', '.join(['*a'] * 1000)}]",
    "depth": "a: " + "[" * 100_000,
    "depth that ends": "a: " + "{b: " * 3000 + "1" + "}" * 3000,
    "many values": "a:\n" + "- 1\n" * 200_000,
    "a long file": "# " + "x" * (1 << 21) + "\na: 1",
    "a number of a million digits": "a: " + "9" * 1_000_000,
    "a number of a million digits, in base 60": "a: 1" + ":1" * 500_000,
    "a date that is none": "a: 2001-99-99",
    "a tag without a value": "a: !!int ''",
    "an alias of nothing": "a: *b",
    "a key that is a list": "? [a]\n: b",
}


@pytest.mark.parametrize("kind", YAML)
def test_f38_yaml_that_is_small_and_costs_much_is_refused_in_seconds(kind: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(YAML[kind])
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"c\.yaml is no valid YAML: .+"):
        read_settings(tmp_path / "c.yaml")
    assert time.process_time() - began < 5


def test_f38_yaml_with_a_few_aliases_is_read_as_before() -> None:
    text = "a: &a {b: [1, 2.5, null], c: &c text}\nd: *a\ne: {<<: *a, f: *c}\n" + "g:\n" + "- 0.5\n" * 21_841
    assert load_yaml(text) == yaml.safe_load(text)


def test_f38_shipped_recipes_are_far_from_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MOST", settings.MOST // 100)
    for path in Path("configs").rglob("*.yaml"):
        assert read_settings(path)


# Checkpoints


@pytest.fixture
def content(trained: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    return loaded


def repacked(path: Path, compression: int, code: bytes | None = None) -> Path:
    """The file of torch.save again, compressed, or with another pickle."""
    target = path.with_name(f"again-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            entry.CRC = None  # type: ignore[assignment]  # ours have none
            new.writestr(entry.filename, code if code and entry.filename.endswith("data.pkl") else old.read(entry))
    return target


def compressed(folder: Path) -> Path:
    torch.save({"state_dict": {"a": torch.zeros(1 << 26)}}, folder / "a.ckpt")
    return repacked(folder / "a.ckpt", zipfile.ZIP_DEFLATED)


def pickled(code: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save({"a": torch.zeros(1)}, folder / "a.ckpt")
        return repacked(folder / "a.ckpt", zipfile.ZIP_STORED, b"\x80\x02" + code + b".")

    return make


def saved(value: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(
            {"state_dict": {}, "epoch": 0, "global_step": 0, "x": value() if callable(value) else value}, folder / "a.ckpt"
        )
        return folder / "a.ckpt"

    return make


def nested(levels: int, each: int) -> Any:
    value: Any = ["x"]
    for _ in range(levels):
        value = [value] * each
    return value


def in_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def text(word: bytes) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word


def behind_another(name: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The pickle under a name that torch takes too, and a harmless one where it would be looked for."""

    def made(folder: Path) -> Path:
        hidden, target = make(folder), folder / "hidden.ckpt"
        with zipfile.ZipFile(hidden) as old, zipfile.ZipFile(target, "w") as new:
            for entry in old.infolist():
                entry.CRC = None  # type: ignore[assignment]
                is_code = entry.filename.endswith("data.pkl")
                if is_code and name == "data.pkl":
                    new.writestr(entry.filename.replace("data.pkl", "a.pkl"), b"\x80\x02N.")
                new.writestr(entry.filename.replace("data.pkl", name) if is_code else entry.filename, old.read(entry))
        return target

    return made


ENCODE = b"c_codecs\nencode\nq\x00"
BOMBS: dict[str, Callable[[Path], Path]] = {
    "compressed": compressed,
    "lists of the same lists": saved(nested(30, 10)),
    "a list in itself": saved(in_itself),
    "a wide list many times": saved(lambda: [[0] * 10_000] * 10_000),
    "a long text many times": saved(lambda: [["x" * 100_000] * 1000]),
    "a tensor of one number": saved(lambda: torch.zeros(1).expand(1 << 18, 1 << 18)),
    "a sparse tensor": saved(lambda: torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (1 << 18, 1 << 18))),
    "a tensor without storage": saved(lambda: torch.empty(1 << 18, 1 << 18, device="meta")),
    "a tensor by its size": pickled(b"ctorch\nTensor\nJ\x00\x00\x00\x04K\x04\x86R"),
    "a bytearray by its size": pickled(b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R"),
    "bytes in hexadecimal again and again": pickled(
        ENCODE + b"h\x00" * 30 + b"h\x00" + text(b"abcd") + text(b"latin1") + b"\x86R" + (text(b"Hex-Codec") + b"\x86R") * 30
    ),
    "bytes in base64, by short texts": pickled(
        ENCODE + b"h\x00" * 60 + b"h\x00" + text(b"abcd") + text(b"latin1") + b"\x86R" + b"U\x07base-64\x86R" * 60
    ),
}
HEX = ENCODE + b"h\x00" * 20 + b"h\x00" + text(b"abcd") + text(b"latin1") + b"\x86R" + (text(b"hex") + b"\x86R") * 20
BOMBS |= {f"hidden, {name}": behind_another(name, pickled(HEX)) for name in ("data.pkl", "data.PKL")}
# Reads the file that is named, and prints the peak of memory, in MB, above what importing took.
PEAK = """
import resource, sys
from lit_guide.engine.errors import UserError
from lit_guide.engine.run.checkpoint import read_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_checkpoint(sys.argv[1])
except UserError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that it looks at sparse tensors
@pytest.mark.parametrize("kind", BOMBS)
def test_f38_a_small_checkpoint_that_unpacks_to_much_is_refused_in_seconds(kind: str, tmp_path: Path) -> None:
    path = BOMBS[kind](tmp_path)
    assert path.stat().st_size < 1_100_000
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert time.process_time() - began < 5
    assert caught.value.exit_code == 1
    assert f"{path} was refused" in str(caught.value)
    assert "much more than its size" in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such figures")
@pytest.mark.parametrize("kind", BOMBS)
def test_f38_refusing_it_takes_little_memory(kind: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, BOMBS[kind](tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) < 200, done.stdout


def test_f38_bytes_of_ones_own_are_read(content: dict[str, Any], tmp_path: Path) -> None:
    content["callbacks"]["mine"] = {"kept": b"\x00\xff" * 1000, "name": "next"}
    torch.save(content, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["callbacks"]["mine"]["kept"] == b"\x00\xff" * 1000


def test_f38_weights_that_are_shared_are_read(content: dict[str, Any], tmp_path: Path) -> None:
    large = torch.rand(1 << 20)
    content["state_dict"] |= {f"x{n}": large for n in range(10)}  # as tied weights are
    torch.save(content, tmp_path / "a.ckpt")
    assert len(read_checkpoint(tmp_path / "a.ckpt")["state_dict"]) == len(content["state_dict"])


@pytest.mark.parametrize("header", [b"\xff" * 8, (1 << 62).to_bytes(8, "little"), (80).to_bytes(8, "little") + b"[" * 80])
def test_f38_a_safetensors_with_a_hostile_header_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(header + b"{}")
    with pytest.raises(UserError, match=r"a\.safetensors can't be read"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_f38_a_safetensors_whose_tensors_are_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    table = json.dumps({"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(table).to_bytes(8, "little") + table + b"\0" * 16)
    with pytest.raises(UserError, match=r"a\.safetensors can't be read"):
        read_checkpoint(tmp_path / "a.safetensors")


# The kinds of values

ODD: dict[str, tuple[tuple[str, ...], Any]] = {
    "epoch": (("epoch",), "three"),
    "global_step": (("global_step",), -1),
    "metrics_rows": (("metrics_rows",), 10**30),
    "crop": (("crop",), float("nan")),
    "val_loss": (("val_loss",), [1]),
    "state_dict": (("state_dict",), "x"),
    "state_dict.network.body.head.2.bias": (("state_dict", "network.body.head.2.bias"), 5),
    "callbacks": (("callbacks",), [1]),
    "loops.fit_loop.epoch_loop.batch_progress.current": (("loops", "fit_loop", "epoch_loop.batch_progress", "current"), "x"),
    "loops.fit_loop.epoch_progress.total.ready": (("loops", "fit_loop", "epoch_progress", "total", "ready"), -5),
    "optimizer_states": (("optimizer_states",), {}),
    "optimizer_states.0": (("optimizer_states",), [torch.zeros(3)]),
    "lr_schedulers": (("lr_schedulers",), "x"),
    "place.samples": (("place", "samples"), 0.5),
    "train_sums_W3": (("train_sums_W3",), torch.zeros(7)),
    "hyper_parameters": (("hyper_parameters",), "x"),
}


def test_what_was_saved_fits(content: dict[str, Any]) -> None:
    assert misfit(content) == ""


@pytest.mark.parametrize("key", ODD)
def test_f39_a_value_of_another_kind_is_told_by_its_key(content: dict[str, Any], key: str, tmp_path: Path) -> None:
    (*above, last), value = ODD[key]
    inside = content
    for name in above:
        inside = inside[name]
    inside[last] = value
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "a.ckpt")
    assert f"{tmp_path / 'a.ckpt'} was refused: its {key} is " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["epoch", "global_step", "state_dict"])
def test_f39_what_lacks_a_key_is_no_checkpoint(content: dict[str, Any], key: str, tmp_path: Path) -> None:
    del content[key]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=f"is not a checkpoint of a LightningModule: it has no {key}"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "hyper_parameters",
    [
        {"network_args": {"widths": [1_000_000, 1_000_000]}},
        {"network_args": {"widths": [2500] * 500}},
        {"network_args": {"widths": [1] * 100_000}},
        {"class_names": [str(n) for n in range(1_000_000)]},
        {"class_names": [str(n) for n in range(50_000)]},
        {"input_shape": [1, -8, 8]},
        {"input_shape": [1, 10**6, 10**6]},
        {"input_shape": [1, 60_000, 60_000]},
        {"input_shape": [10**7, 2, 2]},
        {"input_shape": [1, 10**30, 8]},
        {"input_shape": ["1", "8", "x"]},
        {"network": "vit_h_14", "network_args": {}},
    ],
    ids=lambda given: str(given)[:50],
)
def test_f39_hyperparameters_that_ask_for_much_are_refused_in_seconds(
    content: dict[str, Any], hyper_parameters: dict[str, Any], tmp_path: Path
) -> None:
    content["hyper_parameters"] |= hyper_parameters
    torch.save(content, tmp_path / "a.ckpt")
    began = time.process_time()
    with pytest.raises(UserError, match="hyperparameters do not fit") as caught:
        load_model(tmp_path / "a.ckpt", LitClassifier)
    assert time.process_time() - began < 10
    assert str(tmp_path / "a.ckpt") in str(caught.value)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("name", ["cnn", "resnet18", "googlenet", "squeezenet1_0"])
def test_a_model_of_the_size_of_its_weights_is_built(name: str) -> None:
    def build() -> LitClassifier:
        return LitClassifier([str(n) for n in range(10)], [3, 64, 64], [0.5] * 3, [0.2] * 3, network=name)

    weights = build().state_dict()
    with no_larger_than(weights):
        assert build().state_dict().keys() == weights.keys()


def test_a_lazy_network_is_built() -> None:
    with no_larger_than({"a": torch.zeros(3)}):
        network = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.LazyConv2d(2, 3))
    assert len(list(network.parameters())) == 4


def test_what_a_model_of_ones_own_calls_by_our_names_is_read(content: dict[str, Any], tmp_path: Path) -> None:
    own = {"class_names": 10, "input_shape": 28, "white_level": "high", "least_side": 3}
    torch.save({**content, "hyper_parameters": dict(own)}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"] == own
    torch.save({**content, "hyper_parameters": None}, tmp_path / "b.ckpt")
    assert read_checkpoint(tmp_path / "b.ckpt")["hyper_parameters"] == {}


def test_what_data_of_ones_own_call_by_our_names_is_not_kept() -> None:
    class Data:
        crop, white_level, least_side = 224, "high", 100

    assert reading_of(Data()) == {"crop": None, "white_level": None, "least_side": 100}


@pytest.mark.skipif(not hasattr(os, "truncate"), reason="no files with holes")
@pytest.mark.parametrize("start", [b"", b"\x80\x02"])
def test_f38_a_file_with_holes_is_not_read_as_a_whole(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(start)
    os.truncate(path, 1 << 36)  # 64 GiB that take no room
    began = time.process_time()
    with pytest.raises(UserError):
        read_checkpoint(path)
    assert time.process_time() - began < 5
