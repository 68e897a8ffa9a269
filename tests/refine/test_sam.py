"""SAM as a refiner: the procedure on a small SAM with random weights, its worth on the real MobileSAM."""

from __future__ import annotations

import numpy as np
import pytest

from t4s_helpers.codec.grid import grid_to_masks, mask_iou, masks_to_grid
from t4s_helpers.model.weights import WeightsUnavailable, fetch
from t4s_helpers.refine import (
    BEST_PROMPTS, PAPER_PROMPTS, Prompts, RefineError, load_refiner, mask_logits, merge_masks, sample_points,
)

torch = pytest.importorskip("torch")
mobile_sam = pytest.importorskip("t4s_helpers.refine.mobile_sam")
from t4s_helpers.refine.sam import SamRefiner  # noqa: E402

SIZE = (60, 90)
BOX_ONLY = Prompts(points="none", box=True, mask="none", calls=1)


def disc(row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


class Spy:
    """Stands for a method and keeps what it was called with."""

    def __init__(self, method) -> None:
        self.method, self.calls = method, []

    def __call__(self, *args):
        self.calls.append(args)
        return self.method(*args)


@pytest.fixture(scope="module")
def small_sam():
    torch.manual_seed(0)
    return mobile_sam.build_mobile_sam(img_size=128)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def refiner(small_sam, pixels):
    return SamRefiner(small_sam, name="small").set_image(pixels)


@pytest.fixture
def spy(refiner, monkeypatch):
    """Of the predictor calls: points and their signs, boxes, logits, multimask -> logits, IoU."""
    spy = Spy(refiner._decode)
    monkeypatch.setattr(refiner, "_decode", spy)
    return spy


@pytest.fixture
def coarse():
    """Ordinary, empty, tiny (3 pixels), full, ordinary."""
    tiny = np.zeros(SIZE, bool)
    tiny[5, 7:10] = True
    nothing, everything = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    return np.stack([disc(30, 30, 12), nothing, tiny, everything, disc(20, 70, 15)])


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("box", [False, True])
def test_the_calls_are_those_of_sams_own_predictor(refiner, spy, coarse, box, multimask):
    """Independent check: the same prompts through ``SamPredictor.predict_torch``; the best scored goes on."""
    assert not refiner.refine(coarse[1:2]).masks.any() and not spy.calls, "nothing to ask"
    asked = Prompts(box=box, multimask=multimask)
    result = refiner.refine(coarse[:1], prompts=asked, min_iou=0.0)
    (points, labels), boxes, logits, _ = spy.calls[0]
    assert labels.tolist() == [[1] * 10 + [0] * 10] and (boxes is not None) == box and len(spy.calls) == 3
    np.testing.assert_array_equal(logits[0, 0].numpy(), mask_logits(coarse[0], (32, 32), (128, 128)))
    for (same, _), *_, sent, _ in spy.calls:
        assert torch.equal(same, points) and torch.equal(sent, logits)
        masks, scores, logits = refiner.predictor.predict_torch(
            points, labels, boxes, logits, multimask_output=multimask)
        best = int(scores[0].argmax())
        logits = logits[:, best : best + 1]
    assert scores.shape == (1, 3 if multimask else 1)
    np.testing.assert_array_equal(result.masks[0], masks[0, best].numpy())
    assert result.scores[0] == pytest.approx(scores[0, best].item(), abs=1e-6)


def test_points_and_box_arrive_in_sams_frame(refiner, spy, coarse):
    refiner.refine(coarse[:1], prompts=Prompts(box=True, calls=1))
    (points, _), boxes, _, _ = spy.calls[0]
    frame = refiner.predictor.transform
    framed = frame.apply_coords(sample_points(coarse[0], 10, 0)[0] + 0.5, SIZE) - 0.5
    np.testing.assert_allclose(points[0].numpy(), framed, atol=1e-4)
    box = np.array([[18, 18, 43, 43]])
    np.testing.assert_allclose(boxes.numpy(), frame.apply_boxes(box, SIZE), atol=1e-4)
    refiner.refine(coarse[:1], prompts=BOX_ONLY)
    points, boxes, logits, _ = spy.calls[-1]
    assert points is None and logits is None and boxes.shape == (1, 4)


def test_multimask_can_keep_what_agrees_with_the_coarse_mask(refiner, coarse, monkeypatch):
    """Three made-up masks: the best scored is elsewhere, the second best fits."""
    wanted = torch.as_tensor(mask_logits(coarse[0], (32, 32), (128, 128)))
    low = torch.stack([-wanted, wanted, wanted - 8])[None]
    monkeypatch.setattr(refiner, "_decode", lambda *_: (low, torch.tensor([[0.9, 0.7, 0.8]])))
    for choose, score in (("score", 0.9), ("agreement", 0.7)):
        asked = Prompts(multimask=True, choose=choose, calls=1)
        result = refiner.refine(coarse[:1], prompts=asked, min_iou=0.0)
        assert result.scores[0] == pytest.approx(score)
        assert (result.agreement[0] > 0.8) == (choose == "agreement")


def test_each_soft_prompt_is_made_of_its_own_confidence(refiner, spy, coarse):
    grids = np.random.default_rng(1).random((5, 16, 12))
    refiner.refine(coarse, prompts=Prompts(mask="soft", strength=2.0), confidence=grids, min_iou=0.0)
    sent = [call[2][0, 0].numpy() for call in spy.calls[::3]]
    wanted = [2 * mask_logits(grid, (32, 32), (128, 128), image_size=SIZE) for grid in grids]
    # Masks with equally many points go first together; the empty one, number 1, does not go.
    order = [next(k for k, want in enumerate(wanted) if np.array_equal(want, got)) for got in sent]
    assert sorted(order) == [0, 2, 3, 4]


def test_a_result_depends_on_its_mask_and_the_seed_alone(refiner, coarse):
    together = refiner.refine(coarse, min_iou=0.0)
    backwards = refiner.refine(coarse[::-1], min_iou=0.0)
    np.testing.assert_array_equal(together.masks, backwards.masks[::-1])
    np.testing.assert_array_equal(together.scores, backwards.scores[::-1])
    for k in range(len(coarse)):
        alone = refiner.refine(coarse[k : k + 1], min_iou=0.0)
        np.testing.assert_array_equal(together.masks[k], alone.masks[0])
    assert refiner.refine(coarse[:1], seed=1, min_iou=0.0).scores[0] != together.scores[0]
    merged, turned = (merge_masks(r.masks, r.merge_scores) for r in (together, backwards))
    np.testing.assert_array_equal(merged, np.array([0, 5, 4, 3, 2, 1])[turned])


def test_a_batch_answers_like_one_by_one(refiner, spy, coarse):
    embeddings = refiner.predictor.features
    single = refiner.refine(coarse, min_iou=0.0)
    n_single = len(spy.calls)
    refiner.batch = 8
    batched = refiner.refine(coarse, min_iou=0.0)
    # Tiny and full masks have other numbers of points and keep to themselves.
    assert n_single == 3 * 4 and len(spy.calls) - n_single == 3 * 3
    assert refiner.predictor.features is embeddings, "one embedding, however many labels"
    np.testing.assert_allclose(single.scores, batched.scores, atol=1e-4)
    assert (single.masks == batched.masks).mean() > 0.999


def test_sixteen_bits_answer_nearly_alike_where_they_can(small_sam, pixels, coarse):
    exact, rough = (SamRefiner(small_sam, precision=precision).set_image(pixels).refine(coarse, min_iou=0.0)
                    for precision in ("float32", "bfloat16"))
    assert rough.scores.dtype == np.float32
    np.testing.assert_allclose(rough.scores, exact.scores, atol=0.05)
    assert (rough.scores != exact.scores)[[0, 2, 3, 4]].all(), "it was another arithmetic"
    with pytest.raises(RefineError, match="float8.*float32"):
        SamRefiner(small_sam, precision="float8")
    with pytest.raises(RefineError, match="needs a GPU"):
        load_refiner("mobile_sam", device="cpu", precision="float16")


def test_other_prompts_share_the_embeddings_and_not_the_image(refiner, pixels, coarse):
    other = refiner.with_prompts(BOX_ONLY)
    asked = other.set_image(pixels).refine(coarse[:1], min_iou=0.0)
    named = refiner.refine(coarse[:1], prompts=BOX_ONLY, min_iou=0.0)
    np.testing.assert_array_equal(asked.masks, named.masks)
    assert len(refiner._embeddings) == 1 and refiner.prompts == PAPER_PROMPTS
    other.set_image(255 - pixels)
    again = refiner.refine(coarse[:1], prompts=BOX_ONLY, min_iou=0.0)
    assert again.scores[0] == named.scores[0] != other.refine(coarse[:1], min_iou=0.0).scores[0]


def test_the_embedding_is_kept_by_content(small_sam, pixels, monkeypatch):
    refiner = SamRefiner(small_sam, cached_images=2)
    spy = Spy(refiner.predictor.set_image)
    monkeypatch.setattr(refiner.predictor, "set_image", spy)
    other = pixels.copy()
    other[0, 0, 0] ^= 255
    wide = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    steps = [(pixels, 1), (other, 2), (pixels.copy(), 2), (wide, 3), (pixels, 3), (other, 4)]
    for image, n in steps:  # the third content pushes out the one used least recently
        result = refiner.refine_masks(image, np.ones((1, *image.shape[:2]), bool))
        assert len(spy.calls) == n and result.shape[1:] == image.shape[:2]
    refiner.forget_images()
    refiner.set_image(other)
    assert len(spy.calls) == 5


def test_milliseconds_count_an_image_once(refiner, coarse):
    first, second = refiner.refine(coarse), refiner.refine(coarse)
    assert list(first.ms) == ["image", "prompts", "decoder", "masks"] == list(second.ms)
    assert first.ms["image"] > 0 and first.ms["decoder"] > 0 and second.ms["image"] == 0
    with pytest.raises(RefineError, match="1000 x 2 pixels is too thin"):
        refiner.set_image(np.zeros((2, 1000, 3), np.uint8))


# The real MobileSAM


@pytest.fixture(scope="session")
def real():
    try:
        fetch("mobile_sam", progress=False)
    except WeightsUnavailable as error:
        pytest.skip(f"MobileSAM's checkpoint is not to be had here: {error}")
    refiner = load_refiner("mobile_sam", device="cpu")
    assert load_refiner("mobile_sam", device="cpu") is refiner, "loaded once"
    return refiner


@pytest.fixture(scope="session")
def pattern() -> np.ndarray:
    """Colour ramps, a red rectangle and a green one; nothing in it depends on a library."""
    y, x = np.mgrid[:768, :1024]
    image = np.stack([x * 255 // 1024, y * 255 // 768, (x * y // 512) % 256], -1)
    image[200:500, 300:700] = (230, 60, 40)
    image[550:700, 100:260] = (20, 200, 90)
    return image.astype(np.uint8)


# What MobileSAM's published code gives for `pattern` with the same checkpoint (CPU, float32):
# (channel, row, column) of the embedding -> value.
PUBLISHED = {
    (0, 0, 0): -0.077401, (17, 10, 20): 0.020872, (64, 31, 40): 0.042679, (100, 47, 63): -0.006290,
    (128, 40, 10): -0.142377, (200, 5, 50): -0.009454, (255, 60, 30): -0.007068, (31, 20, 33): 0.169276,
}


def test_embedding_and_one_click_are_those_of_the_published_code(real, pattern):
    predictor = real.set_image(pattern).predictor
    features = predictor.features[0].numpy()
    assert features.shape == (256, 64, 64)
    for place, value in PUBLISHED.items():
        assert features[place] == pytest.approx(value, abs=2e-5)
    assert features.std() == pytest.approx(0.107749, abs=1e-5)
    masks, scores, _ = predictor.predict(np.array([[500, 350]]), np.array([1]), multimask_output=True)
    np.testing.assert_allclose(scores, [1.00795, 0.879568, 0.727022], atol=1e-4)
    assert masks[0].sum() == pytest.approx(119058, rel=1e-3)


def test_grid_masks_become_sharp(real, pattern):
    """Objects with known outlines, from 16 x 16 grids, on an image that is not square."""
    truth = np.zeros((2, 768, 1024), bool)
    truth[0, 200:500, 300:700] = truth[1, 550:700, 100:260] = True
    coarse = grid_to_masks(masks_to_grid(truth, 16, "nearest"), 2, truth.shape[1:])
    result = real.set_image(pattern).refine(coarse)
    for got, rough, want in zip(result.masks, coarse, truth, strict=True):
        assert mask_iou(got, want) > mask_iou(rough, want) + 0.02
    assert mask_iou(result.masks[1], truth[1]) > 0.9 > mask_iou(coarse[1], truth[1])
    assert not result.fallback.any() and (result.scores > 0.8).all()


@pytest.mark.slow
def test_refinement_pays_on_real_photos_and_the_frame_matters(real):
    """Objects of four RefCOCO photos, oracle grids: SAM's frame must beat the stretched one."""
    from shared_data import shared_data

    from t4s_helpers.data.refer import load_refer

    options = {"sam": PAPER_PROMPTS, "stretched": Prompts(frame="stretched"), "best": BEST_PROMPTS}
    counts = {name: np.zeros(2) for name in ("grid", *options)}
    photos: dict = {}
    for sample in load_refer(shared_data("refcoco_mini")):
        truths = photos.setdefault(str(sample.image), (sample.pixels(), {}))[1]
        truths[sample.masks[0].tobytes()] = sample.masks[0]
    for pixels, truths in list(photos.values())[::4][:4]:
        for truth in truths.values():
            rough = grid_to_masks(masks_to_grid(truth[None], 16, "nearest"), 1, truth.shape)
            real.set_image(pixels)
            found = {name: real.refine(rough, prompts=prompts).masks for name, prompts in options.items()}
            for name, masks in {"grid": rough, **found}.items():
                counts[name] += np.count_nonzero(masks[0] & truth), np.count_nonzero(masks[0] | truth)
    ciou = {name: both / union for name, (both, union) in counts.items()}
    assert ciou["sam"] > ciou["grid"] + 0.03
    assert ciou["sam"] > ciou["stretched"] + 0.02
    assert ciou["best"] > ciou["sam"] - 0.01, "what the photos chose must not fail elsewhere"
