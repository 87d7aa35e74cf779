"""What the paper reports (Messina et al., TOMM 2021), as a survey of the field lists it."""

from collections.abc import Mapping

Recalls = tuple[float, float, float]
FIGURES: Mapping[tuple[str, int], Mapping[str, Recalls]] = {
    ("coco", 1000): {"sentence": (77.7, 95.9, 98.6), "image": (65.0, 91.2, 96.4)},
    ("coco", 5000): {"sentence": (55.6, 83.9, 91.6), "image": (42.6, 72.5, 82.9)},
    ("f30k", 1000): {"sentence": (70.8, 90.9, 95.5), "image": (56.5, 81.2, 88.2)},
}
"""Recall at 1, 5 and 10 in percent, of MrSw on the test split, by data set and images of a fold."""
