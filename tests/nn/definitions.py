"""The blocks as their papers define them: NumPy, float64, all maps in full, no gradients."""

from __future__ import annotations

import itertools

import numpy as np


def flatten(x):
    """(N, C, *S) as (N, C, P)."""
    return x.reshape(*x.shape[:2], -1)


def project(parameters, name, x):
    weight = parameters[f"{name}.weight"]
    out = np.einsum("oc,ncp->nop", weight.reshape(weight.shape[:2]), flatten(x))
    if f"{name}.bias" in parameters:
        out = out + parameters[f"{name}.bias"][:, None]
    return out.reshape(x.shape[0], -1, *x.shape[2:])


def find_neighbours(spatial, axes=None):
    """(P, P): who lies on the strips of whom, along these axes or all, itself once."""
    positions = list(np.ndindex(*spatial))
    along = range(len(spatial)) if axes is None else [axis % len(spatial) for axis in axes]

    def is_seen(p, x):
        differing = [axis for axis in range(len(spatial)) if p[axis] != x[axis]]
        return not differing or (len(differing) == 1 and differing[0] in along)

    return np.array([[is_seen(p, x) for x in positions] for p in positions])


def attend(q, k, v, seen=None):
    energies = np.einsum("ncp,ncx->npx", flatten(q), flatten(k), optimize=True)
    if seen is not None:
        energies = np.where(seen, energies, -np.inf)
    weights = np.exp(energies - energies.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("npx,ncx->ncp", weights, flatten(v), optimize=True)
    return out.reshape(*v.shape[:2], *q.shape[2:])


def criss_cross(parameters, x, recurrence, axes=None):
    seen = find_neighbours(x.shape[2:], axes)
    for number in range(recurrence):
        own = {
            name.removeprefix(f"{number}."): array
            for name, array in parameters.items()
            if "gamma" in parameters or name.startswith(f"{number}.")
        }
        q, k, v = (project(own, f"{name}_conv", x) for name in ("query", "key", "value"))
        x = own["gamma"] * attend(q, k, v, seen) + x
    return x


def position_attention(parameters, x):
    q, k, v = (project(parameters, f"{name}_conv", x) for name in ("query", "key", "value"))
    return parameters["gamma"] * attend(q, k, v) + x


def channel_attention(parameters, x):
    flat = flatten(x)
    energies = np.einsum("ncp,ndp->ncd", flat, flat)
    energies = energies.max(-1, keepdims=True) - energies
    weights = np.exp(energies - energies.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("ncd,ndp->ncp", weights, flat).reshape(x.shape)
    return parameters["gamma"] * out + x


def non_local(parameters, x, mode):
    theta, phi, g = (project(parameters, name, x) for name in ("theta", "phi", "g"))
    if mode == "embedded_gaussian":
        attended = attend(theta, phi, g)
    else:
        affinities = np.einsum("ncp,ncx->npx", flatten(theta), flatten(phi))
        sums = np.einsum("npx,ncx->ncp", affinities / affinities.shape[-1], flatten(g))
        attended = sums.reshape(g.shape)
    return x + project(parameters, "W", attended)


def convolve(weight, x):
    """Position by position, with zeros around."""
    sizes = weight.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), *[(size // 2, size // 2) for size in sizes]])
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for place in itertools.product(*map(range, x.shape[2:])):
        window = padded[(..., *[slice(p, p + size) for p, size in zip(place, sizes, strict=True)])]
        out[(..., *place)] = window.reshape(x.shape[0], -1) @ weight.reshape(len(weight), -1).T
    return out


def normalise(parameters, name, x, norm, groups, epsilon, training):
    ones = (1,) * (x.ndim - 2)
    weight, bias = (parameters[f"{name}.{part}"].reshape(-1, *ones) for part in ("weight", "bias"))
    if norm == "group":
        grouped = x.reshape(x.shape[0], groups, -1)
        mean, variance = grouped.mean(-1, keepdims=True), grouped.var(-1, keepdims=True)
        standard = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    elif training:
        axes = (0, *range(2, x.ndim))
        mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        standard = (x - mean) / np.sqrt(variance + epsilon)
    else:
        mean, variance = (
            parameters[f"{name}.{part}"].reshape(-1, *ones)
            for part in ("running_mean", "running_var")
        )
        standard = (x - mean) / np.sqrt(variance + epsilon)
    return weight * standard + bias


SLOPES = {"leaky_relu": 0.01, "relu": 0.0, None: 1.0}


def rcca_head(
    parameters, x, recurrence, norm, groups, activation, last_activation, epsilon, training
):
    def apply(name, x, activation):
        x = convolve(parameters[f"{name}.0.weight"], x)
        if norm is not None:
            x = normalise(parameters, f"{name}.1", x, norm, groups, epsilon, training)
        return np.where(x > 0, x, SLOPES[activation] * x)

    cca = {
        name.removeprefix("cca."): array
        for name, array in parameters.items()
        if name.startswith("cca.")
    }
    features = criss_cross(cca, apply("conva", x, activation), recurrence)
    features = np.concatenate([x, apply("convb", features, activation)], axis=1)
    return project(parameters, "bottleneck.3", apply("bottleneck", features, last_activation))
