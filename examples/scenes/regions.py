"""What the demo's detector finds in scenes, without a server: for training and calibration."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from teran_client import ImageRegions

from examples.scenes.dataset import Sample
from examples.scenes.scene import HEIGHT, WIDTH
from teran.detector import RegionDetector
from teran.detector.network import fold_norms

DETECTOR = Path(__file__).parent / "detector"


def find_regions(
    samples: Sequence[Sample], directory: Path = DETECTOR, *, quiet: bool = False
) -> list[ImageRegions]:
    """Draw samples and detect their regions, one on every core; they are called by their numbers.

    Args:
        samples: the scenes.
        directory: of the detector.
        quiet: show no progress.
    """
    detector, threads = RegionDetector.from_pretrained(directory), torch.get_num_threads()
    fold_norms(detector)
    # With the norms folded this is a quarter quicker; torch's stubs know of no such call.
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def find(number: int) -> ImageRegions:
        (found,) = detector.detect([np.asarray(samples[number].image())])
        size = (WIDTH, HEIGHT)
        return ImageRegions.from_pixels(found.features, found.boxes, size, str(number))

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(find, range(len(samples)))
            return list(
                track(found, "detecting regions", len(samples), transient=True, disable=quiet)
            )
    finally:
        torch.set_num_threads(threads)
