import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lit_guide import __version__
from lit_guide.engine.errors import UserError
from lit_guide.export.onnx import export_onnx
from lit_guide.export.program import export_program
from lit_guide.export.proof import TOLERANCE, parity
from lit_guide.export.torchscript import export_torchscript
from lit_guide.model import LitClassifier

CLASSES = ["Katze", "chien à poil", "犬", 'a "quoted" \\name', "🐈"]
SHAPES = {"cnn": [1, 8, 8], "resnet18": [3, 32, 32], "mobilenet_v3_small": [3, 32, 32]}


def export_script(model, path):
    return export_torchscript(model, path, "script")


EXPORTERS = {
    "trace": (export_torchscript, "model.torchscript.pt"),
    "script": (export_script, "model.torchscript.pt"),
    "onnx": (export_onnx, "model.onnx"),
    "pt2": (export_program, "model.pt2"),
}
every_format = pytest.mark.parametrize("kind", EXPORTERS)
FAST = {*(("cnn", kind) for kind in EXPORTERS), ("resnet18", "trace"), ("mobilenet_v3_small", "script")}
CASES = [
    pytest.param((network, kind), id=f"{network}-{kind}", marks=[] if (network, kind) in FAST else [pytest.mark.slow])
    for network in SHAPES
    for kind in EXPORTERS
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small networks are slower on several threads, above all where other work runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classifier(network="cnn", classes=CLASSES, network_args=None):
    """A model whose logits depend on the image: random weights, and the batch statistics of random images."""
    torch.manual_seed(0)
    shape = SHAPES[network]
    mean, std = [0.1, 0.4, 0.7][: shape[0]], [0.2, 0.3, 0.5][: shape[0]]
    model = LitClassifier(classes, shape, mean, std, network=network, network_args=network_args)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
    with torch.no_grad():
        for _ in range(2):
            model.train()(images(32, shape))
    return model.eval()


def small():
    return classifier(classes=["a", "b", "c"], network_args={"widths": [2]})


def images(count, shape, seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def eager(model, image_BCHW):
    with torch.no_grad():
        return model(image_BCHW)


def load(kind, path, extra_files=None):
    """The file as a user's program would load it, as a function of images."""
    if kind == "onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda image_BCHW: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image_BCHW.numpy()})[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "pt2":
            return torch.export.load(path, extra_files=extra_files).module()
        return torch.jit.load(path, _extra_files=extra_files)


def metadata_of(kind, path):
    if kind == "onnx":
        return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    extra_files = {"metadata.json": ""}
    load(kind, path, extra_files)
    return json.loads(extra_files["metadata.json"])


def attempt(export, *args, **kwargs):
    """The entry and None, or None and the error."""
    try:
        return export(*args, **kwargs), None
    except UserError as error:
        return None, error


def names_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@dataclass
class Exported:
    kind: str
    model: LitClassifier
    path: Path
    entry: dict
    run: Callable[[torch.Tensor], torch.Tensor]  # the file, loaded anew


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """One network in one format; only to be read."""
    network, kind = request.param
    export, name = EXPORTERS[kind]
    path = tmp_path_factory.mktemp("exported") / "export" / name
    model = classifier(network)
    entry = export(model, path)
    return Exported(kind, model, path, entry, load(kind, str(path)))


# What is in a file


def test_the_file_gives_eagers_logits_at_batch_1_3_and_7(exported):
    shape = exported.model.hparams["input_shape"]
    for batch_size in (1, 3, 7):
        image_BCHW = images(batch_size, shape)
        expected_BK = eager(exported.model, image_BCHW)
        logits_BK = exported.run(image_BCHW)
        assert logits_BK.shape == (batch_size, len(CLASSES))
        assert logits_BK.dtype == torch.float32
        torch.testing.assert_close(logits_BK, expected_BK, atol=1e-4, rtol=0)
        # The figures must be able to differ: large against the tolerance, another answer to another image.
        assert (expected_BK - eager(exported.model, images(batch_size, shape, seed=2))).abs().max() > 1e-2


def test_normalisation_is_inside_the_file(exported):
    model = exported.model
    image_BCHW = images(3, model.hparams["input_shape"])
    mean_C11, std_C11 = (torch.tensor(model.hparams[key]).view(-1, 1, 1) for key in ("mean", "std"))
    by_hand_BK = eager(model.network.body, (image_BCHW - mean_C11) / std_C11)
    logits_BK = exported.run(image_BCHW)
    torch.testing.assert_close(logits_BK, by_hand_BK, atol=1e-4, rtol=0)
    assert (logits_BK - eager(model.network.body, image_BCHW)).abs().max() > 1e-2


def test_class_names_sizes_and_version_travel_in_the_file(exported):
    hparams = exported.model.hparams
    assert metadata_of(exported.kind, str(exported.path)) == {
        "class_names": CLASSES,
        "input_shape": hparams["input_shape"],
        "input_range": [0.0, 1.0],
        "crop": None,
        "mean": hparams["mean"],
        "std": hparams["std"],
        "network": hparams["network"],
        "version": __version__,
    }


def test_the_entry_describes_the_one_file_there_is(exported):
    kind, path, entry = exported.kind, exported.path, exported.entry
    content = path.read_bytes()
    assert names_below(path.parent) == [path.name]  # no .data file, nothing partial
    assert entry["format"] == {"trace": "torchscript", "script": "torchscript"}.get(kind, kind)
    assert entry["path"] == str(path)
    assert entry["bytes"] == len(content)
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["batch_sizes"] == [1, 3]
    assert 0 <= entry["max_abs_diff"] <= entry["tolerance"] == 1e-4
    assert entry.get("method") == (kind if kind in ("trace", "script") else None)
    assert json.loads(json.dumps(entry)) == entry
    assert entry["bytes"] > 4 * sum(parameter.numel() for parameter in exported.model.parameters())  # all weights


# ONNX


@pytest.mark.parametrize("opset", [18, 20])
def test_onnx_graph_is_valid_with_the_stated_opset_names_and_a_free_batch(tmp_path, opset):
    path = tmp_path / "model.onnx"
    entry = export_onnx(small(), path, opset=opset)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(str(path), load_external_data=False)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": opset}
    assert entry["opset"] == opset
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    (given,), (made,) = proto.graph.input, proto.graph.output
    assert (given.name, made.name) == ("input", "output") == (entry["input"], entry["output"])
    assert given.type.tensor_type.elem_type == made.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    N, *CHW = given.type.tensor_type.shape.dim
    assert N.dim_param
    assert [dim.dim_value for dim in CHW] == [1, 8, 8]
    out_N, K = made.type.tensor_type.shape.dim
    assert out_N.dim_param == N.dim_param
    assert K.dim_value == 3


def test_onnx_input_and_output_can_be_renamed(tmp_path):
    model = small()
    entry = export_onnx(model, tmp_path / "model.onnx", input_name="pixels", output_name="scores")
    assert (entry["input"], entry["output"]) == ("pixels", "scores")
    image_BCHW = images(3, [1, 8, 8])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits_BK,) = session.run(["scores"], {"pixels": image_BCHW.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits_BK), eager(model, image_BCHW), atol=1e-4, rtol=0)


@pytest.mark.parametrize("opset", [17, 99])
def test_f27_an_opset_that_can_not_be_had_is_an_error_never_another_one(tmp_path, opset):
    path = tmp_path / "model.onnx"
    entry, error = attempt(export_onnx, small(), path, opset=opset)
    if error is None:
        assert {i.domain: i.version for i in onnx.load(str(path)).opset_import} == {"": opset} == {"": entry["opset"]}
    else:
        assert str(opset) in str(error)
        assert names_below(tmp_path) == []


def test_f27_a_file_that_onnx_runtime_refuses_is_an_error(tmp_path):
    with pytest.raises(UserError) as caught:
        export_onnx(small(), tmp_path / "model.onnx", input_name="same", output_name="same")
    assert caught.value.exit_code == 1
    assert names_below(tmp_path) == []


# F27: what can't be written


@every_format
def test_f27_a_target_below_a_file_is_an_error_and_leaves_nothing(tmp_path, kind):
    export, name = EXPORTERS[kind]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="can't be written") as caught:
        export(small(), tmp_path / "file" / name)
    assert caught.value.exit_code == 1
    assert str(tmp_path / "file" / name) in str(caught.value)
    assert names_below(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


@every_format
def test_f27_a_directory_in_the_place_of_the_file_is_an_error_and_kept(tmp_path, kind):
    export, name = EXPORTERS[kind]
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="can't be written") as caught:
        export(small(), tmp_path / name)
    assert caught.value.exit_code == 1
    assert names_below(tmp_path) == [name]
    assert (tmp_path / name).is_dir()


FULL_DISK = """
import resource, sys
from pathlib import Path
from lit_guide.engine.errors import UserError
from lit_guide.export.onnx import export_onnx
from lit_guide.export.program import export_program
from lit_guide.export.torchscript import export_torchscript
from lit_guide.model import LitClassifier

model = LitClassifier(["a", "b"], [1, 8, 8], [0.5], [0.5], network_args={"widths": [2]})
targets = {export_torchscript: "model.torchscript.pt", export_onnx: "model.onnx", export_program: "model.pt2"}
for name in targets.values():
    Path(name).write_text("precious")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # no file can grow over 1000 bytes
for export, name in targets.items():
    try:
        export(model, Path(name))
    except UserError as error:
        print(error.exit_code, error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_f27_a_full_disk_is_an_error_and_leaves_the_earlier_files(tmp_path):
    # In a process of its own: a C++ writer that fails may take Python with it.
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = ["model.torchscript.pt", "model.onnx", "model.pt2"]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [f"1 {name} can't be written" for name in names]
    assert names_below(tmp_path) == sorted(names)
    assert {(tmp_path / name).read_text() for name in names} == {"precious"}


# F27: what differs from eager


class Around(nn.Module):
    """A network around another one."""

    def __init__(self, body):
        super().__init__()
        self.body = body


class AddsWhenExported(Around):
    def forward(self, image_BCHW):
        exporting = torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling()
        return self.body(image_BCHW) + (0.5 if exporting else 0.0)


class AddsALittleWhenExported(Around):
    def forward(self, image_BCHW):
        exporting = torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling()
        return self.body(image_BCHW) + (2e-4 if exporting else 0.0)


class NotANumber(Around):
    def forward(self, image_BCHW):
        return self.body(image_BCHW) * float("nan")


class KnowsTwoImages(Around):
    """As people write who count the batch in Python: a trace keeps the count of the example."""

    def forward(self, image_BCHW):
        return self.body(image_BCHW) + torch.zeros(int(image_BCHW.shape[0]), 1)


class DependsOnTheData(Around):
    def forward(self, image_BCHW):
        logits_BK = self.body(image_BCHW)
        if float(image_BCHW.sum()) > 50.0:  # as random images: one 8x8 image is below, two are above
            logits_BK = logits_BK + 1.0
        return logits_BK


class RefusesToBeExported(Around):
    def forward(self, image_BCHW):
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            raise ValueError("first line says why\nsecond line of many")
        return self.body(image_BCHW)


class HasNoScript(Around):
    def forward(self, image_BCHW):
        return (lambda logits_BK: logits_BK)(self.body(image_BCHW))


class FailsWhenScripted(Around):
    def forward(self, image_BCHW):
        if torch.jit.is_scripting():
            raise ValueError("it was compiled, and then refuses to run")
        return self.body(image_BCHW)


def with_network(wrapper):
    model = small()
    model.network = wrapper(model.network).eval()
    return model


# Tracing warns of what the comparison then finds.
tracer_warnings = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


def refuse_and_keep_the_earlier_file(tmp_path, kind, wrapper, difference):
    export, name = EXPORTERS[kind]
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"differs from eager by {difference}") as caught:
        export(with_network(wrapper), tmp_path / name)
    assert caught.value.exit_code == 1
    assert names_below(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "precious"


@tracer_warnings
@every_format
def test_f27_a_file_that_differs_from_eager_is_not_kept_and_an_earlier_one_is(tmp_path, kind):
    refuse_and_keep_the_earlier_file(tmp_path, kind, AddsWhenExported, "5.00e-01")


@tracer_warnings
@pytest.mark.parametrize("kind", ["trace", "script"])
def test_f27_a_difference_of_twice_the_tolerance_is_enough(tmp_path, kind):
    refuse_and_keep_the_earlier_file(tmp_path, kind, AddsALittleWhenExported, "2.00e-04")


@tracer_warnings
@pytest.mark.parametrize("kind", ["trace", "onnx"])
def test_f27_logits_that_are_no_numbers_are_not_kept(tmp_path, kind):
    refuse_and_keep_the_earlier_file(tmp_path, kind, NotANumber, "nan")


@tracer_warnings
@every_format
def test_f27_a_network_with_a_frozen_batch_is_an_error_or_exported_right(tmp_path, kind):
    model, (export, name) = with_network(KnowsTwoImages), EXPORTERS[kind]
    _, error = attempt(export, model, tmp_path / name)
    if error is None:
        image_BCHW = images(7, [1, 8, 8])
        torch.testing.assert_close(load(kind, str(tmp_path / name))(image_BCHW), eager(model, image_BCHW), atol=1e-4, rtol=0)
    else:
        assert kind != "script"  # a script counts anew each time
        assert error.exit_code == 1
        assert len(str(error).splitlines()) == 1
        assert names_below(tmp_path) == []


@tracer_warnings
def test_f27_control_flow_that_depends_on_the_data_is_refused_by_trace_and_kept_by_script(tmp_path):
    model = with_network(DependsOnTheData)
    with pytest.raises(UserError, match=r"differs from eager by 1\.00e\+00"):
        export_torchscript(model, tmp_path / "trace.pt", "trace")
    assert names_below(tmp_path) == []
    export_torchscript(model, tmp_path / "script.pt", "script")
    scripted = load("script", str(tmp_path / "script.pt"))
    dark_BCHW, bright_BCHW = torch.full((1, 1, 8, 8), 0.1), torch.full((1, 1, 8, 8), 0.9)
    for image_BCHW in (dark_BCHW, bright_BCHW):
        torch.testing.assert_close(scripted(image_BCHW), eager(model, image_BCHW), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_f27_control_flow_that_the_exporter_refuses_is_one_message(tmp_path, kind, capfd):
    export, name = EXPORTERS[kind]
    with pytest.raises(UserError, match=f"the {kind} exporter refused the network: ") as caught:
        export(with_network(DependsOnTheData), tmp_path / name)
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "\x1b" not in message
    assert "data-dependent" in message  # why, not only that
    assert names_below(tmp_path) == []
    assert capfd.readouterr() == ("", "")


@tracer_warnings
@pytest.mark.parametrize(
    ("kind", "wrapper"),
    [("trace", RefusesToBeExported), ("onnx", RefusesToBeExported), ("pt2", RefusesToBeExported), ("script", HasNoScript)],
)
def test_f27_a_network_that_the_exporter_refuses_is_one_message_and_leaves_nothing(tmp_path, kind, wrapper):
    export, name = EXPORTERS[kind]
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match="exporter refused the network") as caught:
        export(with_network(wrapper), tmp_path / name)
    assert caught.value.exit_code == 1
    assert len(str(caught.value).splitlines()) == 1
    assert "\x1b" not in str(caught.value)
    assert names_below(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_f27_a_file_that_can_not_run_is_one_message_and_not_kept(tmp_path):
    with pytest.raises(UserError) as caught:
        export_script(with_network(FailsWhenScripted), tmp_path / "model.pt")
    assert caught.value.exit_code == 1
    assert len(str(caught.value).splitlines()) == 1
    assert names_below(tmp_path) == []


def test_parity_is_the_largest_difference_of_any_logit_at_any_batch_size():
    network = small().network.eval()

    def one_logit_off(image_BCHW):
        logits_BK = network(image_BCHW).clone()
        if len(image_BCHW) == 3:
            logits_BK[2, 1] -= 0.25
        return logits_BK

    with torch.no_grad():
        assert parity(network, network, [1, 8, 8]) == 0
        assert parity(network, one_logit_off, [1, 8, 8]) == pytest.approx(0.25)
        assert not parity(network, lambda image_BCHW: network(image_BCHW) * float("nan"), [1, 8, 8]) <= TOLERANCE


@pytest.mark.parametrize("reshape", [lambda y: y[None], lambda y: y.repeat(len(y), 1, 1), lambda y: y[..., None]])
def test_parity_does_not_accept_another_shape(reshape):
    """Logits of equal values in another shape broadcast to a difference of zero."""

    class Constant(nn.Module):
        def forward(self, image_BCHW):
            return torch.ones(len(image_BCHW), 3)

    network = Constant()
    try:
        difference = parity(network, lambda image_BCHW: reshape(network(image_BCHW)), [1, 8, 8])
    except UserError:
        return
    assert not difference <= TOLERANCE


# What an export leaves alone


@every_format
def test_exporting_twice_replaces_the_file(tmp_path, kind):
    export, name = EXPORTERS[kind]
    export(small(), tmp_path / name)
    model = small()
    with torch.no_grad():
        model.network.body.head[2].bias += 1.0
    entry = export(model, tmp_path / name)
    assert names_below(tmp_path) == [name]
    assert entry["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    image_BCHW = images(3, [1, 8, 8])
    torch.testing.assert_close(load(kind, str(tmp_path / name))(image_BCHW), eager(model, image_BCHW), atol=1e-4, rtol=0)


@every_format
def test_a_model_in_training_is_exported_in_evaluation_mode_and_stays_in_training(tmp_path, kind):
    export, name = EXPORTERS[kind]
    model = small().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, tmp_path / name)
    image_BCHW = images(3, [1, 8, 8])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    logits_BK = load(kind, str(tmp_path / name))(image_BCHW)
    torch.testing.assert_close(logits_BK, eager(model.eval(), image_BCHW), atol=1e-4, rtol=0)


class Cooler(LitClassifier):
    """Logits of a third: what is exported must be this forward, not the network under it."""

    def forward(self, image_BCHW):
        return super().forward(image_BCHW) / 3


@pytest.mark.parametrize("export", [export_torchscript, export_onnx, export_program])
def test_a_forward_of_ones_own_is_what_is_exported(tmp_path, export):
    model = Cooler(["a", "b"], (1, 8, 8), [0.5], [0.3], network_args={"widths": [4]}).eval()
    suffix = {export_torchscript: "pt", export_onnx: "onnx", export_program: "pt2"}[export]
    path = tmp_path / f"model.{suffix}"
    assert export(model, path)["max_abs_diff"] < 1e-5
    image_BCHW = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if export is export_onnx:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            logits_BK = torch.from_numpy(session.run(["output"], {"input": image_BCHW.numpy()})[0])
        else:
            run = torch.jit.load(path) if export is export_torchscript else torch.export.load(path).module()
            logits_BK = run(image_BCHW)
        torch.testing.assert_close(logits_BK, model.network(image_BCHW) / 3, atol=1e-5, rtol=0)
