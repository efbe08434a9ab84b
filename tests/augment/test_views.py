"""Views: the group of the square, on arrays and tensors alike."""

import itertools

import numpy as np
import pytest
import torch

from augment.views import DIHEDRAL, VIEW_NAMES, VIEW_SETS, apply_view
from midog.errors import UsageError

SQUARE = np.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)


def test_names_and_sets():
    assert len(set(DIHEDRAL)) == 8 and DIHEDRAL[0] == "identity"
    assert VIEW_SETS["none"] == ("identity",) and VIEW_SETS["d4"] == DIHEDRAL
    assert (*DIHEDRAL, "normalised", "macenko") == VIEW_NAMES
    assert VIEW_SETS["stain"] == ("identity", "normalised") and VIEW_SETS["d4_stain"] == VIEW_NAMES[:9]
    assert VIEW_SETS["macenko"] == ("identity", "macenko") and VIEW_SETS["d4_macenko"] == (*DIHEDRAL, "macenko")
    assert VIEW_SETS["rot4"] == ("identity", "rot90", "rot180", "rot270")


def test_eight_different_views_that_form_a_group():
    seen = {apply_view(SQUARE, name).tobytes(): name for name in DIHEDRAL}
    assert len(seen) == 8
    for first, second in itertools.product(DIHEDRAL, repeat=2):
        assert np.ascontiguousarray(apply_view(apply_view(SQUARE, first), second)).tobytes() in seen
    rotations = {np.ascontiguousarray(apply_view(SQUARE, name)).tobytes() for name in VIEW_SETS["rot4"]}
    for first, second in itertools.product(VIEW_SETS["rot4"], repeat=2):
        assert np.ascontiguousarray(apply_view(apply_view(SQUARE, first), second)).tobytes() in rotations


@pytest.mark.parametrize("name", DIHEDRAL)
def test_arrays_and_tensors_agree(name):
    tensor = apply_view(torch.from_numpy(SQUARE), name)
    assert tensor.shape == SQUARE.shape and tensor.dtype == torch.int64
    np.testing.assert_array_equal(tensor.numpy(), apply_view(SQUARE, name))


def test_the_identity_changes_nothing_and_a_quarter_turn_goes_against_the_clock():
    assert apply_view(SQUARE, "identity") is SQUARE
    corner = np.zeros((1, 1, 4, 4))
    corner[..., 0, 3] = 1  # upper right
    assert apply_view(corner, "rot90")[0, 0, 0, 0] == 1
    assert apply_view(corner, "flip")[0, 0, 0, 0] == 1


def mean_logit(image, views):
    """A network with no symmetry of its own, averaged over views."""
    weights = 3 * torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.stack([(apply_view(image, name) * weights).sin().sum() for name in VIEW_SETS[views]]).mean()


@pytest.mark.parametrize("name", DIHEDRAL)
def test_the_mean_over_eight_views_is_invariant_and_over_four_to_rotations_only(name):
    image = torch.rand(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = apply_view(image, name)
    torch.testing.assert_close(mean_logit(turned, "d4"), mean_logit(image, "d4"))
    four = torch.isclose(mean_logit(turned, "rot4"), mean_logit(image, "rot4"), atol=1e-9)
    assert bool(four) == (name in VIEW_SETS["rot4"])
    one = torch.isclose(mean_logit(turned, "none"), mean_logit(image, "none"), atol=1e-9)
    assert bool(one) == (name == "identity")


def test_an_unknown_view_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean rot90"):
        apply_view(SQUARE, "rot9O")
