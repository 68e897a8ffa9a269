"""SAM 2 as a refiner: the procedure, on the real classes in miniature with random weights."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.codec.grid import mask_iou
from t4s_helpers.model.weights import WeightsUnavailable
from t4s_helpers.refine import BEST_PROMPTS, Prompts, mask_logits, sample_points
from t4s_helpers.refine.prompts import sam_prompt

torch = pytest.importorskip("torch")
import transformers as t  # noqa: E402

from t4s_helpers.refine import sam2  # noqa: E402

SIDE, CELLS = (128, 128), (32, 32)
SIZE = (60, 90)


def configs(kind: str):
    """The parts of a small model, as ``Sam2Config`` (pictures) or ``Sam2VideoConfig`` (the hub's form)."""
    vision = dict(
        backbone_config=dict(
            model_type="sam2_hiera_det_model", hidden_size=12, image_size=list(SIDE),
            blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[12, 24, 48, 96], global_attention_blocks=[3]),
        backbone_channel_list=[96, 48, 24, 12], fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]])
    return getattr(t, f"{kind}Config")(
        vision_config={"model_type": "sam2_vision_model", **vision},
        prompt_encoder_config=dict(hidden_size=32, image_size=SIDE[0], mask_input_channels=8),
        mask_decoder_config=dict(hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32))


@pytest.fixture(scope="module")
def processor():
    size = {"height": SIDE[0], "width": SIDE[1]}
    return t.Sam2Processor(t.Sam2ImageProcessor(size=size))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = t.Sam2Model(configs("Sam2")).eval()
    with torch.no_grad():  # that logits are large, some beyond what is taken back
        for weight in model.mask_decoder.parameters():
            weight.normal_(0, 0.8)
    return model


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def refiner(model, processor, pixels):
    return sam2.Sam2Refiner(model, processor).set_image(pixels)


@pytest.fixture
def coarse():
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    tiny = np.zeros(SIZE, bool)
    tiny[5, 7:10] = True
    return np.stack([(y - 30) ** 2 + (x - 30) ** 2 <= 144, np.zeros(SIZE, bool), tiny,
                     (y - 20) ** 2 + (x - 70) ** 2 <= 225])


@pytest.mark.parametrize("prompts", [Prompts(), Prompts(multimask=True), BEST_PROMPTS])
def test_the_calls_are_those_of_the_published_procedure(refiner, model, processor, pixels, coarse, prompts):
    """Independent check: the processor lays points and box of the photo, the model reads it each time."""
    result = refiner.refine(coarse[:1], prompts=prompts, min_iou=0.0)
    told = sam_prompt(coarse[0], prompts, 0, None, CELLS, SIDE, "stretched")
    scale = np.array([SIDE[1] / SIZE[1], SIDE[0] / SIZE[0]])
    asked = dict(input_points=[[(told["point_coords"] / scale).tolist()]],
                 input_labels=[[told["point_labels"].tolist()]])
    if prompts.box:
        asked["input_boxes"] = [[[18, 18, 43, 43]]]
    inputs = processor(images=pixels, return_tensors="pt", **asked)
    sizes, logits, largest = inputs.pop("original_sizes"), torch.as_tensor(told["mask_input"])[None], 0
    for _ in range(3):
        with torch.no_grad():
            out = model(**inputs, input_masks=logits, multimask_output=prompts.multimask)
        best = int(out.iou_scores[0, 0].argmax())
        low = out.pred_masks[0, :, best : best + 1]
        logits, largest = low.clamp(-32, 32), max(largest, low.abs().max().item())
    assert largest > 32, "there was something to cut"
    assert result.masks.shape == (1, *SIZE)
    [masks] = processor.post_process_masks([low], sizes)
    np.testing.assert_array_equal(result.masks[0], masks[0, 0].numpy())
    assert 0 < result.masks[0].mean() < 1
    assert result.scores[0] == pytest.approx(out.iou_scores[0, 0, best].item(), abs=1e-6)


def test_mask_and_points_lie_where_sam_2_lays_an_oblong_photo(processor, coarse):
    """Independent check: send the mask itself through the processor, as a picture."""
    mask = coarse[3]
    shown = t.Sam2ImageProcessor(size=processor.image_processor.size, do_normalize=False)(
        np.uint8(mask)[..., None].repeat(3, 2) * 255, return_tensors="np")["pixel_values"][0, 0]
    assert shown.shape == SIDE
    prompts = Prompts(box=True, multimask=True, choose="agreement")
    told = sam_prompt(mask, prompts, 0, None, CELLS, SIDE, "stretched")
    shrunk = shown.reshape(32, 4, 32, 4).mean(axis=(1, 3)) > 0.5
    assert mask_iou(told["mask_input"][0] > 0, shrunk) > 0.95
    np.testing.assert_array_equal(told["mask_input"][0] > 0, told["coarse"])
    assert mask_iou(mask_logits(mask, CELLS, SIDE) > 0, shrunk) < 0.8, "SAM's padded frame is another place"
    x, y = told["point_coords"].round().astype(int).T
    assert (shown[y, x] > 0.5).tolist() == (told["point_labels"] == 1).tolist()
    rows, columns = (np.flatnonzero((shown > 0.5).any(axis)) for axis in (1, 0))
    edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(told["boxes"], edges, atol=1.5)
    asked, frame = sample_points(mask, 10, 0)[0], np.array([128 / 90, 128 / 60])
    np.testing.assert_allclose(told["point_coords"] + 0.5, (asked + 0.5) * frame)


def test_a_batch_answers_like_one_by_one_and_images_are_kept(refiner, pixels, coarse, monkeypatch):
    single = refiner.refine(coarse, min_iou=0.0)
    refiner.batch = 8
    monkeypatch.setattr(refiner, "_embed", lambda _: pytest.fail("the picture was embedded again"))
    batched = refiner.set_image(pixels.copy()).refine(coarse, min_iou=0.0)
    np.testing.assert_allclose(single.scores, batched.scores, atol=1e-4)
    assert (single.masks == batched.masks).mean() > 0.999
    assert not single.masks[1].any() and np.isnan(single.scores[1])
    for prompts in (Prompts(points="none", box=True, mask="none"), Prompts(points="none")):
        assert refiner.refine(coarse, prompts=prompts, min_iou=0.0).masks.shape == coarse.shape


def test_weights_load_in_the_form_in_which_the_hub_has_them(processor, pixels, coarse, tmp_path, monkeypatch):
    """It has the model for videos, of which that for pictures is a part."""
    torch.manual_seed(1)
    video = t.Sam2VideoModel(configs("Sam2Video"))
    video.save_pretrained(tmp_path)
    t.Sam2VideoProcessor(processor.image_processor, t.Sam2VideoVideoProcessor()).save_pretrained(tmp_path)
    monkeypatch.setitem(sam2.SOURCES, "sam2.1_hiera_tiny", (str(tmp_path), "main"))
    refiner = sam2.Sam2Refiner.load("sam2.1_hiera_tiny", "cpu", "float32")
    assert refiner.name == "sam2.1_hiera_tiny" and not refiner.predictor.model.training
    kept = dict(video.named_parameters())
    for name, weight in refiner.predictor.model.named_parameters():
        assert torch.equal(weight, kept[name]), name
    assert refiner.refine_masks(pixels, coarse).shape == coarse.shape
    monkeypatch.setitem(sam2.SOURCES, "sam2.1_hiera_small", (str(tmp_path / "nowhere"), "main"))
    with pytest.raises(WeightsUnavailable, match="sam2.1_hiera_small.*nowhere.*the network.*mobile_sam"):
        sam2.Sam2Refiner.load("sam2.1_hiera_small", "cpu", "float32")
