"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from teran.gallery.embedded import files


def test_no_directory_is_on_the_disk_before_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    root = tmp_path / "root"
    for name in ("a/b/c", "a/d", "e"):
        (root / name).mkdir(parents=True)
    files.sync_names(root)
    assert set(synced) == {tmp_path, root, *root.rglob("*")}
    places = {path: i for i, path in enumerate(synced)}
    assert all(places[path] < places[path.parent] for path in root.rglob("*"))
    assert synced[-1] == tmp_path
