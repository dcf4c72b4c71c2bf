"""Exports: a file gets its name only after it gave the model's own logits, and what fails leaves none."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lit_guide.data import DigitsData
from lit_guide.engine.errors import UserError
from lit_guide.export.proof import prove
from lit_guide.model import load_classifier

from .conftest import results_of


def test_the_onnx_file_scores_what_results_json_says_and_knows_its_classes(trained):
    data, path = DigitsData(), str(trained / "export/model.onnx")
    image_BCHW = torch.cat([batch[0] for batch in data.test_dataloader()]).float() / 255
    (logits_BK,) = onnxruntime.InferenceSession(path).run(["output"], {"input": image_BCHW.numpy()})
    expected_BK = load_classifier(trained / "checkpoints/best.ckpt")(image_BCHW).detach().numpy()
    np.testing.assert_allclose(logits_BK, expected_BK, atol=1e-4, rtol=0)
    accuracy = (logits_BK.argmax(axis=1) == data.source.labels_N[data.rows["test"]]).mean()
    assert accuracy == pytest.approx(results_of(trained)["test"]["accuracy"], abs=1e-6)
    assert {entry["max_abs_diff"] <= 1e-4 for entry in results_of(trained)["exports"]} == {True}
    facts = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
    assert (facts["class_names"], facts["input_shape"], facts["mean"]) == (data.class_names, [1, 8, 8], data.mean)


@pytest.mark.parametrize("error", [0.1, float("nan")])
def test_a_file_that_gives_other_logits_is_not_kept(trained, tmp_path, error):
    model = load_classifier(trained / "checkpoints/best.ckpt")

    def write(network, example_BCHW, target):
        target.write_bytes(b"a file")

    with pytest.raises(UserError, match="the onnx file differs from eager"):
        prove("onnx", model, tmp_path / "model.onnx", write, lambda target: lambda image_BCHW: model(image_BCHW) + error)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_exits_1_and_the_others_are_written(run, own_run):
    (own_run / "export/model.onnx").unlink()
    (own_run / "export/model.onnx").mkdir()  # in the place of the file
    code, _, err = run("export", "--run", own_run, "--formats", "torchscript,onnx", "--export.torchscript.method", "script")
    assert (code, "1 of 2 exports failed" in err, f"export --run {own_run} --formats onnx" in err) == (1, True, True)
    entries = {entry["format"]: entry for entry in results_of(own_run)["exports"]}
    assert (set(entries["onnx"]), entries["torchscript"]["method"]) == ({"format", "error"}, "script")
