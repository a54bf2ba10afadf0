"""A checkpoint of a few numbers in the published layout, and a Hub that serves it on the loopback address."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

COMMIT = "c0ffee" * 6 + "beef"

PIPELINES = {
    "base": ({"_class_name": "HeliosPipeline"}, {"_class_name": "HeliosScheduler", "stages": 1}),
    "mid": (
        {"_class_name": "HeliosPyramidPipeline", "is_distilled": False, "is_cfg_zero_star": True},
        {"_class_name": "HeliosScheduler", "stages": 3},
    ),
    "distilled": (
        {"_class_name": "HeliosPyramidPipeline", "is_distilled": True, "is_cfg_zero_star": False},
        {"_class_name": "HeliosDMDScheduler", "stages": 3},
    ),
}


DIT = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 6, "rope_dim": [2, 2, 2]}
DIT |= {"in_channels": 2, "out_channels": 2, "text_dim": 4, "freq_dim": 2, "ffn_dim": 3}
TEXT = {"vocab_size": 8, "d_model": 4, "d_kv": 2, "d_ff": 3, "num_layers": 1, "num_heads": 1}
TEXT |= {"relative_attention_num_buckets": 4}
VAE = {"base_dim": 2, "z_dim": 2, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
VAE |= {"temperal_downsample": [False, True, True], "latents_mean": [0.0] * 2, "latents_std": [1.0] * 2}

TRANSFORMER_SIZES = {
    "patch_embedding.weight": (6, 2, 1, 2, 2),
    "condition_embedder.text_embedder.linear_1.weight": (6, 4),
    "condition_embedder.time_embedder.linear_1.weight": (6, 2),
    "blocks.0.ffn.net.0.proj.weight": (3, 6),
}
TEXT_SIZES = {
    "shared.weight": (8, 4),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (2, 4),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (4, 1),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (3, 4),
}
VAE_SIZES = {
    "encoder.conv_in.weight": (2, 3, 3, 3, 3),
    "decoder.conv_in.weight": (2, 2, 3, 3, 3),
    "decoder.conv_out.weight": (3, 2, 3, 3, 3),
    **{f"decoder.up_blocks.{level}.resnets.1.conv2.weight": (2, 2, 3, 3, 3) for level in range(4)},
}
"""The tensors that tell the sizes of the configs; no more of a model is there."""


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_checkpoint(path: Path, kind: str = "distilled") -> Path:
    """A checkpoint of a few numbers in the published layout: a transformer in two shards, the others in one file."""
    index, scheduler = PIPELINES[kind]
    write_json(path / "model_index.json", index)
    write_json(path / "scheduler/scheduler_config.json", scheduler)
    write_json(path / "tokenizer/tokenizer.json", {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}}})
    write_json(path / "transformer/config.json", {"_class_name": "HeliosTransformer3DModel", **DIT})
    write_json(path / "text_encoder/config.json", {"architectures": ["UMT5EncoderModel"], **TEXT})
    write_json(path / "vae/config.json", {"_class_name": "AutoencoderKLWan", **VAE})
    first = {"weight": np.random.default_rng(0).normal(size=(4, 3)).astype("float32")}
    second = {"bias": np.random.default_rng(1).normal(size=4).astype("float32")}
    shards = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": first,
        "diffusion_pytorch_model-00002-of-00002.safetensors": second | zeros(TRANSFORMER_SIZES),
    }
    for shard, tensors in shards.items():
        save_file(tensors, path / "transformer" / shard)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    write_json(path / "transformer/diffusion_pytorch_model.safetensors.index.json", {"weight_map": weight_map})
    save_file(zeros(TEXT_SIZES, "float16"), path / "text_encoder/model.safetensors")
    save_file(
        {"conv.weight": np.ones((2, 2), "float32"), **zeros(VAE_SIZES)},
        path / "vae/diffusion_pytorch_model.safetensors",
    )
    return path


def zeros(sizes: dict[str, tuple[int, ...]], dtype: str = "float32") -> dict[str, np.ndarray]:
    return {name: np.zeros(size, dtype) for name, size in sizes.items()}


class Hub:
    """The Hub's endpoints that a download uses, over the files of one folder.

    `refuse`: the status and X-Error-Code that a repository is answered with; `cut`: files whose first transfer breaks
    off in the middle; `lie`: files that are announced longer than they are.
    """

    def __init__(self, repo: str, root: Path) -> None:
        self.repo, self.root = repo, root
        self.refuse: dict[str, tuple[int, str]] = {}
        self.cut: set[str] = set()
        self.lie: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def downloads(self) -> list[str]:
        """The files that were requested whole, in order."""
        mark = f"/{self.repo}/resolve/{COMMIT}/"
        return [path.removeprefix(mark) for method, path, _ in self.requests if method == "GET" and mark in path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, request.headers.get("Range")))
        refused = next((repo for repo in self.refuse if repo in path), None)
        if refused:
            status, code = self.refuse[refused]
            self._send(request, status, b"{}", {"X-Error-Code": code})
        elif path.startswith(f"/api/models/{self.repo}/revision/"):
            self._send(request, 200, json.dumps(self._info()).encode())
        elif path.startswith(f"/api/models/{self.repo}/tree/"):
            self._send(request, 200, json.dumps([entry for _, entry in self._entries()]).encode())
        elif path.startswith(f"/{self.repo}/resolve/"):
            self._file(request, path.split("/", 5)[5])
        else:
            self._send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _entries(self):
        for file in sorted(file for file in self.root.rglob("*") if file.is_file()):
            name, body = file.relative_to(self.root).as_posix(), file.read_bytes()
            size = len(body) + (5 if name in self.lie else 0)
            entry = {"type": "file", "path": name, "size": size, "oid": git_sha1(body)}
            if name.endswith((".safetensors", ".bin")):
                entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 100}
            yield name, entry

    def _info(self) -> dict:
        siblings = []
        for name, entry in self._entries():
            sibling = {"rfilename": name, "size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 100}
            siblings.append(sibling)
        return {
            "id": self.repo,
            "modelId": self.repo,
            "sha": COMMIT,
            "siblings": siblings,
            "tags": [],
            "private": False,
        }

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        body = (self.root / name).read_bytes()
        entry = dict(self._entries())[name]
        headers = {
            "ETag": f'"{entry.get("lfs", entry)["oid"]}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(entry["size"]),
            "Accept-Ranges": "bytes",
        }
        begin = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        status = 206 if begin else 200
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        if name in self.cut and request.command == "GET":
            self.cut.discard(name)
            self._send(request, status, body[: len(body) // 2], {**headers, "Content-Length": str(len(body))})
            request.close_connection = True
            return
        self._send(request, status, body[begin:], headers)

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict | None = None) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
