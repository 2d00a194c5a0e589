"""Models that others wrote, and how many residual branches their architecture has.

    from zoo import ZOO
    entry = ZOO["torchvision/resnet50"]
    model, inputs = entry.build(), entry.inputs()
    entry.layers(model)         # 16: one per bottleneck

The number of branches comes from the architecture: every class of block is listed with the number
of additions `shortcut + branch` in its `forward`. Nothing here asks guyot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

Branches = int | Callable[[Any], int]


def flag(name: str) -> Callable[[nn.Module], int]:
    """One branch where an attribute of the block is true or a module."""
    return lambda block: int(getattr(block, name) not in (None, False))


def parallel(block: Any) -> int:
    """Blocks that add up convolutions, a scale and an identity: one addition less than parts."""
    convolutions = len(block.conv_kxk or ())
    return convolutions + flag("conv_scale")(block) + flag("identity")(block) - 1


def matrices(*names: str) -> Callable[[nn.Module], int]:
    """One branch for each of these parts that has a matrix or a convolution."""
    return lambda block: sum(
        any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in getattr(block, name).modules())
        for name in names
    )


BRANCHES: dict[str, Branches] = {
    "detectors.Attending": 2,
    "detectors.Attention": 1,  # positions beside attention
    "detectors.Bottleneck": flag("add"),
    "diffusers.models.attention.BasicTransformerBlock": 3,
    "diffusers.models.attention_processor.Attention": flag("residual_connection"),
    "diffusers.models.resnet.ResnetBlock2D": 1,
    "diffusers.models.transformers.transformer_2d.Transformer2DModel": 1,
    "monai.networks.blocks.convolutions.ResidualUnit": 1,
    "peft.tuners.lora.layer.Linear": 1,
    # Its skips are summed beside the stream: the first has nothing to be added to.
    "torchaudio.models.conv_tasnet.MaskGenerator": lambda mask: 2 * len(mask.conv_layers) - 2,
    "torchvision.models.convnext.CNBlock": 1,
    "torchvision.models.efficientnet.FusedMBConv": flag("use_res_connect"),
    "torchvision.models.efficientnet.MBConv": flag("use_res_connect"),
    "torchvision.models.maxvit.MBConv": 1,
    "torchvision.models.maxvit.PartitionAttentionLayer": 2,
    "torchvision.models.mnasnet._InvertedResidual": flag("apply_residual"),
    "torchvision.models.mobilenetv2.InvertedResidual": flag("use_res_connect"),
    "torchvision.models.mobilenetv3.InvertedResidual": flag("use_res_connect"),
    "torchvision.models.regnet.ResBottleneckBlock": 1,
    "torchvision.models.resnet.BasicBlock": 1,
    "torchvision.models.resnet.Bottleneck": 1,
    "torchvision.models.segmentation.lraspp.LRASPPHead": 1,  # what follows its low features
    "torchvision.models.swin_transformer.SwinTransformerBlock": 2,
    "torchvision.models.swin_transformer.SwinTransformerBlockV2": 2,
    "torchvision.models.vision_transformer.EncoderBlock": 2,
    "timm.layers.bottleneck_attn.BottleneckAttn": 1,  # scores of positions beside those of pixels
    "timm.layers.bottleneck_attn.PosEmbedRel": 1,  # along one side of the image and the other
    "timm.layers.global_context.GlobalContext": flag("mlp_add"),
    "timm.models._efficientnet_blocks.ConvBnAct": flag("has_skip"),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": flag("has_skip"),
    "timm.models._efficientnet_blocks.EdgeResidual": flag("has_skip"),
    "timm.models._efficientnet_blocks.InvertedResidual": flag("has_skip"),
    "timm.models._efficientnet_blocks.MobileAttention": flag("has_skip"),
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": flag("has_skip"),
    "timm.models.beit.Block": 2,
    "timm.models.byobnet.BasicBlock": flag("shortcut"),
    "timm.models.byobnet.BottleneckBlock": flag("shortcut"),
    "timm.models.byobnet.MobileOneBlock": parallel,
    "timm.models.byobnet.RepVggBlock": lambda block: 1 + flag("identity")(block),
    "timm.models.byobnet.SelfAttnBlock": flag("shortcut"),
    "timm.models.cait.LayerScaleBlock": 2,
    "timm.models.cait.LayerScaleBlockClassAttn": 2,
    "timm.models.convmixer.Residual": 1,
    "timm.models.convnext.ConvNeXtBlock": flag("shortcut"),
    "timm.models.crossvit.CrossAttentionBlock": 1,
    "timm.models.cspnet.BottleneckBlock": 1,
    "timm.models.cspnet.DarkBlock": 1,
    "timm.models.davit.ChannelBlock": 2,
    "timm.models.davit.ConvPosEnc": 1,
    "timm.models.davit.SpatialBlock": 2,
    "timm.models.deit.VisionTransformerDistilled": 1,  # one head beside the other
    "timm.models.dla.DlaBasic": 1,
    "timm.models.dla.DlaBottleneck": 1,
    "timm.models.dla.DlaRoot": flag("shortcut"),
    "timm.models.edgenext.ConvBlock": 1,
    "timm.models.edgenext.SplitTransposeBlock": 2,
    "timm.models.efficientformer.EfficientFormer": 1,  # one head beside the other
    "timm.models.efficientformer.MetaBlock1d": 2,
    "timm.models.efficientformer.MetaBlock2d": matrices("token_mixer", "mlp"),
    "timm.models.efficientformer_v2.Attention2dDownsample": 1,  # a convolution beside attention
    "timm.models.efficientformer_v2.Downsample": flag("attn"),
    "timm.models.efficientformer_v2.EfficientFormerV2": 1,  # one head beside the other
    "timm.models.efficientformer_v2.EfficientFormerV2Block": (
        lambda block: 1 + flag("token_mixer")(block)
    ),
    "timm.models.efficientformer_v2.LocalGlobalQuery": 1,
    "timm.models.efficientvit_mit.ResidualBlock": flag("shortcut"),
    "timm.models.eva.EvaBlock": 2,
    "timm.models.fasternet.MLPBlock": 1,
    "timm.models.fastvit.MobileOneBlock": parallel,
    "timm.models.fastvit.RepMixer": 1,
    "timm.models.fastvit.RepMixerBlock": 1,
    "timm.models.fastvit.ReparamLargeKernelConv": flag("small_conv"),
    "timm.models.ghostnet.GhostBottleneck": 1,
    "timm.models.hgnet.HighPerfGpuBlock": flag("residual"),
    "timm.models.inception_next.MetaNeXtBlock": 1,
    "timm.models.inception_resnet_v2.Block17": 1,
    "timm.models.inception_resnet_v2.Block35": 1,
    "timm.models.inception_resnet_v2.Block8": 1,
    "timm.models.levit.LevitBlock": 2,
    "timm.models.levit.LevitDownsample": 1,
    "timm.models.levit.LevitDistilled": 1,  # one head beside the other
    "timm.models.maxxvit.ConvNeXtBlock": 1,
    "timm.models.maxxvit.MbConvBlock": 1,
    "timm.models.maxxvit.PartitionAttentionCl": 2,
    "timm.models.maxxvit.TransformerBlock2d": 2,
    "timm.models.metaformer.MetaFormerBlock": matrices("token_mixer", "mlp"),
    "timm.models.mlp_mixer.MixerBlock": 2,
    "timm.models.mlp_mixer.ResBlock": 2,
    "timm.models.mlp_mixer.SpatialGatingBlock": 1,
    "timm.models.mobilevit.LinearTransformerBlock": 2,
    "timm.models.nest.TransformerLayer": 2,
    "timm.models.nfnet.NormFreeBlock": 1,
    "timm.models.pvt_v2.Block": 2,
    "timm.models.regnet.Bottleneck": flag("downsample"),
    "timm.models.regnet.PreBottleneck": flag("downsample"),
    "timm.models.repghost.RepGhostBottleneck": 1,
    "timm.models.repghost.RepGhostModule": lambda block: len(block.fusion_conv),
    "timm.models.repvit.RepVggDw": 2,
    "timm.models.repvit.RepViTBlock": 1,
    "timm.models.repvit.RepVitClassifier": flag("distillation"),
    "timm.models.repvit.RepVitDownsample": 1,
    "timm.models.res2net.Bottle2neck": 1,
    "timm.models.resnest.ResNestBottleneck": 1,
    "timm.models.resnet.BasicBlock": 1,
    "timm.models.resnet.Bottleneck": 1,
    "timm.models.resnetv2.PreActBasic": 1,
    "timm.models.resnetv2.PreActBottleneck": 1,
    # Where it widens, only some of the channels have a shortcut.
    "timm.models.rexnet.LinearBottleneck": (
        lambda block: int(block.use_shortcut and block.in_channels == block.out_channels)
    ),
    "timm.models.sknet.SelectiveKernelBasic": 1,
    "timm.models.starnet.Block": 1,
    "timm.models.swin_transformer.SwinTransformerBlock": 2,
    "timm.models.swin_transformer_v2.SwinTransformerV2Block": 2,
    "timm.models.tiny_vit.MBConv": 1,
    "timm.models.tiny_vit.TinyVitBlock": 2,
    "timm.models.tresnet.BasicBlock": 1,
    "timm.models.tresnet.Bottleneck": 1,
    "timm.models.twins.Block": 2,
    "timm.models.twins.PosConv": lambda block: int(block.stride == 1),
    "timm.models.visformer.Block": lambda block: 1 + flag("attn")(block),
    "timm.models.vision_transformer.Block": 2,
    "timm.models.vovnet.OsaBlock": flag("residual"),
    # The second addition doubles all tokens but the class token: there is no shortcut beside it.
    "timm.models.xcit.ClassAttentionBlock": 1,
    "timm.models.xcit.XCABlock": 3,
    "timm.models.xception_aligned.XceptionModule": lambda block: int(not block.no_skip),
    "transformers.models.bert.modeling_bert.BertLayer": 2,
    "transformers.models.clip.modeling_clip.CLIPEncoderLayer": 2,
    # The first attention of its decoder reads a constant.
    "transformers.models.detr.modeling_detr.DetrDecoder": -1,
    "transformers.models.detr.modeling_detr.DetrDecoderLayer": 3,
    "transformers.models.detr.modeling_detr.DetrEncoderLayer": 2,
    "transformers.models.distilbert.modeling_distilbert.TransformerBlock": 2,
    "transformers.models.gpt2.modeling_gpt2.GPT2Block": 2,
    "transformers.models.llama.modeling_llama.LlamaDecoderLayer": 2,
    "transformers.models.mamba.modeling_mamba.MambaBlock": 1,
    "transformers.models.mixtral.modeling_mixtral.MixtralDecoderLayer": 2,
    "transformers.models.qwen3.modeling_qwen3.Qwen3DecoderLayer": 2,
    "transformers.models.resnet.modeling_resnet.ResNetBasicLayer": 1,
    "transformers.models.rt_detr.modeling_rt_detr.RTDetrCSPRepLayer": 1,
    "transformers.models.rt_detr.modeling_rt_detr.RTDetrDecoderLayer": 3,
    "transformers.models.rt_detr.modeling_rt_detr.RTDetrEncoderLayer": 2,
    "transformers.models.rt_detr.modeling_rt_detr.RTDetrRepVggBlock": 1,
    "transformers.models.rt_detr.modeling_rt_detr_resnet.RTDetrResNetBasicLayer": 1,
    "transformers.models.segformer.modeling_segformer.SegformerLayer": 2,
    "transformers.models.t5.modeling_t5.T5LayerCrossAttention": 1,
    "transformers.models.t5.modeling_t5.T5LayerFF": 1,
    # The first one of a stack stays: it also computes the bias of positions that all add.
    "transformers.models.t5.modeling_t5.T5LayerSelfAttention": 1,
    "transformers.models.vit.modeling_vit.ViTLayer": 2,
    "transformers.models.wav2vec2.modeling_wav2vec2.Wav2Vec2Encoder": 1,  # positions
    "transformers.models.wav2vec2.modeling_wav2vec2.Wav2Vec2EncoderLayer": 2,
    "transformers.models.whisper.modeling_whisper.WhisperDecoderLayer": 3,
    "transformers.models.whisper.modeling_whisper.WhisperEncoderLayer": 2,
}
"""Class of a block -> residual branches in its own `forward`."""


def expected_layers(model: nn.Module) -> int:
    """Residual branches that the architecture has, counted by its blocks."""
    total = 0
    for module in model.modules():
        kind = type(module)
        branches = BRANCHES.get(f"{kind.__module__}.{kind.__qualname__}", 0)
        total += branches if isinstance(branches, int) else branches(module)
    return total


@dataclass(frozen=True)
class Entry:
    """A model of a library.

    Attributes:
        make: makes the model with random weights.
        inputs: makes example inputs, with a batch of two.
        pixels: side of the image, 0 for text.
        layers: counts the residual branches of the model.
        double: whether it runs in float64.
        between: MACs of a sample with the other one of the batch, which a batch of one lacks.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    pixels: int = 0
    layers: Callable[[nn.Module], int] = field(default=expected_layers)
    double: bool = True
    between: int = 0

    def build(self) -> nn.Module:
        """The model, always with the same random weights."""
        torch.manual_seed(0)
        return self.make()


def image(pixels: int) -> tuple[torch.Tensor]:
    """Two random images."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 3, pixels, pixels, generator=generator),)


def _vision(name: str, options: dict[str, Any]) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options)


TORCHVISION_OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "googlenet": (64, {"init_weights": False}),
    "inception_v3": (299, {"init_weights": False}),  # its auxiliary head needs 17 x 17 features
    "maxvit_t": (224, {}),
    "vit_b_16": (64, {"image_size": 64}),
    "vit_b_32": (64, {"image_size": 64}),
    "vit_h_14": (56, {"image_size": 56}),
    "vit_l_16": (64, {"image_size": 64}),
    "vit_l_32": (64, {"image_size": 64}),
}
"""What differs from 64 pixels and no options."""

# What torchvision.models.list_models(module=torchvision.models) says; a test compares.
TORCHVISION = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m
efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf regnet_x_32gf
regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf
regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101
resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16
vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2
wide_resnet50_2
""".split()

TIMM_OPTIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (64, {"img_size": 64, "depth": 4}),
    "botnet26t_256": (256, {}),
    "cait_xxs24_224": (64, {"img_size": 64}),
    "coatnet_nano_rw_224": (224, {}),
    "crossvit_tiny_240": (240, {}),
    "deit3_small_patch16_224": (64, {"img_size": 64}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (224, {}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56}),
    "gmlp_ti16_224": (64, {"img_size": 64}),
    "inception_resnet_v2": (96, {}),
    "inception_v4": (96, {}),
    "levit_128s": (224, {}),
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "nest_tiny": (224, {}),
    "pit_ti_224": (224, {}),
    "resmlp_12_224": (64, {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (224, {}),
    "swinv2_tiny_window8_256": (256, {}),
    "tiny_vit_5m_224": (224, {}),
    "twins_pcpvt_small": (64, {"img_size": 64}),
    "visformer_tiny": (224, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "xception41": (96, {}),
}
"""What differs from 64 pixels and no options of timm.create_model."""

TIMM = """
beit_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coatnet_nano_rw_224 convformer_s18
convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cs3darknet_s cspdarknet53
cspresnet50 davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224 densenet121 dla34
dla46_c dpn48b ecaresnet26t edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_b0 efficientvit_b0 ese_vovnet19b_dw eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
gcresnet33ts gernet_s ghostnet_050 ghostnetv2_100 gmlp_ti16_224 hgnetv2_b0 hrnet_w18_small
inception_next_atto inception_resnet_v2 inception_v4 lcnet_050 levit_128s maxvit_rmlp_pico_rw_256
mixer_s32_224 mixnet_s mnasnet_small mobilenetv3_small_050 mobilenetv4_conv_small
mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 nest_tiny nf_regnet_b0
nf_resnet26 nfnet_l0 pit_ti_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 regnetv_040 regnetx_002
regnety_002 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224
resnest14d resnet26d resnetblur50 resnetv2_50 resnetv2_50x1_bit resnext50_32x4d rexnet_100
selecsls42 seresnet50 skresnet18 starnet_s1 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
tf_efficientnetv2_b0 tiny_vit_5m_224 tresnet_m twins_pcpvt_small visformer_tiny vit_tiny_patch16_224
xception41 xcit_nano_12_p16_224
""".split()


def _timm(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, **options)


SMALL = {"vocab_size": 67, "attn_implementation": "sdpa"}


def _transformer(kind: str) -> nn.Module:
    """A model of `transformers`, two to four small blocks, from its configuration."""
    import transformers as hf

    wide = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4}
    if kind == "bert":
        config = hf.BertConfig(**SMALL, **wide, **heads, num_labels=5)
        return hf.BertForSequenceClassification(config)
    if kind == "distilbert":
        config = hf.DistilBertConfig(
            **SMALL, dim=48, hidden_dim=80, n_layers=3, n_heads=4, num_labels=5
        )
        return hf.DistilBertForSequenceClassification(config)
    if kind == "gpt2":
        config = hf.GPT2Config(
            **SMALL, n_embd=48, n_layer=3, n_head=4, n_positions=32, use_cache=False
        )
        return hf.GPT2LMHeadModel(config)
    if kind == "llama":
        config = hf.LlamaConfig(**SMALL, **wide, **heads, num_key_value_heads=2, use_cache=False)
        return hf.LlamaForCausalLM(config)
    if kind == "vit":
        config = hf.ViTConfig(
            **wide, **heads, image_size=32, patch_size=8, num_labels=5, attn_implementation="sdpa"
        )
        return hf.ViTForImageClassification(config)
    config = hf.T5Config(
        vocab_size=67, d_model=48, d_kv=12, d_ff=80, num_layers=2, num_heads=4, use_cache=False
    )
    config.decoder_start_token_id = 0
    return hf.T5ForConditionalGeneration(config)


def tokens() -> tuple[torch.Tensor]:
    """Two random sequences of nine tokens."""
    return (torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0)),)


def both_tokens() -> tuple[torch.Tensor, ...]:
    """Tokens of an encoder, their mask, and tokens of a decoder."""
    (ids,) = tokens()
    return ids, torch.ones_like(ids), ids[:, :7].clone()


TRANSFORMERS = {
    "bert": Entry(partial(_transformer, "bert"), tokens),
    "distilbert": Entry(partial(_transformer, "distilbert"), tokens),
    "gpt2": Entry(partial(_transformer, "gpt2"), tokens),
    "llama": Entry(partial(_transformer, "llama"), tokens),
    "t5": Entry(partial(_transformer, "t5"), both_tokens),
    "vit": Entry(partial(_transformer, "vit"), partial(image, 32), 32),
}


def _zoo() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name in TORCHVISION:
        pixels, options = TORCHVISION_OPTIONS.get(name, (64, {}))
        make = partial(_vision, name, options)
        entries[f"torchvision/{name}"] = Entry(make, partial(image, pixels), pixels)
    for name in TIMM:
        pixels, options = TIMM_OPTIONS.get(name, (64, {}))
        make = partial(_timm, name, options)
        entries[f"timm/{name}"] = Entry(make, partial(image, pixels), pixels)
    for name, entry in TRANSFORMERS.items():
        entries[f"transformers/{name}"] = entry
    return entries


ZOO = _zoo()
"""Library and name -> model."""
