"""The joint head and its Gram term: closed forms and invariants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from midog.errors import UsageError
from midog.models.backbones import find_backbone
from midog.models.build import build_backbone
from midog.models.classifier import Network, build_classifier
from midog.models.heads.attention import GatedAttention
from midog.models.heads.joint import Joint, JointHead, central_tokens, gram_loss
from midog.models.heads.linear import prefix_rows, token_rows
from midog.models.preprocess import Image
from midog.models.tuning import Frozen, Full, Lora
from midog.training.optimise import trained_parameters

WIDTH, PREFIX, COUNT = 16, 3, 36


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def head(**settings: Any) -> JointHead:
    """A head whose every parameter has moved from its start."""
    built = JointHead(WIDTH, PREFIX, Joint(**settings), gram=0.1)
    with torch.no_grad():
        for at, parameter in enumerate(built.parameters()):
            parameter.add_(draw(*parameter.shape, seed=at + 1) * 0.3)
    return built.eval()


@pytest.fixture
def tokens() -> Tensor:
    return draw(4, PREFIX + COUNT, WIDTH)


@torch.no_grad()
def test_attention_sums_to_one_and_patch_tokens_may_change_places(tokens: Tensor) -> None:
    built = head()
    h, a = built.joined(tokens)
    torch.testing.assert_close(a.sum(1), torch.ones(4))
    assert a.std() > 1e-3, "uniform attention would prove nothing"
    order = torch.randperm(COUNT, generator=generator(5))
    moved = torch.cat((tokens[:, :PREFIX], tokens[:, PREFIX:][:, order]), dim=1)
    again, b = built.joined(moved)
    torch.testing.assert_close(again, h)
    torch.testing.assert_close(b, a[:, order])


@torch.no_grad()
def test_equal_tokens_are_looked_at_alike(tokens: Tensor) -> None:
    built = head(gate=0.0)
    one = tokens[:, PREFIX : PREFIX + 1]
    h, a = built.joined(torch.cat((tokens[:, :PREFIX], one.expand(-1, COUNT, -1)), dim=1))
    torch.testing.assert_close(a, torch.full((4, COUNT), 1 / COUNT))
    torch.testing.assert_close(h[:, WIDTH:], built.norm_local(one[:, 0]))


@torch.no_grad()
def test_temperature_goes_from_the_best_token_to_the_mean(tokens: Tensor) -> None:
    attention = GatedAttention(WIDTH)
    patches = tokens[:, PREFIX:]
    best = attention(patches).argmax(dim=1)
    attention.temperature = 1e9
    torch.testing.assert_close(attention(patches), torch.full((4, COUNT), 1 / COUNT))
    attention.temperature = 1e-9
    torch.testing.assert_close(attention(patches), torch.nn.functional.one_hot(best, COUNT).float())


@pytest.mark.parametrize("pooling", ["attention", "mean"])
@torch.no_grad()
def test_a_masked_token_is_as_good_as_none(tokens: Tensor, pooling: str) -> None:
    built, mask = head(pooling=pooling), torch.ones(4, COUNT, dtype=torch.bool)
    mask[:, 7] = False
    without = torch.cat((tokens[:, : PREFIX + 7], tokens[:, PREFIX + 8 :]), dim=1)
    torch.testing.assert_close(built(tokens, mask), built(without))
    assert not torch.allclose(built(tokens), built(without))


@torch.no_grad()
def test_the_logit_is_read_from_the_joined_vector(tokens: Tensor) -> None:
    built = head()
    assert torch.equal(built.linear(built.vector(tokens)).squeeze(-1), built(tokens))


def test_a_gate_of_one_is_a_linear_probe_on_the_global_token(tokens: Tensor) -> None:
    built = head(gate=1)
    c = built.norm_global(tokens[:, 0])
    torch.testing.assert_close(built(tokens), c @ built.linear.weight[0, :WIDTH] + built.linear.bias)
    other = tokens.clone()
    other[:, PREFIX:] = draw(4, COUNT, WIDTH, seed=9)
    assert torch.equal(built(other), built(tokens))


@torch.no_grad()
def test_a_gate_of_zero_does_not_see_the_global_token(tokens: Tensor) -> None:
    other = tokens.clone()
    other[:, 0] += 1
    built, gated = head(gate=0), head()
    assert torch.equal(built(other), built(tokens))
    assert not torch.allclose(gated(other), gated(tokens))


@torch.no_grad()
def test_registers_are_not_looked_at(tokens: Tensor) -> None:
    built, other = head(), tokens.clone()
    other[:, 1:PREFIX] = 100 * draw(4, PREFIX - 1, WIDTH, seed=3)
    assert torch.equal(built(other), built(tokens))


def test_the_gate_starts_at_one_half_and_the_logit_at_zero(tokens: Tensor) -> None:
    built = JointHead(WIDTH, PREFIX, Joint())
    even = JointHead(WIDTH, PREFIX, Joint(gate=0.5))
    even.load_state_dict(built.state_dict(), strict=False)
    assert torch.equal(built.joined(tokens)[0], even.joined(tokens)[0])
    assert torch.equal(built(tokens), torch.zeros(4))


def test_logits_are_float32_under_autocast(tokens: Tensor) -> None:
    built = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = built(tokens)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, built(tokens))


def test_the_gram_term_is_zero_for_the_same_tokens_and_knows_no_rotation(tokens: Tensor) -> None:
    student, teacher = tokens[:, PREFIX:], draw(4, COUNT, WIDTH, seed=1)
    assert gram_loss(student, student) == 0
    rotation = torch.linalg.qr(draw(WIDTH, WIDTH, seed=2))[0]
    value = gram_loss(student, teacher)
    torch.testing.assert_close(gram_loss(student @ rotation, teacher @ rotation), value)
    torch.testing.assert_close(gram_loss(student @ rotation, student), torch.zeros(()), atol=1e-10, rtol=0)
    torch.testing.assert_close(gram_loss(student * 7, teacher), value)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_the_gram_term_of_orthonormal_and_collapsed_tokens(n: int) -> None:
    apart, together = torch.eye(n, WIDTH)[None], torch.eye(1, WIDTH).expand(1, n, WIDTH)
    torch.testing.assert_close(gram_loss(apart, together), torch.tensor((n - 1) / n))
    torch.testing.assert_close(gram_loss(together, apart), torch.tensor((n - 1) / n))


def test_the_gram_term_takes_opposite_tokens_for_unlike_ones() -> None:
    opposite = torch.tensor([[[1.0, 0], [-1, 0]]])
    assert gram_loss(opposite, torch.eye(2)[None]) == 0


def test_the_gram_term_moves_the_student_alone() -> None:
    student, teacher = (draw(2, 9, WIDTH, seed=s).requires_grad_() for s in (1, 2))
    before = teacher.detach().clone()
    gram_loss(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert torch.equal(teacher.detach(), before), "the target is left as it is"


@pytest.mark.parametrize(("side", "middle"), [(8, 4), (14, 4), (7, 5), (4, 4), (2, 2)])
def test_central_tokens_are_symmetric(side: int, middle: int) -> None:
    mask = central_tokens(side**2).view(side, side)
    assert mask.sum() == middle**2
    assert torch.equal(mask, mask.flip(0)) and torch.equal(mask, mask.T)


def test_answer_adds_both_terms_and_notes_the_central_mass(tokens: Tensor) -> None:
    built, frozen = head(central=0.5), draw(4, PREFIX + COUNT, WIDTH, seed=8)
    logits, terms = built.answer(tokens, torch.zeros(4), frozen)
    torch.testing.assert_close(logits, built(tokens))
    mass = built.attend(tokens)[:, 1:5, 1:5].sum((1, 2))
    torch.testing.assert_close(terms["central"], -0.5 * mass.log().mean())
    torch.testing.assert_close(terms["gram"], 0.1 * gram_loss(tokens[:, PREFIX:], frozen[:, PREFIX:]))
    assert built.notes() == {"central_mass": pytest.approx(float(mass.detach().mean()), rel=1e-6)}
    assert built.notes() == {}


def network(name: str, tune: Any, head: Any = Joint()) -> Network:  # noqa: B008
    return Network(find_backbone(name), "random", Image(crop=64, size=64), tune, head, seed=3)


@torch.no_grad()
def test_tokens_of_a_vit_and_of_a_cnn() -> None:
    x = draw(2, 3, 64, 64)
    registers = build_backbone({"timm": "test_vit", "timm_kwargs": {"reg_tokens": 3, "img_size": 64}}).eval()
    assert torch.equal(token_rows(registers, registers.forward_features(x)), registers.forward_features(x))
    assert prefix_rows(registers) == 4
    for name in ("test_convnextv2", "test_efficientnet"):
        cnn = build_backbone(find_backbone(name)).eval()
        found = cnn.forward_features(x)
        rows = token_rows(cnn, found)
        assert prefix_rows(cnn) == 1
        assert torch.equal(rows[:, 1:], found.flatten(2).transpose(1, 2)), "row by row"
        torch.testing.assert_close(rows[:, 0], found.mean((2, 3)))
    swin = build_backbone("timm/swin_tiny_patch4_window7_224").eval()
    found = swin.forward_features(draw(1, 3, 224, 224))
    assert torch.equal(token_rows(swin, found)[:, 1:], found.flatten(1, 2))


@pytest.mark.parametrize("name", ["test_vit", "test_convnextv2"])
def test_the_frozen_teacher_is_the_backbone_without_its_adapters(name: str) -> None:
    classifier = build_classifier(network(name, Lora(rank=2)))
    x = draw(2, 3, 64, 64)
    untouched = classifier.look(x).detach()
    with torch.no_grad():
        for at, (key, parameter) in enumerate(classifier.backbone.named_parameters()):
            if "lora_B" in key:
                parameter.add_(draw(*parameter.shape, seed=at))
    before = {key: p.requires_grad for key, p in classifier.named_parameters()}
    frozen = classifier.look_untuned(x)
    assert not frozen.requires_grad and torch.equal(frozen, untouched)
    assert not torch.allclose(classifier.look(x), untouched), "the adapters are back"
    assert {key: p.requires_grad for key, p in classifier.named_parameters()} == before
    assert classifier.training and classifier.backbone.training

    logits, terms = classifier.answer(x, torch.zeros(2))
    assert logits.shape == (2,) and terms["gram"] > 0
    terms["gram"].backward()
    moved = {key for key, p in trained_parameters(classifier).items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved and all("lora_" in key for key in moved)


@pytest.mark.parametrize("tune", [Full(), Frozen()])
def test_without_adapters_there_is_no_gram_term(tune: Any) -> None:
    classifier = build_classifier(network("test_vit", tune))
    assert not classifier.head.wants_frozen
    _, terms = classifier.answer(draw(2, 3, 64, 64), torch.zeros(2))
    assert terms == {}
    with pytest.raises(UsageError, match=r"head\.gram is 0\.1, and tune: (full|head) leaves no untuned backbone"):
        network("test_vit", tune, Joint(gram=0.1))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": 0}, "temperature"),
        ({"gate": 1.5}, "gate"),
        ({"gate": "open"}, "gate"),
        ({"gram": -1}, "gram"),
        ({"gram": math.nan}, "gram"),
        ({"central": -0.1}, "central"),
        ({"central": 0.1, "pooling": "mean"}, "central"),
        ({"pooling": "max"}, "pooling"),
        ({"dropout": 1}, "dropout"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=f"head.{word}"):
        Joint(**settings)
