import pytest
import rich
from lightning.pytorch import Trainer

from lit_guide.data import DigitsData
from lit_guide.engine.train.progress import Summary
from lit_guide.model import LitClassifier

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning 2.6 on torch 2.11 and up
]


@pytest.fixture
def summary(tmp_path, capsys, monkeypatch):
    """What is printed for a network whose figures are known: widths [4] on 1x8x8 digits."""
    rich.reconfigure(width=160)  # Lightning draws on the global console, which may be older than this test
    data = DigitsData()
    model = LitClassifier(data.class_names, data.input_shape, data.mean, data.std, network_args={"widths": [4]})
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        callbacks=[Summary()],
    ).fit(model, data)
    return capsys.readouterr().out


def rows_of(text):
    """The cells of the table, by the name in the second column."""
    table = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines() if line.startswith("│")]
    return {cells[1]: cells for cells in table}


def test_summary_shows_the_flops_and_parameters_of_one_image(summary):
    rows = rows_of(summary)
    # 3x3 convolutions over 64 pixels, two operations a multiplication: 1 -> 4 and 4 -> 4 channels; the head 4 -> 10.
    first, second, head = 2 * 64 * 9 * 4, 2 * 64 * 9 * 4 * 4, 2 * 4 * 10
    assert [first, second, head] == [4608, 18432, 80]
    parameters = 9 * 4 + 8 + 9 * 16 + 8 + 50
    assert f"Total params: {parameters}" in summary
    assert "Total FLOPs: 23.1 K" in summary
    assert {"246", "23.1 K"} <= set(rows["network"])


def test_summary_shows_the_layers_and_no_metric(summary):
    names = list(rows_of(summary))
    assert names[0] == "network"
    assert {"network.body", "network.body.features", "network.body.head"} <= set(names)
    assert all(name.startswith("network") for name in names)
    for metric in ("val_metrics", "test_metrics", "confusion", "accuracy"):
        assert metric not in summary.lower()
