"""The network equals the authors' code, on outputs of theirs (skipped where those are absent)."""

import json

import pytest

from teran.model import Pooling, TeranModel, word_mask
from teran.training import triplet_loss
from tests.authors import write_checkpoint
from tests.conftest import REFERENCE, Reference, reference_archive, reference_configs

BATCHES = [(name, prefix) for name in ("MrSw", "symm") for prefix in ("", "b2_")]


@pytest.fixture(scope="module", params=BATCHES, ids=lambda case: "-".join(case))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TeranModel, Reference]:
    name, prefix = request.param
    archive = reference_archive(f"teran_coco_{name}.npz")
    config, text = reference_configs(archive)
    path = REFERENCE / f"teran_coco_{name}.pth"
    if not path.is_file():
        folder = tmp_path_factory.mktemp("checkpoint")
        path = write_checkpoint(folder / "model.pth", config, text)
    model = TeranModel.from_checkpoint(path, text)
    return model, Reference(archive, prefix)


def test_embeddings(case: tuple[TeranModel, Reference]) -> None:
    model, reference = case
    regions, words = reference.encode(model)
    mask = word_mask(reference.attention_mask)
    expected_regions = reference["img_set"].transpose(0, 1)[:, 1:]
    expected_words = reference["cap_set"].transpose(0, 1)
    assert (regions - expected_regions)[reference.region_mask].abs().max() < 1e-5
    assert (words - expected_words)[mask].abs().max() < 1e-5
    assert not regions[~reference.region_mask].any()
    assert not words[~mask].any()


@pytest.mark.parametrize("mode", list(Pooling))
def test_scores_equal_evaluation(case: tuple[TeranModel, Reference], mode: Pooling) -> None:
    model, reference = case
    scores = model.align(*reference.encode(model), pooling=mode)
    assert scores.isfinite().all()
    if reference.prefix:
        if mode in (Pooling.MWSR, Pooling.SYMM, Pooling.MEAN):
            pytest.skip("the authors' own value hangs on batch padding")
        expected = reference[f"score_{mode}"]
    else:
        expected = reference[f"eval_score_{mode}"]
    defined = ~expected.isnan()
    assert (scores - expected)[defined].abs().max() < 1e-4
    assert (scores[~defined] == 0).all()


@pytest.mark.parametrize(
    "mode", [Pooling.MRSW, Pooling.MRAVGW, Pooling.SUM, Pooling.SCAN_SENTENCES]
)
@pytest.mark.parametrize("hardest", [True, False])
def test_losses(case: tuple[TeranModel, Reference], mode: Pooling, hardest: bool) -> None:
    model, reference = case
    if not reference.prefix:
        pytest.skip("the authors' values hang on batch padding")
    scores = model.align(*reference.encode(model), pooling=mode)
    expected = float(reference[f"loss_{mode}_mv{int(hardest)}"])
    assert float(triplet_loss(scores, 0.2, hardest)) == pytest.approx(expected, abs=2e-3, rel=1e-5)


def test_gradient_norms() -> None:
    archive = reference_archive("teran_coco_MrSw.npz")
    _, text = reference_configs(archive)
    model = TeranModel.from_checkpoint(REFERENCE / "teran_coco_MrSw.pth", text)
    reference = Reference(archive, "")
    loss = triplet_loss(model.align(*reference.encode(model)), 0.2, hardest_negative=True)
    assert float(loss) == pytest.approx(float(archive["config_loss"]), rel=1e-5)
    loss.backward()
    expected = json.loads(str(archive["grad_norms"]))
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    pairs = {
        "textual_encoder.embeddings.word.weight": (
            "txt_enc.bert_model.embeddings.word_embeddings.weight"
        ),
        "textual_encoder.bert.layers.1.contract.weight": (
            "txt_enc.bert_model.encoder.layer.1.output.dense.weight"
        ),
        "textual_encoder.projection.weight": "cap_proj.weight",
        "visual_encoder.projection.weight": "img_proj.weight",
        "visual_encoder.box_fusion.out.weight": "img_enc.pos_encoding_image.map.2.weight",
        "visual_encoder.transformer.layers.0.attention.qkv.weight": (
            "img_enc.transformer_encoder.layers.0.self_attn.in_proj_weight"
        ),
        "visual_encoder.joint.layers.1.contract.weight": (
            "transformer_encoder_2.layers.1.linear2.weight"
        ),
        "textual_encoder.joint.layers.0.attention.out.bias": (
            "transformer_encoder_1.layers.0.self_attn.out_proj.bias"
        ),
    }
    for name, theirs in pairs.items():
        norm = expected[f"img_txt_enc.{theirs}"]
        assert float(ours[name].norm()) == pytest.approx(norm, rel=1e-4), name
