"""OpenCLIP's format beside OpenCLIP itself: parameters of its published configs, numbers, tokens."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
from parity import close, compare_parameters
from PIL import Image
from test_tokenizers import TEXTS

import beyondvl as bvl
import pictures
import published
from beyondvl.families import open_clip_mobile, open_clip_trunks
from beyondvl.families.open_clip import FOREIGN_TEXTS
from beyondvl.families.registry import find_family, load_config
from beyondvl.folder import Folder
from beyondvl.models.classes import class_for
from beyondvl.weights import save_safetensors

torch = pytest.importorskip("torch", reason="parity needs torch: pip install 'beyondvl[test]'")
open_clip = pytest.importorskip("open_clip", reason="parity needs open_clip: pip install 'beyondvl[test]'")
from_archive = pytest.mark.skipif(
    published.archive() is None, reason="no published files: BEYONDVL_PUBLISHED names their folder"
)
REFUSALS = ("timm_model_name", "hf_model_name", "layers: found [", "multimodal_cfg", "attentional_pool", "norm_kwargs",
            "act_kwargs", "embed_cls", "pos_embed_type", "output_tokens")  # fmt: skip
SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
CLIPA = {
    "vision_cfg": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "text_cfg": {"pool_type": "last", "no_causal_mask": True},
}
AVERAGE = {"vision_cfg": {"pool_type": "avg"}, "text_cfg": {}}
SCALED = {"vision_cfg": {"ls_init_value": 1e-4}, "text_cfg": {"ls_init_value": 1e-4}}


def made(model_cfg):
    """OpenCLIP's model of a config."""
    fields = {name: value for name, value in model_cfg.items() if name != "custom_text"}
    foreign = "hf_model_name" in model_cfg["text_cfg"]
    if foreign:
        fields["text_cfg"] = fields["text_cfg"] | {"hf_model_pretrained": False}
    kind = open_clip.CustomTextCLIP if foreign or model_cfg.get("custom_text") else open_clip.CLIP
    return kind(**fields)


def known(name, **options):
    """The config that a name stands for on the hub."""
    sizes, _ = FOREIGN_TEXTS[name]
    kind = "XLMRobertaConfig" if "xlm" in name else "RobertaConfig"
    return getattr(__import__("transformers"), kind)(**sizes | options)


@from_archive
def test_parameters_of_published_configs(monkeypatch):
    """Names and shapes of each parameter; towers that are none of ours are refused by name."""
    monkeypatch.setattr(open_clip.hf_model.AutoConfig, "from_pretrained", known)
    compared, refused = 0, 0
    for path in sorted((published.folder() / "mlfoundations--open_clip").iterdir()):
        config = load_config(Folder(path))
        cls = class_for(config, find_family(config))
        try:
            cls.encoders(config)
        except bvl.ConfigError as error:
            assert any(part in str(error) for part in REFUSALS), f"{path.name}: {error}"
            refused += 1
            continue
        with torch.device("meta"):
            state = made(config.get("model_cfg")).state_dict()
        left = compare_parameters(path.name, cls, config, {name: tuple(value.shape) for name, value in state.items()})
        assert not left, f"{path.name}: {left[:3]} are not read"
        compared += 1
    print(f"OpenCLIP's configs: {compared} compared, {refused} refused by name")
    assert compared >= 81 and refused <= 56


def merged(changes):
    return {name: SMALL[name] | changes[name] if name in changes else SMALL[name] for name in SMALL}


@pytest.mark.parametrize("changes", [{}, CLIPA, AVERAGE, SCALED], ids=["plain", "clipa", "average", "layer scale"])
def test_numbers(tmp_path, changes):
    """Embeddings of texts and pictures, with every parameter random: a scale, a mask or a norm left out shows."""
    torch.manual_seed(0)
    reference = made(merged(changes)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            gain = 1.0 if parameter.ndim < 2 else 1.4 / np.prod(parameter.shape[1:]) ** 0.5
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else gain))
        reference.logit_scale.fill_(1.0)
    state = {name: value.numpy() for name, value in reference.state_dict().items() if name != "attn_mask"}
    save_safetensors(tmp_path / "open_clip_model.safetensors", state)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": merged(changes), "preprocess_cfg": {}}))
    ours = bvl.AutoModel.from_pretrained(tmp_path, strict=True)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 49000, (4, 16), generator=generator)
    ids[:, -1] = 49407
    pixels = torch.randn(4, 3, 32, 32, generator=generator)
    with torch.no_grad():
        expected = reference.encode_text(ids), reference.encode_image(pixels)
    found = ours.get_text_features(ids), ours.get_image_features(pixels)
    for a, b in zip(found, expected, strict=True):
        close(a, b)
        assert np.abs(b[0] - b[1]).max() > 0.05, "the reference does not tell inputs apart"


def tell(trunk):
    """Random weights by which every part of a convnet tells."""
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if "gamma" in name:
                parameter.uniform_(0.1, 0.3)
            elif parameter.ndim > 1:
                parameter.normal_(0, 1.2 / np.prod(parameter.shape[1:]) ** 0.5)
            else:
                parameter.uniform_(0.6, 1.4) if "weight" in name else parameter.normal_(0, 0.2)
        for name, buffer in trunk.named_buffers():
            if "running" in name:
                buffer.normal_(0, 0.2) if "mean" in name else buffer.uniform_(0.5, 1.5)


MOBILE = [name for name in open_clip_mobile.SIZES if name not in ("fastvit_mci1", "fastvit_mci4")]


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    """(folder, OpenCLIP's model) of a picture tower and a short text."""
    kept = {}

    def make(name):
        if name not in kept:
            pytest.importorskip("timm", reason="OpenCLIP brings timm along")
            torch.manual_seed(5)
            size, pool = (224, "token") if name.startswith("vit") else (128, "avg")
            text = {
                "context_length": 16,
                "vocab_size": 300,
                "width": 64,
                "heads": 2,
                "layers": 1,
                "no_causal_mask": True,
            }
            picture = {"timm_model_name": name, "timm_pool": pool, "timm_proj": None, "image_size": size}
            config = {"embed_dim": 48, "custom_text": True, "vision_cfg": picture, "text_cfg": text}
            reference = made(config).eval()
            if name.startswith("vit"):
                reference.visual.trunk.blocks = reference.visual.trunk.blocks[:2]
            tell(reference.visual)
            folder = tmp_path_factory.mktemp("mobile")
            state = {
                n: v.numpy() for n, v in reference.state_dict().items() if n != "attn_mask" and v.is_floating_point()
            }
            save_safetensors(folder / "open_clip_model.safetensors", state)
            (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
            kept[name] = folder, reference
        return kept[name]

    return make


def seen(size, count=3):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, size // 8, size // 8, generator=generator)
    return torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear")


@pytest.mark.parametrize("name", [*MOBILE, "vit_large_patch14_clip_224", "vit_base_mci_224"])
def test_mobile_clip_by_timm(isa, mobile, name, monkeypatch):
    """Both designs of FastViT, all branches folded, and two layers of the two largest, which are transformers; alone and
    in batches."""
    for size, (width, _, *others) in open_clip_trunks.SIZES.items():
        monkeypatch.setitem(open_clip_trunks.SIZES, size, (width, 2, *others))
    folder, reference = mobile(name)
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    pixels = seen(224 if name.startswith("vit") else 128)
    with torch.no_grad():
        expected = reference.encode_image(pixels)
    for threads in (1, 2):
        found = bvl.AutoModel.from_pretrained(folder, num_threads=threads).get_image_features(pixels)
        close(found, expected)
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * np.abs(expected).max(), "it does not tell inputs apart"
    np.testing.assert_array_equal(ours.get_image_features(pixels[1:2]).numpy()[0], found.numpy()[1])


@pytest.mark.parametrize("name", ["fastvit_mci0", "fastvit_mci3"])
def test_mobile_clip_parts_tell(mobile, name):
    """Each kind of branch, norm and scale, weighed channels and positions: without it the numbers differ."""
    _, reference = mobile(name)
    pixels, parts = seen(128, 1), ["stem.1.conv_kxk", "mixer.conv_scale", "mixer.identity", "norm.identity", "layer_scale.gamma",
                                   "small_conv", "proj.1.identity", "pos_emb", "mlp.conv.bn", "layer_scale_1", "norm.weight",
                                   "final_conv.se.fc2"]  # fmt: skip
    parts += ["conv_scale"] if "mci3" not in name else []
    parts += ["downsample.proj.0.se"] if "mci3" not in name else []
    with torch.no_grad():
        expected = reference.encode_image(pixels).numpy()
        for part in parts:
            changed = {n: v for n, v in reference.visual.trunk.named_parameters() if part in n}
            assert changed, part
            kept = {n: v.clone() for n, v in changed.items()}
            for value in changed.values():
                value.mul_(torch.linspace(0.3, 1.7, len(value)).reshape(-1, *[1] * (value.ndim - 1)))
            other = reference.encode_image(pixels).numpy()
            for n, value in changed.items():
                value.copy_(kept[n])
            assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max(), part


@pytest.mark.parametrize("name", ["fastvit_mci0"])
def test_mobile_clip_in_every_form(mobile, name, tmp_path):
    """bfloat16 and int8, whose angles are those of timm in bfloat16 at most; packed, written again."""
    folder, reference = mobile(name)
    ours, pixels = bvl.AutoModel.from_pretrained(folder), seen(128).numpy()
    found = ours.get_image_features(pixels)

    def angles(rows):
        return np.arccos((rows * found).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(found, axis=1))

    with torch.no_grad():
        half = copy.deepcopy(reference.visual).bfloat16()(torch.from_numpy(pixels).bfloat16()).float().numpy()
    for dtype in ("bfloat16", "int8"):
        model = bvl.AutoModel.from_pretrained(folder, dtype=dtype)
        rows = model.get_image_features(pixels)
        assert angles(rows).mean() < 1.2 * angles(half).mean() + 0.01, (dtype, angles(rows), angles(half))
        model.save_packed(tmp_path / dtype)
        again = bvl.AutoModel.from_pretrained(tmp_path / dtype).get_image_features(pixels)
        np.testing.assert_array_equal(again, rows)
    ours.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(bvl.AutoModel.from_pretrained(tmp_path / "again").get_image_features(pixels), found)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"image_size": 250}, "image_size: found 250, expected a multiple of 32"),
        ({"timm_proj": "linear"}, "timm_proj: found 'linear', expected null"),
        ({"timm_pool": "map"}, "timm_pool: found 'map', expected one of avg"),
        (
            {"timm_model_name": "vit_base_mci_224", "timm_pool": "token", "image_size": 256},
            "found 256, expected the 224",
        ),
        ({"timm_model_name": "fastvit_sa12"}, "timm_model_name 'fastvit_sa12' is not supported"),
    ],
)
def test_mobile_clip_of_bad_configs(tmp_path, change, message):
    picture = {"timm_model_name": "fastvit_mci0", "timm_pool": "avg", "timm_proj": None} | change
    config = {"embed_dim": 48, "vision_cfg": picture, "text_cfg": SMALL["text_cfg"]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    with pytest.raises(bvl.ConfigError, match=message):
        bvl.AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256"])
def test_siglip_by_timm(tmp_path, name):
    """Numbers, scores with their bias and sigmoid; three layers of either tower, both kinds of GELU."""
    timm = pytest.importorskip("timm", reason="OpenCLIP brings timm along")
    tanh = {"act_kwargs": {"approximate": "tanh"}} if "patch32" in name else {}
    text = {"context_length": 16, "vocab_size": 300, "width": 768, "heads": 12, "layers": 3, "no_causal_mask": True,
            "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}, **tanh}  # fmt: skip
    vision = {
        "image_size": 64,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    config = {"embed_dim": 768, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    with pytest.MonkeyPatch.context() as patch:
        create = timm.create_model
        patch.setattr(open_clip.timm_model.timm, "create_model", lambda *a, **k: create(*a, **k, depth=3, img_size=64))
        patch.setitem(open_clip_trunks.SIZES, "base", (768, 3, 12, 4.0))
        torch.manual_seed(0)
        reference = made(config).eval()
        with torch.no_grad():
            for key, parameter in reference.named_parameters():
                if parameter.ndim > 1:
                    parameter.copy_(
                        torch.randn_like(parameter) * (0.5 if "embed" in key else parameter[0].numel() ** -0.5)
                    )
                elif parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
            reference.logit_scale.fill_(2.0)
        state = {key: value.numpy() for key, value in reference.state_dict().items() if key != "attn_mask"}
        save_safetensors(tmp_path / "open_clip_model.safetensors", state)
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        ours = bvl.AutoModel.from_pretrained(tmp_path, strict=True)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, 300, (4, 16), generator=generator)
        pixels = torch.randn(4, 3, 64, 64, generator=generator) + 2 * torch.randn(4, 3, 1, 1, generator=generator)
        with torch.no_grad():
            expected = reference.encode_text(ids), reference.encode_image(pixels)
            logits = reference.get_logits(pixels, ids)[0]
        for found, wanted in zip((ours.get_text_features(ids), ours.get_image_features(pixels)), expected, strict=True):
            close(found, wanted)
            assert float((wanted[0] - wanted[1]).abs().max()) > 0.05, "the reference does not tell inputs apart"
        outputs = ours(input_ids=ids, pixel_values=pixels)
        np.testing.assert_allclose(outputs.logits_per_image.numpy(), logits.numpy(), atol=2e-4)
        assert ours.sigmoid and ours.logit_bias == -10
        ours.save_packed(tmp_path / "packed")
        again = bvl.AutoModel.from_pretrained(tmp_path / "packed")
        assert again.sigmoid and torch.equal(
            again(input_ids=ids, pixel_values=pixels).logits_per_image, outputs.logits_per_image
        )


@pytest.mark.parametrize("name", ["tiny_patch16_384", "gigantic_patch14_448"])
def test_perception_encoder(tmp_path, name):
    """PE-Core's towers, cut to three layers, the largest in width too: with a class token, and without; a picture that
    is turned on its side is another one."""
    timm = pytest.importorskip("timm", reason="OpenCLIP brings timm along")
    kind, _, image = name.split("_")
    vision = {"image_size": int(image), "timm_model_name": f"vit_pe_core_{name}", "timm_model_pretrained": False,
              "timm_pool": "map", "timm_proj": None}  # fmt: skip
    text = {"context_length": 16, "vocab_size": 300, "width": 48, "heads": 3, "layers": 2}
    config = {"embed_dim": 40, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    cut = (192, 3, 3, 768, True) if kind == "tiny" else (96, 3, 4, 560, False)
    smaller = {"depth": 3} | ({} if kind == "tiny" else {"embed_dim": 96, "num_heads": 4, "mlp_ratio": 560 / 96})
    with pytest.MonkeyPatch.context() as patch:
        create = timm.create_model
        patch.setattr(open_clip.timm_model.timm, "create_model", lambda *a, **k: create(*a, **k, **smaller))
        patch.setitem(open_clip_trunks.PE_SIZES, kind, cut)
        torch.manual_seed(0)
        reference = made(config).eval()
        with torch.no_grad():
            for key, parameter in reference.named_parameters():
                if parameter.ndim > 1:
                    gain = 0.5 if "embed" in key else 1.5 * parameter[0].numel() ** -0.5
                    parameter.copy_(torch.randn_like(parameter) * gain)
                elif parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        state = {key: value.numpy() for key, value in reference.state_dict().items() if key != "attn_mask"}
        save_safetensors(tmp_path / "open_clip_model.safetensors", state)
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        ours = bvl.AutoModel.from_pretrained(tmp_path, strict=True)
        generator = torch.Generator().manual_seed(1)
        coarse = 2 * torch.randn(2, 3, 4, 4, generator=generator) + 2 * torch.randn(2, 3, 1, 1, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, size=(int(image),) * 2, mode="bilinear")
        pixels = torch.cat([pixels, pixels.transpose(2, 3)])
        with torch.no_grad():
            wanted = reference.encode_image(pixels)
        close(ours.get_image_features(pixels), wanted)
        assert float((wanted[0] - wanted[2]).abs().max()) > 0.02, "the reference does not tell inputs apart"


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("name", ["roberta-base", "xlm-roberta-base"])
def test_texts_by_roberta(tmp_path, monkeypatch, name, kind):
    """Embeddings of texts of several lengths, whatever mask comes with them; sizes cut, for these are 100 million words'."""
    small = {"hidden_size": 48, "intermediate_size": 77, "num_hidden_layers": 2, "num_attention_heads": 3,
             "vocab_size": 300}  # fmt: skip
    monkeypatch.setitem(FOREIGN_TEXTS, name, (FOREIGN_TEXTS[name][0] | small, FOREIGN_TEXTS[name][1]))
    monkeypatch.setattr(open_clip.hf_model.AutoConfig, "from_pretrained", known)
    config = SMALL | {"text_cfg": {"hf_model_name": name, "hf_tokenizer_name": name, "hf_proj_type": kind,
                                   "hf_pooler_type": "mean_pooler"}}  # fmt: skip
    torch.manual_seed(0)
    reference = made(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(
                torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 1.4 / parameter[0].numel() ** 0.5)
            )
    state = {name: value.numpy() for name, value in reference.state_dict().items() if "position_ids" not in name}
    save_safetensors(tmp_path / "open_clip_model.safetensors", state)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    ours = bvl.AutoModel.from_pretrained(tmp_path, strict=True)
    ids = torch.randint(3, 300, (4, 16), generator=torch.Generator().manual_seed(1))
    ids[1, 9:], ids[3, 2:] = 1, 1
    with torch.no_grad():
        expected = reference.encode_text(ids)
    for more in ({}, {"attention_mask": torch.ones_like(ids)}):
        close(ours.get_text_features(ids, **more), expected)
    assert np.abs(expected[0] - expected[1]).max() > 0.05, "the reference does not tell inputs apart"


@from_archive
def test_usage_as_its_readme_writes_it(tmp_path):
    """Probabilities of texts for a photograph: its factory, tokenizer and transform, and ours, of one folder."""
    torch.manual_seed(0)
    text = SMALL["text_cfg"] | {"context_length": 77}
    reference = made(SMALL | {"text_cfg": text}).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 1.4 / np.prod(parameter.shape[1:]) ** 0.5)
    state = {name: value.numpy() for name, value in reference.state_dict().items() if name != "attn_mask"}
    save_safetensors(tmp_path / "open_clip_model.safetensors", state)
    statistics = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    config = {"model_cfg": SMALL | {"text_cfg": text}, "preprocess_cfg": statistics}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(published.folder() / "openai--clip-vit-large-patch14" / name, tmp_path)
    texts, results = ["a diagram", "a dog", "a cat"], []
    for photo in ("cat", "coffee"):
        image = Image.open(pictures.EXAMPLES / f"{photo}.jpg")
        theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
        tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
        with torch.no_grad():
            seen = theirs.eval().encode_image(transform(image)[None])
            read = theirs.encode_text(tokenize(texts))
            seen, read = (x / x.norm(dim=-1, keepdim=True) for x in (seen, read))
            wanted = (100.0 * seen @ read.T).softmax(dim=-1)[0].numpy()
        model, processor = bvl.AutoModel.from_pretrained(tmp_path), bvl.AutoProcessor.from_pretrained(tmp_path)
        inputs = processor(text=texts, images=image, return_tensors="np", padding=True)
        outputs = model(**inputs)
        logits = 100.0 * outputs.image_embeds @ outputs.text_embeds.T
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        np.testing.assert_allclose(shares[0], wanted, atol=1e-3)
        classify = bvl.pipeline("zero-shot-image-classification", str(tmp_path))
        scores = {
            row["label"]: row["score"] for row in classify(image, candidate_labels=texts, hypothesis_template="{}")
        }
        exact = np.exp(outputs.logits_per_image[0] - outputs.logits_per_image.max())
        np.testing.assert_allclose([scores[text] for text in texts], exact / exact.sum(), atol=1e-3)
        results.append(wanted)
    assert np.abs(results[0] - results[1]).max() > 0.01, "both photographs look alike"


LIKE_A_USER = ["don\u2019t \u201cstop\u201d &amp; \ufb01n", "&amp;lt;b&amp;gt; bold", "a  photo\nof A CAT", "schÃ¶n", "a dog; isn't it?",
               "caf\u00e9", "ｆｕｌｌ ｗｉｄｔｈ", "3.14 and 1,000", "under_score", "\u00a0nbsp", "x" * 400]  # fmt: skip


@from_archive
@pytest.mark.parametrize("tokens, source", [("own", "openai--clip-vit-large-patch14"),
                                            ("x", "sentence-transformers--all-MiniLM-L6-v2"),
                                            ("roberta-base", "laion--clap-htsat-fused"),
                                            ("timm/ViT-B-16-SigLIP", "google--siglip-so400m-patch14-384")])  # fmt: skip
def test_tokens(tmp_path, tokens, source):
    """Ids of OpenCLIP's own tokenizer, cleaned texts included, of the BERT that CLIPA's texts go through, of RoBERTa's
    and of SigLIP's."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(published.folder() / source / name, tmp_path)
    if "SigLIP" in tokens:  # OpenCLIP's folders of it hold the class that reads tokenizer.json as it is
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    options = {"x": {"strip_sep_token": True}, "timm/ViT-B-16-SigLIP": {"clean": "canonicalize"}}.get(tokens, {})
    same_tokens(tmp_path, tokens, options)


def same_tokens(folder, name, options, runs=True):
    """Ours of a folder against OpenCLIP's; `runs`: of texts of a letter or two too."""
    foreign = {"hf_model_name": name} if name in FOREIGN_TEXTS else {"hf_tokenizer_name": name}
    text = {"context_length": 32} | ({} if name == "own" else foreign | {"tokenizer_kwargs": options})
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": SMALL | {"text_cfg": text}, "preprocess_cfg": {}})
    )
    if name == "own":
        reference = open_clip.SimpleTokenizer(context_length=32)
    else:
        reference = open_clip.tokenizer.HFTokenizer(str(folder), context_length=32, **options)
    ours = bvl.AutoTokenizer.from_pretrained(folder)
    texts = [
        t
        for t in (*TEXTS, *LIKE_A_USER)
        if "<|" not in t and "\0" not in t and (runs or len(t) < 30 or len(set(t)) > 2)
    ]
    ids = ours(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(ids, reference(texts).numpy())
    assert len(np.unique(ids)) > 60, "the tokenizer does not tell texts apart"


@pytest.mark.parametrize("tokens", ["xlm-roberta-base", "timm/ViT-B-16-SigLIP2-256"])
def test_tokens_of_many_languages(tmp_path, tokens):
    """XLM-RoBERTa's and SigLIP 2's, whose files are too large to keep: saved by transformers over a vocabulary of the
    test's texts."""
    import tokenizers
    import transformers

    many = [t for t in (*TEXTS, *LIKE_A_USER) if t.strip()]
    if "xlm" in tokens:
        trained = tokenizers.SentencePieceUnigramTokenizer()
        trained.train_from_iterator(
            many, vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
        pieces = json.loads(trained.to_str())["model"]["vocab"][1:]
        special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        transformers.XLMRobertaTokenizer(vocab=[*special, *map(tuple, pieces), ("<mask>", 0.0)]).save_pretrained(
            tmp_path
        )
    else:
        trained = tokenizers.SentencePieceBPETokenizer(unk_token="<unk>", fuse_unk=True)
        special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trained.train_from_iterator(many, vocab_size=700, special_tokens=special, show_progress=False)
        model = json.loads(trained.to_str())["model"]
        saved = transformers.GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]],
                                            add_bos_token=False, add_eos_token=True)  # fmt: skip
        saved.save_pretrained(tmp_path)
    # a run of a letter or two may be cut into the same pieces in any order
    same_tokens(tmp_path, tokens, {"clean": "canonicalize"} if "SigLIP2" in tokens else {}, runs="xlm" not in tokens)


def test_text_that_needs_a_library(tmp_path, monkeypatch):
    from beyondvl.families import open_clip as family

    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    assert family.cleaned("A &amp;amp; B", "lower") == "a & b"
    with pytest.raises(ImportError, match=r"not plain ASCII.*beyondvl\[open_clip\]"):
        family.cleaned("don\u2019t", "lower")


@from_archive
def test_pictures(tmp_path):
    """pixel_values to the last bits: the same kernel, and its own rule where a crop cannot be in the middle."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": {}}))
    ours = bvl.AutoImageProcessor.from_pretrained(tmp_path)
    reference = open_clip.transform.image_transform(32, is_train=False, interpolation="bicubic")
    for picture in (pictures.photo(70, 51), pictures.photo(51, 73), pictures.photo(51, 75), pictures.photo(20, 90)):
        np.testing.assert_allclose(ours(picture)["pixel_values"][0], reference(picture).numpy(), atol=1e-6, rtol=0)
