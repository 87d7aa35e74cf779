"""A recipe on a data set: which model to begin with, and what it learns from."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from teran.errors import CheckpointError, TeranInputError
from teran.evaluation.data import open_regions, read_split, root_of
from teran.model import TeranModel
from teran.model.checkpoint import read_bert
from teran.model.random import random_model
from teran.tokenizer import wordpiece_tokenizer
from teran.training import Trainer
from teran.training.distributed import World
from teran_research.evaluate import check_images
from teran_research.pairs import pairs_of
from teran_research.recipe import Recipe
from teran_research.roads import check_width


@dataclass(frozen=True)
class Beginning:
    """What a model is before it is trained; random, but for what is given."""

    start: Path | None = None
    """A bundle, all of it."""
    bert: Path | None = None
    """Directory of a BERT of transformers."""
    vocabulary: Path | None = None
    """BERT's vocab.txt; by default the one beside it."""

    def model(self, recipe: Recipe) -> TeranModel:
        """Make it.

        Raises:
            TeranInputError: there is no vocabulary, or too much is given.
            CheckpointError: what is given can't be read, or does not fit.
        """
        if self.start:
            if self.bert or self.vocabulary:
                raise TeranInputError("a bundle to start with has a BERT and a vocabulary already")
            model = TeranModel.from_pretrained(self.start)
            if model.tokenizer is None:
                raise CheckpointError(f"{self.start} has no tokenizer.json")
            return model
        vocabulary = self.vocabulary or (self.bert / "vocab.txt" if self.bert else None)
        if vocabulary is None:
            raise TeranInputError(
                "give a --vocabulary, or a --bert with vocab.txt in it, or --start"
            )
        tokenizer = wordpiece_tokenizer(vocabulary)
        text = replace(recipe.model.text, vocab_size=tokenizer.get_vocab_size())
        if self.bert:
            found, _ = read_bert(self.bert)
            text = replace(found, num_hidden_layers=text.num_hidden_layers)
        model = random_model(replace(recipe.model, text=text), recipe.training.seed)
        model.tokenizer = tokenizer
        if self.bert:
            model.load_bert(self.bert)
        return model


def train(
    recipe: Recipe, directory: Path, out: Path, beginning: Beginning, *, resume: bool = False
) -> None:
    """Train, alone or as one of several processes that `torchrun` has started.

    Args:
        recipe: what, and how.
        directory: of the data set.
        out: where the run is kept.
        beginning: what to begin with.
        resume: go on from the run's last state.

    Raises:
        TeranInputError: the data set or the recipe can't be used.
        CheckpointError: what is begun or gone on with can't be.
    """
    if not resume and (out / "last.pt").exists():
        raise TeranInputError(f"{out} holds a run; go on with it by --resume, or choose another")
    if resume and beginning == Beginning():
        beginning = Beginning(start=out / "best")  # the weights are those of the last state
    root = root_of(directory, recipe.dataset)
    names = ["train", *(["restval"] if recipe.restval else [])]
    splits = [read_split(root, recipe.dataset, name) for name in names]
    validation, source = read_split(root, recipe.dataset, "val"), open_regions(root)
    for split in (*splits, validation):
        check_images(split, source)
    model = beginning.model(recipe)
    assert model.tokenizer
    check_width(source.read(validation.image_ids[0]), model.config.feature_dim)
    world = World.join()
    try:
        if torch.cuda.is_available():
            device = torch.device("cuda", world.rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
            model.to(device)
        trainer = Trainer(model, recipe.training, out, world=world)
        if resume:
            trainer.resume()
        trainer.run(
            pairs_of(splits, source, model.tokenizer),
            pairs_of([validation], source, model.tokenizer),
        )
    finally:
        world.leave()
    if world.rank == 0:
        print(f"{out / 'best'}: the best of {recipe.training.epochs} epochs")
