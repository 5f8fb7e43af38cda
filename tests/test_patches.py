"""Pooling and targets: shapes, alignment and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from patchtrain import UsageError, patch_targets, pool_embeddings
from patchtrain.patches import embed_patches, patch_positions


def test_pooling_is_the_mean_of_each_group() -> None:
    embeddings = torch.randn(2, 12, 5)
    pooled = pool_embeddings(embeddings, 4)
    assert pooled.shape == (2, 3, 5)
    for patch in range(3):
        expected = sum(embeddings[:, 4 * patch + slot] for slot in range(4)) / 4
        torch.testing.assert_close(pooled[:, patch], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("patch_size", [2, 3, 4, 7])
def test_identical_tokens_pool_to_the_token_itself(dtype: torch.dtype, patch_size: int) -> None:
    embeddings = torch.randn(2, 5, 8).to(dtype)
    pooled = pool_embeddings(embeddings.repeat_interleave(patch_size, 1), patch_size)
    assert pooled.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 0.0
    torch.testing.assert_close(pooled, embeddings, rtol=tolerance, atol=tolerance)


def test_bf16_is_pooled_in_fp32() -> None:
    # 256 + 1 is not a bf16 number: a bf16 running sum would drop the ones.
    embeddings = torch.tensor([256.0, 1, 1, 1, 1, 1, 1, 1]).view(1, 8, 1).bfloat16()
    expected = torch.tensor(263.0 / 8).bfloat16()
    assert pool_embeddings(embeddings, 8).item() == expected.item()


def test_patch_size_one_returns_the_same_tensor() -> None:
    embeddings = torch.randn(2, 5, 3)
    assert pool_embeddings(embeddings, 1) is embeddings


@given(
    rows=st.integers(1, 3), patches=st.integers(2, 6), patch_size=st.integers(1, 6), data=st.data()
)
def test_each_position_is_given_the_tokens_of_the_next_patch(
    rows: int, patches: int, patch_size: int, data: st.DataObject
) -> None:
    length = patches * patch_size
    ids = torch.arange(rows * length).view(rows, length)
    targets = patch_targets(ids, patch_size)
    assert targets.shape == (rows, patches - 1, patch_size)
    row = data.draw(st.integers(0, rows - 1))
    position = data.draw(st.integers(0, patches - 2))
    slot = data.draw(st.integers(0, patch_size - 1))
    assert targets[row, position, slot] == ids[row, (position + 1) * patch_size + slot]


def test_targets_at_patch_size_one_are_next_tokens() -> None:
    ids = torch.randint(0, 9, (3, 7))
    assert torch.equal(patch_targets(ids, 1).squeeze(-1), ids[:, 1:])


@pytest.mark.parametrize("patch_size", [0, -1, 3])
def test_a_patch_size_that_does_not_fit_is_refused(patch_size: int) -> None:
    with pytest.raises(UsageError, match="patch"):
        pool_embeddings(torch.randn(1, 8, 2), patch_size)
    with pytest.raises(UsageError, match="patch"):
        patch_targets(torch.zeros(1, 8, dtype=torch.long), patch_size)


def test_a_single_patch_has_nothing_to_predict() -> None:
    with pytest.raises(UsageError, match="fewer than two patches"):
        patch_targets(torch.zeros(1, 4, dtype=torch.long), 4)


def test_a_document_that_begins_at_a_patch_restarts_positions_and_is_no_target() -> None:
    ids = torch.arange(16).view(1, 16)
    token_positions = torch.tensor([[*range(8), *range(4), *range(4)]])
    positions = patch_positions(token_positions, 4)
    assert positions.tolist() == [[0, 1, 0, 0]]
    targets = patch_targets(ids, 4, positions)
    assert targets[0, 0].tolist() == [4, 5, 6, 7]
    assert (targets[0, 1:] == -100).all()


def test_a_document_that_begins_inside_a_patch_is_refused() -> None:
    with pytest.raises(UsageError, match="restart inside a patch of 4"):
        patch_positions(torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1]]), 4)
    with pytest.raises(UsageError, match="tokens"):
        patch_positions(torch.arange(8), 4)


@pytest.mark.parametrize("patch_size", [1, 2, 5])
def test_embedding_and_pooling_in_one_go_is_embedding_then_pooling(patch_size: int) -> None:
    embedding = nn.Embedding(11, 6)  # few rows, so that tokens repeat in and between patches
    ids = torch.randint(0, 11, (3, 20))
    fast = embed_patches(embedding, ids, patch_size)
    slow = pool_embeddings(embedding(ids), patch_size)
    torch.testing.assert_close(fast, slow)
    upstream = torch.randn_like(slow)
    torch.testing.assert_close(
        torch.autograd.grad(fast, embedding.weight, upstream),
        torch.autograd.grad(slow, embedding.weight, upstream),
    )


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 3


def hooked() -> nn.Embedding:
    embedding = nn.Embedding(11, 6)
    embedding.register_forward_hook(lambda module, args, output: output + 1)
    return embedding


@pytest.mark.parametrize(
    "embedding",
    [Scaled(11, 6), hooked(), nn.Embedding(11, 6, padding_idx=2), nn.Embedding(11, 6).bfloat16()],
    ids=["scaled", "hooked", "padding", "bf16"],
)
def test_an_embedding_that_does_more_is_called(embedding: nn.Embedding) -> None:
    ids = torch.randint(0, 11, (3, 20))
    expected = pool_embeddings(embedding(ids), 4)
    got = embed_patches(embedding, ids, 4)
    assert torch.equal(got, expected)
    (gradient,) = torch.autograd.grad(got.sum(), embedding.weight)
    (wanted,) = torch.autograd.grad(expected.sum(), embedding.weight)
    assert torch.equal(gradient, wanted)


def test_embedding_rows_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 3"):
        embed_patches(nn.Embedding(11, 6), torch.zeros(1, 8, dtype=torch.long), 3)
