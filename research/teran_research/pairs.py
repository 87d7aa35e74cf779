"""A split as the trainer takes it: regions are read when they are needed."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from teran.evaluation.data import RegionSource, Split
from teran.evaluation.data.captions import PER_IMAGE
from teran.training import PairDataset

Floats = npt.NDArray[np.float32]


def pairs_of(splits: Sequence[Split], source: RegionSource, tokenizer: Tokenizer) -> PairDataset:
    """Images with their captions as word pieces, taken verbatim as the authors do."""
    images = [image for split in splits for image in split.image_ids]
    captions = [caption for split in splits for caption in split.captions]
    pieces = [encoding.ids for encoding in tokenizer.encode_batch(captions)]
    read = lru_cache(maxsize=256)(source.read)  # a batch is asked for several times

    class Column(Sequence[Floats]):
        def __init__(self, name: Literal["features", "boxes"]) -> None:
            self._name = name

        def __len__(self) -> int:
            return len(images)

        @overload
        def __getitem__(self, place: int) -> Floats: ...
        @overload
        def __getitem__(self, place: slice) -> Sequence[Floats]: ...
        def __getitem__(self, place: int | slice) -> Floats | Sequence[Floats]:
            if isinstance(place, slice):
                return [self[i] for i in range(*place.indices(len(self)))]
            found: Floats = getattr(read(images[place]), self._name)
            return found

    return PairDataset(
        Column("features"),
        Column("boxes"),
        [pieces[i : i + PER_IMAGE] for i in range(0, len(pieces), PER_IMAGE)],
    )
