"""From a recipe and a data set to a bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from teran_research.cli import explain, train
from teran_research.recipe import RECIPES, Recipe

from teran.errors import CheckpointError, TeranInputError
from teran.model import Pooling, TeranModel
from tests.conftest import TINY, tiny_vocabulary
from tests.datasets import sentence, write_dataset

RELEASED = [
    f"teran_{dataset}_{kind}"
    for dataset in ("coco", "f30k")
    for kind in ("MrSw", "MwSr", "symm", "MrSw_sharedTE")
]
RECIPE = """
[data]
dataset = "f30k"

[model]
feature_dim = 24
embed_dim = 16
visual_layers = 1
joint_layers = 1
feedforward_dim = 32
text = { hidden_size = 16, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 32 }

[training]
epochs = 2
batch_size = 8
learning_rate = 1e-3
all_negatives_epochs = 2
"""


@pytest.mark.parametrize("name", RELEASED)
def test_released_recipes(name: str) -> None:
    """As the authors' files say: only data set, pooling and sharing differ, batch and warm-up."""
    recipe = Recipe.read(name)
    is_coco = "coco" in name
    assert recipe.dataset == ("coco" if is_coco else "f30k")
    assert recipe.restval is is_coco
    assert recipe.model.pooling is Pooling(name.split("_")[2])
    assert recipe.model.shared_transformer is name.endswith("sharedTE")
    assert recipe.training.batch_size == (40 if is_coco else 30)
    assert recipe.training.warmup_steps == (0 if is_coco else 1000)
    assert (recipe.training.learning_rate, recipe.training.margin) == (1e-5, 0.2)
    assert (recipe.training.epochs, recipe.training.step_size) == (30, 20)
    assert recipe.training.all_captions, "as the authors' epochs do"
    assert (recipe.model.embed_dim, recipe.model.visual_layers) == (1024, 4)


def test_no_other_recipes_are_there() -> None:
    assert sorted(one.stem for one in RECIPES.glob("*.toml")) == sorted(RELEASED)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[data", "Expected"),
        ("[data]\ndataset = 'cats'", "has a dataset, coco or f30k"),
        ("[data]\ndataset = 'coco'\n[modle]\n", r"\[modle\] is no part"),
        ("[data]\ndataset = 'coco'\n[model]\nlayers = 3", "layers"),
        ("[data]\ndataset = 'coco'\n[training]\nbatch = 3", "no setting batch"),
        ("[data]\ndataset = 'coco'\n[training]\nepochs = 2.5", "epochs is 2.5, expected int"),
        ("[data]\ndataset = 'coco'\n[training]\nhardest_negative = 1", "expected bool"),
        (
            "[data]\ndataset = 'coco'\n[training]\noptimizer = 'sgd'",
            "mine.toml: optimizer is 'sgd'",
        ),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(TeranInputError, match=reason):
        Recipe.read(str(path))
    with pytest.raises(TeranInputError, match="neither a file nor one of teran_coco_MrSw, "):
        Recipe.read("teran_cats")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, 30)
    file = root / "dataset_flickr30k.json"
    found = json.loads(file.read_text())
    for i, image in enumerate(found["images"]):
        image["split"] = "train" if i < 20 else "val"
    file.write_text(json.dumps(found))
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(tiny_vocabulary()))
    return path


def test_a_run_and_what_is_left_of_it(
    recipe: str, data: Path, vocabulary: Path, tmp_path: Path
) -> None:
    """It can be gone on with, changes nothing by that, and can be begun from."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, data, whole, vocabulary=vocabulary)
    record = json.loads((whole / "record.json").read_text())
    assert [entry["epoch"] for entry in record["history"]] == [1, 2]
    assert len((whole / "log.csv").read_text().splitlines()) == 1 + 2 * 3
    best = TeranModel.from_pretrained(whole / "best")
    assert best.tokenizer
    assert best.config.text.vocab_size == len(tiny_vocabulary())
    train(recipe, data, parts, vocabulary=vocabulary, epochs=1)
    with pytest.raises(TeranInputError, match="holds a run; go on with it by --resume"):
        train(recipe, data, parts, vocabulary=vocabulary)
    train(recipe, data, parts, resume=True)
    ends = [torch.load(out / "last.pt", weights_only=True)["model"] for out in (whole, parts)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    train(recipe, data, tmp_path / "more", start=whole / "best", epochs=1, precision="bf16")
    again = json.loads((tmp_path / "more" / "record.json").read_text())
    assert again["training"]["precision"] == "bf16"
    assert again["history"][0]["loss"] < record["history"][0]["loss"]


def test_what_a_run_lacks_is_said(
    recipe: str, data: Path, vocabulary: Path, tmp_path: Path
) -> None:
    with pytest.raises(TeranInputError, match="give a --vocabulary"):
        train(recipe, data, tmp_path / "run")
    with pytest.raises(TeranInputError, match="has a BERT and a vocabulary already"):
        train(recipe, data, tmp_path / "run", start=tmp_path, bert=tmp_path)
    with pytest.raises(CheckpointError, match="holds no BERT that can be read"):
        train(recipe, data, tmp_path / "run", bert=tmp_path, vocabulary=vocabulary)


@pytest.mark.parametrize("safe", [True, False])
def test_a_bert_of_transformers_is_taken(tmp_path: Path, safe: bool) -> None:
    """Its first layers: the textual encoder's last hidden state is theirs."""
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=96,
    )
    torch.manual_seed(0)
    theirs = transformers.BertModel(config).eval()
    theirs.config.save_pretrained(tmp_path)
    if safe:
        theirs.save_pretrained(tmp_path)
    else:  # as older files are
        names = {
            f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for key, value in theirs.state_dict().items()
        }
        torch.save(names, tmp_path / "pytorch_model.bin")
    model = TeranModel(TINY).eval()
    model.load_bert(tmp_path)
    ids = torch.tensor([[2, 7, 12, 20, 4, 3]])
    with torch.inference_mode():
        ours = model.textual_encoder.bert(model.textual_encoder.embeddings(ids), torch.zeros(()))
        expected = theirs(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    small: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(small | {"hidden_size": 8}))
    with pytest.raises(CheckpointError):
        model.load_bert(tmp_path)


def test_an_explanation_is_drawn(
    data: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    features = tmp_path / "7.npz"
    features.write_bytes((data / "features_36" / "bu_att" / "7.npz").read_bytes())
    boxes = (data / "features_36" / "bu_box" / "7.npy").read_bytes()
    features.with_suffix(".npy").write_bytes(boxes)
    out = tmp_path / "words"
    explain(features, "a dog <runs>", out, model=tiny_bundle, size="80x60")
    assert "words.png and " in capsys.readouterr().out
    with Image.open(tmp_path / "words.png") as sheet:
        assert sheet.size[0] > 300
        grey = np.asarray(sheet.convert("L"))
    assert grey.min() < 100 < grey.max()
    page = (tmp_path / "words.html").read_text()
    assert page.count("<figure>") == page.count("data:image/jpeg;base64,") >= 4
    assert "<h1>a dog &lt;runs&gt;</h1>" in page
    photo = tmp_path / "8.png"
    Image.new("RGB", (80, 60), "red").save(photo)
    explain(features, sentence(1), out, model=tiny_bundle, size="80x60", photo=photo)
    with pytest.raises(TeranInputError, match="give what finds its regions as --detector"):
        explain(photo, "a dog", out, model=tiny_bundle)
    with pytest.raises(TeranInputError, match="give --model or --server, one of them"):
        explain(photo, "a dog", out)
    with pytest.raises(TeranInputError, match="is no picture"):
        explain(features, "a dog", out, model=tiny_bundle, size="80x60", photo=features)
