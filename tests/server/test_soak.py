"""A minute of what `make soak` does for half an hour."""

import numpy as np
from teran_client import ImageRegions, TeranClient

from benchmarks.soak import Sample, Soak, look, soak
from teran.cli.background import BackgroundServer
from tests.conftest import TINY
from tests.data import captions


def test_nothing_grows_under_mixed_traffic(server: BackgroundServer) -> None:
    # What snapshots need at first, and is used again, takes longer than a minute to be all there.
    seen = soak(server, captions(50), TINY.feature_dim, seconds=60, period=2, without=["snapshots"])
    found = seen.findings(growth=0.05, slack=4 << 20)  # in a minute not everything is warm
    assert not [one for one in found if "calls a second" not in one]  # times are no test's business
    assert min(seen.done.values()) > 0
    assert len(seen.done) == 9


def test_images_of_ever_new_shapes_take_no_more_memory(server: BackgroundServer) -> None:
    generator = np.random.default_rng(0)

    def memory_after(region_counts: range) -> float:
        with TeranClient(server.url, batch_size=8) as client:
            for regions in region_counts:
                features = generator.random((regions, TINY.feature_dim)).astype(np.float32)
                image = ImageRegions(features, np.full((regions, 4), 0.5, np.float32))
                for count in range(1, 9):
                    assert len(client.encode_images([image] * count)) == count
        return look(server, 0).memory["visual_encoder"]

    before = memory_after(range(60, 100))
    assert memory_after(range(20, 60)) < before + 24e6


def test_what_grows_is_found() -> None:
    seen = Soak(100)
    for i in range(20):
        memory = {"gallery": 100e6, "tokenizer": 50e6 + i * 1e6}
        seen.samples.append(Sample(i, memory, {"gallery": 20 + i, "tokenizer": 9}, segments=i))
        seen.rates.append(100 - 3 * i)
    found = " ".join(seen.findings())
    for part in ("tokenizer grew", "gallery has", "segments", "calls a second at the end"):
        assert part in found
    assert "gallery grew" not in found
    assert "tokenizer has" not in found
