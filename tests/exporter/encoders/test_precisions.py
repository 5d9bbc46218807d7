"""Integers for ONNX Runtime and TensorRT-RTX, from one export."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import serving
from engines.quantization.recipe import Recipe
from exporter.encoders.export import EncoderRequest, export_encoder
from serving.bundle import open_bundle
from serving.errors import UserError
from tests.encoders import make_encoder
from tests.exports import NoDisplay

TEXTS = ["Return the value of the named attribute of object.", "x = functools.partial(int, 2)"]


def test_integers_for_both_targets(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    make_encoder("bert", "embed", checkpoint)
    request = EncoderRequest(
        str(checkpoint),
        bundle,
        targets=("onnxruntime", "tensorrt-rtx"),
        batch=4,
        recipe=Recipe(bits=8, activations=True),
    )
    export_encoder(request, NoDisplay())
    opened = open_bundle(bundle)
    info = opened.manifest.require_encoder()
    assert (info.integer_weights, info.integer_activations) == (True, True)
    rtx = opened.engine("tensorrt-rtx")
    assert rtx is not None
    assert (rtx.max_batch, rtx.max_sequence) == (4, 64)
    assert (bundle / rtx.file).stat().st_size > rtx.weight_bytes
    operators = [node.op_type for node in onnx.load(bundle / "model.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == 8
    assert "MatMul" not in operators
    tokens = AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(checkpoint).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    wanted = ((states * mask).sum(1) / mask.sum(1)).numpy()
    with serving.load_encoder(bundle, threads=1) as model:
        ours = model.embed(TEXTS).vectors
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(wanted, axis=1)
    assert ((ours * wanted).sum(axis=1) / norms > 0.99).all()
    with pytest.raises(UserError, match="aren't run by this version"):
        serving.load_encoder(bundle, target="tensorrt-rtx")
