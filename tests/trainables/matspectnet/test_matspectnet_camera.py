"""Invariants 2 and 3 of the reference notes: the camera, the exposure and the hard constraint."""

import pytest
import torch
from torch import Tensor

from trainables.matspectnet.camera import Camera, exposed, projected


def sensitivity() -> Tensor:
    bands = torch.arange(400, 701, 10.0)
    return torch.stack([torch.exp(-0.5 * ((bands - m) / s) ** 2) for m, s in ((600, 30), (535, 42), (455, 32))])


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_counts_are_those_of_the_specification() -> None:
    assert count(Camera(sensitivity())) == 93
    assert count(Camera(sensitivity(), trainable=False)) == 0
    assert count(Camera(sensitivity(), band_gain=True)) == 93 + 31
    assert count(Camera(sensitivity(), band_gain=True, isp=True)) == 1_007


@pytest.mark.parametrize("options", [{}, {"band_gain": True}, {"isp": True}])
def test_it_starts_as_the_camera_that_was_measured(options: dict[str, bool]) -> None:
    wanted = sensitivity() / sensitivity().sum(dim=1, keepdim=True)
    camera = Camera(sensitivity(), **options)
    torch.testing.assert_close(camera.matrix(), wanted, atol=2e-6, rtol=0)
    h = torch.rand(2, 31, 4, 5)
    torch.testing.assert_close(camera(h), torch.einsum("cb,nbhw->nchw", wanted, h), atol=5e-5, rtol=0)


def test_rows_are_positive_and_sum_to_one_whatever_was_learned() -> None:
    torch.manual_seed(0)
    camera = Camera(sensitivity())
    torch.nn.init.normal_(camera.theta, std=3)
    assert (camera.matrix() >= 0).all()
    torch.testing.assert_close(camera.matrix().sum(dim=1), torch.ones(3))


def test_white_is_white_and_the_image_is_linear_in_the_spectra() -> None:
    torch.manual_seed(0)
    camera = Camera(sensitivity())
    torch.testing.assert_close(camera(torch.ones(1, 31, 2, 2)), torch.ones(1, 3, 2, 2))
    a, b = torch.rand(2, 1, 31, 3, 3)
    torch.testing.assert_close(camera(2 * a + 0.5 * b), 2 * camera(a) + 0.5 * camera(b))
    assert (camera(a + b) >= camera(a)).all()


def test_the_gradient_is_the_matrix() -> None:
    camera = Camera(sensitivity())
    h = torch.rand(1, 31, 1, 1, requires_grad=True)
    rows = [torch.autograd.grad(camera(h)[0, c].sum(), h)[0].flatten() for c in range(3)]
    torch.testing.assert_close(torch.stack(rows), camera.matrix().detach())


def test_what_the_camera_cannot_see_changes_nothing() -> None:
    torch.manual_seed(0)
    camera = Camera(sensitivity()).double()
    matrix = camera.matrix().detach()
    blind = torch.eye(31, dtype=torch.float64) - torch.linalg.pinv(matrix) @ matrix
    h, v = torch.rand(2, 31, 5, dtype=torch.float64)
    assert (blind @ v).abs().max() > 0.1
    torch.testing.assert_close(matrix @ (h + blind @ v), matrix @ h)


def test_projected_spectra_give_exactly_the_image_and_move_no_further_than_needed() -> None:
    torch.manual_seed(0)
    camera = Camera(sensitivity(), trainable=False)
    h, x = torch.rand(2, 31, 8, 8), torch.rand(2, 3, 8, 8)
    moved = projected(h, x, camera.matrix())
    assert (camera(moved) - x).square().mean() < 1e-10
    assert (camera(h) - x).square().mean() > 1e-3
    torch.testing.assert_close(projected(moved, x, camera.matrix()), moved)
    # The shortest way is in the span of the rows.
    rest = torch.eye(31) - torch.linalg.pinv(camera.matrix()) @ camera.matrix()
    assert torch.einsum("ab,nbhw->nahw", rest, moved - h).abs().max() < 1e-5


def test_exposures_undo_what_they_are_for() -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 3, 6, 6)
    torch.testing.assert_close(exposed(image, torch.zeros_like(image), "none"), image)
    dark = image * torch.tensor([0.3, 0.5, 0.9])[:, None, None, None]
    torch.testing.assert_close(exposed(image, dark, "scale"), dark)
    torch.testing.assert_close(exposed(image, 0.5 * dark + 0.2, "affine"), 0.5 * dark + 0.2)
    flat = exposed(torch.full_like(image, 0.5), image, "affine")
    torch.testing.assert_close(flat, image.mean(dim=(1, 2, 3), keepdim=True).expand_as(image))


def test_clipping_lets_gradients_through() -> None:
    image = torch.tensor([-0.5, 0.5, 1.5]).view(1, 3, 1, 1).requires_grad_()
    out = exposed(image, image.detach(), "none")
    assert out.flatten().tolist() == pytest.approx([0, 0.5, 1])
    out.sum().backward()
    assert image.grad is not None
    assert image.grad.flatten().tolist() == [1, 1, 1]


def test_the_correction_starts_at_nothing_and_stays_small() -> None:
    torch.manual_seed(0)
    camera, plain = Camera(sensitivity(), isp=True), Camera(sensitivity())
    h = torch.rand(1, 31, 6, 6)
    torch.testing.assert_close(camera(h), plain(h))
    assert camera.isp is not None
    torch.nn.init.constant_(camera.isp[2].bias, 100.0)
    torch.testing.assert_close(camera(h), plain(h) + 0.05)
