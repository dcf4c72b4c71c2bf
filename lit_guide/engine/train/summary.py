"""The model summary: layers, parameters and FLOPs of one image."""

from typing import Any

from lightning.pytorch.callbacks import RichModelSummary


class Summary(RichModelSummary):
    """Lightning's RichModelSummary without the rows of the metrics, which have no parameters.

    Args:
        max_depth: levels of nested layers to show.
    """

    def __init__(self, max_depth: int = 3) -> None:
        super().__init__(max_depth)

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], *args: Any, **kwargs: Any) -> None:
        """Print the table."""
        names = dict(summary_data)["Name"]
        kept = [index for index, name in enumerate(names) if name.startswith("network")]
        rows = [(column, [values[index] for index in kept]) for column, values in summary_data]
        RichModelSummary.summarize(rows, *args, **kwargs)
