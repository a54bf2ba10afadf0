"""What `helios models` says: plain values that go into JSON as they are."""

from __future__ import annotations

from dataclasses import asdict

from helios_cli.errors import CheckpointError
from helios_cli.weights import hub
from helios_cli.weights.checkpoint import Checkpoint, Component, files_of, missing_files
from helios_cli.weights.hub import Source
from helios_cli.weights.names import EMBEDDED, EMBEDDED_FOLDER, KNOWN, known_repo

SUMMARY_KEYS = {
    "transformer": ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "text_dim"),
    "text_encoder": ("num_layers", "num_heads", "d_model", "d_ff", "vocab_size"),
    "vae": ("base_dim", "dim_mult", "num_res_blocks", "z_dim"),
}
"""The numbers of a component's config that tell two models apart."""


def inventory() -> list[dict]:
    """The known models, then the other Helios pipelines of the Hub cache.

    `state` is `ready`, `untrained`, `incomplete`, `damaged` or `not downloaded`; `bytes` is what lies on the disk.
    """
    cached = list(hub.cached_snapshots())
    models = [_entry(EMBEDDED, Source(folder=EMBEDDED_FOLDER))]
    models += [_entry(known.name, Source(repo=known.repo, revision=known.revision)) for known in KNOWN.values()]
    for repo, commit in cached:
        known = known_repo(repo)
        if known is None or known.revision != commit:
            models.append(_entry("", Source(repo=repo, revision=commit)))
    return models


def _entry(name: str, source: Source) -> dict:
    folder = source.folder or hub.snapshot_of(source)
    kind = name if name in KNOWN else None
    entry = {"name": name, "repo": source.repo or None, "revision": source.revision or None, "kind": kind}
    if folder is None:
        return {**entry, "state": "not downloaded", "bytes": None, "path": None}
    entry |= {"bytes": sum((folder / file).stat().st_size for file in files_of(folder)), "path": str(folder)}
    if missing_files(folder):
        return {**entry, "state": "incomplete"}
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        return {**entry, "state": "damaged", "problem": error.message}
    return {**entry, "kind": checkpoint.kind, "state": "ready" if checkpoint.trained else "untrained"}


def describe(checkpoint: Checkpoint, source: Source) -> dict:
    """All that the headers and configs of an opened checkpoint say of it."""
    snapshot = None if source.folder else checkpoint.path.name
    return {
        "path": str(checkpoint.path),
        "repo": source.repo or None,
        "revision": snapshot,
        "kind": checkpoint.kind,
        "scheduler": checkpoint.scheduler["_class_name"],
        "trained": checkpoint.trained,
        "knows": checkpoint.knows,
        "native_size": "x".join(map(str, checkpoint.native_size)),
        "preset": asdict(checkpoint.preset),
        "components": [_describe(component) for component in checkpoint.components.values()],
        "fingerprint": checkpoint.fingerprint(),
    }


def _describe(component: Component) -> dict:
    config = component.config
    return {
        "name": component.name,
        "parameters": component.parameters,
        "bytes": component.bytes,
        "dtypes": list(component.dtypes),
        "tensors": len(component.tensors),
        "files": len({tensor.file for tensor in component.tensors.values()}),
        "shape": ", ".join(f"{key} {config[key]}" for key in SUMMARY_KEYS[component.name] if key in config),
    }
