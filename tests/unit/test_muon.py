"""The optimizer for matrices beside torch's own, and its AdamW for everything else beside AdamW."""

import copy

import pytest
import torch
from torch import nn

from tasks.training import muon
from tasks.training.muon import Muon, is_matrix, orthogonal
from tasks.training.optimizer import AdamW

MATRICES = ((48, 64), (64, 48), (8, 3, 2, 2))
OTHERS = ((64,), (1, 6, 64), ())


def parameters(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(weights, step):
    for index, weight in enumerate(weights):
        generator = torch.Generator().manual_seed(100 * step + index)
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this version of torch has no Muon")
@pytest.mark.parametrize("momentum", [0.95, 0.98])
def test_matrices_take_the_steps_of_torchs_muon(momentum):
    """Torch's takes two dimensions and computes in bfloat16, of which it has eight bits."""
    own, whole = parameters(MATRICES), parameters(MATRICES)
    flat = [nn.Parameter(weight.detach().flatten(1)) for weight in whole]
    start = [weight.detach().clone() for weight in flat]
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": momentum}
    ours = Muon(own, **settings)
    theirs = torch.optim.Muon(flat, **settings, adjust_lr_fn="match_rms_adamw")
    for step in range(20):
        give_gradients(own, step)
        for weight, twin in zip(own, flat, strict=True):
            twin.grad = weight.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    for weight, twin, before in zip(own, flat, start, strict=True):
        moved = (twin - before).norm()
        assert (weight.flatten(1) - twin).norm() < 0.005 * moved


def test_everything_else_takes_the_steps_of_adamw():
    assert [is_matrix(weight) for weight in parameters(MATRICES + OTHERS)] == [True] * 3 + [False] * 3
    own, twins = parameters(OTHERS), parameters(OTHERS)
    ours, theirs = Muon(own, lr=0.01, weight_decay=0.1), AdamW(twins, lr=0.01, weight_decay=0.1)
    for step in range(5):
        give_gradients(own, step)
        give_gradients(twins, step)
        ours.step()
        theirs.step()
    torch.testing.assert_close(own, twins, rtol=0, atol=0)


def test_a_matrix_keeps_its_singular_vectors_and_gets_values_near_one():
    matrix = torch.randn(96, 32, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonal(matrix) @ vh.T
    values = found.diagonal()
    assert 0.6 < values.min() < values.max() < 1.25
    assert (found - torch.diag(values)).abs().max() < 1e-4
    torch.testing.assert_close(orthogonal(matrix.T), orthogonal(matrix).T)
    assert not orthogonal(torch.zeros(4, 3)).any()


def test_weight_decay_is_that_of_each_group_and_missing_gradients_stay_still():
    decayed, kept, unused = parameters([(4, 4), (4, 4), (4, 4)])
    before = kept.detach().clone(), unused.detach().clone()
    groups = [{"params": [decayed]}, {"params": [kept, unused], "weight_decay": 0.0}]
    optimizer = Muon(groups, lr=0.5, weight_decay=0.5)
    start, decayed.grad, kept.grad = decayed.detach().clone(), torch.zeros(4, 4), torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(decayed.detach(), 0.75 * start)
    torch.testing.assert_close((kept.detach(), unused.detach()), before)


def test_a_run_that_is_resumed_takes_the_same_steps():
    weights = parameters(MATRICES + OTHERS)
    optimizer = Muon(weights, lr=0.02)
    for step in range(3):
        give_gradients(weights, step)
        optimizer.step()
    resumed = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = Muon(resumed, lr=0.02)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, one in ((weights, optimizer), (resumed, other)):
        give_gradients(each, 3)
        assert one.step(lambda: 7.0) == 7.0
    torch.testing.assert_close(resumed, weights, rtol=0, atol=0)


def test_states_from_before_the_option_had_the_default_momentum():
    optimizer = Muon(parameters(MATRICES), momentum=0.5)
    older = optimizer.state_dict()
    del older["param_groups"][0]["momentum"]
    optimizer.load_state_dict(older)
    assert optimizer.param_groups[0]["momentum"] == 0.95


def test_sharded_weights_and_bad_numbers_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"Muon: lr must be finite and at least 0, got -1"):
        Muon(parameters([(2, 2)]), lr=-1.0)
    with pytest.raises(ValueError, match=r"momentum must be finite and at least 0 and below 1, got 1"):
        Muon(parameters([(2, 2)]), momentum=1.0)
    monkeypatch.setattr(muon, "DTensor", nn.Parameter)
    with pytest.raises(ValueError, match=r"whole matrices.*optimizer\.AdamW"):
        Muon(parameters([(2, 2)]))
