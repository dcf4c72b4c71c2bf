import os
import pickle
import random
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_guide.cli import main
from lit_guide.data import DigitsData
from lit_guide.engine.errors import ConfigError, UserError
from lit_guide.engine.run.checkpoint import check_fits, read_checkpoint
from lit_guide.model import LitClassifier, load_classifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that Lightning trained and saved, and its checkpoint; both only to be read."""
    folder = tmp_path_factory.mktemp("trained")
    seed_everything(0, verbose=False)
    data = DigitsData(batch_size=32)
    model = LitClassifier(
        data.class_names,
        data.input_shape,
        data.mean,
        data.std,
        network_args={"widths": [4, 8]},
        optimizer=partial(torch.optim.SGD, lr=0.1),
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1),
        label_smoothing=0.1,
        class_weights=[1.0] * 9 + [2.0],
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=1,
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="best")],
    )
    trainer.fit(model, data)
    return model.eval(), folder / "best.ckpt"


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A copy of the trained checkpoint in a folder of its own."""
    (tmp_path / "checkpoints").mkdir()
    return Path(shutil.copy(trained[1], tmp_path / "checkpoints" / "best.ckpt"))


def altered(checkpoint, **hyper_parameters):
    """Save the checkpoint again with other hyperparameters."""
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] |= hyper_parameters
    torch.save(content, checkpoint)
    return checkpoint


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, evidence):
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (str(self.evidence),)


# What a good checkpoint gives


def test_load_classifier_gives_the_trained_models_logits(trained):
    model, path = trained
    image_BCHW = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    loaded = load_classifier(path)
    with torch.no_grad():
        expected_BK = model(image_BCHW)
        assert torch.equal(loaded(image_BCHW), expected_BK)
    assert expected_BK.std(dim=0).min() > 1e-4  # not one answer to every image
    untrained = LitClassifier(**loaded.hparams).eval()
    assert not torch.allclose(untrained(image_BCHW), expected_BK, atol=1e-2)  # it was the weights that made the answer


def test_load_classifier_is_in_evaluation_mode_on_the_cpu_in_float32(trained):
    loaded = load_classifier(trained[1])
    assert not any(module.training for module in loaded.modules())
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_load_classifier_keeps_every_hyperparameter(trained):
    model, path = trained
    loaded = load_classifier(path)
    assert loaded.hparams == model.hparams
    assert loaded.hparams["optimizer"] == {"name": "SGD", "lr": 0.1}
    assert loaded.hparams["scheduler"] == {"name": "StepLR", "step_size": 1}
    assert loaded.hparams["network_args"] == {"widths": [4, 8]}
    assert loaded.hparams["label_smoothing"] == 0.1
    assert loaded.hparams["class_names"] == [str(digit) for digit in range(10)]


def test_a_half_precision_checkpoint_is_loaded_in_float32(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {k: v.bfloat16() if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    torch.save(content, checkpoint)
    loaded = load_classifier(checkpoint)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    weight = "network.body.features.0.weight"
    assert torch.equal(loaded.state_dict()[weight], content["state_dict"][weight].float())


def test_read_checkpoint_gives_all_that_lightning_saved(trained):
    content = read_checkpoint(trained[1])
    assert content["global_step"] == 3
    assert content["state_dict"].keys() == trained[0].state_dict().keys()
    assert len(content["optimizer_states"]) == 1


def test_a_missing_file_is_a_wrong_command(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no checkpoint .*gone\.ckpt") as caught:
        load_classifier(tmp_path / "gone.ckpt")
    assert caught.value.exit_code == 2


def test_a_folder_is_a_wrong_command(tmp_path):
    with pytest.raises(ConfigError, match="There is no checkpoint"):
        read_checkpoint(tmp_path)


# F06: broken files

BROKEN = {
    "empty": lambda good: b"",
    "truncated": lambda good: good[: len(good) // 2],
    "without its end": lambda good: good[:-1],
    "header only": lambda good: good[:4],
    "text": lambda good: b"these are no weights\n",
    "YAML": lambda good: b"epoch: 1\nname: digits\n",
    "JSON": lambda good: b'{"weights": [1, 2]}',
    "zeros": lambda good: bytes(len(good)),
    "image": lambda good: b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_f06_a_broken_file_is_named_with_the_good_one_to_use(checkpoint, kind):
    broken = checkpoint.with_name("last.ckpt")
    broken.write_bytes(BROKEN[kind](checkpoint.read_bytes()))
    for load in (read_checkpoint, load_classifier):
        with pytest.raises(UserError) as caught:
            load(broken)
        assert caught.value.exit_code == 1
        assert str(broken) in str(caught.value)
        assert str(caught.value).endswith(f"Use {checkpoint} instead.")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # of random bytes
def test_f06_every_truncated_or_random_file_is_refused_in_one_message(checkpoint, tmp_path):
    good = checkpoint.read_bytes()
    draw = random.Random(0)
    files = [good[: draw.randrange(len(good))] for _ in range(30)]
    files += [draw.randbytes(draw.randrange(200)) for _ in range(100)]
    files += [b"\x80\x02" + draw.randbytes(draw.randrange(200)) for _ in range(100)]
    path = tmp_path / "random.ckpt"
    escaped = []
    for content in files:
        path.write_bytes(content)
        try:
            read_checkpoint(path)
        except UserError as error:
            if str(path) in str(error):
                continue
            escaped.append(f"not named: {error}")
        except Exception as error:
            escaped.append(f"{type(error).__name__}: {error}")
        else:
            escaped.append(f"accepted: {content!r}")
    assert escaped == []


def test_f06_the_newest_good_checkpoint_is_offered(checkpoint):
    older, broken = checkpoint.with_name("a-older.ckpt"), checkpoint.with_name("last.ckpt")
    shutil.copy(checkpoint, older)
    newest_but_broken = checkpoint.with_name("z-newest.ckpt")
    newest_but_broken.write_bytes(b"")
    broken.write_bytes(b"")
    now = time.time()
    for path, age in ((older, 300), (checkpoint, 200), (broken, 100), (newest_but_broken, 0)):
        os.utime(path, (now - age, now - age))
    with pytest.raises(UserError, match=f"Use {checkpoint} instead"):
        read_checkpoint(broken)


def test_f06_nothing_is_offered_where_nothing_is_good(checkpoint):
    checkpoint.write_bytes(b"")
    checkpoint.with_name("other.ckpt").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        read_checkpoint(checkpoint)
    assert "instead" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, {"hyper_parameters": {}}, None])
def test_f06_a_file_of_something_else_is_refused(checkpoint, content):
    other = checkpoint.with_name("last.ckpt")
    torch.save(content, other)
    with pytest.raises(UserError, match="is not a checkpoint of ") as caught:
        load_classifier(other)
    assert str(other) in str(caught.value)
    assert f"Use {checkpoint} instead" in str(caught.value)


def test_f06_weights_that_do_not_fit_the_network_are_refused(checkpoint):
    with pytest.raises(UserError, match="weights do not fit") as caught:
        load_classifier(altered(checkpoint, network_args={"widths": [4, 9]}))
    assert caught.value.exit_code == 1
    assert str(checkpoint) in str(caught.value)


def test_f06_a_missing_weight_is_refused_not_left_random(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    del content["state_dict"]["network.body.features.0.weight"]
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=r"features\.0\.weight"):
        load_classifier(checkpoint)


# F08: payloads

PAYLOADS = {
    "a pickle": lambda good, payload, path: path.write_bytes(pickle.dumps(payload)),
    "a pickle of torch's protocol": lambda good, payload, path: path.write_bytes(pickle.dumps(payload, protocol=2)),
    "torch.save": lambda good, payload, path: torch.save(payload, path),
    "torch.save of old": lambda good, payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False),
    "among the weights": lambda good, payload, path: torch.save(
        {**good, "state_dict": {**good["state_dict"], "x": payload}}, path
    ),
    "among the hyperparameters": lambda good, payload, path: torch.save(
        {**good, "hyper_parameters": {**good["hyper_parameters"], "scheduler": payload}}, path
    ),
    "beside all that is read": lambda good, payload, path: torch.save({**good, "callbacks": {"x": payload}}, path),
}


@pytest.fixture(params=PAYLOADS)
def poisoned(request, trained, tmp_path):
    """A checkpoint with a payload, proven to be one, and the folder that the payload makes when it runs."""
    path, evidence = tmp_path / "payload.ckpt", tmp_path / "the payload ran"
    PAYLOADS[request.param](torch.load(trained[1], weights_only=True), Payload(evidence), path)
    if request.param.startswith("a pickle"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert evidence.is_dir()
    evidence.rmdir()
    return path, evidence


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch warns, and then reads it
@pytest.mark.parametrize("load", [read_checkpoint, load_classifier])
def test_f08_payload_checkpoint_is_refused(poisoned, load):
    path, evidence = poisoned
    with pytest.raises(UserError, match="was refused") as caught:
        load(path)
    assert caught.value.exit_code == 1
    assert str(path) in str(caught.value)
    assert not evidence.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_f08_a_payload_beside_a_broken_checkpoint_is_not_run_nor_offered(poisoned):
    path, evidence = poisoned
    broken = path.with_name("last.ckpt")
    broken.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        read_checkpoint(broken)
    assert not evidence.exists()
    assert "instead" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export"])
@pytest.mark.parametrize("poisoned", ["torch.save", "beside all that is read"], indirect=True)
def test_f08_no_command_runs_a_payload(poisoned, command, capsys, monkeypatch, tmp_path):
    path, evidence = poisoned
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    config = [] if command == "export" else ["--config", "configs/digits.yaml"]
    assert main([command, *config, "--ckpt_path", str(path)]) == 1
    assert not evidence.exists()
    message = capsys.readouterr().err
    assert f"{path} was refused" in message
    assert "Traceback" not in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("url", ["https://example.com/best.ckpt", "http://127.0.0.1:9/x", "file:///etc/passwd", "s3://bucket/x"])
def test_f08_a_url_is_refused_without_a_download(url, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="read from disk only"):
        read_checkpoint(url)
    assert main(["test", "--ckpt_path", url]) == 2
    assert f"--ckpt_path {url}" in capsys.readouterr().err


# F09: hyperparameters that name code

IMPORTING = {
    "_instantiator": {"_instantiator": "evil_module.make"},
    "_class_path": {"_class_path": "evil_module.Evil"},
    "class_path": {"class_path": "evil_module.Evil"},
    "an unknown key": {"callback": "evil_module.Evil"},
    "a dotted optimizer": {"optimizer": {"name": "evil_module.Evil"}},
    "an optimizer as text": {"optimizer": "evil_module.Evil"},
    "an optimizer by class_path": {"optimizer": {"class_path": "evil_module.Evil", "init_args": {}}},
    "a dotted scheduler": {"scheduler": {"name": "evil_module.Evil"}},
    "a network that is not ours": {"network": "evil_module.Evil"},
    "a class_path in network_args": {"network_args": {"widths": {"class_path": "evil_module.Evil"}}},
    "an _instantiator deep inside": {"network_args": {"widths": [4, [{"_instantiator": "evil_module.make"}]]}},
}


@pytest.fixture
def evil_module(tmp_path, monkeypatch):
    """A module on sys.path; the folder that it makes when it is imported."""
    (tmp_path / "evil").mkdir()
    evidence = tmp_path / "evil" / "it was imported"
    source = f"import os\nos.mkdir({str(evidence)!r})\nclass Evil: ...\ndef make(*args, **kwargs): ...\n"
    (tmp_path / "evil" / "evil_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "evil")
    yield evidence
    sys.modules.pop("evil_module", None)


def test_f09_the_evil_module_of_these_tests_can_be_imported(evil_module):
    __import__("evil_module")
    assert evil_module.is_dir()


@pytest.mark.parametrize("kind", IMPORTING)
def test_f09_hyperparameters_that_name_code_are_refused_and_nothing_is_imported(checkpoint, evil_module, kind):
    altered(checkpoint, **IMPORTING[kind])
    for load in (load_classifier,) if kind == "an unknown key" else (read_checkpoint, load_classifier):
        with pytest.raises(UserError, match="was refused") as caught:
            load(checkpoint)
        assert caught.value.exit_code == 1
        assert str(checkpoint) in str(caught.value)
    assert "evil_module" not in sys.modules
    assert not evil_module.exists()


def test_f09_the_test_command_refuses_them_too(checkpoint, evil_module, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    altered(checkpoint, _instantiator="evil_module.make", _class_path="evil_module.Evil")
    assert main(["test", "--config", "configs/digits.yaml", "--ckpt_path", str(checkpoint)]) == 1
    assert "evil_module" not in sys.modules
    assert not evil_module.exists()
    assert f"{checkpoint} was refused" in capsys.readouterr().err


def test_f09_an_optimizer_that_nobody_defined_is_an_error_that_names_it_when_it_is_needed(checkpoint):
    model = load_classifier(altered(checkpoint, optimizer={"name": "Nope", "lr": 0.1}))
    with pytest.raises(UserError, match="'Nope'"):
        model.configure_optimizers()


@pytest.mark.parametrize(
    "hyper_parameters", [{"class_names": 5}, {"input_shape": 8}, {"input_shape": [1, 8]}, {"mean": "abc"}, {"std": None}]
)
def test_f06_hyperparameters_of_another_type_are_an_error_that_names_the_file(checkpoint, hyper_parameters):
    with pytest.raises(UserError) as caught:
        load_classifier(altered(checkpoint, **hyper_parameters))
    assert str(checkpoint) in str(caught.value)


def test_f09_missing_hyperparameters_are_listed(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    del content["hyper_parameters"]["mean"], content["hyper_parameters"]["class_names"]
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="lack class_names, mean"):
        load_classifier(checkpoint)


# F10: classes


def test_f10_other_classes_are_refused_with_both_lists(checkpoint):
    content = read_checkpoint(checkpoint)
    with pytest.raises(UserError) as caught:
        check_fits(content, {"class_names": ["cat", "dog", "größe"]}, checkpoint)
    assert caught.value.exit_code == 1
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "checkpoint (10): 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in lines
    assert "data (3): cat, dog, größe" in lines
    assert str(checkpoint) in lines[0]


def test_f10_the_same_classes_in_another_order_are_refused(checkpoint):
    content = read_checkpoint(checkpoint)
    with pytest.raises(UserError, match="9, 8, 7, 6, 5, 4, 3, 2, 1, 0"):
        check_fits(content, {"class_names": [str(digit) for digit in reversed(range(10))]}, checkpoint)


def test_f10_the_same_classes_pass(checkpoint):
    check_fits(read_checkpoint(checkpoint), {"class_names": tuple(str(digit) for digit in range(10))}, checkpoint)


def test_plain_hyperparameters_of_ones_own_are_no_names_of_classes(checkpoint):
    altered(checkpoint, scheduler=True, loss="cross-entropy", network=[64, 64], optimizer={"lr": 0.1})
    assert read_checkpoint(checkpoint)["hyper_parameters"]["loss"] == "cross-entropy"


def test_tuples_and_lists_are_the_same_size(checkpoint):
    content = read_checkpoint(checkpoint)
    check_fits(
        content, content["hyper_parameters"] | {"input_shape": tuple(content["hyper_parameters"]["input_shape"])}, checkpoint
    )
