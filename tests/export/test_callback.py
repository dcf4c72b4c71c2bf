import hashlib
import json
import warnings

import onnxruntime
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_guide.data import DigitsData
from lit_guide.export.command import formats
from lit_guide.export.onnx import ExportONNX
from lit_guide.export.program import ExportProgram
from lit_guide.export.torchscript import ExportTorchScript
from lit_guide.model import LitClassifier, load_classifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]
FILES = {"torchscript": "model.torchscript.pt", "onnx": "model.onnx", "pt2": "model.pt2"}


class Spoil(Callback):
    """Makes the last epoch the worst."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == trainer.max_epochs - 1:
            pl_module.network.body.head[2].bias.data += torch.arange(10.0)


def fit(run_dir, *exports, **trainer_args):
    """Two epochs, of which the first is the better one; returns the model with its last weights."""
    seed_everything(0, verbose=False)
    data = DigitsData(batch_size=64)
    model = LitClassifier(data.class_names, data.input_shape, data.mean, data.std, network_args={"widths": [4]})
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "limit_train_batches": 4,
            "num_sanity_val_steps": 0,
            "logger": False,
            "default_root_dir": run_dir,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                Spoil(),
                ModelCheckpoint(run_dir / "checkpoints", filename="best", monitor="val/loss"),
                ModelCheckpoint(run_dir / "checkpoints", filename="last"),
                *exports,
            ],
            **trainer_args,
        }
    )
    trainer.fit(model, data)
    return model.eval()


def exports_of(run_dir):
    return json.loads((run_dir / "results.json").read_text())["exports"]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@torch.no_grad()
def logits_of(name, path, image_BCHW):
    if name == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["output"], {"input": image_BCHW.numpy()})[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = torch.jit.load(path) if name == "torchscript" else torch.export.load(path).module()
    return run(image_BCHW)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with all three exports, and the model with its last weights; only to be read."""
    run_dir = tmp_path_factory.mktemp("finished")
    return run_dir, fit(run_dir, ExportTorchScript(), ExportONNX(), ExportProgram())


@pytest.fixture
def model(finished):
    return load_classifier(finished[0] / "checkpoints" / "best.ckpt")


def test_every_format_has_its_callback_under_its_own_name():
    assert {name: (callback.format, callback.file) for name, callback in formats().items()} == {
        name: (name, file) for name, file in FILES.items()
    }


@pytest.mark.parametrize("name", FILES)
def test_fit_exports_the_best_checkpoint_not_the_last_weights(finished, name):
    run_dir, last = finished
    saved = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)
    assert saved["epoch"] == 0  # the first epoch was the best one
    best = LitClassifier(**saved["hyper_parameters"])
    best.load_state_dict(saved["state_dict"])
    image_BCHW = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        best_BK, last_BK = best.eval()(image_BCHW), last(image_BCHW)
    logits_BK = logits_of(name, str(run_dir / "export" / FILES[name]), image_BCHW)
    torch.testing.assert_close(logits_BK, best_BK, atol=1e-4, rtol=0)
    assert (logits_BK - last_BK).abs().max() > 1


def test_results_json_has_one_true_entry_for_each_file(finished):
    run_dir, _ = finished
    entries = {entry["format"]: entry for entry in exports_of(run_dir)}
    assert len(exports_of(run_dir)) == len(entries) == 3
    assert names_in(run_dir / "export") == sorted(FILES.values())
    for name, entry in entries.items():
        assert entry["path"] == f"export/{FILES[name]}"  # holds wherever the run is moved to
        content = (run_dir / entry["path"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert 0 <= entry["max_abs_diff"] <= 1e-4


def test_the_model_that_was_trained_keeps_its_last_weights(finished):
    run_dir, last = finished
    saved = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[key]) for key, value in last.state_dict().items())


@pytest.mark.parametrize("off", FILES)
def test_each_export_is_switched_off_by_enabled_false(finished, tmp_path, off):
    cheap = [name for name in ("torchscript", "pt2") if name != off]
    fit(tmp_path, formats()[off](enabled=False), *[formats()[name]() for name in cheap], max_epochs=1, limit_val_batches=1)
    assert names_in(tmp_path / "export") == sorted(FILES[name] for name in cheap)
    assert [entry["format"] for entry in exports_of(tmp_path)] == cheap


def test_all_switched_off_leaves_no_folder_and_no_results(tmp_path):
    fit(tmp_path, *[callback(enabled=False) for callback in formats().values()], max_epochs=1, limit_val_batches=1)
    assert names_in(tmp_path) == ["checkpoints"]


def test_nothing_is_exported_where_nothing_is_saved(tmp_path):
    fit(tmp_path, ExportTorchScript(), ExportProgram(), fast_dev_run=True)
    assert names_in(tmp_path) == []


def test_f27_a_failure_is_recorded_and_the_other_formats_are_written(tmp_path):
    (tmp_path / "export" / "model.onnx").mkdir(parents=True)  # in the place of the file
    fit(tmp_path, ExportTorchScript(), ExportONNX(), ExportProgram(), max_epochs=1, limit_val_batches=1)
    torchscript, onnx, pt2 = exports_of(tmp_path)
    assert (torchscript["format"], onnx["format"], pt2["format"]) == ("torchscript", "onnx", "pt2")
    assert set(onnx) == {"format", "error"}
    assert "model.onnx can't be written" in onnx["error"]
    assert "error" not in torchscript
    assert "error" not in pt2
    assert names_in(tmp_path / "export") == sorted(FILES.values())
    assert (tmp_path / "export" / "model.onnx").is_dir()
    image_BCHW = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        expected_BK = load_classifier(tmp_path / "checkpoints" / "best.ckpt")(image_BCHW)
    for entry in (torchscript, pt2):
        logits_BK = logits_of(entry["format"], str(tmp_path / entry["path"]), image_BCHW)
        torch.testing.assert_close(logits_BK, expected_BK, atol=1e-4, rtol=0)


def test_f27_a_file_that_onnx_runtime_refuses_is_recorded_too(model, tmp_path):
    entry = ExportONNX(input_name="same", output_name="same").run(model, tmp_path)
    assert entry["format"] == "onnx"
    assert entry["error"]
    assert exports_of(tmp_path) == [entry]


def test_an_export_replaces_its_own_entry_and_keeps_the_rest(model, tmp_path):
    earlier = {"test": {"loss": 0.5}, "exports": [{"format": "torchscript", "error": "x"}, {"format": "onnx", "path": "y"}]}
    (tmp_path / "results.json").write_text(json.dumps(earlier))
    entry = ExportTorchScript().run(model, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test"] == {"loss": 0.5}
    assert sorted(results["exports"], key=lambda e: e["format"]) == [{"format": "onnx", "path": "y"}, entry]
    assert "error" not in entry


def test_the_settings_reach_the_files(model, tmp_path):
    script = ExportTorchScript(method="script").run(model, tmp_path)
    assert script["method"] == "script"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(str(tmp_path / "export" / "model.torchscript.pt"))
    assert type(loaded).__name__ == "RecursiveScriptModule"
    assert "prim::If" in str(loaded.inlined_graph)  # a trace has no branches
    onnx = ExportONNX(opset=18, input_name="pixels", output_name="scores").run(model, tmp_path)
    assert (onnx["opset"], onnx["input"], onnx["output"]) == (18, "pixels", "scores")
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["pixels"]
    assert [value.name for value in session.get_outputs()] == ["scores"]
