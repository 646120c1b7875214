"""Which networks, and at which image sizes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

SIZES = (64, 96)

# One of each family. Families whose image size is fixed in the network stand in FIXED as well.
TIMM = (
    *("resnet18", "resnet50d", "seresnet50", "ecaresnet26t", "resnest14d", "res2net50_26w_4s", "skresnet18"),
    *("gcresnet33ts", "resnetv2_50", "resnext50_32x4d", "efficientnet_lite0", "efficientnet_b0"),
    *("tf_efficientnet_b0", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mixnet_s"),
    *("mnasnet_100", "fbnetc_100", "spnasnet_100", "hardcorenas_a", "lcnet_050", "tinynet_e", "ghostnet_100"),
    *("ghostnetv2_100", "rexnet_100", "regnetx_002", "regnety_002", "regnetz_b16", "densenet121", "dla34"),
    *("dpn68", "selecsls42b", "hrnet_w18_small", "vovnet39a", "ese_vovnet19b_dw", "cspresnet50"),
    *("cspdarknet53", "darknet53", "xception41", "legacy_xception", "inception_v3", "inception_v4"),
    *("inception_resnet_v2", "nasnetalarge", "pnasnet5large", "vgg11_bn", "convnext_atto", "convnextv2_atto"),
    *("convmixer_768_32", "inception_next_tiny", "nfnet_l0", "dm_nfnet_f0", "repvgg_a0", "mobileone_s0"),
    *("fastvit_t8", "hgnet_tiny", "hgnetv2_b0", "starnet_s1", "repghostnet_050", "edgenext_xx_small"),
    *("mambaout_femto", "rdnet_tiny", "tresnet_m", "bat_resnext26ts", "lambda_resnet26t", "halonet26t"),
    *("visformer_tiny", "efficientvit_b0", "levit_128s", "poolformer_s12", "focalnet_tiny_srf"),
    *("tf_mobilenetv3_large_075", "tf_mixnet_s", "tf_efficientnetv2_b0", "resnetv2_50x1_bit", "eca_nfnet_l0"),
    *("cspresnext50", "cspnext_tiny", "repvit_m0_9", "fasternet_t0", "mobilevit_xxs", "mobilevitv2_050"),
    *("swiftformer_xs", "shvit_s1", "legacy_seresnet18", "lcnetv2_base", "cpubone_b0_bfrobust", "iformer_m"),
    *(
        "nextvit_small",
        "efficientvit_m0",
        "resnetrs50",
        "gernet_s",
        "mobilenet_edgetpu_v2_xs",
        "lowformer_b0",
    ),
    *(
        "convformer_s18",
        "res2next50",
        "resnetaa50",
        "skresnext50_32x4d",
        "csatv2",
        "resnext26ts",
        "xception71",
    ),
)
FIXED = {
    "torchvision/maxvit_t": (224,),
    "torchvision/inception_v3": (96, 139),
    "torchvision/googlenet": (64, 96),
    "timm/convmixer_768_32": (98, 105),  # of unlike sizes one has not the other's statistics, and overflows
    # Features that patches of two pixels do not divide take another path, for which one freezes again.
    **dict.fromkeys((f"timm/{name}" for name in ("mobilevit_xxs", "mobilevitv2_050")), (64, 128)),
    **dict.fromkeys((f"torchvision/vit_{name}" for name in ("b_16", "b_32", "l_16", "l_32", "h_14")), (224,)),
    **dict.fromkeys((f"timm/{name}" for name in ("visformer_tiny", "levit_128s")), (224,)),
    **dict.fromkeys(
        (f"timm/{name}" for name in ("lambda_resnet26t", "halonet26t", "bat_resnext26ts")), (256,)
    ),
    **dict.fromkeys(
        (
            f"timm/{name}"
            for name in ("inception_v3", "inception_v4", "inception_resnet_v2", "legacy_xception")
        ),
        (96, 139),
    ),
    **dict.fromkeys((f"timm/{name}" for name in ("nasnetalarge", "pnasnet5large")), (96, 139)),
}


@dataclass(frozen=True)
class Entry:
    """A network by name, without weights from elsewhere."""

    name: str  # library/model
    make: Callable[[], nn.Module]
    sizes: tuple[int, ...]


def _torchvision(name: str) -> nn.Module:
    import torchvision

    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **quick)


def _timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def torchvision_entries() -> list[Entry]:
    """Every classification network."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    return [_entry("torchvision", name, _torchvision) for name in names]


def timm_entries() -> list[Entry]:
    return [_entry("timm", name, _timm) for name in TIMM]


def entry(full_name: str) -> Entry:
    library, name = full_name.split("/")
    return _entry(library, name, {"torchvision": _torchvision, "timm": _timm}[library])


def _entry(library: str, name: str, make: Callable[[str], nn.Module]) -> Entry:
    full = f"{library}/{name}"
    return Entry(full, lambda: make(name), FIXED.get(full, SIZES))


def unlike_images(size: int) -> torch.Tensor:
    """Three images with little in common: noise, stripes under a ramp, bright spots on black."""
    generator = torch.Generator().manual_seed(size)
    noise = torch.randn(3, size, size, generator=generator)
    rows = torch.linspace(-2, 2, size).view(1, -1, 1)
    stripes = torch.sin(torch.arange(size) * 0.7).view(1, 1, -1) * torch.tensor([1.5, -1.0, 0.5]).view(
        3, 1, 1
    )
    spots = (torch.rand(3, size, size, generator=generator) > 0.97).float() * 4 - 0.5
    return torch.stack([noise, rows + stripes, spots])
