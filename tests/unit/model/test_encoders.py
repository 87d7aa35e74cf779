"""The encoders against independent implementations: torch's Transformer and transformers' BERT."""

import torch
from torch import nn
from transformers import BertConfig, BertModel

from teran.model import TeranModel, word_mask
from teran.model.checkpoint import translate
from teran.model.config import TeranConfig
from teran.model.layers import Transformer, attention_bias
from tests.authors import TEXT_CONFIG, authors_config, state_dict


def test_bert_equals_transformers() -> None:
    config = TeranConfig.from_authors(authors_config(), TEXT_CONFIG)
    theirs = state_dict(authors_config(), TEXT_CONFIG)
    model = TeranModel(config)
    model.load_state_dict(translate(theirs, config))
    bert = BertModel(BertConfig.from_dict({**TEXT_CONFIG, "num_hidden_layers": 2}))
    prefix = "img_txt_enc.txt_enc.bert_model."
    bert.load_state_dict(
        {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}, strict=False
    )
    ids = torch.randint(4, 200, (3, 9))
    attention = torch.arange(9)[None] < torch.tensor([9, 5, 2])[:, None]
    encoder = model.eval().textual_encoder
    with torch.inference_mode():
        ours = encoder.bert(encoder.embeddings(ids), attention_bias(attention))
        expected = bert.eval()(input_ids=ids, attention_mask=attention.long()).last_hidden_state
    torch.testing.assert_close(ours[attention], expected[attention], atol=1e-5, rtol=1e-4)


def test_transformer_equals_torch() -> None:
    torch.manual_seed(0)
    ours = Transformer(2, 8, 4, 32)
    layer = nn.TransformerEncoderLayer(8, 4, 32, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = {
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.out": "self_attn.out_proj",
        "attention_norm": "norm1",
        "expand": "linear1",
        "contract": "linear2",
        "output_norm": "norm2",
    }
    state = {}
    for key, value in ours.state_dict().items():
        value.normal_()
        for ours_name, torch_name in names.items():
            key = key.replace(ours_name, torch_name)
        state[key] = value
    theirs.load_state_dict(state)
    x, mask = torch.randn(2, 6, 8), torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for block in theirs.layers:
        block.self_attn.dropout = 0.0
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(
        ours(x, attention_bias(mask))[mask], expected[mask], atol=1e-4, rtol=1e-4
    )


def test_word_mask_drops_first_and_last_two() -> None:
    lengths = torch.tensor([2, 3, 4, 7])
    mask = word_mask((torch.arange(7)[None] < lengths[:, None]).long())
    assert mask.sum(dim=1).tolist() == [0, 0, 1, 4]
    assert mask[3].tolist() == [False, True, True, True, True, False, False]


def test_region_order_and_padding_do_not_matter(tiny_model: TeranModel) -> None:
    torch.manual_seed(1)
    features, boxes = torch.rand(1, 7, 24), torch.rand(1, 7, 4)
    order = torch.randperm(7)
    padded = [torch.cat([t, torch.full((1, 3, t.shape[2]), 9.0)], dim=1) for t in (features, boxes)]
    mask = torch.arange(10)[None] < 7
    with torch.inference_mode():
        plain = tiny_model.encode_images(features, boxes)
        shuffled = tiny_model.encode_images(features[:, order], boxes[:, order])
        filled = tiny_model.encode_images(padded[0], padded[1], mask)
    torch.testing.assert_close(shuffled, plain[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(filled[:, :7], plain, atol=1e-5, rtol=0)
    assert not filled[:, 7:].any()
    torch.testing.assert_close(plain.norm(dim=-1), torch.ones(1, 7))
