"""The same networks in PyTorch, ReLU and vanilla: the usual ways to a Jacobian, and the best written by hand.

Every function takes a `TorchNetwork` and inputs, and returns J, a and f(x). On a machine with a GPU all of it is
there. Weights are shared with JAX where they can be, so that nobody reads other memory.
"""

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import torch
from torch.nn import functional

from mftadv import Network, NetworkSpec

Answer = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TorchNetwork(NamedTuple):
    """Tensors of one network, or of many with a leading axis."""

    embedding: torch.Tensor
    readout: torch.Tensor
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]


def tensor(array: Any) -> torch.Tensor:
    return torch.from_dlpack(array).to(DEVICE)


def share(network: Network) -> TorchNetwork:
    """A JAX network, seen by torch."""
    embedding, readout = _tensors((network.frozen.embedding, network.frozen.readout))
    return TorchNetwork(embedding, readout, _tensors(network.params.weights), _tensors(network.params.biases))


def normal(*shape: int, deviation: float) -> torch.Tensor:
    return torch.empty(*shape, device=DEVICE).normal_(0, deviation)


def scaled_randn(*shape: int, deviation: float) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE) * deviation


def draw(spec: NetworkSpec, gaussian: Callable[..., torch.Tensor] = normal, *batch: int) -> TorchNetwork:
    """A network, or a batch of them, drawn by torch."""
    d, K, N, L = spec.input_dim, spec.output_dim, spec.width, spec.depth
    deviation = math.sqrt(spec.weight_variance / N)
    return TorchNetwork(
        gaussian(*batch, N, d, deviation=1 / math.sqrt(d)),
        gaussian(*batch, K, N, deviation=1 / math.sqrt(N)),
        tuple(gaussian(*batch, N, N, deviation=deviation) for _ in range(L)),
        tuple(gaussian(*batch, N, deviation=math.sqrt(spec.bias_variance)) for _ in range(L)),
    )


def apply(network: TorchNetwork, x: torch.Tensor) -> torch.Tensor:
    h = network.embedding @ x
    for W, b in zip(network.weights, network.biases, strict=True):
        h = torch.relu(torch.addmv(b, W, h))
    return network.readout @ h


def autograd(network: TorchNetwork, x: torch.Tensor) -> Answer:
    """One backward pass for each output, and a = f - J x."""
    x = x.detach().requires_grad_()
    f = apply(network, x)
    rows = [torch.autograd.grad(output, x, retain_graph=True)[0] for output in f]
    with torch.no_grad():
        J = torch.stack(rows)
        return J, f - J @ x, f


def vjp(network: TorchNetwork, x: torch.Tensor) -> Answer:
    """torch.func.vjp for one output, and a = f - J x."""
    f, pull, *_ = torch.func.vjp(lambda x: apply(network, x), x)
    J = pull(torch.ones_like(f))[0][None]
    return J, f - J @ x, f


def jacrev(network: TorchNetwork, x: torch.Tensor) -> Answer:
    """torch.func.jacrev, and a = f - J x."""
    J, f = torch.func.jacrev(lambda x: (apply(network, x),) * 2, has_aux=True)(x)
    return J, f - J @ x, f


def vmap_jacrev(networks: TorchNetwork, x: torch.Tensor) -> Answer:
    """torch.func.vmap of jacrev over networks."""
    return torch.func.vmap(jacrev, in_dims=(0, None))(networks, x)


@torch.inference_mode()
def hand(network: TorchNetwork, x: torch.Tensor) -> Answer:
    """Forward keeping the gates, then all rows backward at once, the biases with them."""
    h, gates = network.embedding @ x, []
    for W, b in zip(network.weights, network.biases, strict=True):
        z = torch.addmv(b, W, h)
        gates.append((z >= 0).to(z.dtype))
        h = torch.relu(z)
    c, a = network.readout, 0
    for W, b, gate in zip(network.weights[::-1], network.biases[::-1], gates[::-1], strict=True):
        c = c * gate
        a = a + c @ b
        c = c @ W
    return c @ network.embedding, a, network.readout @ h  # type: ignore[return-value]


@torch.inference_mode()
def hand_block(network: TorchNetwork, x: torch.Tensor) -> Answer:
    """The same for a block of inputs [B, d] and one output."""
    h, gates = x @ network.embedding.T, []
    for W, b in zip(network.weights, network.biases, strict=True):
        z = torch.addmm(b, h, W.T)
        gates.append((z >= 0).to(z.dtype))
        h = torch.relu(z)
    c, a = network.readout, 0
    for W, b, gate in zip(network.weights[::-1], network.biases[::-1], gates[::-1], strict=True):
        c = c * gate
        a = a + c @ b
        c = c @ W
    return (c @ network.embedding)[:, None], a[:, None], h @ network.readout.T  # type: ignore[index]


@torch.inference_mode()
def hand_bmm(networks: TorchNetwork, x: torch.Tensor) -> Answer:
    """The same for one input and many networks, by batched products; h is a row, which is faster than a column."""
    h, gates = (networks.embedding @ x)[:, None], []
    for W, b in zip(networks.weights, networks.biases, strict=True):
        z = torch.baddbmm(b[:, None], h, W.mT)
        gates.append((z >= 0).to(z.dtype))
        h = torch.relu(z)
    c, a = networks.readout, 0
    for W, b, gate in zip(networks.weights[::-1], networks.biases[::-1], gates[::-1], strict=True):
        c = c * gate
        a = a + torch.bmm(c, b[..., None])[..., 0]
        c = torch.bmm(c, W)
    return torch.bmm(c, networks.embedding), a, torch.bmm(h, networks.readout.mT)[:, 0]  # type: ignore[return-value]


def apply_bmm(networks: TorchNetwork, x: torch.Tensor) -> torch.Tensor:
    """The outputs [M, K] of many networks at an input of each, [M, d]."""
    h = torch.bmm(x[:, None], networks.embedding.mT)
    for W, b in zip(networks.weights, networks.biases, strict=True):
        h = torch.relu(torch.baddbmm(b[:, None], h, W.mT))
    return torch.bmm(h, networks.readout.mT)[:, 0]


def attack(network: TorchNetwork, x: torch.Tensor, eps: float, steps: int, apply=apply) -> tuple[torch.Tensor, ...]:
    """Normalised gradient ascent of |f(x + eta) - f(x)|_2 in the 2-ball, its steps shrinking; the best values."""
    with torch.no_grad():
        base = apply(network, x)
        eta = torch.randn_like(x)
        eta, best = eps * eta / eta.norm(dim=-1, keepdim=True), torch.zeros_like(base[..., 0])
    for step in range(steps):
        eta.requires_grad_()
        value = (apply(network, x + eta) - base).norm(dim=-1)
        (gradient,) = torch.autograd.grad(value.sum(), eta)
        with torch.no_grad():
            best = torch.maximum(best, value)
            size = 2 * eps * (1 - step / steps)
            eta = eta + size * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            eta = eta * (eps / eta.norm(dim=-1, keepdim=True)).clamp_max(1)
    with torch.no_grad():
        return torch.maximum(best, (apply(network, x + eta) - base).norm(dim=-1)), eta


def apply_block(network: TorchNetwork, x: torch.Tensor) -> torch.Tensor:
    """The outputs [B, K] of one network at a block of inputs [B, d]; of many networks at a block of each."""
    h = x @ network.embedding.mT
    for W, b in zip(network.weights, network.biases, strict=True):
        h = torch.relu(torch.addmm(b, h, W.mT) if W.ndim == 2 else torch.baddbmm(b[:, None], h, W.mT))
    return h @ network.readout.mT


def training_step(
    network: TorchNetwork, x: torch.Tensor, y: torch.Tensor, eta: torch.Tensor, eps: float, rate: float, steps: int = 5
) -> TorchNetwork:
    """Gradient descent on the mean of cross-entropy + |f(x + eta) - f(x)|_2 at the best eta that steps of ascent meet.

    One network with a block of inputs, or many networks with a block of each. The ascent begins at the given eta in the
    2-ball. What follows the last step is evaluated without its gradient, which nobody needs.
    """
    with torch.no_grad():
        base = apply_block(network, x)
        best, most = torch.zeros_like(x), torch.zeros_like(base[..., 0])
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            eta.requires_grad_(step < steps)
            value = torch.linalg.vector_norm(apply_block(network, x + eta) - base, dim=-1)
        with torch.no_grad():
            best = torch.where((value > most)[..., None], eta, best)
            most = torch.maximum(most, value)
        if step < steps:
            (gradient,) = torch.autograd.grad(value.sum(), eta)
            eta = eta.detach() + 2 * eps * (1 - step / steps) ** 2 * _of_norm_one(gradient)
            eta = eta * (eps / torch.linalg.vector_norm(eta, dim=-1, keepdim=True)).clamp_max(1)
    parts = [part.detach().requires_grad_() for part in (*network.weights, *network.biases)]
    depth = len(network.weights)
    moved = network._replace(weights=tuple(parts[:depth]), biases=tuple(parts[depth:]))
    output, perturbed = apply_block(moved, torch.cat([x, x + best], dim=-2)).chunk(2, dim=-2)
    standard = functional.cross_entropy(output.flatten(0, -2), y.flatten(), reduction="sum")
    loss = (standard + torch.linalg.vector_norm(perturbed - output, dim=-1).sum()) / x.shape[-2]
    gradients = torch.autograd.grad(loss, parts)
    with torch.no_grad():
        parts = [part.sub(gradient, alpha=rate) for part, gradient in zip(parts, gradients, strict=True)]
    return network._replace(weights=tuple(parts[:depth]), biases=tuple(parts[depth:]))


def train(
    network: TorchNetwork, x: torch.Tensor, y: torch.Tensor, eps: float, rate: float, batch: int, steps: int
) -> TorchNetwork:
    """Steps of training of one network or of many: an epoch is a permutation of the inputs, by each network its own."""
    networks = network.embedding.shape[:-2]
    for step in range(steps):
        place = step % (len(x) // batch)
        if place == 0:
            order = torch.rand(*networks, len(x), device=DEVICE).argsort(-1)
        rows = order[..., place * batch : (place + 1) * batch]  # type: ignore[possibly-undefined]
        start = eps * _of_norm_one(torch.randn(*networks, batch, x.shape[-1], device=DEVICE))
        network = training_step(network, x[rows], y[rows], start, eps, rate)
    return network


def _of_norm_one(rows: torch.Tensor) -> torch.Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1e-30)


def torchattacks_pgd(value: Callable, shape: tuple[int, int], p: float, steps: int) -> torch.Tensor:
    """Rows of the unit ball where a value is large, by torchattacks, whose images lie in [0, 1].

    An image u stands for the row 4 (u - 1/2), so that [0, 1] never cuts. Its loss is the cross-entropy: that of the
    logits 0 and the value, with the label of the first, grows with the value.
    """
    import torchattacks

    class Model(torch.nn.Module):
        def forward(self, images):
            logit = value(4 * (images[:, 0, 0] - 0.5))
            return torch.stack([torch.zeros_like(logit), logit], dim=-1)

    images, model = torch.full((shape[0], 1, 1, shape[1]), 0.5, device=DEVICE), Model()
    model.weight = torch.nn.Parameter(images, requires_grad=False)  # torchattacks looks for a device there
    library, step = (torchattacks.PGDL2, 1 / 5) if p == 2 else (torchattacks.PGD, 1 / 4)  # its own, as parts of eps
    attack = library(model, eps=1 / 4, alpha=step / 4, steps=steps)
    return 4 * (attack(images, torch.zeros(shape[0], dtype=torch.long, device=DEVICE))[:, 0, 0] - 0.5)


def foolbox_pgd(value: Callable, shape: tuple[int, int], p: float, steps: int) -> torch.Tensor:
    """The same by foolbox, its loss replaced by its own hook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports names that SciPy deprecates
        eagerpy, foolbox = (importlib.import_module(name) for name in ("eagerpy", "foolbox"))

    base: Any = {1: foolbox.attacks.L1PGD, 2: foolbox.attacks.L2PGD, math.inf: foolbox.attacks.LinfPGD}[p]

    class Attack(base):
        def get_loss_fn(self, model, labels):
            return lambda rows: eagerpy.astensor(value(rows.raw).sum())

    class Model(torch.nn.Module):
        def forward(self, rows):
            return value(rows)[:, None]

    model = foolbox.PyTorchModel(Model().eval(), bounds=(-2, 2), device=DEVICE)
    labels = torch.zeros(shape[0], dtype=torch.long, device=DEVICE)
    return Attack(steps=steps).run(
        model, torch.zeros(shape, device=DEVICE), foolbox.criteria.Misclassification(labels), epsilon=1
    )


PGD = {"torchattacks": (torchattacks_pgd, (2.0, math.inf)), "foolbox": (foolbox_pgd, (1.0, 2.0, math.inf))}


def best_of(
    restarts: int, attack: Callable, f: Callable, xs: torch.Tensor, eps: torch.Tensor, p: float, q: float, steps: int
) -> torch.Tensor:
    """At each input of [B, d] the best perturbation of several restarts, for the q-norm of f(x + eta) - f(x).

    `f` maps rows to rows, and `eps` [B] is a size for each input.
    """
    xs, eps = xs.repeat(restarts, 1), eps.repeat(restarts)[:, None]
    base = f(xs).detach()

    def value(rows):
        return torch.linalg.vector_norm(f(xs + eps * rows) - base, ord=q, dim=-1)

    rows = attack(value, tuple(xs.shape), p, steps)
    winner = value(rows).reshape(restarts, -1).argmax(0)
    return (eps * rows).reshape(restarts, -1, xs.shape[-1])[winner, torch.arange(len(winner))].detach()


def mlp(params: Any, xs: torch.Tensor) -> torch.Tensor:
    """The rows [B, K] of `plain.mlp`, its weights shared."""
    for weight, bias in params[:-1]:
        xs = torch.relu(functional.linear(xs, weight, bias))
    return functional.linear(xs, *params[-1])


def conv(params: Any, xs: torch.Tensor) -> torch.Tensor:
    """The rows [B, K] of `plain.conv`, its weights shared."""
    images = xs.reshape(-1, 1, 8, 8)
    for kernel, bias in params[:-1]:
        images = functional.max_pool2d(torch.relu(functional.conv2d(images, kernel, bias, padding=1)), 2)
    return functional.linear(images.flatten(1), *params[-1])


def rows(network: TorchNetwork, xs: torch.Tensor) -> torch.Tensor:
    """The outputs [B, K] of one network at inputs [B, d]."""
    return torch.func.vmap(lambda x: apply(network, x))(xs)


def one_by_one(networks: TorchNetwork) -> list[TorchNetwork]:
    """The networks of a batch."""
    layers = zip(*(zip(*group, strict=True) for group in (networks.weights, networks.biases)), strict=True)
    ends = zip(networks.embedding, networks.readout, strict=True)
    return [TorchNetwork(*end, *layer) for end, layer in zip(ends, layers, strict=True)]


def each(
    function: Callable[[TorchNetwork, torch.Tensor], tuple[torch.Tensor, ...]], networks: TorchNetwork, x: torch.Tensor
) -> Answer:
    """A Python loop over networks."""
    answers = [function(network, x) for network in one_by_one(networks)]
    return tuple(torch.stack(values) for values in zip(*answers, strict=True))  # type: ignore[return-value]


def second_moment(spec: NetworkSpec, x: torch.Tensor, num_networks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over networks of the mean square of J, each drawn, used and dropped."""
    values = torch.stack([torch.mean(hand(draw(spec), x)[0] ** 2) for _ in range(num_networks)])
    return values.mean(), values.var()


def _tensors(tree: Any) -> tuple[torch.Tensor, ...]:
    return tuple(tensor(leaf) for leaf in jax.tree.leaves(tree))
