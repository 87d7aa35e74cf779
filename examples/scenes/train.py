"""Trains the demo's TERAN on what the demo's detector finds, from image-sentence pairs alone."""

import argparse
import string
from pathlib import Path

import torch
from teran_client import ImageRegions
from teran_export.manifest import hash_tree
from tokenizers import Tokenizer

from examples.scenes.captions import (
    COUNTS,
    OPENINGS,
    RELATIONS,
    SHAPE_NAMES,
    SIZE_NAMES,
    TEXTURE_NAMES,
)
from examples.scenes.dataset import Sample, make_split
from examples.scenes.regions import DETECTOR, find_regions
from examples.scenes.scene import COLOURS
from teran.model import TeranConfig, TeranModel, TextConfig
from teran.tokenizer import wordpiece_tokenizer
from teran.training import PairDataset, Trainer, TrainingConfig


def build_tokenizer() -> Tokenizer:
    """A small word-piece vocabulary: the captions' words whole, anything else by letters."""
    sources = [*OPENINGS, *COLOURS, *COUNTS.values(), "a an and with together is that no"]
    for names in (SHAPE_NAMES, SIZE_NAMES, TEXTURE_NAMES, RELATIONS):
        sources += [name for group in names.values() for name in group]
    sources += [
        f"{name}es" if name[-1] in "sx" else f"{name}s"
        for group in SHAPE_NAMES.values()
        for name in group
    ]
    sources += ["in the middle at top bottom left right corner side"]
    words = sorted({word for phrase in sources for word in phrase.split()})
    letters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *".,?!'-", *words]
    tokens += [c for c in letters if c not in words] + [f"##{c}" for c in letters]
    return wordpiece_tokenizer({token: index for index, token in enumerate(tokens)})


def model_config(vocab_size: int, feature_dim: int) -> TeranConfig:
    """A TERAN of 0.8 million weights."""
    return TeranConfig(
        feature_dim=feature_dim,
        embed_dim=128,
        visual_layers=1,
        joint_layers=1,
        feedforward_dim=256,
        dropout=0.0,
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=96,
        ),
    )


def as_pairs(
    samples: list[Sample], regions: list[ImageRegions], tokenizer: Tokenizer
) -> PairDataset:
    """Turn samples into training pairs; of a scene only what was detected goes along."""
    return PairDataset(
        [one.features for one in regions],
        [one.boxes for one in regions],
        [[e.ids for e in tokenizer.encode_batch([c.text for c in s.captions])] for s in samples],
    )


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/scenes"), help="the run's folder")
    parser.add_argument("--detector", type=Path, default=DETECTOR, help="what finds the regions")
    parser.add_argument("--scenes", type=int, default=8000, help="training scenes")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--margin", type=float, default=0.3)
    parser.add_argument("--all-negatives-epochs", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the run's last state")
    options = parser.parse_args()

    begun_with, detector = options.out / "detector.sha256", hash_tree(options.detector)
    if options.resume and begun_with.is_file() and begun_with.read_text() != detector:
        parser.error(f"{options.out} was begun with another detector than {options.detector}")
    options.out.mkdir(parents=True, exist_ok=True)
    begun_with.write_text(detector)
    print(f"finding the regions of {options.scenes} scenes, which takes some minutes", flush=True)
    tokenizer = build_tokenizer()
    train, validation = (
        as_pairs(samples, find_regions(samples, options.detector), tokenizer)
        for samples in (make_split("train", options.scenes), make_split("val", 500))
    )
    config = TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        optimizer="adamw",
        weight_decay=0.01,
        step_size=max(options.epochs * 2 // 3, 1),
        warmup_steps=200,
        margin=options.margin,
        all_negatives_epochs=options.all_negatives_epochs,
    )
    torch.manual_seed(config.seed)
    model = TeranModel(
        model_config(tokenizer.get_vocab_size(), train.features[0].shape[1]), tokenizer
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(train)} scenes")
    trainer = Trainer(model, config, options.out)
    if options.resume:
        trainer.resume()
    trainer.run(train, validation)
    print(f"best model in {options.out / 'best'}")


if __name__ == "__main__":
    main()
