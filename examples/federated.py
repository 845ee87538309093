"""Clients whose images differ in gain and offset pool their statistics without showing an image.

Each client sends Moments (three small arrays); the server merges them. The merged moments equal those of all data
together to the last digits. A client that was not there then normalizes by them (batch norm) or by its own (instance norm).
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import normkit as nk

GAINS = (1.0, 0.6, 1.7, 0.9)
OFFSETS = (0.0, 20.0, -5.0, 40.0)
UNSEEN = (0.4, 70.0)  # gain and offset of the client that joins late


def clients(rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Images (n, 1, 8, 8) of unequal clients, each with a gain and an offset of its own; and the raw images of a late one."""
    digits = load_digits().images[rng.permutation(1797)][:, None].astype(np.float64)
    shards = np.split(digits, [250, 900, 1000, 1400])
    return [gain * shard + offset for shard, gain, offset in zip(shards[:-1], GAINS, OFFSETS, strict=True)], shards[-1]


def main() -> None:
    """Print how exact the pooled statistics are, and what an unseen client's images look like after each norm."""
    shards, raw = clients(np.random.default_rng(0))
    sent = [nk.moments(shard, "[n] c [...]").to_dict() for shard in shards]
    pooled = nk.Moments.merge_all(nk.Moments.from_dict(arrays) for arrays in sent)
    exact = nk.moments(np.concatenate(shards), "[n] c [...]")
    console = Console(width=100)
    numbers = sum(array.size for arrays in sent for array in arrays.values())
    console.print(f"{len(shards)} clients of {[len(shard) for shard in shards]} images sent {numbers} numbers")
    for name in ("count", "mean", "var"):
        ours, theirs = (float(np.asarray(getattr(m, name)).ravel()[0]) for m in (pooled, exact))
        console.print(
            f"{name:>6}: pooled {ours!r}, of all data {theirs!r}, relative difference {abs(ours - theirs) / theirs:.0e}"
        )

    gain, offset = UNSEEN
    late = gain * raw + offset
    table = Table(title="a client nobody has seen: its images after each norm (the rest of the data has mean 0, deviation 1)")
    for column in ("", "mean", "deviation", "distance to the same images under the usual light"):
        table.add_column(column, justify="right")
    usual = (raw, late)
    for name, (seen, unseen) in {
        "batch norm, pooled moments": tuple(nk.batch_norm(x, moments=pooled) for x in usual),
        "batch norm, own moments": tuple(nk.batch_norm(x) for x in usual),
        "instance norm": tuple(nk.instance_norm(x) for x in usual),
    }.items():
        table.add_row(name, f"{unseen.mean():.3f}", f"{unseen.std():.3f}", f"{np.sqrt(np.mean((seen - unseen) ** 2)):.1e}")
    console.print(table)


if __name__ == "__main__":
    main()
