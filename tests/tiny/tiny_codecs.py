"""transformers' codecs with random weights, small enough for a test."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

ALL = ("xcodec2", "neucodec", "mimi", "dac")


def layer(width: int) -> dict[str, Any]:
    """One transformer layer of two heads."""
    return {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 2}


EAR = layer(16) | {"model_type": "wav2vec2-bert", "feature_projection_input_dim": 160, "output_hidden_size": 16}
EAR |= {"conv_depthwise_kernel_size": 3}
BOTH = layer(32) | {"num_key_value_heads": 2, "head_dim": 8, "encoder_hidden_size": 2, "quantization_dim": 48}
BOTH |= {"semantic_model_config": EAR}
MIMI = layer(16) | {"num_key_value_heads": 2, "num_filters": 2, "codebook_size": 32, "codebook_dim": 8}
MIMI |= {"num_quantizers": 4, "vector_quantization_hidden_dimension": 8, "upsample_groups": 16}
DAC = {"encoder_hidden_size": 2, "decoder_hidden_size": 32, "n_codebooks": 4, "codebook_size": 32, "codebook_dim": 4}


def tiny(family: str, seed: int = 0) -> Any:
    """The model with weights that make its ids hang on what it hears."""
    torch.manual_seed(seed)
    build: dict[str, Any] = {
        "xcodec2": lambda: tf.Xcodec2Model(tf.Xcodec2Config(**BOTH)),
        "neucodec": lambda: tf.NeuCodecModel(tf.NeuCodecConfig(**BOTH)),
        "mimi": lambda: tf.MimiModel(tf.MimiConfig(**MIMI)),
        "dac": lambda: tf.DacModel(tf.DacConfig(**DAC)),
    }
    made = build[family]()
    with torch.no_grad():
        for name, weight in made.named_parameters():  # fresh quantisers are all but zero: one id for everything
            if weight.ndim > 1 and ("quantizer" in name or "fc_encoder" in name or "acoustic_encoder" in name):
                weight.normal_(0, 3 / weight[0].numel() ** 0.5)
        for name, buffer in made.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
    return made.eval()
