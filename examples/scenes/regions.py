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
from teran.runtime.environment import available_cores

DETECTOR = Path(__file__).parent / "detector"


def find_regions(
    samples: Sequence[Sample], directory: Path = DETECTOR, *, quiet: bool = False
) -> list[ImageRegions]:
    """Draw samples and detect their regions, on all cores; each is named by its place.

    Args:
        samples: the scenes.
        directory: of the detector.
        quiet: show no progress.
    """
    detector, threads = RegionDetector.from_pretrained(directory), torch.get_num_threads()
    fold_norms(detector)
    # Quicker on a CPU; torch's stubs know of no call without a device or type.
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def find(number: int) -> ImageRegions:
        (found,) = detector.detect([np.asarray(samples[number].image())])
        size = (WIDTH, HEIGHT)
        return ImageRegions.from_pixels(found.features, found.boxes, size, str(number))

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(available_cores()) as pool:
            found = pool.map(find, range(len(samples)))
            return list(
                track(found, "detecting regions", len(samples), transient=True, disable=quiet)
            )
    finally:
        torch.set_num_threads(threads)
