"""Targets of the values of a random walk."""

from __future__ import annotations

import torch

from examples import discovered_objective as example


def episodes(count: int) -> list[example.Episode]:
    return example.episodes(3, count, torch.Generator().manual_seed(5))


def test_walks_end_with_the_rewards_of_the_true_values() -> None:
    """The value of the middle is the mean return, and values are linear in the state."""
    (first, *others) = example.episodes(2000, 2, torch.Generator().manual_seed(0))
    returns = first.reward.sum(1)
    assert abs(returns.mean() - first.value[:, 2].mean()) < 4 * returns.std() / 2000**0.5
    assert ((first.reward != 0) <= ((first.discount == 0) & (first.mask == 1))).all()
    torch.testing.assert_close(others[0].value, first.value)
    assert first.value[0].diff().std() < 1e-6


def test_rewards_change() -> None:
    stream = episodes(2 * example.CHANGE + 1)
    first, second, third = (stream[i * example.CHANGE].value for i in range(3))
    torch.testing.assert_close(second, first.flip(1))
    torch.testing.assert_close(third, first)
    torch.testing.assert_close(stream[example.CHANGE - 1].value, first)


def test_td_0_against_a_loop() -> None:
    """A target that is hard-wired, and the lambda-return with 0, each with its own update."""

    def one_step(
        eta: example.Params, episode: example.Episode, v: torch.Tensor, following: torch.Tensor
    ) -> torch.Tensor:
        return episode.reward + following + 0 * eta["lambda"].sum()

    stream, alpha = episodes(9), 0.1
    expected = [torch.zeros(3, example.STATES)]
    for episode in stream[:-1]:
        before, after = expected[-1], expected[-1].clone()
        for i in range(3):
            for t in range(int(episode.mask[i].sum())):
                s, following = int(episode.state[i, t]), int(episode.following[i, t])
                v = before[i, following] if episode.discount[i, t] else 0.0
                after[i, s] += alpha * (episode.reward[i, t] + v - before[i, s])
        expected.append(after)
    for target in (one_step, example.td_lambda):
        tables = list(example.live(target, {"lambda": torch.zeros(3)}, alpha, stream, 0.0))
        torch.testing.assert_close(torch.stack(tables), torch.stack(expected[:-1]))


def test_td_1_follows_the_return() -> None:
    episode = episodes(1)[0]
    v, eta = torch.randn_like(episode.reward), {"lambda": torch.ones(3)}
    found = example.td_lambda(eta, episode, v, episode.discount * v)
    returns = episode.reward.sum(1, keepdim=True).expand_as(found)
    torch.testing.assert_close(found[episode.mask > 0], returns[episode.mask > 0])


def test_the_gradient_of_the_network_and_its_rate() -> None:
    """Through one update, against autograd; without a rate the network stays as it is."""
    stream = episodes(3)
    for rate in (0.0, 1e-3):
        eta = example.network(3, torch.Generator().manual_seed(1))
        torch.nn.init.normal_(eta["outer"])
        before = {name: leaf.clone() for name, leaf in eta.items()}
        table = torch.zeros(3, example.STATES)
        list(example.live(example.learned, eta, 0.1, stream[:2], rate))
        leaves = {name: leaf.requires_grad_() for name, leaf in before.items()}
        v, goal = example.targets(example.learned, leaves, stream[0], table)
        steps = 0.1 * (goal - v) * stream[0].mask
        table = table.scatter_add(1, stream[0].state, steps)
        v, goal = example.targets(example.learned, leaves, stream[1], table)
        after = torch.cat([goal[:, 1:], torch.zeros(3, 1)], 1).detach()
        off = stream[1].reward + stream[1].discount * after - goal
        error = (stream[1].reward.sum(1, keepdim=True) - v).square()
        loss = ((error + example.CONSISTENCY * off.square()) * stream[1].mask).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        for (name, leaf), gradient in zip(eta.items(), grads, strict=True):
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-3, atol=1e-4)
            unmoved = torch.equal(leaf.detach(), before[name].detach())
            assert unmoved == (rate == 0), name
