"""The demo's client against a server that is running: index, search and match unseen scenes."""

import sys

from teran_client import Entry, TeranClient

from examples.scenes.dataset import make_split
from examples.scenes.regions import find_regions

SCENES = 100


def main(url: str) -> None:
    """Search 100 scenes for their captions."""
    samples = make_split("test", SCENES)
    images = find_regions(samples)
    with TeranClient(url) as client:
        client.index([Entry(image, image.name) for image in images], gallery="smoke")
        results = client.search([s.captions[0].text for s in samples], k=10, gallery="smoke")
        found = sum(str(i) in [hit.id for hit in r] for i, r in enumerate(results))
        match = client.match(images[0], samples[0].captions[0].text)
        client.drop_gallery("smoke")
    print(f"{found} of {SCENES} captions found their scene among ten; {match.score_per_word:.2f}")
    if found < 0.95 * SCENES:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
