"""Photos of 4000 x 3000 pixels: training batches against ImageFolder, `data check` against a bare decode.

Claims, medians of the ratios of 7 rounds in alternation (n = 7), on 96 JPEGs of 2.9 to 3.7 MB (quality 92), no cache:

- images/s of training batches at the recipe of configs/folder.yaml (random crops of 224 pixels, 25 to 100 % of the area, mirrored
  by chance, batches of 32) >= 2.5 times those of `ImageFolder`, PIL and v1 transforms with the same 2 workers (goal 3 times);
- images/s of `data check` >= 1.7 times those of a bare full decode: two threads that read each file and call torchvision's
  `decode_jpeg`, and do nothing with it (goal 2.5 times). The check reads each file to its end, and undoing its Huffman code takes
  the more of a decode, the larger the file is: the record has that share, measured as Pillow's decode to an eighth in grey;
- the same >= 2.5 times on JPEGs of 1.8 to 2.3 MB (quality 80).

`ours_08_over_classic` is the first ratio with the crops of `FolderData`'s own default, 8 % of the area and more, not judged.

    python benchmarks/big_photos.py [--quick]
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_check
import folder_pipeline
import numpy as np
import photos
import record
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

IMAGES, ROUNDS, WORKERS = 96, 7, 2
MIN_AREA = 0.25  # of configs/folder.yaml
LOAD, LOAD_GOAL, CHECK, CHECK_GOAL = 2.5, 3.0, 1.7, 2.5  # of the smaller files CHECK_GOAL is the claim
SMALLER = 80  # the quality of these


def huffman_share(path: Path) -> float:
    """The time of a decode to the means of 8 x 8 pixels, in grey, over that of a full decode, in CPU time, the lowest of five."""
    data = np.fromfile(path, dtype=np.uint8)

    def smallest() -> None:
        with Image.open(io.BytesIO(data.data)) as file:
            file.draft("L", (file.width // 8, file.height // 8))
            file.load()

    def lowest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        return min(times)

    return lowest(smallest) / lowest(lambda: decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB))


def one_round(index: int, root: Path, smaller: Path, sides: dict[str, folder_pipeline.Epoch]) -> dict[str, Any]:
    """An epoch of each side, and a check; every second round runs them in the opposite order."""
    figures: dict[str, Any] = {}
    for side in list(sides) if index % 2 else list(reversed(sides)):
        figures[f"{side}_images_per_s"] = round(folder_pipeline.images_per_second(sides[side]), 2)
    for side in ("ours", "ours_08"):
        figures[f"{side}_over_classic"] = round(figures[f"{side}_images_per_s"] / figures["classic_images_per_s"], 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads decode different files on both sides
    checked, of_smaller = data_check.both(index, root), data_check.both(index, smaller)
    torch.set_num_threads(threads)
    figures |= {f"smaller_{name}".replace("ratio", "check_over_bare"): value for name, value in of_smaller.items()}
    return figures | {name.replace("ratio", "check_over_bare"): value for name, value in checked.items()}


def main() -> int:
    given = record.arguments(__doc__).parse_args()
    quick = given.quick
    record.silence_lightning()
    count = 16 if quick else IMAGES
    with tempfile.TemporaryDirectory() as folder:
        root = photos.make_big_folder(Path(folder) / "photos", count)
        paths = sorted(root.rglob("*.jpg"))
        smaller = photos.make_big_folder(Path(folder) / "smaller", count, quality=SMALLER)
        sizes, sizes_of_smaller = (
            [round(path.stat().st_size / 1e6, 2) for path in place.rglob("*.jpg")] for place in (root, smaller)
        )
        cache = {"cache_dir": str(Path(folder) / "cache")}
        sides = {
            "classic": folder_pipeline.classic(root, WORKERS, MIN_AREA),
            "ours": folder_pipeline.ours(root, WORKERS, min_area=MIN_AREA, **cache),
            "ours_08": folder_pipeline.ours(root, WORKERS, **cache),
        }
        folder_pipeline.check_same({side: sides[side] for side in ("classic", "ours")}, count)
        share = round(huffman_share(paths[0]), 3)
        rounds = record.repeat(
            2 if quick else ROUNDS, lambda index: one_round(index, root, smaller, sides), None if quick else given.wait
        )
    middle, n = record.medians(rounds), len(record.undisturbed(rounds))
    for name, goal in (("ours_over_classic", LOAD_GOAL), ("check_over_bare", CHECK_GOAL)):
        print(f"{name}: {middle[name]}; goal {goal:g} {'reached' if middle[name] >= goal else 'not reached'}")
    claims = [
        record.claim(
            "images/s of training crops from JPEGs of 4000 x 3000 over those of ImageFolder + PIL + v1 transforms",
            middle["ours_over_classic"],
            LOAD,
            n,
            at_most=False,
        ),
        record.claim(
            "images/s of `data check` on JPEGs of 4000 x 3000 and 2.9 to 3.7 MB over those of a bare full decode",
            middle["check_over_bare"],
            CHECK,
            n,
            at_most=False,
        ),
    ]
    claims.append(
        record.claim(
            "the same on JPEGs of 1.8 to 2.3 MB",
            middle["smaller_check_over_bare"],
            CHECK_GOAL,
            n,
            at_most=False,
        )
    )
    settings = {"images": count, "workers": WORKERS, "min_area": MIN_AREA, "megabytes": [min(sizes), max(sizes)]}
    settings |= {"megabytes_of_smaller": [min(sizes_of_smaller), max(sizes_of_smaller)]}
    settings |= {"goals": [LOAD_GOAL, CHECK_GOAL], "share_of_huffman": share}
    return record.finish("big_photos", claims, rounds, middle, settings, quick)


if __name__ == "__main__":
    sys.exit(main())
