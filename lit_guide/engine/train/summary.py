"""The model summary: layers, parameters and FLOPs of one image."""

from typing import Any

from lightning.pytorch.callbacks import RichModelSummary


class Summary(RichModelSummary):
    """Lightning's RichModelSummary without what has no parameters: metrics and losses, which are modules too."""

    def __init__(self, max_depth: int = 3) -> None:
        super().__init__(max_depth)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        """Print the table."""
        columns = dict(summary_data)
        sizes = dict(zip(columns["Name"], columns["Params"], strict=True))
        kept = [index for index, name in enumerate(sizes) if sizes.get(name.partition(".")[0], "").strip() != "0"]
        RichModelSummary.summarize([(column, [cells[i] for i in kept]) for column, cells in summary_data], *args, **kwargs)
