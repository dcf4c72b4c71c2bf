"""From nothing to a project of one's own, and to its first trained, tested and exported model.

Claims, wall time of whole processes with the dependencies already installed, 2 cores: `cookiecutter` makes a project in
<= 2 s (median of n = 9), and `cookiecutter` followed by the project's `fit --config configs/digits.yaml` with all three
exports takes <= 60 s (the longest of n = 3). The template is a clone of this repository's last commit. Of a project with
the digits and no part, its owner has <= 1,000 lines of Python to read and change (the story: the package's own files and
data/), its tests have <= 600, and the whole package <= 7,400, which is what story, exports
and engine may have together; blank lines, docstrings and comments are counted.

    python benchmarks/generate.py [--quick]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record

ROOT = Path(__file__).parent.parent
BAKES, RUNS = 9, 3
CORES = 2
BAKE_SECONDS, RUN_SECONDS = 2.0, 60.0
# What is counted in a project without parts -> its files, lines at most.
LINES = {
    "lines of the story": (("my_classifier/*.py", "my_classifier/data/*.py"), 1_000),
    "lines of the tests": (("tests/**/*.py",), 600),
    "lines of the package": (("my_classifier/**/*.py",), 7_400),
}
FIT = ["-m", "my_classifier", "fit", "--config", "configs/digits.yaml", "--run_dir", "run", "--accelerator", "cpu"]


def bake(template: Path, options: list[str] | None = None, *answers: str) -> dict[str, Any]:
    """Generate, and count the lines; with options of `fit`, train too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "cookiecutter.yaml"
        config.write_text(f"replay_dir: '{folder / 'replay'}'\n", encoding="utf-8")
        command = [sys.executable, "-m", "cookiecutter", str(template), "--no-input", *answers]
        figures: dict[str, Any] = {"bake_s": round(record.call(*command, cwd=folder, COOKIECUTTER_CONFIG=str(config)), 3)}
        project = folder / "my-classifier"
        figures["files"] = sum(path.is_file() for path in project.rglob("*"))
        for name, (patterns, _) in LINES.items():
            paths = [path for pattern in patterns for path in project.glob(pattern)]
            figures[name] = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        if options is not None:
            figures["fit_s"] = round(record.call(sys.executable, *FIT, *options, cwd=project), 2)
            figures["total_s"] = round(figures["bake_s"] + figures["fit_s"], 2)
            results = json.loads((project / "run/results.json").read_text(encoding="utf-8"))
            figures["test_accuracy"] = results["test"]["accuracy"]
            figures["exports"] = [entry["format"] for entry in results["exports"] if "error" not in entry]
    return figures


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    wait = None if quick else given.wait
    record.keep_to(CORES)
    options = ["--trainer.max_epochs", "1"] if quick else []
    with tempfile.TemporaryDirectory() as name:
        template = Path(name) / "template"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(template)], check=True)
        core = bake(template, None, "data=digits", "parts=core")  # warm-up too: files into the cache
        bakes = record.repeat(1 if quick else BAKES, lambda index: bake(template), wait)
        runs = record.repeat(1 if quick else RUNS, lambda index: bake(template, options), wait)
    middle = record.medians(bakes) | {f"run_{name}": value for name, value in record.medians(runs).items()}
    print(f"medians: {middle}")
    counted = record.undisturbed(runs)
    longest = max(run["total_s"] for run in counted)
    claims = [
        record.claim("seconds to generate a project", middle["bake_s"], BAKE_SECONDS, len(record.undisturbed(bakes))),
        record.claim("seconds from cookiecutter to the first exported model", longest, RUN_SECONDS, len(counted)),
        *(record.claim(f"{name}, digits and no part", core[name], limit, 1) for name, (_, limit) in LINES.items()),
    ]
    return record.finish("generate", claims, [*bakes, *runs], middle, {"command": ["cookiecutter", *FIT]}, quick)


if __name__ == "__main__":
    sys.exit(main())
