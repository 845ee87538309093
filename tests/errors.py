"""`python -m tests.errors`: the table of docs/numerics.md. Largest errors, in units of 2**-23 of max(1, |y|)."""

import numpy as np

import normkit as nk
from normkit.bench import table
from normkit.bench.onnx import operator
from tests import reference

SHAPE = (4, 8, 64, 65)  # N, C, H, W
DATA = {
    "mean / std 0": lambda z: z,
    "mean / std 100": lambda z: z + 100,
    "mean / std 1e4": lambda z: z + 1e4,
    "mean / std 1e6": lambda z: z + 1e6,
    "scale 1e-30, eps 0": lambda z: z * 1e-30,
    "scale 1e30, eps 0": lambda z: z * 1e30,
    "outlier first": lambda z: np.where(np.arange(z.shape[-1]) == 0, 1e6, z),
    "8191, 8193, ...": lambda z: np.where(np.arange(z.shape[-1]) % 2, 8191.0, 8193.0) + 0 * z,
}


def of_torch(x, axes, eps):
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(x))
    functional = torch.nn.functional
    return (
        functional.instance_norm(tensor, eps=eps) if axes == (2, 3) else functional.layer_norm(tensor, x.shape[1:], eps=eps)
    ).numpy()


def of_jax(x, axes, eps):
    from jax import numpy as jnp

    x = jnp.asarray(x)
    mean = x.mean(axes, keepdims=True)
    return np.asarray((x - mean) / jnp.sqrt(jnp.maximum(0, (x * x).mean(axes, keepdims=True) - mean * mean) + eps))


def of_numpy(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + np.float32(eps))


def of_onnx(x, axes, eps):
    if axes == (2, 3):
        weights = [np.full(x.shape[1], value, x.dtype) for value in (1, 0)]
        return operator("InstanceNormalization", {"epsilon": eps}, np.ascontiguousarray(x), weights)()
    weights = [np.full(x.shape[1:], value, x.dtype) for value in (1, 0)]
    return operator("LayerNormalization", {"axis": 1, "epsilon": eps}, np.ascontiguousarray(x), weights)()


CONTENDERS = {
    "normkit": lambda x, axes, eps: nk.normalize(x, axes, eps=eps),
    "normkit, channels last": lambda x, axes, eps: nk.normalize(
        np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), axes, eps=eps
    ),
    "NumPy": of_numpy,
    "PyTorch": of_torch,
    "ONNX Runtime": of_onnx,
    "JAX, as Flax sums": of_jax,
}


def error(y, exact):
    """In units of 2**-23, or inf where it is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        worst = float((np.abs(y.astype(np.longdouble) - exact) / np.maximum(1, np.abs(exact))).max())
    return worst * 2**23 if np.isfinite(worst) else np.inf


def main():
    absent = [name for name in table.CONTENDERS if name not in table.contenders()]
    there = [name for name in CONTENDERS if name.split(",")[0] not in absent]
    print("| float32 data | " + " | ".join(there) + " |\n|" + " --- |" * (1 + len(there)))
    for axes, norm in (((2, 3), "instance"), ((1, 2, 3), "layer")):
        for name, make in DATA.items():
            x = make(np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)
            eps = 0.0 if "eps 0" in name else 1e-5
            exact = reference.normalize(x, axes, eps=eps)
            with np.errstate(all="ignore"):
                errors = [error(CONTENDERS[who](x, axes, eps), exact) for who in there]
            print(f"| {norm}, {name} | " + " | ".join(f"{worst:.2g}" for worst in errors) + " |")


if __name__ == "__main__":
    main()
